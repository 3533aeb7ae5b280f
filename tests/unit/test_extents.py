import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatship_protocol.extents import Extent, ExtentKind, ExtentSet

LIMIT = 48  # a disk small enough for a set of its bytes to be the model

ranges = st.tuples(st.integers(0, LIMIT), st.integers(0, LIMIT)).map(
    lambda pair: (min(pair), max(pair) - min(pair))
)
changes = st.lists(st.tuples(st.sampled_from(["add", "discard"]), ranges), max_size=24)


def bytes_of(offset: int, length: int) -> set[int]:
    return set(range(offset, offset + length))


def runs_of(model: set[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for byte in sorted(model):
        if runs and sum(runs[-1]) == byte:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((byte, 1))
    return runs


def build(steps: list[tuple[str, tuple[int, int]]]) -> tuple[ExtentSet, set[int]]:
    extents, model = ExtentSet(), set[int]()
    for change, (offset, length) in steps:
        if change == "add":
            extents.add(offset, length)
            model |= bytes_of(offset, length)
        else:
            extents.discard(offset, length)
            model -= bytes_of(offset, length)
    return extents, model


@settings(derandomize=True)
@given(changes)
def test_changes_leave_what_a_set_of_bytes_would_hold(
    steps: list[tuple[str, tuple[int, int]]],
) -> None:
    extents, model = build(steps)
    assert list(extents) == runs_of(model)
    assert extents.total == len(model)
    assert len(extents) == len(runs_of(model))


@settings(derandomize=True)
@given(changes, ranges)
def test_questions_are_answered_as_a_set_of_bytes_would(
    steps: list[tuple[str, tuple[int, int]]], asked: tuple[int, int]
) -> None:
    extents, model = build(steps)
    wanted = bytes_of(*asked)
    assert extents.covers(*asked) == (wanted <= model)
    assert extents.overlaps(*asked) == bool(wanted & model)
    assert list(extents.gaps(*asked)) == runs_of(wanted - model)


def test_ranges_that_touch_become_one() -> None:
    extents = ExtentSet()
    extents.add(0, 10)
    extents.add(20, 10)
    extents.add(10, 10)
    assert list(extents) == [(0, 30)]


def test_discard_inside_a_range_leaves_its_two_ends() -> None:
    extents = ExtentSet()
    extents.add(0, 30)
    extents.discard(10, 10)
    assert list(extents) == [(0, 10), (20, 10)]


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (2, -1)])
def test_negative_numbers_are_refused(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        ExtentSet().add(offset, length)


def test_extent_ends_where_the_next_one_starts() -> None:
    assert Extent(4096, 512, ExtentKind.HOLE).end == 4608
