"""One flat extent: a file whose bytes are the disk's bytes.

Raises ``OSError`` as the system calls do; whoever holds the extents knows what
that means for the disk.
"""

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.extents import Extent, ExtentKind
from flatship_protocol.messages import Provisioning
from flatship_receiver.datastores.folder import Folder
from flatship_receiver.datastores.residency import cached_pages
from flatship_service.zeroing import fill_with_zeros

# linux/falloc.h
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10

_ZEROS: Final = memoryview(bytes(CHUNK_SIZE))
_YES: Final = 1  # in a map of chunks
_RWF_DONTCACHE: Final = 0x80  # linux/fs.h; not yet in Python's os
_NOT_SUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})

# Python has posix_fallocate(3) only; fallocate(2) also gives space back.
_fallocate: Callable[[int, int, int, int], int] = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]  # type: ignore[attr-defined]


class FlatExtent:
    """A file of fixed length that is being written. Offsets count from its start, in bytes.

    Methods may be called from several threads at once, on different ranges.
    """

    def __init__(self, fd: int, name: str, length: int, provisioning: Provisioning) -> None:
        """Take over an open file that has its length; see ``create`` and ``reopen``."""
        self.name = name
        self.length = length
        self.fd = fd
        self._provisioning = provisioning
        self._dirty = False
        # The kernel lets one writer into a file at a time, and has the others spin for their turn.
        self._writing = threading.RLock()
        self._can_read_uncached = True  # until the file system says otherwise
        # The file starts as zeros, so zeroing what was never written is free.
        # A byte a chunk; untouched pages of the map take no memory.
        self._written = bytearray(-(-length // CHUNK_SIZE))
        self._sparse = bytearray(len(self._written))  # likewise: chunks that may have holes
        self._can_deallocate = provisioning is not Provisioning.EAGER
        self._direct_fd = -1

    @classmethod
    def create(
        cls, folder: Folder, name: str, length: int, provisioning: Provisioning
    ) -> "FlatExtent":
        """Make the file, sized, or nothing at all.

        Thick and eager files have their space allocated.
        """
        extent = cls(folder.create_file(name), name, length, provisioning)
        try:
            extent._allocate()
            extent._direct_fd = _open_direct(folder, name, extent.fd)
        except BaseException:
            with suppress(OSError):
                folder.unlink(name)
            with suppress(OSError):
                extent.close()
            raise
        return extent

    @classmethod
    def reopen(
        cls, folder: Folder, name: str, length: int, provisioning: Provisioning
    ) -> "FlatExtent | None":
        """Open what ``create`` made; None if it is not there, or has another length."""
        status = folder.regular(name)
        if status is None or status.st_size != length:
            return None
        extent = cls(folder.open_file(name, os.O_RDWR), name, length, provisioning)
        try:
            extent._direct_fd = _open_direct(folder, name, extent.fd)
            position = 0
            while position < length:
                run = extent.run_at(position)
                if run.kind is ExtentKind.DATA:
                    extent._mark(run.offset, run.length)
                position = run.end
        except BaseException:
            with suppress(OSError):
                extent.close()
            raise
        return extent

    @property
    def is_direct(self) -> bool:
        """Whether reads pass the page cache by; otherwise flush before reading."""
        return self._direct_fd >= 0

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``. See pwrite(2), which may write less."""
        self._mark(offset, len(data))
        try:
            self._write_all(offset, data)
        finally:
            self._dirty = True  # only now: a flush that runs meanwhile need not cover it

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, as cheaply as the provisioning allows."""
        if self._provisioning is Provisioning.EAGER:
            self._mark(offset, length)
            runs = [(offset, length)]
        else:
            runs = list(self._written_runs(offset, length))
        try:
            for start, size in runs:
                if self._deallocate(start, size):
                    self._mark(start, size, sparse=True)
                else:
                    self._write_zeros(start, size)
        finally:
            if runs:  # never cleared here: a write may have set it meanwhile
                self._dirty = True

    def flush(self) -> None:
        """fdatasync(2), if anything was written since the last time."""
        if self._dirty:
            self._dirty = False  # first: what is written from now on is the next flush's
            os.fdatasync(self.fd)

    def sync(self) -> None:
        """fsync(2): data, size and allocation."""
        os.fsync(self.fd)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from the medium.

        Without O_DIRECT what was written must have been flushed before: only
        clean pages can be dropped from the cache. With it they are dropped as
        well, and where the kernel vouches that none is left, a buffered read
        fetches them: unlike a direct one it does not hold up whoever writes
        to the same file. What the file system calls a hole is not read.
        """
        first, last = offset // CHUNK_SIZE, -(-(offset + len(buffer)) // CHUNK_SIZE)
        if self._sparse.find(_YES, first, last) < 0:
            self._read_medium(buffer, offset)
            return
        position, end = offset, offset + len(buffer)
        while position < end:
            run = self.run_at(position)
            part = buffer[position - offset : min(run.end, end) - offset]
            if run.kind is ExtentKind.HOLE:
                fill_with_zeros(part)
            else:
                self._read_medium(part, position)
            position = run.end

    def _read_medium(self, buffer: memoryview, offset: int) -> None:
        if self._read_uncached(buffer, offset):
            return
        if not self.is_direct:
            os.posix_fadvise(self.fd, offset, len(buffer), os.POSIX_FADV_DONTNEED)
            read_all(self.fd, buffer, offset)
            return
        try:
            read_all(self._direct_fd, buffer, offset)
        except OSError as error:
            if error.errno == errno.EINVAL:  # aligned reads were tried when the file was made
                raise ValueError(f"read at {offset}: buffer is not page-aligned") from error
            raise

    def read_latest(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with what was written last, from the page cache or through it."""
        read_through(self.fd, buffer, offset)

    def run_at(self, offset: int) -> Extent:
        """The run of data or hole that starts at ``offset``, a multiple of the page size.

        Data is rounded to whole pages: file systems may have smaller blocks.
        """
        data = _seek(self.fd, offset, os.SEEK_DATA, otherwise=self.length)
        data -= data % PAGE_SIZE
        if data > offset:
            return Extent(offset, data - offset, ExtentKind.HOLE)
        end = offset + PAGE_SIZE
        end = max(end, _seek(self.fd, offset, os.SEEK_HOLE, otherwise=self.length))
        end = min(-(-end // PAGE_SIZE) * PAGE_SIZE, self.length)
        return Extent(offset, end - offset, ExtentKind.DATA)

    def close(self) -> None:
        """Let go of the file, also when that raises. Idempotent."""
        fds = (self.fd, self._direct_fd)
        self.fd = self._direct_fd = -1
        with ExitStack() as stack:  # the second is closed although the first fails
            for fd in fds:
                if fd >= 0:
                    stack.callback(os.close, fd)

    def _allocate(self) -> None:
        if self._provisioning is Provisioning.THIN:
            os.ftruncate(self.fd, self.length)
        else:
            os.posix_fallocate(self.fd, 0, self.length)
        os.fsync(self.fd)

    def _read_uncached(self, buffer: memoryview, offset: int) -> bool:
        """Read through the page cache if it provably holds nothing of the range; else False."""
        if not self._can_read_uncached:
            return False
        os.posix_fadvise(self.fd, offset, len(buffer), os.POSIX_FADV_DONTNEED)
        left = cached_pages(self.fd, offset, len(buffer))
        if left is None:
            self._can_read_uncached = False
        if left != 0:
            return False
        try:
            read_all(self.fd, buffer, offset, _RWF_DONTCACHE)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            self._can_read_uncached = False
            return False
        return True

    def _mark(self, offset: int, length: int, *, sparse: bool = False) -> None:
        """Note that a range has been written, or with ``sparse`` given back."""
        for index in range(offset // CHUNK_SIZE, -(-(offset + length) // CHUNK_SIZE)):
            start = index * CHUNK_SIZE
            part = offset > start or offset + length < min(start + CHUNK_SIZE, self.length)
            if sparse or (part and not self._written[index]):
                self._sparse[index] = _YES
            self._written[index] = _YES

    def _written_runs(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The parts of a range, as (offset, length), that lie in chunks once written."""
        last = -(-(offset + length) // CHUNK_SIZE)
        first = self._written.find(_YES, offset // CHUNK_SIZE, last)
        while first >= 0:
            stop = self._written.find(0, first, last)
            stop = last if stop < 0 else stop
            start = max(offset, first * CHUNK_SIZE)
            yield start, min(offset + length, stop * CHUNK_SIZE) - start
            first = self._written.find(_YES, stop, last)

    def _deallocate(self, offset: int, length: int) -> bool:
        """Let the file system make the zeros; False if it cannot."""
        if not self._can_deallocate:
            return False
        thin = self._provisioning is Provisioning.THIN
        mode = FALLOC_FL_PUNCH_HOLE if thin else FALLOC_FL_ZERO_RANGE
        while _fallocate(self.fd, mode | FALLOC_FL_KEEP_SIZE, offset, length) != 0:
            error = ctypes.get_errno()
            if error in _NOT_SUPPORTED:
                self._can_deallocate = False
                return False
            if error != errno.EINTR:
                raise OSError(error, os.strerror(error))
        return True

    def _write_zeros(self, offset: int, length: int) -> None:
        for start in range(offset, offset + length, CHUNK_SIZE):
            self._write_all(start, _ZEROS[: offset + length - start])

    def _write_all(self, offset: int, data: memoryview) -> None:
        with self._writing:
            while data:
                count = os.pwrite(self.fd, data, offset)
                data = data[count:]
                offset += count


def _open_direct(folder: Folder, name: str, fd: int) -> int:
    """Open the file that ``fd`` is for reads past the page cache; -1 if it cannot be."""
    direct_fd = -1
    try:
        direct_fd = folder.open_file(name, os.O_RDONLY | os.O_DIRECT)
        if not os.path.samestat(os.fstat(direct_fd), os.fstat(fd)):
            raise OSError(errno.ESTALE, "the file was exchanged while it was made")
        with mmap.mmap(-1, PAGE_SIZE) as page:
            os.preadv(direct_fd, [page], PAGE_SIZE)  # some open, and then cannot read so finely
    except OSError as error:
        if direct_fd >= 0:
            os.close(direct_fd)
        if error.errno == errno.EINVAL:
            return -1
        raise
    return direct_fd


def read_all(fd: int, buffer: memoryview, offset: int, flags: int = 0) -> None:
    """Fill ``buffer``. See preadv2(2), which may read less; OSError if the file ends early."""
    while buffer:
        count = os.preadv(fd, [buffer], offset, flags)
        if count == 0:
            raise OSError(errno.EIO, "the file ends early; somebody has truncated it")
        buffer = buffer[count:]
        offset += count


def read_through(fd: int, buffer: memoryview, offset: int) -> None:
    """``read_all`` through the page cache, which keeps no more than it had, where that can be.

    Making room in the cache for what is needed once costs more than the read.
    """
    try:
        read_all(fd, buffer, offset, _RWF_DONTCACHE)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        read_all(fd, buffer, offset)


def _seek(fd: int, offset: int, whence: int, otherwise: int) -> int:
    """Where the next data or hole is; ``otherwise`` if there is none."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return otherwise
        raise
