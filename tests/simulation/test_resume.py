"""What a lost session leaves is gone on with: only the rest crosses the wire, and nothing is wrong.

The oracle is independent of the protocol's digests: bytes are compared with bytes.
"""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from fakes import FaultyDatastore, FaultyImage, World, world
from network import Faults
from test_in_process_transfers import MIB, only, padded, published, run, send, until

from flatship_protocol.errors import ConnectionLost, DatastoreError, ErrorCode, TransferError
from flatship_protocol.extents import Extent, ExtentKind
from flatship_protocol.messages import DiskProven, EndPass, Held, Message
from flatship_receiver.journal import ImageState, Journal, JournalError
from flatship_sender.client import Client
from flatship_sender.pipeline import Transfer
from flatship_sender.progress import TransferState
from flatship_sender.sources.memory import MemorySource

SIZE = 24 * MIB + 512
CHUNKS = 25


def data(seed: int = 1) -> bytes:
    """Random chunks, with a zero chunk here and there."""
    random = Random(seed)
    held = bytearray(random.randbytes(SIZE))
    for index in (3, 4, 11, 17):
        held[index * MIB : (index + 1) * MIB] = bytes(MIB)
    return bytes(held)


async def interrupted(at: World, source: MemorySource, *, epoch: int = 1, stored: int = 4) -> int:
    """Send until some chunks were acknowledged, then lose the session; bytes acknowledged."""
    transfer, client = at.sending([source], epoch=epoch)
    running = asyncio.create_task(transfer.run(client, 2))
    await until(lambda: only(transfer).acked >= stored * MIB or running.done())
    for stream in at.streams:
        stream.close()
    with pytest.raises(TransferError):
        await running
    await at.receiving.wait()
    return only(transfer).acked


def slow(number: int) -> Faults:
    """The first session's links stop before the disk is over; later ones are sound."""
    return Faults(stall_after=7 * MIB) if number < 2 else Faults()


async def resumed(at: World, source: MemorySource, epoch: int = 2) -> tuple[Transfer, list[Held]]:
    heard: list[Held] = []

    def hear(message: Message) -> Message:
        if isinstance(message, Held):
            heard.append(message)
        return message

    done = await send(at, source, epoch=epoch, hear=hear)
    return done, heard


def test_only_what_was_not_acknowledged_is_sent_again(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=slow) as at:
            acknowledged = await interrupted(at, MemorySource(data()))
            assert not store.memory.disks
            done, heard = await resumed(at, MemorySource(data()))
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).held >= acknowledged
            assert only(done).held + only(done).sent + only(done).skipped == SIZE
            assert [message.last for message in heard] == [False] * (len(heard) - 1) + [True]

    run(scenario)
    assert published(store, "web") == padded(data())
    offsets = [offset for what, offset, _ in store.log if what == "write"]
    assert len(offsets) < CHUNKS + 8  # what was on its way when the session was lost comes twice


def test_a_restarted_receiver_goes_on_from_its_journal(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    async def before() -> None:
        async with world(tmp_path, store, to_receiver=slow) as at:
            await interrupted(at, MemorySource(data()))

    async def after() -> None:
        async with world(tmp_path, store) as at:
            done, _ = await resumed(at, MemorySource(data()))
            assert only(done).held >= 4 * MIB

    run(before)
    run(after)
    assert published(store, "web") == padded(data())


def test_a_source_that_changed_meanwhile_has_its_changed_chunks_sent(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    changed = bytearray(data())
    changed[5] ^= 1  # in chunk 0
    changed[3 * MIB + 9] = 7  # a chunk that was zeros
    changed[MIB : 2 * MIB] = bytes(MIB)  # one that becomes zeros

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=slow) as at:
            await interrupted(at, MemorySource(data()), stored=6)
            done, heard = await resumed(at, MemorySource(bytes(changed)))
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).held > 0
            known = {
                index
                for message in heard
                for index in range(message.first, message.first + message.count)
            }
            assert only(done).changed == len(known & {0, 1, 3}) * MIB > 0

    run(scenario)
    assert published(store, "web") == padded(bytes(changed))


