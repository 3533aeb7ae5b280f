"""A second pass sends the pages that changed, and never takes anybody's word for the others.

The oracle is independent of digests and fingerprints: bytes are compared with bytes, and
what crossed the wire is counted where it crossed it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from fakes import FaultyDatastore, FaultyImage, World, world
from network import Faults
from test_in_process_transfers import MIB, only, padded, published, run, send, until

from flatship_protocol.constants import PAGE_SIZE
from flatship_protocol.errors import DatastoreError, ErrorCode, TransferError
from flatship_protocol.messages import Capability, Message, Want
from flatship_receiver.datastores.memory import MemoryDisk
from flatship_receiver.journal import Journal
from flatship_sender.disk_memory import DiskMemory
from flatship_sender.page_index import PageIndex
from flatship_sender.page_indexes import FOLDER, PageIndexes, Place
from flatship_sender.page_slots import Slot
from flatship_sender.pipeline import Transfer
from flatship_sender.progress import TransferState
from flatship_sender.sources.memory import MemorySource

SIZE = 24 * MIB + 512


def data(seed: int = 1) -> bytes:
    """Random chunks, with a zero chunk here and there, and a short page at the end."""
    random = Random(seed)
    held = bytearray(random.randbytes(SIZE))
    for index in (3, 4, 11, 17):
        held[index * MIB : (index + 1) * MIB] = bytes(MIB)
    return bytes(held)


def scattered(disk: bytes, pages: int, seed: int = 1) -> tuple[bytes, int]:
    """The disk with so many pages changed, of those that hold data; and how many bytes that is."""
    random = Random(seed)
    changed = bytearray(disk)
    numbers = random.sample(
        [page for page in range(-(-SIZE // PAGE_SIZE)) if any(disk[page << 12 : page + 1 << 12])],
        pages,
    )
    for page in numbers:
        end = min((page + 1) * PAGE_SIZE, SIZE)
        changed[page * PAGE_SIZE : end] = random.randbytes(end - page * PAGE_SIZE)
    return bytes(changed), sum(min(PAGE_SIZE, SIZE - page * PAGE_SIZE) for page in numbers)


@contextmanager
def memory_of(folder: Path, source: MemorySource) -> Iterator[DiskMemory]:
    """What is known of the disk, as a command of its own opens it."""
    indexes = PageIndexes(folder)
    memory = DiskMemory(indexes, Place(bytes(32), "", "web", "web"), source.size)
    with closing(indexes), closing(memory):
        yield memory


async def passed(
    at: World, folder: Path, disk: bytes, epoch: int, *, live: bool = False, **options: object
) -> Transfer:
    """One pass over a disk, by a command with the state in ``folder``."""
    source = MemorySource(disk)
    with memory_of(folder, source) as memory:
        return await send(at, source, epoch=epoch, live=live, memories=[memory], **options)


def test_a_pass_after_a_live_one_sends_hardly_more_than_what_changed(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    pages = SIZE // PAGE_SIZE // 100
    changed, size = scattered(data(), pages)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await passed(at, tmp_path, data(), 1, live=True)
            assert only(done).state is TransferState.UNPUBLISHED
            done = await passed(at, tmp_path, changed, 2)
            assert only(done).state is TransferState.PUBLISHED
            assert done.progress.wire <= 1.15 * size + 2048
            assert only(done).literal == size
            assert only(done).changed - only(done).kept == size
            assert only(done).wanted == 0

    run(scenario)
    assert published(store, "web") == padded(changed)
    assert len(list((tmp_path / FOLDER).glob("*.index"))) == 1  # others may copy from it


def test_without_an_index_whole_chunks_are_sent(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    changed, _ = scattered(data(), 5)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await passed(at, tmp_path, data(), 1, live=True)
            done = await send(at, MemorySource(changed), epoch=2)
            assert only(done).kept == 0
            assert only(done).sent == only(done).changed > 0

    run(scenario)
    assert published(store, "web") == padded(changed)


@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_with_an_older_peer_whole_chunks_are_sent(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = {"sender": "flatship_sender.connecting", "receiver": "flatship_receiver.session"}[end]
    store = FaultyDatastore(1 << 30)
    changed, _ = scattered(data(), 5)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await passed(at, tmp_path, data(), 1, live=True)
            monkeypatch.setattr(f"{older}.CAPABILITIES", Capability.RESUME)
            done = await passed(at, tmp_path, changed, 2)
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).kept == 0

    run(scenario)
    assert published(store, "web") == padded(changed)


def test_live_pass_after_live_pass_sends_what_changed_since_the_one_before(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    disk = data()

    async def scenario() -> None:
        nonlocal disk
        async with world(tmp_path, store) as at:
            await passed(at, tmp_path, disk, 1, live=True)
            for epoch in range(2, 6):
                disk, size = scattered(disk, 30, seed=epoch)
                done = await passed(at, tmp_path, disk, epoch, live=epoch < 5)
                assert only(done).literal == size
                assert done.progress.wire <= 1.15 * size + 2048

    run(scenario)
    assert published(store, "web") == padded(disk)


def received(store: FaultyDatastore) -> MemoryDisk:
    """What lies at the datastore, to be altered behind the receiver's back."""
    return store.memory._kept["web", "web"][1]


