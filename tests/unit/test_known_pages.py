"""Pages that were sent are found wherever they lie now; what is not there is not found."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_sender.disk_memory import DiskMemory
from flatship_sender.known_pages import Found, KnownPages
from flatship_sender.page_indexes import FOLDER, PageIndexes, Place
from flatship_sender.page_slots import HEADER_SIZE, SLOT_SIZE, Slot
from flatship_sender.references import References

PAGES = CHUNK_SIZE // PAGE_SIZE
EVEN = sum(1 << page for page in range(0, PAGES, 2))
SIZE = 16 * CHUNK_SIZE
RECEIVER = b"R" * 32


def uuid(number: int) -> bytes:
    return bytes([number]) * 16


class Disk:
    """A disk whose pages are named by numbers, and what a command remembers of it.

    Fingerprints are made up: a page of number ``n`` has the same one everywhere.
    """

    def __init__(self, indexes: PageIndexes, number: int, size: int = SIZE) -> None:
        self._indexes = indexes
        self.place = Place(RECEIVER, "", f"vm{number}", f"vm{number}")
        self.memory = DiskMemory(indexes, self.place, size)
        index = self.memory.open(uuid(number), make=True)
        self.memory.search()
        assert index is not None
        self.index = index

    @property
    def known(self) -> KnownPages:
        known = self._indexes.known(self.place)
        assert known is not None
        return known

    def keep(self, chunk: int, names: Sequence[int], anchors: int = EVEN) -> None:
        """The receiver has the chunk."""
        self.index.record(chunk, Slot(bytes(32), fingerprints(names), anchors))

    def find(
        self, names: Sequence[int], chunk: int = 9, free: set[int] | None = None
    ) -> list[Found]:
        may = [free is None or page in free for page in range(len(names))]
        return self.known.find(fingerprints(names), may, self.index, chunk)


def fingerprints(names: Sequence[int]) -> bytes:
    return b"".join(Random(name).randbytes(6) for name in names)


@contextmanager
def disks(state: Path, count: int = 2, **options: int) -> Iterator[list[Disk]]:
    """One command's disks."""
    indexes = PageIndexes(state, **options)
    with closing(indexes):
        made = [Disk(indexes, number) for number in range(count)]
        yield made
        for each in made:
            each.memory.close()


def test_a_run_that_lies_elsewhere_is_found_and_extended_over_chunks(tmp_path: Path) -> None:
    with disks(tmp_path) as (first, second):
        for chunk in range(4):
            first.keep(chunk, range(chunk * PAGES, (chunk + 1) * PAGES))
        names = [*range(9000, 9050), *range(300, 400), *range(500, 500 + 106)]
        assert second.find(names) == [
            Found(50, 100, uuid(0), 300),
            Found(150, 106, uuid(0), 500),
        ]
        assert first.find(names) == second.find(names)


def test_every_run_of_two_pages_is_found(tmp_path: Path) -> None:
    with disks(tmp_path) as (first, second):
        first.keep(3, range(PAGES))
        for start in range(PAGES - 1):
            names = [7000, 7001, start, start + 1, *range(8000, 8010)]
            assert second.find(names) == [Found(2, 2, uuid(0), 3 * PAGES + start)]


def test_what_another_command_sent_is_found_and_what_went_to_another_store_is_not(
    tmp_path: Path,
) -> None:
    with disks(tmp_path, 1) as (first,):
        first.keep(0, range(PAGES))
    with disks(tmp_path) as (_, second):
        assert second.find(range(PAGES)) == [Found(0, PAGES, uuid(0), 0)]
    indexes = PageIndexes(tmp_path)
    other = Place(RECEIVER, "another", "vm9", "vm9")
    memory = DiskMemory(indexes, other, SIZE)
    index = memory.open(uuid(9), make=True)
    memory.search()
    known = indexes.known(other)
    assert index is not None
    assert known is not None
    assert known.find(fingerprints(range(PAGES)), [True] * PAGES, index, 0) == []
    memory.close()
    indexes.close()


def test_pages_that_may_not_be_copied_are_left_out_and_part_runs(tmp_path: Path) -> None:
    with disks(tmp_path) as (first, second):
        first.keep(0, range(PAGES))
        free = set(range(PAGES)) - {0, 1, 40, 200, 201, PAGES - 1}
        assert second.find(range(PAGES), free=free) == [
            Found(2, 38, uuid(0), 2),
            Found(41, 159, uuid(0), 41),
            Found(202, PAGES - 1 - 202, uuid(0), 202),
        ]