class Trimmed(MemorySource):
    """Its first three chunks have become a hole."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(0, 3 * MIB, ExtentKind.HOLE)
        yield Extent(3 * MIB, self.size - 3 * MIB, ExtentKind.DATA)


def test_data_that_became_a_hole_meanwhile_is_said_to_have_changed(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    trimmed = bytes(3 * MIB) + data()[3 * MIB :]

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=slow) as at:
            await interrupted(at, MemorySource(data()), stored=6)
            done, heard = await resumed(at, Trimmed(trimmed))
            known = {
                index
                for message in heard
                for index in range(message.first, message.first + message.count)
            }
            assert only(done).changed == len(known & {0, 1, 2}) * MIB > 0

    run(scenario)
    assert published(store, "web") == padded(trimmed)


def test_what_is_written_again_is_off_the_record_before_it_is_written(tmp_path: Path) -> None:
    """A, then B, then A again: a crash after B was written must not leave A on record."""
    store = FaultyDatastore(1 << 30)
    other = data(2)

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=slow) as at:
            await interrupted(at, MemorySource(data()), stored=6)
            written = len(store.log)
            # Whatever is acknowledged, the second session is lost after its first writes.
            transfer, client = at.sending([MemorySource(other)], epoch=2)
            running = asyncio.create_task(transfer.run(client, 1))
            await until(lambda: any(what == "write" for what, *_ in store.log[written:]))
            record = await at.journal.run(Journal.resumable, "ssd", "web", "web")
            assert record is not None
            rewritten = {offset for what, offset, _ in store.log[written:] if what == "write"}
            held = [
                (first * MIB, digests)
                for first, count, digests in await at.journal.run(Journal.held_in, record.uuid, 0)
                if digests is not None
                for first in range(first, first + count)
            ]
            flushed = any(what == "flush" for what, *_ in store.log[written:])
            assert flushed or not rewritten & {offset for offset, _ in held}
            for stream in at.streams:
                stream.close()
            with pytest.raises(TransferError):
                await running
            await at.receiving.wait()
            done, _ = await resumed(at, MemorySource(data()), epoch=3)
            assert only(done).state is TransferState.PUBLISHED

    run(scenario)
    assert published(store, "web") == padded(data())


def test_a_datastore_that_lost_what_is_on_record_starts_over(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=slow) as at:
            await interrupted(at, MemorySource(data()))
            (_, disk) = store.memory._kept["web", "web"]
            disk.zero(0, SIZE // MIB * MIB)
            done, heard = await resumed(at, MemorySource(data()))
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).held == 0
            assert heard == [Held(0, 1, 0, 0, b"", last=True)]

    run(scenario)
    assert published(store, "web") == padded(data())


def test_one_lost_chunk_that_the_sample_misses_is_never_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatship_receiver.target.are_on_medium", lambda *_: True)
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=slow) as at:
            await interrupted(at, MemorySource(data()))
            (_, disk) = store.memory._kept["web", "web"]
            disk.zero(0, MIB)
            done, _ = await resumed(at, MemorySource(data()))
            assert only(done).error_code is ErrorCode.PROOF_FAILED
            assert not store.memory.disks
            done, _ = await resumed(at, MemorySource(data()), epoch=3)
            assert only(done).state is TransferState.PUBLISHED

    run(scenario)
    assert published(store, "web") == padded(data())


@pytest.mark.parametrize("what", ["another source", "another size", "another provisioning"])
def test_another_disk_of_that_name_starts_over(tmp_path: Path, what: str) -> None:
    from flatship_protocol.messages import Provisioning

    store = FaultyDatastore(1 << 30)
    wanted = data() + bytes(512) if what == "another size" else data()
    name = "other" if what == "another source" else "memory"
    kind = Provisioning.THICK if what == "another provisioning" else Provisioning.THIN

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=slow) as at:
            await interrupted(at, MemorySource(data(), name="memory"))
            done = await send(at, MemorySource(wanted, name=name), epoch=2, provisioning=kind)
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).held == 0
            states = [image.state for image in await at.journal.run(Journal.images)]
            assert states == [ImageState.COMPLETE]

    run(scenario)
    assert published(store, "web") == padded(wanted)


@pytest.mark.parametrize("power", ["stays", "fails"])
@pytest.mark.parametrize("seed", range(12))
def test_sessions_lost_again_and_again_come_to_an_end(
    tmp_path: Path, seed: int, power: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any order of writes, and what was not flushed lost; the proof finds no fault."""
    random = Random(seed)
    store = FaultyDatastore(1 << 30)
    store.volatile = power == "fails"
    # No sample: what is on record must be there without anybody having a look.
    monkeypatch.setattr("flatship_receiver.target.are_on_medium", lambda *_: True)
    source = bytearray(data(seed))

    async def attempt(epoch: int) -> bool:
        cut = random.randrange(100, 9 * MIB)
        async with world(
            tmp_path,
            store,
            to_receiver=lambda _: Faults(cut_after=cut) if epoch < 6 else Faults(),
        ) as at:
            try:
                done, _ = await resumed(at, MemorySource(bytes(source)), epoch)
            except TransferError:
                return False
            assert only(done).error_code is not ErrorCode.PROOF_FAILED
            return only(done).state is TransferState.PUBLISHED

    finished = False
    for epoch in range(1, 7):
        results: list[bool] = []

        async def scenario(epoch: int = epoch, results: list[bool] = results) -> None:
            results.append(await attempt(epoch))

        run(scenario)
        if results[0]:
            finished = True
            break
        source[random.randrange(SIZE)] ^= 0xFF  # the guest ran in between
    assert finished
    assert published(store, "web") == padded(bytes(source))


