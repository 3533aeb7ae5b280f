"""What was sent before is not sent again, wherever it lies, and nobody's word is taken for it.

The oracle is independent of digests and fingerprints: bytes are compared with bytes, and
what crossed the wire is counted where it crossed it.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import pytest
from fakes import FaultyDatastore, World, world
from network import Faults
from test_in_process_transfers import MIB, padded, published, run, send

from flatship_protocol.constants import PAGE_SIZE
from flatship_protocol.errors import TransferError
from flatship_protocol.messages import Capability
from flatship_sender.compression import CompressionController
from flatship_sender.disk_memory import DiskMemory
from flatship_sender.page_indexes import FOLDER, PageIndexes, Place
from flatship_sender.progress import DiskProgress, TransferState
from flatship_sender.sources.memory import MemorySource

SIZE = 12 * MIB + 512
SMALL = 20_000  # bytes on the wire; far less than any chunk that is sent


@pytest.fixture(autouse=True)
def slow_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links in memory are never waited for; here they count as if they were."""
    monkeypatch.setattr(CompressionController, "link_is_slow", True)
    # Little credit, and so acknowledgements that come soon.
    monkeypatch.setattr("flatship_receiver.session.CREDIT", 8 * MIB)


def content(seed: int = 1, size: int = SIZE) -> bytes:
    """Random chunks, with zero pages here and there, and a short page at the end."""
    random = Random(seed)
    data = bytearray(random.randbytes(size))
    for _ in range(6):
        start = random.randrange(size >> 12) << 12
        length = random.randrange(1, 12) << 12
        data[start : start + length] = bytes(len(data[start : start + length]))
    return bytes(data)