def test_a_chunk_is_no_source_of_itself(tmp_path: Path) -> None:
    with disks(tmp_path, 1) as (only,):
        only.keep(3, range(PAGES))
        assert only.find(range(PAGES), chunk=3) == []
        assert only.find(range(PAGES), chunk=4) == [Found(0, PAGES, uuid(0), 3 * PAGES)]


def test_a_chunk_that_is_on_its_way_is_no_source_until_it_is_stored(tmp_path: Path) -> None:
    with disks(tmp_path, 1) as (only,):
        only.keep(3, range(PAGES))
        copies = only.memory.copies(References())
        assert copies is not None
        copies.underway(3 * CHUNK_SIZE)
        assert only.find(range(PAGES)) == []
        only.index.note(3, Slot(bytes(32), fingerprints(range(500, 500 + PAGES)), EVEN))
        copies.settled([3 * CHUNK_SIZE])
        assert only.find(range(PAGES)) == []
        assert only.find(range(500, 500 + PAGES)) == [Found(0, PAGES, uuid(0), 3 * PAGES)]


def test_a_session_that_was_lost_leaves_no_chunk_on_its_way(tmp_path: Path) -> None:
    with disks(tmp_path, 1) as (only,):
        only.keep(3, range(PAGES))
        copies = only.memory.copies(References())
        assert copies is not None
        copies.underway(3 * CHUNK_SIZE)
        only.memory.copies(References())
        assert only.find(range(PAGES)) != []


