"""The map of a disk: every byte is in one state, and no more is kept than is drawn."""

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from flatship_service.disk_map import MAX_CELLS, DiskMap, MapState

MIB = 1 << 20


def runs(text: str) -> list[tuple[str, int]]:
    return [(letter, len(list(group))) for letter, group in groupby(text)]


def test_cells_are_whole_chunks_and_no_more_than_can_be_drawn() -> None:
    small, large = DiskMap(48 * MIB + 1, MIB), DiskMap(62 << 40, MIB)

    assert (small.cell, len(small.text())) == (MIB, 49)
    assert large.cell % MIB == 0
    assert len(large.text()) <= MAX_CELLS
    assert large.cell * len(large.text()) >= 62 << 40


def test_a_disk_of_nothing_has_no_cells() -> None:
    empty = DiskMap(0, MIB)

    assert empty.text() == ""
    assert empty.move_all(MapState.UNREAD, MapState.HOLE) == 0


def test_a_chunk_goes_from_unread_to_proven_and_the_hole_beside_it_stays_one() -> None:
    drawn = DiskMap(8 * MIB, MIB)
    drawn.move(4 * MIB, 4 * MIB, MapState.UNREAD, MapState.HOLE)
    drawn.move(0, MIB, MapState.UNREAD, MapState.SENT)
    assert runs(drawn.text()) == [("s", 1), ("u", 3), ("h", 4)]

    drawn.move(0, MIB, MapState.SENT, MapState.STORED)
    drawn.move_all(MapState.STORED, MapState.PROVEN)

    assert runs(drawn.text()) == [("p", 1), ("u", 3), ("h", 4)]
    assert drawn.total(MapState.PROVEN, MapState.HOLE) == 5 * MIB


def test_what_is_noted_twice_counts_once() -> None:
    drawn = DiskMap(2 * MIB, MIB)

    assert drawn.move(0, MIB, MapState.UNREAD, MapState.ZERO) == MIB
    assert drawn.move(0, MIB, MapState.UNREAD, MapState.ZERO) == 0
    assert drawn.total(MapState.ZERO) == MIB


def test_a_cell_shows_what_most_of_its_bytes_are() -> None:
    drawn = DiskMap(4 * MAX_CELLS * MIB, MIB)
    drawn.move(0, 3 * MIB, MapState.UNREAD, MapState.SENT)
    drawn.move(4 * MIB, MIB, MapState.UNREAD, MapState.SENT)

    assert drawn.text()[:3] == "suu"


def test_cleared_map_is_as_it_began() -> None:
    drawn = DiskMap(3 * MIB + 5, MIB)
    drawn.move_all(MapState.UNREAD, MapState.SENT)
    drawn.clear()

    assert drawn.text() == "uuuu"
    assert drawn.totals == {MapState.UNREAD: 3 * MIB + 5}


@given(
    size=st.integers(0, 3000 * MIB),
    moves=st.lists(
        st.tuples(
            st.integers(0, 4000 * MIB),
            st.integers(0, 4000 * MIB),
            st.sampled_from(MapState),
            st.sampled_from(MapState),
        ),
        max_size=20,
    ),
)
def test_no_byte_is_lost_or_counted_twice(
    size: int, moves: list[tuple[int, int, MapState, MapState]]
) -> None:
    drawn = DiskMap(size, MIB)
    for offset, length, before, after in moves:
        drawn.move(offset, length, before, after)
        drawn.text()

    assert sum(drawn.totals.values()) == size
    assert all(count >= 0 for count in drawn.totals.values())
    assert len(drawn.text()) == -(-size // drawn.cell)