def altered(store: FaultyDatastore, offset: int) -> None:
    disk = received(store)
    (byte,) = disk.read(offset, 1)
    disk.write(offset, memoryview(bytes([byte ^ 1])))


@pytest.mark.parametrize("live", [False, True])
def test_a_target_that_was_altered_gets_its_chunk_whole(
    tmp_path: Path, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatship_receiver.target.are_on_medium", lambda *_: True)
    store = FaultyDatastore(1 << 30)
    changed = bytearray(data())
    for chunk in (5, 6, 9):
        changed[chunk * MIB + 9] ^= 1
    heard: list[Want] = []

    def hear(message: Message) -> Message:
        if isinstance(message, Want):
            heard.append(message)
        return message

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await passed(at, tmp_path, data(), 1, live=True)
            await at.receiving.wait()
            altered(store, 6 * MIB + 500_000)
            done = await passed(at, tmp_path, bytes(changed), 2, hear=hear, live=live)
            assert only(done).error is None
            assert [message.ranges for message in heard] == [((6 * MIB, MIB),)]
            assert only(done).wanted == 1
            assert only(done).changed == 3 * MIB
            assert only(done).kept == 2 * (MIB - PAGE_SIZE)
            assert only(done).remaining == 0
            if live:  # and what came whole is the base of the next pass
                changed[6 * MIB + 70_000] ^= 1
                done = await passed(at, tmp_path, bytes(changed), 3, hear=hear)
                assert only(done).literal == PAGE_SIZE

    run(scenario)
    assert len(heard) == 1
    assert published(store, "web") == padded(bytes(changed))


def test_an_index_that_lies_about_every_page_costs_bytes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FaultyDatastore(1 << 30)
    changed, _ = scattered(data(), 200)
    lies = Random(5)

    def lie(index: PageIndex, chunk: int, digest: bytes) -> Slot | None:
        slot = true(index, chunk, digest)
        if slot is None:
            return None
        # Of the pages that differ some pass for unchanged; now and then one that does not.
        now = index.fingerprints(memoryview(changed)[chunk * MIB : chunk * MIB + MIB])
        told = b"".join(
            (now if lies.random() < 0.5 else slot.pages)[at : at + 6]
            for at in range(0, len(now), 6)
        )
        return replace(slot, pages=told)

    true = PageIndex.recall

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await passed(at, tmp_path, data(), 1, live=True)
            monkeypatch.setattr(PageIndex, "recall", lie)
            done = await passed(at, tmp_path, changed, 2)
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).wanted > 5

    run(scenario)
    assert published(store, "web") == padded(changed)


