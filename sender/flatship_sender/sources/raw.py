"""Raw disks: regular files, sparse or not, and block devices."""

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from blake3 import blake3

from flatship_protocol.constants import MAX_DISK_SIZE, SECTOR_SIZE
from flatship_protocol.errors import (
    SourceBusy,
    SourceError,
    SourceMissing,
    SourceReadError,
    SourceUnsuitable,
)
from flatship_protocol.extents import Extent, ExtentKind
from flatship_sender.holders import Survey, find_holders
from flatship_sender.sources.containers import READABLE, container_of
from flatship_sender.sources.devices import (
    lasting_name,
    logical_sector_size,
    size_of,
)
from flatship_sender.sources.page_cache import Reader, choose_reader
from flatship_sender.sources.quiet import QuietWatch, refuse_writers

_IDENTITY_CONTEXT: Final = "flatship/1 source identity"
_FOREIGN_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a character device"),
)


class SourcePermissionError(SourceError):
    """This user may not read the source; run as another one, or grant it."""

    exit_code = 12


def open_raw(path: str, *, live: bool, whatever_it_holds: bool = False) -> "RawSource":
    """Open a raw disk read-only and make sure that it can be shipped as it is.

    Args:
        path: A regular file or a block device, as the operator names it.
        live: Read it although somebody may write to it meanwhile.
        whatever_it_holds: The operator says that it is a raw disk, even if it
            begins like an image.

    Raises:
        SourceMissing: Nothing has this name.
        SourcePermissionError: This user may not read it.
        SourceUnsuitable: It is no disk: of another kind, empty, not a whole
            number of sectors, too large, with 4096-byte sectors, or a
            container such as qcow2.
        SourceBusy: Not ``live``, and somebody may write to it.
        SourceReadError: It could be opened and not read.

    A block device that is not ``live`` is claimed (O_EXCL) until it is closed:
    nobody can mount it meanwhile. Where only readers have claimed it already,
    such as a read-only mount, it is read without a claim of our own.
    """
    try:
        mode = os.stat(path).st_mode
        for is_kind, kind in _FOREIGN_KINDS:
            if is_kind(mode):
                raise SourceUnsuitable(
                    f"source {path} is {kind}; name a raw disk file or a block device"
                )
        survey = Survey((), 0) if live else find_holders(path)
        refuse_writers(f"source {path}", survey)
        if stat.S_ISBLK(mode) and not live:
            fd = _open_claimed(path, survey)
        else:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise open_error(path, error) from error
    try:
        if not whatever_it_holds:
            _refuse_container(path, fd)
        return RawSource(path, fd, live=live, unseen_processes=survey.unseen_processes)
    except OSError as error:
        os.close(fd)
        raise SourceReadError(f"source {path} cannot be read: {error.strerror}") from error
    except BaseException:
        os.close(fd)
        raise