def test_a_sender_that_missed_the_last_word_hears_it_again(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    def deaf(message: Message) -> Message:
        if isinstance(message, DiskProven):
            raise ConnectionLost("the link broke")
        return message

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            with pytest.raises(TransferError):
                await send(at, MemorySource(data()), hear=deaf)
            assert published(store, "web") == padded(data())
            written = len(store.log)
            done = await send(at, MemorySource(data()), epoch=2)
            assert only(done).error_code is ErrorCode.DISK_EXISTS  # who asks without doubt
            done = await send(at, MemorySource(data()), epoch=3, in_doubt=True)
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).sent == 0
            assert len(store.log) == written

    run(scenario)
    assert published(store, "web") == padded(data())


@pytest.mark.parametrize("place", [5, 3 * MIB])
def test_a_published_disk_whose_source_changed_is_not_touched(tmp_path: Path, place: int) -> None:
    store = FaultyDatastore(1 << 30)
    changed = bytearray(data())
    changed[place] ^= 1

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await send(at, MemorySource(data()))
            done = await send(at, MemorySource(bytes(changed)), epoch=2, in_doubt=True)
            assert only(done).error_code is ErrorCode.DISK_EXISTS

    run(scenario)
    assert published(store, "web") == padded(data())


def test_a_disk_that_was_published_and_is_gone_is_sent_anew(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await send(at, MemorySource(data()))
            store.memory._disks.clear()
            done = await send(at, MemorySource(data()), epoch=2, in_doubt=True)
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).held == 0

    run(scenario)
    assert published(store, "web") == padded(data())


def test_after_a_live_pass_only_what_changed_is_sent(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    changed = bytearray(data())
    changed[7 * MIB] ^= 1

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, MemorySource(data()), live=True)
            assert only(done).state is TransferState.UNPUBLISHED
            assert not store.memory.disks
            done, _ = await resumed(at, MemorySource(bytes(changed)))
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).sent == MIB

    run(scenario)
    assert published(store, "web") == padded(bytes(changed))


def test_nothing_is_on_record_before_it_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FaultyDatastore(1 << 30)
    store.volatile = True  # keeps account of what is not flushed
    flush = FaultyImage.flush
    looks: list[set[int]] = []

    def on_record() -> set[int]:
        with closing(Journal.open_read_only(tmp_path)) as journal:
            (image,) = journal.images()
            return {
                chunk
                for number in journal.held_segments(image.uuid)
                for first, count, _ in journal.held_in(image.uuid, number)
                for chunk in range(first, first + count)
            }

    def looking(image: FaultyImage) -> None:
        unflushed = {offset // MIB for offset, _ in image._unflushed}
        looks.append(unflushed & on_record())
        flush(image)
        looks.append(unflushed & on_record())

    monkeypatch.setattr(FaultyImage, "flush", looking)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, MemorySource(data()))
            assert only(done).state is TransferState.PUBLISHED

    run(scenario)
    assert len(looks) >= 2
    assert not any(looks)


