"""A disk being written to the files of a VM's folder."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from flatship_protocol.constants import PAGE_SIZE, SECTOR_SIZE
from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_protocol.extents import Extent
from flatship_receiver import vmdk
from flatship_receiver.datastores import locks, publication
from flatship_receiver.datastores.base import ImageRequest
from flatship_receiver.datastores.faults import datastore_error
from flatship_receiver.datastores.flat import FlatExtent
from flatship_receiver.datastores.folder import Folder
from flatship_receiver.descriptor_text import MAX_DESCRIPTOR_SIZE, DescriptorError

_NAME_OF_IMAGE: Final = b"flatship image "  # before the uuid, in a disk's lock file
_LOCK_FILE_SIZE: Final = 4096  # bytes of one that names an image
_SECTOR: Final = 512  # bytes that reach a medium together


class LocalImage:
    """Extents under names that end in ``.flatship-part``; see ``publication`` for the rest.

    Methods may be called from several threads at once. ``close`` and
    ``abort`` wait for the others to return. A closed image raises ``ValueError``.
    """

    def __init__(
        self, folder: Folder, lock_fd: int, request: ImageRequest, on_abort: Callable[[], None]
    ) -> None:
        """Take over a folder and a lock; see ``create`` and ``resume``.

        Args:
            folder: The VM's; belongs to the image from now on.
            lock_fd: The disk's lock, taken; belongs to the image from now on.
            request: What to make. Nothing of that name stands in the way.
            on_abort: Called when an abort has removed the files.
        """
        self._folder = folder
        self._request = request
        self._on_abort = on_abort
        self._descriptor = vmdk.descriptor_file(request.disk)
        self._files = vmdk.extent_files(request.disk, request.capacity, request.layout.format)
        self._extents: list[FlatExtent] = []
        self._turn = threading.Condition()
        self._users = 0  # calls under way
        self._open = True
        self._flushing = threading.Lock()
        self._failure: str | None = None
        self._lock_fd = lock_fd
        self._name_of_image = _NAME_OF_IMAGE + request.uuid.hex().encode() + b"\n"

    @classmethod
    def create(
        cls, folder: Folder, lock_fd: int, request: ImageRequest, on_abort: Callable[[], None]
    ) -> "LocalImage":
        """Make the files, which may take hours; on an error the image is aborted.

        Raises:
            DatastoreError: With code FOREIGN_FILE, or as the file system refused.
            OSError: The file system refused.
        """
        image = cls(folder, lock_fd, request, on_abort)
        try:
            image._make_extents()
            image._write_lock_file(image._name_of_image)
        except BaseException:
            image.abort()
            raise
        return image

    @classmethod
    def resume(
        cls, folder: Folder, lock_fd: int, request: ImageRequest, on_abort: Callable[[], None]
    ) -> "LocalImage | None":
        """Open what ``create`` made for this image; None, and all is let go, if it is not whole.

        Raises:
            DatastoreError: With code FOREIGN_FILE.
            OSError: The file system refused.
        """
        image = cls(folder, lock_fd, request, on_abort)
        try:
            whole = image_named_in(lock_fd) == request.uuid and image._reopen_extents()
        except BaseException:
            image.close()
            raise
        if not whole:
            image.close()
            return None
        return image

    @property
    def capacity(self) -> int:
        """Bytes the guest will see."""
        return self._request.capacity

    def write(self, offset: int, data: memoryview) -> None:
        """See ``Image.write``."""
        with self._using():
            for extent, position, start, size in self._pieces(offset, len(data)):
                with self._reporting("write", extent, needed=size):
                    extent.write(position, data[start : start + size])

    def zero(self, offset: int, length: int) -> None:
        """See ``Image.zero``."""
        with self._using():
            for extent, position, _, size in self._pieces(offset, length):
                with self._reporting("write", extent, needed=size):
                    extent.zero(position, size)

    def flush(self) -> None:
        """See ``Image.flush``."""
        with self._using():
            self._sync(FlatExtent.flush)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See ``Image.read_into``."""
        if offset % PAGE_SIZE or len(buffer) % PAGE_SIZE:
            raise ValueError(f"read of {len(buffer)} bytes at {offset} is not page-aligned")
        with self._using():
            for extent, position, start, size in self._pieces(offset, len(buffer)):
                if not extent.is_direct:
                    self._sync(FlatExtent.flush)
                with self._reporting("read", extent):
                    extent.read_into(buffer[start : start + size], position)

    def read_latest(self, buffer: memoryview, offset: int) -> None:
        """See ``Image.read_latest``."""
        with self._using():
            for extent, position, start, size in self._pieces(offset, len(buffer)):
                with self._reporting("read", extent):
                    extent.read_latest(buffer[start : start + size], position)

    def extents(self) -> Iterator[Extent]:
        """See ``Image.extents``."""
        for file, extent in zip(self._files, self._extents, strict=True):
            position = 0
            while position < file.length:
                with self._using(), self._reporting("read", extent):
                    run = extent.run_at(position)
                yield Extent(file.offset + position, run.length, run.kind)
                position = run.end

    def commit(self, descriptor: bytes) -> None:
        """See ``Image.commit``."""
        files = [(line.file, line.sectors * SECTOR_SIZE) for line in vmdk.parse(descriptor).extents]
        if files != [(file.name, file.length) for file in self._files]:
            raise ValueError("the descriptor does not describe the extents of this image")
        with self._using():
            self._sync(FlatExtent.sync)
            path = self._folder.path_of(self._descriptor)
            try:
                if self._request.replace:
                    locks.require_unlocked(self._folder)
                publication.require_room_for(
                    self._folder, self._request.disk, replace=self._request.replace
                )
                self._write_lock_file(descriptor)
                os.ftruncate(self._lock_fd, len(descriptor))
                os.fsync(self._lock_fd)
                publication.publish(self._folder, self._request.disk, replace=self._request.replace)
            except OSError as error:
                raise datastore_error(
                    error, "publish", path, self._room(len(descriptor))
                ) from error
        self.close()

    def close(self) -> None:
        """See ``Image.close``. An error is of no account: what was not flushed was not promised."""
        if self._shut():
            self._close_files()

    def abort(self) -> None:
        """See ``Image.abort``. What cannot be removed is replaced by the next ``create``."""
        if self._shut():
            try:
                self._remove_files()
            finally:
                self._close_files()
            self._on_abort()

    def _make_extents(self) -> None:
        _remove_leftovers(self._folder, self._request.disk)
        for file in self._files:
            name = publication.part_of(file.name)
            try:
                extent = FlatExtent.create(
                    self._folder, name, file.length, self._request.layout.provisioning
                )
            except OSError as error:
                raise datastore_error(
                    error, "create", self._folder.path_of(name), self._room(file.length)
                ) from error
            self._extents.append(extent)
        self._folder.sync()

    def _reopen_extents(self) -> bool:
        """Open the extents; False if one is not there as it was made."""
        provisioning = self._request.layout.provisioning
        for file in self._files:
            name = publication.part_of(file.name)
            extent = FlatExtent.reopen(self._folder, name, file.length, provisioning)
            if extent is None:
                return False
            self._extents.append(extent)
        return True

    def _write_lock_file(self, text: bytes) -> None:
        """Put ``text`` in the lock file, which names the image all the while.

        A crash may leave some sectors of it new and others old. So it keeps its length,
        and its last sector the image's name, unless a descriptor is so long.
        """
        tail = b"\n" + self._name_of_image
        padded = text
        if len(text) + _SECTOR <= _LOCK_FILE_SIZE:
            padded = text.ljust(_LOCK_FILE_SIZE - len(tail), b"\n") + tail
        written = 0
        while written < len(padded):
            written += os.pwrite(self._lock_fd, padded[written:], written)
        os.fsync(self._lock_fd)

    def _sync(self, how: Callable[[FlatExtent], None]) -> None:
        """Sync every extent; one at a time, so that no caller overtakes a sync under way.

        After a failure the kernel calls the lost pages clean: a second try
        would succeed and prove nothing.
        """
        with self._flushing:
            self._require_sound()
            for extent in self._extents:
                try:
                    how(extent)
                except OSError as error:
                    failure = datastore_error(
                        error, "sync", self._folder.path_of(extent.name), self._room(0)
                    )
                    self._failure = str(failure)
                    raise failure from error

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[FlatExtent, int, int, int]]:
        """Cut a range at extents into (extent, offset in it, offset in the range, length)."""
        end = offset + length
        if offset < 0 or length < 0 or end > self.capacity:
            raise ValueError(f"{length} bytes at {offset} reach past the end, {self.capacity}")
        position = offset
        while position < end:
            index = position // self._files[0].length  # only the last one may be shorter
            file = self._files[index]
            size = min(end, file.offset + file.length) - position
            yield self._extents[index], position - file.offset, position - offset, size
            position += size

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Keep the files open for the length of a call."""
        with self._turn:
            if not self._open:
                raise ValueError(f"image {self._folder.path_of(self._descriptor)} is closed")
            self._require_sound()
            self._users += 1
        try:
            yield
        finally:
            with self._turn:
                self._users -= 1
                self._turn.notify_all()

    def _shut(self) -> bool:
        """Let nobody in, wait until all are out; False if that was done before."""
        with self._turn:
            was_open, self._open = self._open, False
            self._turn.wait_for(lambda: self._users == 0)
            return was_open

    def _require_sound(self) -> None:
        if self._failure is not None:
            raise DatastoreError(
                f"the image is lost since an earlier failure: {self._failure}",
                ErrorCode.WRITE_FAILED,
            )

    @contextmanager
    def _reporting(self, doing: str, extent: FlatExtent, needed: int = 0) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = self._folder.path_of(extent.name)
            raise datastore_error(error, doing, path, self._room(needed)) from error

    def _room(self, needed: int) -> tuple[int, int]:
        """Bytes needed and bytes free, 0 where the file system does not even say."""
        try:
            return needed, self._folder.free_space()
        except OSError:
            return needed, 0

    def _remove_files(self) -> None:
        """Remove what is incomplete, and ours: a decided publication has renamed its lock file."""
        lock_file = publication.part_of(self._descriptor)
        with suppress(OSError):
            if not self._folder.is_same_file(lock_file, self._lock_fd):
                return
            for extent in self._extents:
                self._remove(extent.name, extent.fd)
            self._remove(lock_file, self._lock_fd)

    def _remove(self, name: str, fd: int) -> None:
        with suppress(OSError):
            if self._folder.is_same_file(name, fd):
                self._folder.unlink(name)

    def _close_files(self) -> None:
        with suppress(OSError), ExitStack() as stack:  # each is closed although another fails
            stack.callback(self._folder.close)
            stack.callback(os.close, self._lock_fd)
            for extent in self._extents:
                stack.callback(extent.close)


def image_named_in(lock_fd: int) -> bytes | None:
    """The uuid of the image that a lock file belongs to: on a line, or in its descriptor."""
    # A file that is made shorter has zeros behind its new end before it has its new length.
    text = os.pread(lock_fd, MAX_DESCRIPTOR_SIZE, 0).rstrip(b"\0")
    try:
        _, named, tail = text.rpartition(_NAME_OF_IMAGE)
        if named:
            uuid = bytes.fromhex(tail.decode("ascii").rstrip())
            return uuid if len(uuid) == vmdk.UUID_SIZE else None
        return vmdk.uuid_of(vmdk.parse(text))
    except (ValueError, DescriptorError):
        return None  # torn, or another program's


def _remove_leftovers(folder: Folder, disk: str) -> None:
    """Remove the extents of an earlier attempt, which may have had another format."""
    lock_file = publication.part_of(vmdk.descriptor_file(disk))
    for name in publication.own_names(folder, disk):
        if name.endswith(publication.PART) and name != lock_file:
            folder.unlink(name)
