"""Reading a whole disk without taking the page cache from the host.

``tests/benchmarks/bench_page_cache.py`` measures the four ways that Linux has;
its figures, in ``tests/benchmarks/results``, made this order of preference:

1. RWF_DONTCACHE (Linux 6.14, file systems that offer it): as fast as plain
   reads with a cold and with a warm cache, leaves nothing behind, keeps what
   was there.
2. O_DIRECT (block devices, older kernels): leaves nothing and keeps what was
   there, but copies nothing out of a warm file system's cache.
3. Buffered, then POSIX_FADV_DONTNEED behind the reader: evicts the host's own
   pages of this file too, and leaves what was read ahead in large folios. For
   file systems that know neither of the others.

tmpfs takes O_DIRECT as a plain read, since Linux 6.6, or else the advice for nothing.

Which one a source gets is asked once, with a read of its first page.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from typing import Final, Protocol

_RWF_DONTCACHE: Final = 0x80  # linux/fs.h; not yet in Python's os
_PAGE: Final = mmap.PAGESIZE  # every device and file system accepts O_DIRECT in whole pages
_REFUSALS: Final = (errno.EOPNOTSUPP, errno.EINVAL)


class Reader(Protocol):
    """Positioned reads of one open file or device."""

    def read(self, buffer: memoryview, offset: int) -> int:
        """Read up to ``len(buffer)`` bytes at ``offset``; 0 at the end.

        Raises:
            OSError: As preadv(2).
        """
        ...

    def close(self) -> None:
        """Release what the reader opened itself; the descriptor it got stays open."""
        ...


class UncachedReader:
    """Reads through the page cache and drops only the pages that it brought in."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, buffer: memoryview, offset: int) -> int:
        """Read by preadv2(2) with RWF_DONTCACHE."""
        return os.preadv(self._fd, [buffer], offset, _RWF_DONTCACHE)

    def close(self) -> None:
        """Nothing to release."""


class DroppingReader:
    """Reads through the page cache and drops the pages behind itself."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, buffer: memoryview, offset: int) -> int:
        """Read, then advise that these pages are not needed."""
        count = os.preadv(self._fd, [buffer], offset)
        os.posix_fadvise(self._fd, offset, count, os.POSIX_FADV_DONTNEED)
        return count

    def close(self) -> None:
        """Nothing to release."""


class DirectReader:
    """Reads past the page cache; what is not page-aligned goes through it and is dropped."""

    def __init__(self, direct_fd: int, fd: int) -> None:
        self._direct_fd = direct_fd
        self._buffered = DroppingReader(fd)

    def read(self, buffer: memoryview, offset: int) -> int:
        """Read directly if offset, length and memory are page-aligned."""
        if (offset | len(buffer) | _address(buffer)) % _PAGE:
            return self._buffered.read(buffer, offset)
        return os.preadv(self._direct_fd, [buffer], offset)

    def close(self) -> None:
        """Close the descriptor that was opened with O_DIRECT."""
        os.close(self._direct_fd)


def choose_reader(fd: int) -> Reader:
    """Pick the gentlest reader that the file system or device of ``fd`` supports.

    Args:
        fd: Open for reading, buffered. Stays the caller's to close.

    Raises:
        OSError: The first page cannot be read at all, in no way.
    """
    with mmap.mmap(-1, _PAGE) as page, memoryview(page) as probe:
        if _supported(lambda: os.preadv(fd, [probe], 0, _RWF_DONTCACHE)):
            return UncachedReader(fd)
        try:
            # By way of /proc: the same file, even if its name has been given to another.
            direct_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            return DroppingReader(fd)
        try:
            if _supported(lambda: os.preadv(direct_fd, [probe], 0)):
                return DirectReader(direct_fd, fd)
        except OSError:
            os.close(direct_fd)
            raise
        os.close(direct_fd)
        return DroppingReader(fd)


def _supported(read: Callable[[], int]) -> bool:
    try:
        read()
    except OSError as error:
        if error.errno in _REFUSALS:
            return False
        raise
    return True


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if buffer else 0