def test_an_attempt_that_is_refused_costs_what_is_incomplete_nothing(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)

    def refuse(_: object) -> None:
        raise DatastoreError("another transfer is writing it", ErrorCode.DISK_BUSY)

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=slow) as at:
            acknowledged = await interrupted(at, MemorySource(data()))
            store.check = refuse
            done = await send(at, MemorySource(data(), name="other"), epoch=2)
            assert only(done).error_code is ErrorCode.DISK_BUSY
            done, _ = await resumed(at, MemorySource(data()), epoch=3)
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).held >= acknowledged

    run(scenario)
    assert published(store, "web") == padded(data())


# A disk that failed at the receiver


def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flush often enough for a small disk to have something on record early."""
    monkeypatch.setattr("flatship_receiver.pipeline.FLUSH_BYTES", 4 * MIB)


@pytest.mark.parametrize("what", ["write", "flush", "space", "record"])
def test_a_medium_that_fails_costs_what_was_not_flushed_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    often(monkeypatch)
    store = FaultyDatastore(13 * MIB if what == "space" else 1 << 30)
    store.volatile = what != "space"
    store.fail_write = 14 if what == "write" else 0
    store.fail_flush = 2 if what == "flush" else 0
    hold, held = Journal.hold, []

    def full(journal: Journal, *arguments: object) -> None:
        held.append(arguments)
        if what == "record" and len(held) == 2:
            raise JournalError("no space is left for the journal")
        hold(journal, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "hold", full)
    codes = {"space": ErrorCode.DATASTORE_FULL, "record": ErrorCode.INTERNAL}

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, MemorySource(data()))
            assert only(done).error_code is codes.get(what, ErrorCode.WRITE_FAILED)
            acknowledged = only(done).acked
            if what == "space":  # there is none yet: what is held stays all the same
                done = await send(at, MemorySource(data()), epoch=2)
                assert only(done).error_code is ErrorCode.DATASTORE_FULL
                store.memory._size = 1 << 30
            done, _ = await resumed(at, MemorySource(data()), epoch=3)
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).held >= max(acknowledged, 4 * MIB)

    run(scenario)
    assert published(store, "web") == padded(data())


def test_a_publication_that_fails_costs_nothing(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    store.fail_commit = 1

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, MemorySource(data()))
            assert only(done).error_code is ErrorCode.WRITE_FAILED
            assert not store.memory.disks
            done, _ = await resumed(at, MemorySource(data()))
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).sent == 0

    run(scenario)
    assert published(store, "web") == padded(data())


def test_a_record_that_cannot_be_read_costs_what_is_incomplete_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FaultyDatastore(1 << 30)

    def unreadable(*_: object) -> None:
        raise JournalError("disk I/O error")

    async def scenario() -> None:
        async with world(tmp_path, store, to_receiver=slow) as at:
            acknowledged = await interrupted(at, MemorySource(data()))
            with monkeypatch.context() as patched:
                patched.setattr(Journal, "held_segments", unreadable)
                done = await send(at, MemorySource(data()), epoch=2)
                assert only(done).error_code is ErrorCode.INTERNAL
            done, _ = await resumed(at, MemorySource(data()), epoch=3)
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).held >= acknowledged

    run(scenario)
    assert published(store, "web") == padded(data())


def test_a_target_that_cannot_be_read_for_its_proof_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often(monkeypatch)
    store = FaultyDatastore(1 << 30)
    store.fail_read = 1

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await send(at, MemorySource(data()))
            assert only(done).error_code is ErrorCode.WRITE_FAILED
            done, _ = await resumed(at, MemorySource(data()))
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).held == 0

    run(scenario)
    assert published(store, "web") == padded(data())


def test_the_end_waits_for_zeros_that_take_the_place_of_what_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another connection the end could overtake them, and nobody would miss them."""
    store = FaultyDatastore(1 << 30)
    changed = bytearray(data())
    changed[7 * MIB : 8 * MIB] = bytes(MIB)
    unacknowledged: list[int] = []
    say = Client.send

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await send(at, MemorySource(data()), live=True)
            transfer, client = at.sending([MemorySource(bytes(changed))], epoch=2)

            async def watched(client: Client, message: Message) -> None:
                if isinstance(message, EndPass):
                    unacknowledged.append(transfer.session.disks[0].zeros.total)
                await say(client, message)

            monkeypatch.setattr(Client, "send", watched)
            await transfer.run(client, 2)
            assert only(transfer).state is TransferState.PUBLISHED

    run(scenario)
    assert unacknowledged == [0]
    assert published(store, "web") == padded(bytes(changed))
