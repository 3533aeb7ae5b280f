"""From extents to work: which chunks are read, which runs are holes. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.extents import Extent, ExtentKind

MOST_RUNS: Final = 8  # of data in a chunk; where there are more it is read in one go

Run: TypeAlias = tuple[int, int]  # offset on the disk and length, in bytes


@dataclass(frozen=True, slots=True)
class ReadChunk:
    """One chunk that holds, or may hold, data.

    Attributes:
        offset: Bytes from the start of the disk.
        length: Bytes.
        data: The runs of whole pages that have to be read, in order; all else is holes. None:
            all of it has to be read.
    """

    offset: int
    length: int
    data: tuple[Run, ...] | None = None


@dataclass(frozen=True, slots=True)
class SkipHole:
    """A run of whole chunks that the source calls a hole. Both in bytes."""

    offset: int
    length: int


def plan(extents: Iterable[Extent], size: int) -> Iterator[ReadChunk | SkipHole]:
    """Cut a disk into work, in order, each byte exactly once.

    A chunk is read when any data extent touches it. Lazy: what it costs
    depends on the number of extents and of chunks to read, not on the size.

    Args:
        extents: In order; as ``BlockSource.extents`` yields them.
        size: Bytes of the disk; where the last chunk ends.
    """
    position = 0
    data: list[Extent] = []  # that touches the chunk at ``position``, which may not be all
    for extent in extents:
        if extent.kind is not ExtentKind.DATA or extent.end <= position:
            continue
        if data and extent.offset >= position + CHUNK_SIZE:
            yield _chunk(position, size, data)
            position, data = position + CHUNK_SIZE, []
        if not data:
            first = max(extent.offset - extent.offset % CHUNK_SIZE, position)
            if first > position:
                yield SkipHole(position, first - position)
            position = first
        data.append(extent)
        while position < size and extent.end >= min(position + CHUNK_SIZE, size):
            yield _chunk(position, size, data)
            position, data = position + CHUNK_SIZE, [extent]
        if extent.end <= position:
            data = []
    if data:
        yield _chunk(position, size, data)
        position += CHUNK_SIZE
    if position < size:
        yield SkipHole(position, size - position)


def _chunk(offset: int, size: int, data: list[Extent]) -> ReadChunk:
    """The chunk at an offset, of which these extents are all that has data."""
    end = min(offset + CHUNK_SIZE, size)
    runs: list[Run] = []
    for extent in data:
        start = max(offset, extent.offset - extent.offset % PAGE_SIZE)
        stop = min(end, -(-extent.end // PAGE_SIZE) * PAGE_SIZE)
        if runs and sum(runs[-1]) >= start:
            start = runs.pop()[0]
        runs.append((start, stop - start))
    whole = runs == [(offset, end - offset)] or len(runs) > MOST_RUNS
    return ReadChunk(offset, end - offset, None if whole else tuple(runs))
