import time
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.extents import Extent, ExtentKind
from flatship_sender.plan import MOST_RUNS, ReadChunk, SkipHole, plan

MIB = CHUNK_SIZE
DATA, HOLE = ExtentKind.DATA, ExtentKind.HOLE


def naive(extents: list[Extent], size: int) -> list[bool]:
    """For each chunk of the disk, whether any data touches it."""
    return [
        any(
            extent.kind is DATA and extent.offset < start + MIB and extent.end > start
            for extent in extents
        )
        for start in range(0, size, MIB)
    ]


@st.composite
def disks(draw: st.DrawFn) -> tuple[list[Extent], int]:
    lengths = st.one_of(
        st.integers(1, 5000).map(lambda n: n * 512), st.sampled_from((MIB, 3 * MIB))
    )
    extents: list[Extent] = []
    position = 0
    for length, kind in draw(
        st.lists(st.tuples(lengths, st.sampled_from((DATA, HOLE))), max_size=12)
    ):
        extents.append(Extent(position, length, kind))
        position += length
    return extents, position


@given(disks())
def test_each_byte_is_planned_once_and_every_chunk_that_data_touches_is_read(
    disk: tuple[list[Extent], int],
) -> None:
    extents, size = disk
    read = [False] * -(-size // MIB)
    position = 0
    previous = None
    for work in plan(extents, size):
        assert work.offset == position
        assert work.length > 0
        position += work.length
        if isinstance(work, ReadChunk):
            assert work.offset % MIB == 0
            assert work.length == min(MIB, size - work.offset)
            read[work.offset // MIB] = True
        else:
            assert work.offset % MIB == 0
            assert work.length % MIB == 0 or position == size
            assert not isinstance(previous, SkipHole)
        previous = work
    assert position == size
    assert read == naive(extents, size)


def test_terabytes_of_hole_are_one_work_and_take_no_time() -> None:
    size = 8 << 40
    extents = [
        Extent(0, 4 << 40, HOLE),
        Extent(4 << 40, 512, DATA),
        Extent((4 << 40) + 512, (4 << 40) - 512, HOLE),
    ]
    started = time.process_time()
    works = list(plan(extents, size))
    assert time.process_time() - started < 0.05
    assert works == [
        SkipHole(0, 4 << 40),
        ReadChunk(4 << 40, MIB, data=((4 << 40, PAGE_SIZE),)),
        SkipHole((4 << 40) + MIB, (4 << 40) - MIB),
    ]


def test_a_plan_asks_for_extents_only_as_far_as_it_is_followed() -> None:
    asked: list[int] = []

    def extents() -> Iterator[Extent]:
        for index in range(1 << 40):
            asked.append(index)
            yield Extent(index * MIB, MIB, DATA)

    works = plan(extents(), 1 << 60)
    for _ in range(3):
        next(works)
    assert len(asked) <= 4


def test_a_disk_of_one_data_extent_is_read_chunk_by_chunk_lazily() -> None:
    works = plan([Extent(0, 8 << 40, DATA)], 8 << 40)
    assert next(works) == ReadChunk(0, MIB)
    assert next(works) == ReadChunk(MIB, MIB)


@given(disks())
def test_a_chunk_names_whole_pages_that_cover_its_data_and_all_else_are_holes(
    disk: tuple[list[Extent], int],
) -> None:
    extents, size = disk
    for work in plan(extents, size):
        if not isinstance(work, ReadChunk) or work.data is None:
            continue
        end = work.offset + work.length
        position = work.offset
        for offset, length in work.data:
            assert position <= offset < offset + length <= end
            assert offset % PAGE_SIZE == 0
            assert length % PAGE_SIZE == 0 or offset + length == size
            position = offset + length
        named = [(offset, offset + length) for offset, length in work.data]
        for extent in extents:
            start, stop = max(extent.offset, work.offset), min(extent.end, end)
            if extent.kind is DATA and start < stop:
                assert any(first <= start and stop <= last for first, last in named)


def test_a_chunk_of_many_small_runs_is_read_in_one_go() -> None:
    def scattered(count: int) -> list[Extent]:
        places = range(0, 2 * count * PAGE_SIZE, PAGE_SIZE)
        return [Extent(at, PAGE_SIZE, HOLE if at // PAGE_SIZE % 2 else DATA) for at in places]

    few, many = (next(plan(scattered(count), MIB)) for count in (MOST_RUNS, MOST_RUNS + 1))
    assert isinstance(few, ReadChunk)
    assert few.data == tuple((2 * at * PAGE_SIZE, PAGE_SIZE) for at in range(MOST_RUNS))
    assert many == ReadChunk(0, MIB)