class RawSource:
    """A ``BlockSource`` over one open file or block device; made by ``open_raw``.

    ``fd`` becomes its own, unless it cannot be made.
    """

    def __init__(self, path: str, fd: int, *, live: bool, unseen_processes: int) -> None:
        status = os.fstat(fd)
        self.name = path
        self.unseen_processes = unseen_processes
        """Processes whose open files this user may not see: they may be writing."""
        self.remarks: tuple[str, ...] = ()
        """What else the operator should know of it, in predicates."""
        self._live = live
        self._rdev = status.st_rdev if stat.S_ISBLK(status.st_mode) else None
        self.size = size_of(fd)
        self.block_size = SECTOR_SIZE if self._rdev is None else logical_sector_size(fd)
        self._fd = fd
        self._check_shape()
        self.identity = self._identify()
        self._has_hints = self._rdev is None and _knows_holes(fd)
        self._watch = QuietWatch(f"source {path}", path, fd)
        self._reader: Reader = choose_reader(fd)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Runs of data and holes, as the file system reports them; devices are all data."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"[{offset}, {offset + length}) is not within {self.size} bytes")
        if self._has_hints:
            return self._hinted_extents(offset, offset + length)
        return iter((Extent(offset, length, ExtentKind.DATA),) if length else ())

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``, page cache of the host left alone."""
        length = len(buffer)
        if self._fd < 0:
            raise ValueError(f"source {self.name} is closed")
        if (offset | length) % SECTOR_SIZE or offset < 0 or offset + length > self.size:
            raise ValueError(
                f"{length} bytes at {offset} are not whole sectors within {self.size} bytes"
            )
        done = 0
        while done < length:
            try:
                count = self._reader.read(buffer[done:] if done else buffer, offset + done)
            except OSError as error:
                raise SourceReadError(
                    f"source {self.name}: reading {length - done} bytes at {offset + done} "
                    f"failed: {error.strerror}"
                ) from error
            if count == 0:
                raise self._shrank(offset + done)
            done += count

    def still_quiet(self) -> None:
        """Check that nobody has written, and nobody could; nothing to check when live."""
        if not self._live:
            self._watch.check()

    def close(self) -> None:
        """Release the file or device, and the claim on it. Idempotent."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            self._reader.close()
        finally:
            os.close(fd)

    def _check_shape(self) -> None:
        refused = None
        if self.block_size != SECTOR_SIZE:
            refused = (
                f"has logical sectors of {self.block_size} bytes, and those of a VMDK have "
                f"{SECTOR_SIZE}: a guest would not find its partitions"
            )
        elif self.size == 0:
            refused = "is empty: 0 bytes"
        elif self.size % SECTOR_SIZE:
            refused = (
                f"has {self.size} bytes, which is not a multiple of {SECTOR_SIZE}: "
                "it is cut short, or no raw disk"
            )
        elif self.size > MAX_DISK_SIZE:
            refused = f"has {self.size} bytes; a virtual disk has at most {MAX_DISK_SIZE} (62 TiB)"
        if refused:
            raise SourceUnsuitable(f"source {self.name} {refused}")

    def _identify(self) -> bytes:
        # Of the host, not of the world: the receiver tells hosts apart by their keys.
        where = (
            f"file:{os.path.realpath(self.name)}"
            if self._rdev is None
            else lasting_name(self.name, self._rdev)
        )
        digest = blake3(derive_key_context=_IDENTITY_CONTEXT)
        return digest.update(self.size.to_bytes(8) + os.fsencode(where)).digest()

    def _hinted_extents(self, position: int, end: int) -> Iterator[Extent]:
        while position < end:
            data = min(self._seek(position, os.SEEK_DATA), end)
            if data > position:
                yield Extent(position, data - position, ExtentKind.HOLE)
            if data == end:
                return
            position = min(self._seek(data, os.SEEK_HOLE), end)
            yield Extent(data, position - data, ExtentKind.DATA)

    def _seek(self, position: int, whence: int) -> int:
        try:
            return os.lseek(self._fd, position, whence)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise SourceReadError(
                    f"source {self.name}: looking for holes at {position} failed: {error.strerror}"
                ) from error
        # No data from here to the end. Beyond an end that has moved there is no hole, but nothing.
        if os.fstat(self._fd).st_size < self.size:
            raise self._shrank(position)
        return self.size

    def _shrank(self, offset: int) -> SourceReadError:
        return SourceReadError(
            f"source {self.name} ended at byte {offset}, and had {self.size} bytes when it was "
            "opened: it shrank while it was read"
        )


def _refuse_container(path: str, fd: int) -> None:
    found = container_of(fd)
    if found is not None:
        other = f" or --source-format {found.value}" if found in READABLE else ""
        raise SourceUnsuitable(
            f"source {path} begins like a {found.label} image, and may be a raw disk whose guest"
            f" wrote that; say what it is: --source-format raw{other}"
        )


def _open_claimed(path: str, survey: Survey) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_EXCL)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    if not survey.readers:
        raise SourceBusy(
            f"source {path} is claimed by something that /proc and /sys do not show, such as a "
            "file system detached with umount -l, a ZFS pool, or a process of another user; "
            "release it or pass --live"
        )
    return os.open(path, flags)


def open_error(path: str, error: OSError) -> SourceError:
    """Why the source cannot be opened, for its operator."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM):
        return SourceMissing(f"source {path} does not exist: {error.strerror}; check its name")
    if error.errno in (errno.EACCES, errno.EPERM):
        return SourcePermissionError(
            f"source {path} cannot be opened: {error.strerror}; run as root, "
            "or let this user's group read it (block devices: group disk)"
        )
    return SourceUnsuitable(f"source {path} cannot be opened: {error.strerror}")


def _knows_holes(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO  # all of it is a hole
    return True