def shuffled(disk: bytes, seed: int = 1, run: int = 200) -> bytes:
    """The same pages in runs of up to so many, in another order."""
    random = Random(seed)
    runs, at = [], 0
    while at < len(disk) // PAGE_SIZE:
        count = random.randrange(2, run)
        runs.append(disk[at * PAGE_SIZE : min(at + count, len(disk) // PAGE_SIZE) * PAGE_SIZE])
        at += count
    random.shuffle(runs)
    return b"".join(runs) + disk[len(disk) // PAGE_SIZE * PAGE_SIZE :]


@contextmanager
def memories(folder: Path, sizes: Sequence[int], vm: str = "web") -> Iterator[list[DiskMemory]]:
    """What is known of a VM's disks, as a command of its own opens it."""
    with ExitStack() as opened:
        indexes = PageIndexes(folder)
        opened.callback(indexes.close)
        made = []
        for number, size in enumerate(sizes):
            name = "web" if number == 0 else f"web_{number}"
            made.append(DiskMemory(indexes, Place(bytes(32), "", vm, name), size))
            opened.callback(made[-1].close)
        yield made


async def sent(
    at: World, folder: Path, *disks: bytes, epoch: int = 1, vm: str = "web", **options: object
) -> list[DiskProgress]:
    """Disks of a VM, by a command with the state in ``folder``."""
    sources = [MemorySource(disk, name=str(number)) for number, disk in enumerate(disks)]
    with memories(folder, [len(disk) for disk in disks], vm) as known:
        done = await send(at, *sources, epoch=epoch, memories=known, vm=vm, **options)
    return done.progress.disks


def test_a_second_disk_with_the_pages_of_the_first_takes_hardly_a_byte(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    first = content()
    second = shuffled(first)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await sent(at, tmp_path, first)
            (done,) = await sent(at, tmp_path, second, epoch=2, vm="db")
            assert done.state is TransferState.PUBLISHED
            assert done.wanted == 0
            assert done.known > 0.97 * len(second)
            assert done.wire < SMALL + len(second) - done.known

    run(scenario)
    assert published(store, "web") == padded(first)
    assert published(store, "web", "db") == padded(second)


def test_what_a_disk_holds_twice_is_sent_once(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    half = content(size=40 * MIB)
    disk = half + shuffled(half)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            (done,) = await sent(at, tmp_path, disk)
            assert done.state is TransferState.PUBLISHED
            assert done.known > 0.9 * len(half)
            assert done.wire < len(half) + 0.1 * len(half)

    run(scenario)
    assert published(store, "web") == padded(disk)


def test_disks_of_one_session_copy_from_each_other(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    first = content(size=30 * MIB)
    others = [shuffled(first[: 20 * MIB], seed) for seed in range(2)]

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            done = await sent(at, tmp_path, first, *others, connections=3)
            assert {disk.state for disk in done} == {TransferState.PUBLISHED}
            assert sum(disk.known for disk in done) > 0

    run(scenario)
    for name, disk in zip(("web", "web_1", "web_2"), (first, *others), strict=True):
        assert published(store, name) == padded(disk)


def test_every_connection_is_told_what_its_chunks_copy_from(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    disks = [content(seed, 6 * MIB) for seed in range(3)]
    last = shuffled(b"".join(disks), run=40)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await sent(at, tmp_path, *disks)
            (done,) = await sent(at, tmp_path, last, epoch=2, vm="db", connections=6)
            assert done.state is TransferState.PUBLISHED
            assert done.wanted == 0
            assert done.known > 0.97 * len(last)

    run(scenario)
    assert published(store, "web", "db") == padded(last)


def test_a_disk_that_is_sent_again_copies_from_the_one_that_it_replaces(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    first = content()
    second = first[: 4 * MIB] + content(7, MIB) + first[5 * MIB :]

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await sent(at, tmp_path, first)
            (done,) = await sent(at, tmp_path, second, epoch=2, replace=True)
            assert done.state is TransferState.PUBLISHED
            assert done.wanted == 0
            assert done.wire < MIB + SMALL
            # The old one is gone, and what copies now copies from the new one.
            (done,) = await sent(at, tmp_path, shuffled(second), epoch=3, vm="db")
            assert done.wanted == 0
            # Of pages that were copies themselves only a few are anchors: short runs are missed,
            # and which ones are is up to chance.
            assert done.known > 0.9 * len(second)

    run(scenario)
    assert published(store, "web") == padded(second)
    assert published(store, "web", "db") == padded(shuffled(second))


def test_a_live_pass_keeps_what_stayed_and_copies_what_moved(tmp_path: Path) -> None:
    store = FaultyDatastore(1 << 30)
    first = content()
    moved = bytearray(first)
    moved[8 * MIB : 10 * MIB] = first[2 * MIB + 8192 : 4 * MIB + 8192]

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await sent(at, tmp_path, first, live=True)
            (done,) = await sent(at, tmp_path, bytes(moved), epoch=2)
            assert done.state is TransferState.PUBLISHED
            assert done.known > 1.9 * MIB
            assert done.wire < SMALL

    run(scenario)
    assert published(store, "web") == padded(bytes(moved))


# What goes wrong costs bytes


@pytest.mark.parametrize("change", ["altered", "gone", "another"])
def test_a_source_that_changed_behind_our_back_costs_bytes_and_is_given_up(
    tmp_path: Path, change: str
) -> None:
    store = FaultyDatastore(1 << 30)
    first = content(size=20 * MIB)
    second = shuffled(first)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await sent(at, tmp_path, first)
            disk = store.memory.disks["web", "web"]
            if change == "altered":
                for offset in range(0, len(first), MIB // 4):
                    disk.content.write(offset, memoryview(b"not the same"))
            else:
                del store.memory._disks["web", "web"]
            if change == "another":
                with memories(tmp_path / "elsewhere", [len(first)]) as known:
                    await send(at, MemorySource(content(9)), epoch=2, memories=known)
            (done,) = await sent(at, tmp_path, second, epoch=3, vm="db")
            assert done.state is TransferState.PUBLISHED
            assert 4 <= done.wanted <= 16

    run(scenario)
    assert published(store, "web", "db") == padded(second)
    images = {path.stem for path in (tmp_path / FOLDER).glob("*.index")}
    assert len(images) == 1  # of the second, and not of what is lost


@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_with_an_older_peer_nothing_is_copied(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = {"sender": "flatship_sender.connecting", "receiver": "flatship_receiver.session"}[end]
    monkeypatch.setattr(f"{older}.CAPABILITIES", Capability.RESUME | Capability.DELTA)
    store = FaultyDatastore(1 << 30)
    first = content(size=4 * MIB)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await sent(at, tmp_path, first)
            (done,) = await sent(at, tmp_path, shuffled(first), epoch=2, vm="db")
            assert done.known == 0
            assert done.state is TransferState.PUBLISHED

    run(scenario)
    assert published(store, "web", "db") == padded(shuffled(first))


def test_where_the_link_keeps_up_nothing_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CompressionController, "link_is_slow", False)
    store = FaultyDatastore(1 << 30)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await sent(at, tmp_path, content())

    run(scenario)
    assert list((tmp_path / FOLDER).glob("*.index")) == []
    assert list((tmp_path / FOLDER).glob("*.anchors")) == []  # it was not even looked for


def test_a_link_that_is_found_to_be_slow_is_spared_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = itertools.count()
    seen = property(lambda _: next(asked) >= 20)
    monkeypatch.setattr(CompressionController, "link_is_slow", seen)
    store = FaultyDatastore(1 << 30)
    half = content(size=40 * MIB)
    disk = half + shuffled(half)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            (done,) = await sent(at, tmp_path, disk)
            assert done.state is TransferState.PUBLISHED
            assert done.wanted == 0
            assert done.known > 0.4 * len(half)

    run(scenario)
    assert published(store, "web") == padded(disk)


@pytest.mark.parametrize("link_is_known", [False, True])
def test_what_others_have_sent_is_looked_for_until_the_link_shows_that_it_keeps_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link_is_known: bool
) -> None:
    store = FaultyDatastore(1 << 30)
    first = content(size=4 * MIB)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await sent(at, tmp_path, first)
            monkeypatch.setattr(CompressionController, "link_is_slow", False)
            monkeypatch.setattr(CompressionController, "link_is_known", link_is_known)
            (done,) = await sent(at, tmp_path, shuffled(first), epoch=2, vm="db")
            assert (done.known == 0) is link_is_known

    run(scenario)


@pytest.mark.parametrize("seed", range(8))
def test_garbage_in_what_is_known_costs_bytes_and_nothing_else(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    store = FaultyDatastore(1 << 30)
    first = content(seed)
    second = shuffled(first, seed)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            await sent(at, tmp_path, first)
            for path in [*(tmp_path / FOLDER).glob("*.*n*")]:
                spoiled = bytearray(path.read_bytes())
                for _ in range(random.choice((3, 300, 30_000))):
                    spoiled[random.randrange(len(spoiled))] = random.randrange(256)
                path.write_bytes(spoiled)
            (done,) = await sent(at, tmp_path, second, epoch=2, vm="db")
            assert done.state is TransferState.PUBLISHED

    run(scenario)
    assert published(store, "web", "db") == padded(second)


@pytest.mark.parametrize("seed", range(8))
def test_sessions_that_are_cut_short_again_and_again_leave_no_wrong_byte(
    tmp_path: Path, seed: int
) -> None:
    """Two disks that change between the attempts, and copy from each other and themselves."""
    random = Random(seed)
    store = FaultyDatastore(1 << 30)
    base = content(seed, 8 * MIB)
    disks = [base, shuffled(base, seed) + base[: 2 * MIB]]
    states: list[object] = []
    for epoch in range(1, 8):
        for number in range(2):
            if random.random() < 0.5:
                disks[number] = shuffled(disks[number], epoch)[: len(disks[number])]
        sound = epoch == 7

        async def attempt(epoch: int = epoch, sound: bool = sound) -> None:
            faults = Faults() if sound else Faults(cut_after=random.randrange(2_000, 3_000_000))
            async with world(tmp_path, store, to_receiver=lambda _: faults) as at:
                try:
                    done = await sent(at, tmp_path, *disks, epoch=epoch, live=not sound)
                except TransferError:
                    if sound:
                        raise
                    return
                states[:] = [disk.state for disk in done]

        run(attempt)
    assert states == [TransferState.PUBLISHED] * 2
    for name, disk in zip(("web", "web_1"), disks, strict=True):
        assert published(store, name) == padded(disk)
