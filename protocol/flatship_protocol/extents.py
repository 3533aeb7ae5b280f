"""Interval arithmetic over the bytes of a disk."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class ExtentKind(Enum):
    """What a run of bytes on a disk is. A hole reads as zeros."""

    DATA = "data"
    HOLE = "hole"


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of one kind; ``offset`` and ``length`` are in bytes."""

    offset: int
    length: int
    kind: ExtentKind

    @property
    def end(self) -> int:
        """First byte after the run."""
        return self.offset + self.length


class ExtentSet:
    """A set of bytes, kept as sorted ranges that neither overlap nor touch.

    Iteration yields ``(offset, length)`` in order; ``len`` is the number of
    ranges. Lookups take O(log n). Changes take O(log n) plus a shift of what
    lies behind them, so adding at the end costs O(log n). Empty ranges
    (``length`` 0) change nothing and are always covered.

    Offsets and lengths are not negative; anything else raises ``ValueError``.
    Not thread-safe.
    """

    __slots__ = ("_ends", "_starts", "_total")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []  # of the same ranges: _starts[i] < _ends[i] < _starts[i + 1]
        self._total = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for start, end in zip(self._starts, self._ends, strict=True):
            yield start, end - start

    def __len__(self) -> int:
        return len(self._starts)

    def __repr__(self) -> str:
        return f"ExtentSet({list(self)})"

    @property
    def total(self) -> int:
        """Bytes in the set."""
        return self._total

    def add(self, offset: int, length: int) -> None:
        """Put ``[offset, offset + length)`` into the set."""
        end = _end_of(offset, length)
        if not length:
            return
        first = bisect_left(self._ends, offset)  # ranges that touch are merged too
        last = bisect_right(self._starts, end)
        if first < last:
            offset = min(offset, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._replace(first, last, [offset], [end])

    def discard(self, offset: int, length: int) -> None:
        """Take ``[offset, offset + length)`` out of the set, as far as it is there."""
        end = _end_of(offset, length)
        first, last = self._overlapping(offset, end)
        if first >= last:
            return
        starts, ends = [], []
        if self._starts[first] < offset:
            starts.append(self._starts[first])
            ends.append(offset)
        if end < self._ends[last - 1]:
            starts.append(end)
            ends.append(self._ends[last - 1])
        self._replace(first, last, starts, ends)

    def covers(self, offset: int, length: int) -> bool:
        """Whether every byte of the range is in the set."""
        end = _end_of(offset, length)
        if not length:
            return True
        first = bisect_right(self._starts, offset) - 1
        return first >= 0 and end <= self._ends[first]

    def overlaps(self, offset: int, length: int) -> bool:
        """Whether any byte of the range is in the set."""
        first, last = self._overlapping(offset, _end_of(offset, length))
        return first < last

    def gaps(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Runs of the range that are not in the set, in order, as ``(offset, length)``.

        The set must not be changed while the iterator is in use.
        """
        end = _end_of(offset, length)
        first, last = self._overlapping(offset, end)
        position = offset
        for index in range(first, last):
            if position < self._starts[index]:
                yield position, self._starts[index] - position
            position = self._ends[index]
        if position < end:
            yield position, end - position

    def _overlapping(self, offset: int, end: int) -> tuple[int, int]:
        """First and one past the last of the ranges that share a byte with ``[offset, end)``."""
        if offset == end:
            return 0, 0
        return bisect_right(self._ends, offset), bisect_left(self._starts, end)

    def _replace(self, first: int, last: int, starts: list[int], ends: list[int]) -> None:
        self._total += sum(ends) - sum(starts)
        self._total -= sum(self._ends[first:last]) - sum(self._starts[first:last])
        self._starts[first:last] = starts
        self._ends[first:last] = ends


def _end_of(offset: int, length: int) -> int:
    if offset < 0 or length < 0:
        raise ValueError(f"range at {offset} of length {length}: neither may be negative")
    return offset + length