def test_what_the_receiver_did_not_have_is_not_copied_again(tmp_path: Path) -> None:
    with disks(tmp_path) as (first, second):
        for chunk in range(3):
            first.keep(chunk, range(chunk * PAGES, (chunk + 1) * PAGES))
        second.known.distrust(Found(0, PAGES, uuid(0), PAGES // 2))
        names = range(3 * PAGES - 10, 3 * PAGES)
        assert second.find(range(PAGES)) == second.find(range(PAGES, 2 * PAGES)) == []
        assert second.find(names) == [Found(0, 10, uuid(0), 3 * PAGES - 10)]


def test_an_image_that_was_given_up_is_forgotten_with_its_index(tmp_path: Path) -> None:
    with disks(tmp_path, 1) as (first,):
        first.keep(0, range(PAGES))
    indexes = PageIndexes(tmp_path)
    second = Disk(indexes, 1)
    assert second.find(range(PAGES)) != []
    second.memory.give_up([uuid(0)])
    assert second.find(range(PAGES)) == []
    assert not (tmp_path / FOLDER / f"{uuid(0).hex()}.index").exists()
    second.memory.close()
    indexes.close()


def test_a_disk_that_was_published_takes_the_place_of_what_had_its_name(tmp_path: Path) -> None:
    with disks(tmp_path, 1) as (first,):
        first.keep(0, range(PAGES))
    indexes = PageIndexes(tmp_path)
    again = DiskMemory(indexes, Place(RECEIVER, "", "vm0", "vm0"), SIZE)
    index = again.open(uuid(7), make=True)
    again.search()
    known = indexes.known(Place(RECEIVER, "", "vm0", "vm0"))
    assert index is not None
    assert known is not None
    found = known.find(fingerprints(range(PAGES)), [True] * PAGES, index, 0)
    assert found == [Found(0, PAGES, uuid(0), 0)]  # it stands there until the new one does
    index.record(0, Slot(bytes(32), fingerprints(range(PAGES)), EVEN))
    again.published()
    found = known.find(fingerprints(range(PAGES)), [True] * PAGES, index, 5)
    assert found == [Found(0, PAGES, uuid(7), 0)]
    again.close()
    indexes.close()
    assert [path.stem for path in (tmp_path / FOLDER).glob("*.index")] == [uuid(7).hex()]


def test_pages_of_zeros_are_not_looked_for(tmp_path: Path) -> None:
    with disks(tmp_path) as (first, second):
        zero = second.index.fingerprints(memoryview(bytes(PAGE_SIZE)))
        pages = fingerprints(range(10)) + zero * 5 + fingerprints(range(20, 30))
        first.index.record(0, Slot(bytes(32), pages, EVEN))
        may = [True] * 5
        assert second.known.find(zero * 5, may, second.index, 0) == []
        # Between others they belong to the run.
        assert second.known.find(pages, [True] * 25, second.index, 0) == [Found(0, 25, uuid(0), 0)]


def test_fingerprints_of_real_pages_are_found_across_disks(tmp_path: Path) -> None:
    data = Random(3).randbytes(CHUNK_SIZE)
    moved = data[40 * PAGE_SIZE :] + Random(4).randbytes(40 * PAGE_SIZE)
    with disks(tmp_path) as (first, second):
        pages = first.index.fingerprints(memoryview(data))
        first.index.record(2, Slot(bytes(32), pages, EVEN))
        found = second.known.find(
            second.index.fingerprints(memoryview(moved)), [True] * PAGES, second.index, 0
        )
        assert found == [Found(0, 216, uuid(0), 2 * PAGES + 40)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_whatever_is_found_is_there_and_hardly_anything_is_missed(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    random = Random(seed)
    stock = random.choice((40, 2000))  # of few different pages many runs begin alike
    with disks(tmp_path_factory.mktemp("state")) as (first, second):
        there: dict[bytes, list[int]] = {}
        for number, disk in enumerate((first, second)):
            names = [random.randrange(stock) for _ in range(4 * PAGES)]
            for _ in range(random.randrange(30)):  # runs that are copied about
                start, to = random.randrange(len(names)), random.randrange(len(names))
                run = names[start : start + random.randrange(1, 300)]
                names[to : to + len(run)] = run[: len(names) - to]
            there[uuid(number)] = names
            for chunk in range(4):
                disk.keep(chunk, names[chunk * PAGES : (chunk + 1) * PAGES])
        wanted = [random.randrange(stock * 2) for _ in range(PAGES)]
        source = there[random.choice(list(there))]
        start = random.randrange(len(source) - 60)
        wanted[100:160] = source[start : start + 60]
        free = {page for page in range(PAGES) if random.random() < 0.95}
        own = random.randrange(4)
        found = second.find(wanted, own, free)
        end = 0
        copied: set[int] = set()
        for each in found:
            assert each.first >= end
            end = each.first + each.count
            names = there[each.image]
            assert names[each.source : each.source + each.count] == wanted[each.first : end]
            if each.image == uuid(1):
                assert not set(range(each.source, each.source + each.count)) & set(
                    range(own * PAGES, (own + 1) * PAGES)
                )
            copied |= set(range(each.first, end))
        assert copied <= free
        lies_in_own = source is there[uuid(1)] and (
            start < (own + 1) * PAGES and start + 60 > own * PAGES
        )
        if not lies_in_own:
            # What is missed: single pages between two that may not be copied.
            assert len(set(range(100, 160)) & free - copied) <= 8


# What goes wrong costs bytes


def in_table(state: Path) -> Path:
    (table,) = (state / FOLDER).glob("*.anchors")
    return table


@pytest.mark.parametrize("seed", range(6))
def test_any_garbage_in_the_table_costs_what_it_took_the_place_of(
    tmp_path: Path, seed: int
) -> None:
    random = Random(seed)
    with disks(tmp_path, 1) as (first,):
        for chunk in range(8):
            first.keep(chunk, range(chunk * PAGES, (chunk + 1) * PAGES))
    content = bytearray(in_table(tmp_path).read_bytes())
    for _ in range(random.choice((1, 100, 20_000))):
        content[random.randrange(4096, len(content))] = random.randrange(256)
    in_table(tmp_path).write_bytes(content)
    with disks(tmp_path) as (_, second):
        for chunk in range(8):
            names = list(range(chunk * PAGES + 3, (chunk + 1) * PAGES))
            for found in second.find(names):
                assert found.source == chunk * PAGES + 3 + found.first


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes(4095)),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(Random(1).randbytes(70_000)),
        lambda path: path.write_bytes(b"X" + path.read_bytes()[1:]),
    ],
    ids=["lost", "empty", "short", "shorter", "random", "another make"],
)
def test_a_table_that_is_lost_is_made_again_from_the_slots(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    with disks(tmp_path, 1) as (first,):
        for chunk in range(8):
            first.keep(chunk, range(chunk * PAGES, (chunk + 1) * PAGES))
    spoil(in_table(tmp_path))
    with disks(tmp_path) as (_, second):
        for chunk in range(8):
            names = range(chunk * PAGES, (chunk + 1) * PAGES)
            assert second.find(names) == [Found(0, PAGES, uuid(0), chunk * PAGES)]


def test_a_slot_that_changed_since_it_was_entered_is_not_taken_for_the_old_one(
    tmp_path: Path,
) -> None:
    with disks(tmp_path) as (first, second):
        first.keep(0, range(PAGES))
        first.keep(0, [*range(100), *range(5000, 5000 + 156)])
        assert second.find(range(PAGES)) == [Found(0, 100, uuid(0), 0)]


def test_slots_that_were_damaged_are_not_found(tmp_path: Path) -> None:
    with disks(tmp_path, 1) as (first,):
        for chunk in range(3):
            first.keep(chunk, range(chunk * PAGES, (chunk + 1) * PAGES))
    path = tmp_path / FOLDER / f"{uuid(0).hex()}.index"
    content = bytearray(path.read_bytes())
    content[HEADER_SIZE + SLOT_SIZE + 700] ^= 1
    path.write_bytes(content)
    with disks(tmp_path) as (_, second):
        names = range(PAGES // 2, PAGES // 2 + PAGES)
        assert second.find(names) == [Found(0, PAGES // 2, uuid(0), PAGES // 2)]


def test_a_key_of_another_sender_opens_nothing(tmp_path: Path) -> None:
    with disks(tmp_path, 1) as (first,):
        first.keep(0, range(PAGES))
    (tmp_path / FOLDER / "key").unlink()
    with disks(tmp_path) as (_, second):
        assert second.find(range(PAGES)) == []


def test_the_table_grows_and_nothing_is_lost_by_it(tmp_path: Path) -> None:
    random = Random(1)
    names = [random.sample(range(1 << 40), PAGES) for _ in range(60)]
    with disks(tmp_path) as (first, second):
        sizes = set()
        for chunk, pages in enumerate(names):
            first.index.record(chunk % 16, Slot(bytes(32), fingerprints(pages), EVEN))
            sizes.add(in_table(tmp_path).stat().st_size)
        missed = 0
        for chunk, pages in list(enumerate(names))[-16:]:
            missed += second.find(pages) != [Found(0, PAGES, uuid(0), chunk % 16 * PAGES)]
        assert len(sizes) > 3
        assert missed == 0


def test_all_of_it_takes_a_quarter_of_a_percent_of_the_data(tmp_path: Path) -> None:
    chunks = 400
    indexes = PageIndexes(tmp_path)
    disk = Disk(indexes, 0, chunks * CHUNK_SIZE)
    random = Random(1)
    for chunk in range(chunks):
        disk.index.record(chunk, Slot(bytes(32), random.randbytes(6 * PAGES), EVEN))
    disk.memory.close()
    indexes.close()
    files = (tmp_path / FOLDER).iterdir()
    taken = sum(path.stat().st_blocks * 512 for path in files)
    assert taken <= 0.0025 * chunks * CHUNK_SIZE + 3 * 4096  # key, and what ends within a block


def test_where_no_table_can_be_made_nothing_is_found_and_pages_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with disks(tmp_path) as (first, second):
        first.keep(0, range(PAGES))
        assert second.find(range(PAGES)) == []
        assert first.index.recall(0, bytes(32)) == Slot(bytes(32), fingerprints(range(PAGES)), EVEN)


def test_the_oldest_image_goes_in_the_middle_of_a_transfer_and_is_not_missed(
    tmp_path: Path,
) -> None:
    with disks(tmp_path, 1) as (first,):
        for chunk in range(16):
            first.keep(chunk, range(chunk * PAGES, (chunk + 1) * PAGES))
    os.utime(tmp_path / FOLDER / f"{uuid(0).hex()}.index", (1, 1))
    indexes = PageIndexes(tmp_path, 1 << 20)
    second = Disk(indexes, 1, 4096 * CHUNK_SIZE)
    assert second.find(range(PAGES)) != []
    for chunk in range(1000):
        second.keep(chunk, range(10_000 + chunk * 16, 10_000 + chunk * 16 + PAGES), anchors=0)
    assert not (tmp_path / FOLDER / f"{uuid(0).hex()}.index").exists()
    assert second.find(range(PAGES)) == []
    second.memory.close()
    indexes.close()


def test_a_table_that_grows_takes_no_more_room_than_it_needs(tmp_path: Path) -> None:
    for number in range(4):
        with disks(tmp_path, number + 1) as made:
            for chunk in range(16):
                first = (number * 16 + chunk) * PAGES
                made[-1].keep(chunk, range(first, first + PAGES))
    assert len(list((tmp_path / FOLDER).glob("*.index"))) == 4


def test_two_commands_write_to_one_table(tmp_path: Path) -> None:
    ours, theirs = PageIndexes(tmp_path), PageIndexes(tmp_path)
    first, second = Disk(ours, 0), Disk(theirs, 1)
    for chunk in range(8):
        for disk, start in ((first, 0), (second, 100_000)):
            names = range(start + chunk * PAGES, start + (chunk + 1) * PAGES)
            disk.keep(chunk, names)
    for disk, start in ((first, 0), (second, 100_000)):
        found = disk.find(range(start, start + PAGES))
        assert all(each.source == each.first for each in found)
    for each in (first, second):
        each.memory.close()
    ours.close()
    theirs.close()
    with disks(tmp_path, 3) as (*_, third):
        missed = 0
        for chunk in range(8):
            for start in (0, 100_000):
                names = range(start + chunk * PAGES, start + (chunk + 1) * PAGES)
                missed += not third.find(names)
        assert missed <= 8  # what was entered into a table that the other one took away
