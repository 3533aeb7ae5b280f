import time
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.extents import Extent, ExtentKind
from flatship_sender.plan import ReadChunk, SkipHole, plan

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
        ReadChunk(4 << 40, MIB),
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
