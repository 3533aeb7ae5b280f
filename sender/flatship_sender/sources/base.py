"""The interface every source of disk bytes implements."""

from collections.abc import Iterator
from typing import Protocol

from flatship_protocol.extents import Extent


class BlockSource(Protocol):
    """A disk that can be read at any offset, from several threads at once.

    ``tests/conformance/test_sources.py`` is the contract in executable form.
    """

    @property
    def name(self) -> str:
        """What an operator calls it: the path as given."""
        ...

    @property
    def size(self) -> int:
        """Bytes; a multiple of 512; fixed for the life of the object."""
        ...

    @property
    def block_size(self) -> int:
        """Bytes; the device's logical sector size."""
        ...

    @property
    def identity(self) -> bytes:
        """32 bytes that stay the same for the same source and differ for others.

        Derived from where the source is and how large it is, never from its
        content. See SPEC.md, "OPEN_DISK".
        """
        ...

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Runs of data and holes that cover exactly ``[offset, offset + length)``, in order.

        Holes are hints that save reads: what is called a hole reads as zeros.
        A source that knows nothing yields one data extent.

        Raises:
            SourceReadError: The device failed to answer.
        """
        ...

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with the disk's bytes starting at ``offset``.

        Args:
            buffer: Writable, contiguous, format "B". Its length is the read
                length: a multiple of 512. Page-aligned memory is read without
                a copy where the source can do that.
            offset: Bytes from the start of the disk, a multiple of 512.

        Raises:
            SourceReadError: The device failed or the source shrank;
                ``buffer`` is undefined.
            ValueError: Misaligned or past the end; nothing was read.

        Thread-safe. Never short.
        """
        ...

    def still_quiet(self) -> None:
        """Check again that nobody has opened the source for writing.

        Raises:
            SourceBusy: Somebody has; what was read may be inconsistent.
        """
        ...

    def close(self) -> None:
        """Release the device. Idempotent."""
        ...
