"""From extents to work: which chunks are read, which runs are holes. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.extents import Extent, ExtentKind


@dataclass(frozen=True, slots=True)
class ReadChunk:
    """One chunk that holds, or may hold, data. Both in bytes."""

    offset: int
    length: int


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
    for extent in extents:
        if extent.kind is not ExtentKind.DATA or extent.end <= position:
            continue
        first = max(extent.offset - extent.offset % CHUNK_SIZE, position)
        if first > position:
            yield SkipHole(position, first - position)
        position = first
        while position < extent.end:
            length = min(CHUNK_SIZE, size - position)
            yield ReadChunk(position, length)
            position += length
    if position < size:
        yield SkipHole(position, size - position)
