from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatship_protocol.constants import CHUNK_SIZE
from flatship_sender.zeros import is_zero, zero_runs

PAGE = 4096


def pages_of(data: bytes | bytearray, page: int) -> list[bool]:
    return [not any(data[start : start + page]) for start in range(0, len(data), page)]


def pages_in(runs: list[tuple[int, int]], count: int) -> list[bool]:
    marked = [False] * count
    for first, length in runs:
        marked[first : first + length] = [True] * length
    return marked


@given(
    length=st.integers(0, 40 * 512),
    page=st.sampled_from([512, 4096]),
    marks=st.dictionaries(st.integers(0, 40 * 512), st.integers(1, 255), max_size=12),
)
def test_zero_pages_are_those_that_a_naive_look_finds(
    length: int, page: int, marks: dict[int, int]
) -> None:
    data = bytearray(length)
    for position, value in marks.items():
        if position < length:
            data[position] = value
    expected = pages_of(data, page)
    runs = zero_runs(memoryview(data), page)
    assert pages_in(runs, len(expected)) == expected
    assert all(count > 0 for _, count in runs)
    assert all(a + b < c for (a, b), (c, _) in pairwise(runs))
    assert is_zero(memoryview(data)) == (not any(data))


@pytest.mark.parametrize("position", range(0, PAGE, 37))
def test_single_byte_anywhere_in_a_page_keeps_it_from_being_zero(position: int) -> None:
    data = bytearray(3 * PAGE)
    data[PAGE + position] = 1
    assert zero_runs(memoryview(data)) == [(0, 1), (2, 1)]


def test_zero_chunk_is_one_run() -> None:
    data = bytearray(CHUNK_SIZE)
    assert zero_runs(memoryview(data)) == [(0, CHUNK_SIZE // PAGE)]
    assert is_zero(memoryview(data))


def test_short_tail_joins_the_run_before_it() -> None:
    assert zero_runs(memoryview(bytearray(2 * PAGE + 512))) == [(0, 3)]


def test_tail_with_its_last_byte_set_is_not_zero() -> None:
    data = bytearray(PAGE + 1024)
    data[-1] = 1
    assert zero_runs(memoryview(data)) == [(0, 1)]
    assert not is_zero(memoryview(data))


def test_zeros_beyond_one_chunk_are_compared_to_the_last_byte() -> None:
    data = bytearray(2 * CHUNK_SIZE + 512)
    assert is_zero(memoryview(data))
    data[-1] = 1
    assert not is_zero(memoryview(data))


def test_bytes_behind_the_view_do_not_matter() -> None:
    data = bytearray(PAGE) + b"x"
    assert is_zero(memoryview(data)[:PAGE])
    assert zero_runs(memoryview(data)[:PAGE]) == [(0, 1)]


def test_more_than_a_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="more than a chunk"):
        zero_runs(memoryview(bytearray(CHUNK_SIZE + 1)))


def test_buffer_is_free_to_be_resized_afterwards() -> None:
    data = bytearray(PAGE)
    with memoryview(data) as view:
        assert is_zero(view)
        assert zero_runs(view) == [(0, 1)]
    data.extend(b"x")
