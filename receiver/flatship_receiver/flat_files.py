"""Files and devices that hold the bytes of a disk as they are, opened to be judged. Reads only."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from stat import S_ISBLK, S_ISREG
from typing import Final

from flatship_protocol.constants import SECTOR_SIZE
from flatship_protocol.errors import (
    DatastoreError,
    ErrorCode,
    SourceMissing,
    SourceUnsuitable,
)
from flatship_protocol.extents import Extent, ExtentKind
from flatship_receiver import vmdk

OPEN_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not block


class FlatFile:
    """An open file or block device that holds bytes of a disk as they are."""

    def __init__(self, name: str, descriptor: int, direct: int | None) -> None:
        self._name = name
        self._descriptor = descriptor
        self._direct = direct  # the same file opened with O_DIRECT, where that works
        status = os.fstat(descriptor)
        self.identity = (status.st_dev, status.st_ino)
        self.is_device = S_ISBLK(status.st_mode)
        self.is_file = S_ISREG(status.st_mode)
        self.size = os.lseek(descriptor, 0, os.SEEK_END) if self.is_device else status.st_size

    @classmethod
    def open(cls, name: str, flags: int = 0, folder: int | None = None) -> "FlatFile":
        """Open for reading, past the page cache if possible; raises ``OSError``."""
        descriptor = os.open(name, OPEN_FLAGS | flags, dir_fd=folder)
        try:
            direct = os.open(name, OPEN_FLAGS | os.O_DIRECT | flags, dir_fd=folder)
        except OSError:
            return cls(name, descriptor, None)
        if not os.path.sameopenfile(descriptor, direct):  # replaced between the two
            os.close(direct)
            return cls(name, descriptor, None)
        return cls(name, descriptor, direct)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes at ``offset``, past the page cache.

        Raises:
            DatastoreError: The device failed or the file has become shorter.
        """
        done = 0
        while done < len(buffer):
            try:
                count = self._read(buffer[done:], offset + done)
            except OSError as error:
                raise unreadable(self._name, f"byte {offset + done}: {error.strerror}") from error
            if not count:
                raise unreadable(self._name, f"ends at byte {offset + done}, too early")
            done += count

    def extents(self) -> Iterator[Extent]:
        """Runs of data and holes, in order, in bytes from the start of the file."""
        if self.is_device:  # knows of no holes
            yield Extent(0, self.size, ExtentKind.DATA)
            return
        offset = 0
        while offset < self.size:
            data = self._seek(offset, os.SEEK_DATA, otherwise=offset)
            if data > offset:
                yield Extent(offset, data - offset, ExtentKind.HOLE)
            offset = data
            if offset < self.size:
                hole = self._seek(offset, os.SEEK_HOLE, otherwise=self.size)
                yield Extent(offset, hole - offset, ExtentKind.DATA)
                offset = hole

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def _read(self, buffer: memoryview, offset: int) -> int:
        if self._direct is not None:
            try:
                return os.preadv(self._direct, [buffer], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:  # EINVAL: not aligned as the device wants it
                    raise
        os.posix_fadvise(self._descriptor, offset, len(buffer), os.POSIX_FADV_DONTNEED)
        count = os.preadv(self._descriptor, [buffer], offset)
        os.posix_fadvise(self._descriptor, offset, len(buffer), os.POSIX_FADV_DONTNEED)
        return count

    def _seek(self, offset: int, whence: int, otherwise: int) -> int:
        try:
            return min(os.lseek(self._descriptor, offset, whence), self.size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from there on
                return self.size
            return otherwise  # the file system cannot tell: all of it counts as data


class FlatDisk:
    """A published disk, open for reading: its extents end to end. See ``ReadableDisk``."""

    def __init__(self, files: tuple[FlatFile, ...]) -> None:
        self.files = files
        self.capacity = sum(file.size for file in files)

    @classmethod
    def open(cls, folder: Path, descriptor: vmdk.Descriptor) -> "FlatDisk":
        """Open the extents that ``descriptor`` names beside itself in ``folder``.

        Raises:
            DatastoreError: One is missing, a link, not a regular file, or has
                another length than the descriptor says.
        """
        with ExitStack() as opened:
            files = []
            for line in descriptor.extents:
                file = _open_extent(folder, line)
                opened.callback(file.close)
                files.append(file)
            opened.pop_all()
            return cls(tuple(files))

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes of the disk at ``offset``; raises ``DatastoreError``."""
        start = 0
        for file in self.files:
            first, end = max(offset, start), min(offset + len(buffer), start + file.size)
            if first < end:
                file.read_into(buffer[first - offset : end - offset], first - start)
            start += file.size

    def extents(self) -> Iterator[Extent]:
        """Runs of data and holes that cover the whole disk, in order."""
        start = 0
        for file in self.files:
            for extent in file.extents():
                yield Extent(start + extent.offset, extent.length, extent.kind)
            start += file.size

    def close(self) -> None:
        """Let go of the extents."""
        for file in self.files:
            file.close()


def _open_extent(folder: Path, line: vmdk.ExtentLine) -> FlatFile:
    """Open what an extent line names; ``vmdk.check`` has found its name to be no path."""
    try:
        file = FlatFile.open(str(folder / line.file), os.O_NOFOLLOW)
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise unreadable(line.file, str(reason)) from error
    expected = line.sectors * SECTOR_SIZE
    if not file.is_file:
        file.close()
        raise unreadable(line.file, "is not a regular file")
    if file.size != expected:
        file.close()
        raise unreadable(line.file, f"has {file.size} bytes, the descriptor says {expected}")
    return file


def open_source(path: Path) -> FlatFile:
    """Open a raw file or a device to compare with.

    Raises:
        SourceMissing, SourceUnsuitable: It cannot be read as a disk.
    """
    try:
        source = FlatFile.open(str(path))
    except FileNotFoundError as error:
        raise SourceMissing(f"{path}: there is no such file or device") from error
    except OSError as error:
        raise SourceUnsuitable(f"{path} cannot be read: {error.strerror}") from error
    if not source.is_file and not source.is_device:
        source.close()
        raise SourceUnsuitable(f"{path} is neither a regular file nor a block device")
    return source


def unreadable(name: str, reason: str) -> DatastoreError:
    """What is said of a file whose bytes cannot be judged."""
    return DatastoreError(f"{name!r} {reason}", ErrorCode.PROOF_FAILED)