def test_a_chunk_that_is_another_when_it_is_wanted_whole_is_the_one_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A live source goes on changing between the patch that was refused and the whole chunk."""
    monkeypatch.setattr("flatship_receiver.target.are_on_medium", lambda *_: True)
    store = FaultyDatastore(1 << 30)
    original = data()
    changed = bytearray(original)
    changed[6 * MIB + 9] ^= 1

    class Busy(MemorySource):
        """Chunk 6 is read as it was changed, and the next time as it was at first."""

        reads = 0

        def read_into(self, buffer: memoryview, offset: int) -> None:
            super().read_into(buffer, offset)
            if offset == 6 * MIB:
                self.reads += 1
                if self.reads > 1:
                    buffer[:] = original[offset : offset + len(buffer)]

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await passed(at, tmp_path, original, 1, live=True)
            await at.receiving.wait()
            altered(store, 6 * MIB + 500_000)
            source = Busy(bytes(changed))
            with memory_of(tmp_path, source) as memory:
                done = await send(at, source, epoch=2, live=True, memories=[memory])
            assert only(done).error is None
            assert (source.reads, only(done).wanted) == (2, 1)
            done = await passed(at, tmp_path, original, 3)
            assert only(done).sent == 0

    run(scenario)
    assert published(store, "web") == padded(original)


def test_a_patched_part_that_cannot_be_read_comes_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FaultyDatastore(1 << 30)
    changed, _ = scattered(data(), 5)

    def fail(*_: object) -> None:
        raise DatastoreError("the medium cannot be read", ErrorCode.WRITE_FAILED)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await passed(at, tmp_path, data(), 1, live=True)
            monkeypatch.setattr(FaultyImage, "read_latest", fail)
            done = await passed(at, tmp_path, changed, 2)
            assert only(done).state is TransferState.PUBLISHED
            assert only(done).wanted > 0

    run(scenario)
    assert published(store, "web") == padded(changed)


def test_what_is_patched_is_off_the_record_before_a_byte_of_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FaultyDatastore(1 << 30)
    changed, _ = scattered(data(), 40)
    on_record: set[int] = set()
    written: list[bool] = []  # whether the record still had the chunk
    let_go, write = Journal.let_go, FaultyImage.write

    def noting(journal: Journal, uuid: bytes, runs: list[tuple[int, int]]) -> None:
        let_go(journal, uuid, runs)
        for first, count in runs:
            on_record.difference_update(range(first, first + count))

    def checking(image: FaultyImage, offset: int, part: memoryview) -> None:
        written.append(offset // MIB in on_record)
        write(image, offset, part)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await passed(at, tmp_path, data(), 1, live=True)
            on_record.update(range(-(-SIZE // MIB)))
            monkeypatch.setattr(Journal, "let_go", noting)
            monkeypatch.setattr(FaultyImage, "write", checking)
            done = await passed(at, tmp_path, changed, 2)
            assert only(done).state is TransferState.PUBLISHED

    run(scenario)
    assert written
    assert not any(written)
    assert published(store, "web") == padded(changed)


@pytest.mark.parametrize("power", ["stays", "fails"])
@pytest.mark.parametrize("seed", range(5))
def test_patches_that_are_cut_short_again_and_again_leave_no_half_chunk(
    tmp_path: Path, seed: int, power: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between record and flush, with any writes lost; nothing is sampled, and all is proven."""
    random = Random(seed)
    store = FaultyDatastore(1 << 30)
    store.volatile = power == "fails"
    monkeypatch.setattr("flatship_receiver.target.are_on_medium", lambda *_: True)
    disk = data(seed)

    async def first() -> None:
        async with world(tmp_path, store) as at:
            await passed(at, tmp_path, disk, 1, live=True)

    run(first)
    for epoch in range(2, 9):
        disk, _ = scattered(disk, random.randrange(1, 60), seed=seed * 100 + epoch)
        if random.random() < 0.3:  # back to what it was
            disk = data(seed)
        states: list[object] = []

        async def attempt(
            epoch: int = epoch, disk: bytes = disk, states: list[object] = states
        ) -> None:
            cut = random.randrange(2_000, 300_000)
            sound = epoch == 8
            faults = Faults() if sound else Faults(cut_after=cut)
            async with world(tmp_path, store, to_receiver=lambda _: faults) as at:
                try:
                    done = await passed(at, tmp_path, disk, epoch, live=not sound)
                except TransferError:
                    return
                assert only(done).error is None
                states.append(only(done).state)

        run(attempt)
    assert states == [TransferState.PUBLISHED]
    assert published(store, "web") == padded(disk)


def test_a_session_that_is_lost_keeps_the_index_of_what_was_not_sent(tmp_path: Path) -> None:
    """What was on its way and never arrived is a patch the next time, too."""
    store = FaultyDatastore(1 << 30)
    changed, size = scattered(data(), 40)

    async def scenario() -> None:
        async with world(
            tmp_path, store, to_receiver=lambda n: Faults(stall_after=1000 if n > 1 else 1 << 40)
        ) as at:
            await passed(at, tmp_path, data(), 1, live=True)
            source = MemorySource(changed)
            with memory_of(tmp_path, source) as memory:
                transfer, client = at.sending([source], epoch=2, memories=[memory])
                running = asyncio.create_task(transfer.run(client, 2))
                await until(
                    lambda: (
                        any(disk.guessed for disk in transfer.session.disks.values())
                        or running.done()
                    )
                )
                for stream in at.streams:
                    stream.close()
                with pytest.raises(TransferError):
                    await running
            await at.receiving.wait()
            at.to_receiver = lambda _: Faults()
            done = await passed(at, tmp_path, changed, 3)
            assert only(done).literal == size

    run(scenario)
    assert published(store, "web") == padded(changed)
