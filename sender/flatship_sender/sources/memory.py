"""A disk in memory, for tests and simulations: it fails, shrinks and gets busy when told to."""

import bisect
import threading
from collections.abc import Iterator, Mapping
from typing import Final

from blake3 import blake3

from flatship_protocol.constants import SECTOR_SIZE
from flatship_protocol.errors import SourceBusy, SourceReadError, SourceUnsuitable
from flatship_protocol.extents import Extent, ExtentKind

_IDENTITY_CONTEXT: Final = "flatship/1 memory source identity"


class MemorySource:
    """A ``BlockSource`` over bytes that a test gave.

    Args:
        content: The whole disk; or runs of data by offset (whole sectors, not
            overlapping), with holes between them.
        size: Bytes; needed with runs, otherwise the length of ``content``.
        name: What it is called; with the size, its identity.
    """

    def __init__(
        self,
        content: bytes | Mapping[int, bytes],
        *,
        size: int | None = None,
        name: str = "memory",
    ) -> None:
        runs = {0: content} if isinstance(content, bytes) else content
        self._offsets = sorted(offset for offset in runs if runs[offset])
        self._runs = [bytearray(runs[offset]) for offset in self._offsets]
        end = self._offsets[-1] + len(self._runs[-1]) if self._runs else 0
        self.size = end if size is None else size
        if self.size <= 0 or self.size % SECTOR_SIZE or end > self.size:
            raise SourceUnsuitable(f"source {name}: {self.size} bytes cannot be a disk")
        self.name = name
        self.block_size = SECTOR_SIZE
        digest = blake3(derive_key_context=_IDENTITY_CONTEXT)
        self.identity = digest.update(self.size.to_bytes(8) + name.encode()).digest()
        self.bytes_read = 0
        """Bytes that ``read_into`` has delivered, for assertions about what was not read."""
        self.closed = False
        self._lock = threading.Lock()
        self._failing: set[int] = set()
        self._end = self.size
        self._writer: str | None = None

    def fail_at(self, offset: int) -> None:
        """Make every read that touches the byte at ``offset`` fail, from now on."""
        self._failing.add(offset)

    def shrink_to(self, size: int) -> None:
        """Take away what is behind ``size`` bytes; the source still claims its old size."""
        self._end = size

    def become_busy(self, writer: str) -> None:
        """Let ``still_quiet`` find this writer, from now on."""
        self._writer = writer

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Runs of data and holes, as they were given."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"[{offset}, {offset + length}) is not within {self.size} bytes")
        return self._extents(offset, offset + length)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``, or fail as told."""
        length = len(buffer)
        end = offset + length
        if self.closed:
            raise ValueError(f"source {self.name} is closed")
        if (offset | length) % SECTOR_SIZE or offset < 0 or end > self.size:
            raise ValueError(
                f"{length} bytes at {offset} are not whole sectors within {self.size} bytes"
            )
        if any(offset <= bad < end for bad in self._failing):
            raise SourceReadError(
                f"source {self.name}: reading {length} bytes at {offset} failed: Input/output error"
            )
        if end > self._end:
            raise SourceReadError(
                f"source {self.name} ended at byte {self._end}, and had {self.size} bytes when it "
                "was opened: it shrank while it was read"
            )
        for extent in self._extents(offset, end):
            target = buffer[extent.offset - offset : extent.end - offset]
            target[:] = self._bytes_of(extent)
        with self._lock:
            self.bytes_read += length

    def still_quiet(self) -> None:
        """Complain about the writer that ``become_busy`` named."""
        if self._writer is not None:
            raise SourceBusy(
                f"source {self.name} is open for writing by {self._writer}; "
                "stop that process or pass --live"
            )

    def close(self) -> None:
        """Refuse reads from now on. Idempotent."""
        self.closed = True

    def _bytes_of(self, extent: Extent) -> bytes | bytearray:
        if extent.kind is ExtentKind.HOLE:
            return bytes(extent.length)
        index = bisect.bisect_right(self._offsets, extent.offset) - 1
        start = extent.offset - self._offsets[index]
        return self._runs[index][start : start + extent.length]

    def _extents(self, position: int, end: int) -> Iterator[Extent]:
        index = max(bisect.bisect_right(self._offsets, position) - 1, 0)
        for start, run in zip(self._offsets[index:], self._runs[index:], strict=True):
            stop = min(start + len(run), end)
            if stop <= position:
                continue
            if start >= end:
                break
            if start > position:
                yield Extent(position, start - position, ExtentKind.HOLE)
                position = start
            yield Extent(position, stop - position, ExtentKind.DATA)
            position = stop
        if position < end:
            yield Extent(position, end - position, ExtentKind.HOLE)
