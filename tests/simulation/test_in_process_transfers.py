"""Whole transfers in one event loop: both ends' real code over links and stores that fail.

The oracle is independent of the protocol's digests: bytes are compared with bytes.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from fakes import FaultyDatastore, World, world
from network import Faults

from flatship_protocol.connection import Connection
from flatship_protocol.constants import CHUNK_SIZE, MAX_DISK_SIZE
from flatship_protocol.digest import Manifest, chunk_digest
from flatship_protocol.errors import ConnectionLost, ErrorCode, TransferError
from flatship_protocol.messages import (
    Abandon,
    Adapter,
    Chunk,
    Codec,
    DiskFailed,
    DiskFormat,
    DiskOpened,
    DiskProven,
    EndPass,
    Error,
    Message,
    OpenDisk,
    Ping,
    Pong,
    Provisioning,
    Stored,
    decode,
    encode,
)
from flatship_sender.pipeline import Transfer
from flatship_sender.progress import DiskProgress, TransferState
from flatship_sender.refusals import RefusedByReceiver
from flatship_sender.sources.memory import MemorySource

MIB = CHUNK_SIZE
PATIENCE = 10.0  # seconds; a test that takes so long hangs


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await scenario()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # threads, and code that knows no events, make it true
        await asyncio.sleep(0.001)


def content(seed: int, size: int) -> bytes:
    """A disk of text-like, random, and zero stretches, of page granularity and odd ends."""
    random = Random(seed)
    data = bytearray()
    while len(data) < size:
        length = random.choice((512, 4096, 20_480, 300_000, 2_000_000))
        kind = random.randrange(3)
        if kind == 0:
            data += bytes(length)
        elif kind == 1:
            data += random.randbytes(length)
        else:
            data += (random.randbytes(40) * (length // 40 + 1))[:length]
    return bytes(data[:size])


def published(store: FaultyDatastore, name: str, vm: str = "web") -> bytes:
    disk = store.memory.disks[vm, name]
    return disk.content.read(0, disk.content.capacity)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % MIB)


async def send(
    at: World, *sources: MemorySource, connections: int = 2, **options: object
) -> Transfer:
    transfer, client = at.sending(sources, **options)  # type: ignore[arg-type]
    await transfer.run(client, connections)
    assert transfer.session.outstanding == 0
    assert transfer.frames.in_use == 0
    return transfer


def only(transfer: Transfer) -> DiskProgress:
    (disk,) = transfer.progress.disks
    return disk


@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("compression", ["off", 1])
@pytest.mark.parametrize("size", [512, 4096, MIB, MIB + 512, 5 * MIB + 4096 + 1024])
def test_a_disk_arrives_byte_for_byte(
    tmp_path: Path, connections: int, compression: str | int, size: int
) -> None:
    data = content(size, size)
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(
                at, MemorySource(data), connections=connections, compression=compression
            )
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).acked == only(done).sent

    run(scenario)
    assert published(store, "web") == padded(data)


def test_an_empty_disk_of_terabytes_takes_one_message_and_no_space(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, MemorySource({}, size=8 << 40))
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).read == 0

    run(scenario)
    assert store.memory.disks["web", "web"].content.allocated == 0


@pytest.mark.parametrize("seed", range(6))
def test_reads_and_writes_split_anywhere_change_nothing(tmp_path: Path, seed: int) -> None:
    store = FaultyDatastore(1 << 30)
    disks = [content(seed * 3 + number, 3 * MIB + 512 * number) for number in range(3)]

    def fragmenting(number: int) -> Faults:
        return Faults(fragments=Random(seed * 100 + number))

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=fragmenting, to_sender=fragmenting) as at:
            sources = [MemorySource(data, name=str(n)) for n, data in enumerate(disks)]
            done = await send(at, *sources, connections=3, compression="auto")
            assert {disk.state for disk in done.progress.disks} == {TransferState.PUBLISHED}

    run(scenario)
    for name, data in zip(("web", "web_1", "web_2"), disks, strict=True):
        assert published(store, name) == padded(data)


@pytest.mark.parametrize("provisioning", list(Provisioning))
def test_every_provisioning_arrives(tmp_path: Path, provisioning: Provisioning) -> None:
    store = FaultyDatastore(1 << 30)
    data = content(7, 3 * MIB + 512)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, MemorySource(data), provisioning=provisioning)
            assert only(done).state is TransferState.PUBLISHED

    run(scenario)
    assert published(store, "web") == padded(data)


def test_few_frames_and_many_connections_do_not_deadlock(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    data = content(3, 12 * MIB)

    async def scenario() -> None:
        async with world(tmp_path, store, frames=1) as at:
            await send(at, MemorySource(data), connections=8)

    run(scenario)
    assert published(store, "web") == padded(data)


def test_a_failing_source_fails_its_disk_and_no_other(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    good = content(1, 6 * MIB)
    bad = MemorySource(content(2, 6 * MIB), name="bad")
    bad.fail_at(3 * MIB + 700)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, bad, MemorySource(good))
            first, second = done.progress.disks
            assert first.state is TransferState.FAILED
            assert first.error_code is ErrorCode.SOURCE_FAILED
            assert second.state is TransferState.PUBLISHED

    run(scenario)
    assert set(store.memory.disks) == {("web", "web_1")}
    assert published(store, "web_1") == good


def test_a_source_that_becomes_busy_is_never_published(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    source = MemorySource(content(4, 2 * MIB))
    source.become_busy("qemu (pid 812)")

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, source)
            assert only(done).state is TransferState.FAILED
            assert only(done).exit_code == 11

    run(scenario)
    assert not store.memory.disks


def test_a_live_source_is_proven_and_not_published(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    source = MemorySource(content(4, 2 * MIB))
    source.become_busy("qemu (pid 812)")

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            assert only(await send(at, source, live=True)).state is TransferState.UNPUBLISHED

    run(scenario)
    assert not store.memory.disks


def test_a_dry_run_creates_nothing(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, MemorySource(content(4, 2 * MIB)), dry_run=True)
            assert only(done).state is TransferState.UNPUBLISHED
            assert only(done).read == 0

    run(scenario)
    assert not store.log
    assert not store.memory.disks


def test_a_full_datastore_fails_the_disk_that_does_not_fit_and_takes_another_in_its_place(
    tmp_path: Path,
) -> None:
    store = FaultyDatastore(6 * MIB)
    small, large = content(1, 2 * MIB), Random(5).randbytes(12 * MIB)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, MemorySource(large), connections=1)
            assert only(done).error_code is ErrorCode.DATASTORE_FULL
        async with world(tmp_path, store) as at:
            done = await send(at, MemorySource(small), epoch=2)
            assert only(done).state is TransferState.PUBLISHED

    run(scenario)
    assert published(store, "web") == small


def test_a_failed_flush_fails_the_disk_and_acknowledges_nothing_it_covered(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    store.fail_flush = 1

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, MemorySource(content(6, 4 * MIB)))
            assert only(done).error_code is ErrorCode.WRITE_FAILED
            assert only(done).acked == 0

    run(scenario)
    assert [entry[0] for entry in store.log].count("flush") == 0  # and was not tried again
    assert not store.memory.disks


@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_failed_write_fails_the_disk(tmp_path: Path, call: int) -> None:
    store = FaultyDatastore(1 << 30)
    store.fail_write = call

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, MemorySource(Random(1).randbytes(8 * MIB)))
            assert only(done).error_code is ErrorCode.WRITE_FAILED

    run(scenario)
    assert not store.memory.disks


def test_a_target_that_rots_is_not_published(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    store.rot = 2 * MIB + 77

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, MemorySource(Random(1).randbytes(4 * MIB)))
            assert only(done).error_code is ErrorCode.PROOF_FAILED
            assert "2097152" in str(only(done).error)

    run(scenario)
    assert not store.memory.disks


@pytest.mark.parametrize("offset", [0, 100, 300, MIB // 2, 2 * MIB + 17])
def test_a_flipped_bit_ends_the_session_and_publishes_nothing(tmp_path: Path, offset: int) -> None:
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=lambda _: Faults(flip_at=offset)) as at:
            with pytest.raises(TransferError):
                await send(at, MemorySource(Random(1).randbytes(4 * MIB)), connections=1)

    run(scenario)
    assert not store.memory.disks


@pytest.mark.parametrize("after", [8, 184, 300, 400, 70_000, MIB, 3 * MIB + 5, 6 * MIB])
def test_a_cut_link_ends_the_transfer_and_publishes_nothing(tmp_path: Path, after: int) -> None:
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=lambda _: Faults(cut_after=after)) as at:
            with pytest.raises(TransferError):
                await send(at, MemorySource(Random(1).randbytes(16 * MIB)))

    run(scenario)
    assert not store.memory.disks


@pytest.mark.parametrize("after", [8, 72, 100, 200, 300])
def test_a_link_cut_on_the_way_back_leaves_nothing_behind(tmp_path: Path, after: int) -> None:
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store, to_sender=lambda _: Faults(cut_after=after)) as at:
            with pytest.raises(TransferError):
                await send(at, MemorySource(Random(1).randbytes(16 * MIB)))

    run(scenario)
    assert not store.memory.disks


def test_a_lost_connection_ends_the_transfer_though_another_one_stalls(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    def faults(number: int) -> Faults:
        return Faults(stall_after=2 * MIB) if number == 0 else Faults(cut_after=MIB)

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=faults) as at:
            with pytest.raises(ConnectionLost):
                await send(at, MemorySource(Random(1).randbytes(16 * MIB)))

    run(scenario)


def test_a_cancelled_transfer_ends_though_its_link_stalls(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=lambda _: Faults(stall_after=2 * MIB)) as at:
            source = MemorySource(Random(1).randbytes(16 * MIB))
            running = asyncio.create_task(send(at, source))
            await until(lambda: source.bytes_read >= 8 * MIB)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    run(scenario)


def test_a_stopped_transfer_abandons_its_disks_in_order(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            source = MemorySource(Random(1).randbytes(64 * MIB))
            transfer, client = at.sending([source])
            running = asyncio.create_task(transfer.run(client, 2))
            await until(lambda: source.bytes_read > 0)
            transfer.stop()
            await running
            assert only(transfer).state is TransferState.CANCELLED
            assert only(transfer).exit_code == 130
            assert transfer.session.outstanding == 0

    run(scenario)
    assert "abort" not in {what for what, *_ in store.log}  # the same command goes on from here
    assert not store.memory.disks


def test_a_new_epoch_takes_over_from_a_sender_that_hangs(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    data = content(9, 4 * MIB)

    def faults(number: int) -> Faults:
        return Faults(stall_after=MIB) if number < 2 else Faults()

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=faults) as at:
            first = asyncio.create_task(send(at, MemorySource(Random(1).randbytes(16 * MIB))))
            await until(lambda: len(at.streams) == 2)
            done = await send(at, MemorySource(data), epoch=2)
            assert only(done).state is TransferState.PUBLISHED
            with pytest.raises(RefusedByReceiver) as refused:
                await first
            assert refused.value.code is ErrorCode.STALE_EPOCH

    run(scenario)
    assert published(store, "web") == data


def test_an_epoch_that_is_over_is_refused(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await send(at, MemorySource(content(1, MIB)), epoch=5)
            for epoch in (4, 5):
                with pytest.raises(RefusedByReceiver) as refused:
                    await send(at, MemorySource(content(2, MIB)), epoch=epoch)
                assert refused.value.code is ErrorCode.STALE_EPOCH

    run(scenario)


def test_a_receiver_that_shuts_down_says_so_and_lets_go_of_its_disks(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            source = MemorySource(Random(1).randbytes(64 * MIB))
            running = asyncio.create_task(send(at, source, connections=3))
            await until(lambda: bool(store.log))
            await at.receiving.sessions.close(ErrorCode.SHUTTING_DOWN)
            with pytest.raises(RefusedByReceiver) as refused:
                await running
            assert refused.value.code is ErrorCode.SHUTTING_DOWN

    run(scenario)
    assert "abort" not in {what for what, *_ in store.log}
    assert not store.memory.disks


def test_an_existing_disk_is_refused_and_replaced_only_when_asked(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    old, new = content(1, 2 * MIB), content(2, 3 * MIB)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await send(at, MemorySource(old))
            done = await send(at, MemorySource(new), epoch=2)
            assert only(done).error_code is ErrorCode.DISK_EXISTS
            assert published(store, "web") == old
            done = await send(at, MemorySource(new), epoch=3, replace=True)
            assert only(done).state is TransferState.PUBLISHED

    run(scenario)
    assert published(store, "web") == new


def test_a_failed_disk_gives_its_credit_back_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatship_receiver.session.CREDIT", 2 * MIB)
    store = FaultyDatastore(1 << 30)
    bad = MemorySource(Random(2).randbytes(6 * MIB), name="bad")
    bad.fail_at(MIB)
    good = content(1, 8 * MIB)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, bad, MemorySource(good))
            assert [disk.state for disk in done.progress.disks] == [
                TransferState.FAILED,
                TransferState.PUBLISHED,
            ]

    run(scenario)
    assert published(store, "web_1") == good


def test_an_acknowledgement_follows_a_flush_that_followed_the_write(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    heard: list[tuple[int, int]] = []

    def hear(message: Message) -> Message:
        if isinstance(message, Stored):
            for offset, length in message.ranges:
                heard.append((offset, length))
                done = [i for i, (_, at, size) in enumerate(store.log) if offset < at + size]
                wrote = [i for i in done if store.log[i][1] < offset + length]
                assert wrote
                assert any(entry[0] == "flush" for entry in store.log[max(wrote) :])
        return message

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, client = at.sending([MemorySource(content(8, 6 * MIB))], hear=hear)
            await transfer.run(client, 3)
            assert only(transfer).state is TransferState.PUBLISHED

    run(scenario)
    assert heard


def test_a_receiver_that_proved_something_else_is_not_believed(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    def hear(message: Message) -> Message:
        if isinstance(message, DiskProven):
            return replace(message, root_digest=bytes(32))
        return message

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, client = at.sending([MemorySource(content(8, MIB))], hear=hear)
            await transfer.run(client, 1)
            assert only(transfer).state is TransferState.FAILED
            assert "root digest differs" in str(only(transfer).error)

    run(scenario)


def test_a_disk_that_fails_while_its_last_check_runs_fails_alone(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    store.fail_flush = 1
    failed = threading.Event()

    class Slow(MemorySource):
        def still_quiet(self) -> None:
            assert failed.wait(5)

    def hear(message: Message) -> Message:
        if isinstance(message, DiskFailed):
            failed.set()
        return message

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, client = at.sending([Slow(content(8, MIB))], hear=hear)
            await transfer.run(client, 1)
            assert only(transfer).error_code is ErrorCode.WRITE_FAILED

    run(scenario)


# Senders that break the protocol


def opening(size: int = MIB, disk: int = 0, datastore: str = "") -> OpenDisk:
    source = MemorySource({}, size=512)
    return OpenDisk(
        disk,
        1,
        size,
        0,
        source.identity,
        DiskFormat.VMFS,
        Provisioning.THIN,
        Adapter.LSILOGIC,
        21,
        datastore,
        "web",
        f"web_{disk}",
    )


def chunk(data: bytes, offset: int = 0, codec: Codec = Codec.RAW) -> Chunk:
    digest = chunk_digest(data)
    return Chunk(0, 1, offset, len(data), codec, len(data), digest, (), memoryview(data))


async def answer(connection: Connection, *wanted: type[Message]) -> Message:
    """The first message of one of these types."""
    buffer = memoryview(bytearray(32 * 1024))
    while True:
        size = await connection.receive_body(await connection.receive_header(), buffer)
        _, message = decode(buffer[:size])
        if isinstance(message, wanted):
            return message


def told(tmp_path: Path, *messages: Message, wanted: type[Message]) -> Message:
    """What the receiver answers to a sender that says just this."""
    answers: list[Message] = []
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            connection, _ = await at.connect()
            for message in messages:
                await connection.send(encode(message, 1))
                if isinstance(message, OpenDisk):
                    await answer(connection, DiskOpened, DiskFailed)
            answers.append(await answer(connection, wanted))
            connection.close()

    run(scenario)
    assert not store.memory.disks
    return answers[0]


def test_a_root_digest_that_is_not_that_of_what_came_fails_the_disk(tmp_path: Path) -> None:
    failed = told(
        tmp_path,
        opening(),
        chunk(b"x" * MIB),
        EndPass(0, 1, 1, bytes(32)),
        wanted=DiskFailed,
    )
    assert isinstance(failed, DiskFailed)
    assert failed.code is ErrorCode.ROOT_MISMATCH


def test_a_count_of_chunks_that_is_not_that_of_what_came_fails_the_disk(tmp_path: Path) -> None:
    manifest = Manifest(MIB)
    manifest.set_chunk(0, chunk_digest(b"x" * MIB))
    end = EndPass(0, 1, 2, manifest.root())
    failed = told(tmp_path, opening(), chunk(b"x" * MIB), end, wanted=DiskFailed)
    assert isinstance(failed, DiskFailed)
    assert failed.code is ErrorCode.PASS_INCOMPLETE


def test_a_chunk_with_another_digest_fails_the_disk_and_is_not_written(tmp_path: Path) -> None:
    wrong = replace(chunk(b"x" * MIB), digest=bytes(32))
    failed = told(tmp_path, opening(), wrong, wanted=DiskFailed)
    assert isinstance(failed, DiskFailed)
    assert (failed.code, failed.numbers) == (ErrorCode.DIGEST_MISMATCH, (0, 0))


def test_a_payload_that_does_not_decode_fails_the_disk_and_ends_the_connection(
    tmp_path: Path,
) -> None:
    wrong = chunk(b"x" * MIB, codec=Codec.ZSTD)
    failed = told(tmp_path / "1", opening(), wrong, wanted=DiskFailed)
    assert isinstance(failed, DiskFailed)
    error = told(tmp_path / "2", opening(), wrong, wanted=Error)
    assert isinstance(error, Error)
    assert error.code is failed.code is ErrorCode.MALFORMED


@pytest.mark.parametrize("size", [0, 63 << 40, (1 << 64) - 512])
def test_a_disk_of_absurd_size_is_refused_before_memory_is_taken_for_it(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Measured(Manifest):
        def __init__(self, size: int) -> None:
            sizes.append(size)
            super().__init__(min(size, MAX_DISK_SIZE))

    monkeypatch.setattr("flatship_receiver.pipeline.Manifest", Measured)
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            connection, _ = await at.connect()
            await connection.send(encode(opening(size), 1))
            failed = await answer(connection, DiskFailed)
            assert isinstance(failed, DiskFailed)
            assert failed.code is ErrorCode.SIZE_REFUSED
            connection.close()

    run(scenario)
    assert all(size <= MAX_DISK_SIZE for size in sizes)


def test_giving_up_a_disk_that_was_just_refused_harms_no_other(tmp_path: Path) -> None:
    refused = opening(datastore="unknown")
    abandon = Abandon(0, 1, ErrorCode.CANCELLED)
    pong = told(tmp_path, refused, abandon, Ping(7), wanted=Pong)
    assert pong == Pong(7)
