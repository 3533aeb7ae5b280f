"""What a disk holds, and what shipping it would cost, without shipping it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Self

import msgspec
import zstandard

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.extents import Extent, ExtentKind
from flatship_sender.sources.base import BlockSource
from flatship_sender.zeros import zero_runs
from flatship_service.printable import printable
from flatship_service.units import format_size

SAMPLE_LIMIT: Final = 256 * CHUNK_SIZE  # bytes read, at most, unless all are asked for
_LEVEL: Final = 3
_CHUNK_OVERHEAD: Final = 120  # bytes: record and message headers, tag, digest, a segment

Progress = Callable[[int, int], None]
"""Called with the bytes of data that lie behind, and all of them."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """Sizes in bytes. Unless ``exact``, ``zero`` is scaled up from a sample; ``wire`` always is."""

    virtual_size: int
    allocated: int  # data, as the source reports it; a device is all data
    zero: int  # of those allocated: pages that were read and are zero
    wire: int  # what a first pass would send
    exact: bool  # all that is allocated was read

    @property
    def hole(self) -> int:
        """Bytes that need not be read."""
        return self.virtual_size - self.allocated


def inspect(
    source: BlockSource, *, exact: bool = False, progress: Progress | None = None
) -> Inspection:
    """Look at a source: extents as it reports them, zeros and compressibility by reading.

    Args:
        source: Stays open.
        exact: Read all data for zeros. Otherwise up to ``SAMPLE_LIMIT`` bytes,
            evenly spread over the data, stand for the rest; less data than that is read whole.
        progress: Told about every piece.

    Raises:
        SourceReadError: The device failed.
    """
    allocated = sum(extent.length for extent in _data(source))
    spread = _spread(allocated)
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    memory = memoryview(bytearray(CHUNK_SIZE))
    read = zero = compressed = wire = 0
    due = 0  # where in the data the next piece is compressed
    for position, offset, length in _pieces(source, 0 if exact else spread):
        buffer = memory[:length]
        source.read_into(buffer, offset)
        blank = _zero_bytes(buffer)
        read += length
        zero += blank
        if position >= due:
            due = position + max(spread, length)
            compressed += length
            if blank < length:
                wire += min(len(compressor.compress(buffer)), length) + _CHUNK_OVERHEAD
        if progress is not None:
            progress(position + length, allocated)
    return Inspection(
        virtual_size=source.size,
        allocated=allocated,
        zero=_scaled(zero, read, allocated),
        wire=_scaled(wire, compressed, allocated),
        exact=read == allocated,
    )


def _spread(allocated: int) -> int:
    """Bytes of data from the start of one sampled piece to that of the next; 0: all are read."""
    if allocated <= SAMPLE_LIMIT:
        return 0
    pieces = SAMPLE_LIMIT // CHUNK_SIZE
    return -(-allocated // pieces // PAGE_SIZE) * PAGE_SIZE


def _data(source: BlockSource) -> Iterator[Extent]:
    return (extent for extent in source.extents(0, source.size) if extent.kind is ExtentKind.DATA)


def _pieces(source: BlockSource, spread: int) -> Iterator[tuple[int, int, int]]:
    """Yield pieces of data as (bytes of data before it, offset on the disk, length)."""
    before = 0
    position = 0
    for extent in _data(source):
        while position < before + extent.length:
            offset = extent.offset + position - before
            length = min(CHUNK_SIZE, extent.end - offset)
            yield position, offset, length
            position += max(length, spread)
        before += extent.length


def _zero_bytes(buffer: memoryview) -> int:
    return sum(
        min((first + count) * PAGE_SIZE, len(buffer)) - first * PAGE_SIZE
        for first, count in zero_runs(buffer)
    )


def _scaled(part: int, of: int, whole: int) -> int:
    return part * whole // of if of else 0


class InspectionReport(msgspec.Struct, frozen=True, kw_only=True):
    """An inspection for programs. Sizes in bytes."""

    schema_version: int = 1
    source: str
    virtual_size: int
    allocated: int
    hole: int
    zero: int
    estimated_wire: int
    exact: bool

    @classmethod
    def of(cls, source: str, found: Inspection) -> Self:
        """The report on ``source``."""
        return cls(
            source=source,
            virtual_size=found.virtual_size,
            allocated=found.allocated,
            hole=found.hole,
            zero=found.zero,
            estimated_wire=found.wire,
            exact=found.exact,
        )


def describe(source: str, found: Inspection) -> str:
    """An inspection for people, in one line; what is estimated bears a tilde."""
    about = "" if found.exact else "~"
    return (
        f"{printable(source)}: virtual {format_size(found.virtual_size)},"
        f" allocated {format_size(found.allocated)}, of it zero {about}{format_size(found.zero)},"
        f" on the wire ~{format_size(found.wire)}"
    )
