"""A datastore in a directory of this machine: a local file system, or NFS that ESXi mounts too."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_protocol.messages import Provisioning
from flatship_protocol.names import check_name
from flatship_receiver import vmdk
from flatship_receiver.datastores import locks, publication
from flatship_receiver.datastores.base import ImageRequest, Recovery, Space
from flatship_receiver.datastores.faults import datastore_error
from flatship_receiver.datastores.folder import Folder
from flatship_receiver.datastores.local_image import LocalImage
from flatship_receiver.datastores.local_view import LocalView
from flatship_receiver.descriptor_text import MAX_DESCRIPTOR_SIZE


class LocalDatastore:
    """Holds each VM's disks in a folder of ``path``.

    The directory is held open from the start, so an unmounted file system
    is noticed and never mistaken for the empty mount point below it.
    """

    def __init__(self, name: str, path: str) -> None:
        """Open the place.

        Raises:
            DatastoreError: With code DATASTORE_MISSING: ``path`` is not there.
        """
        self._name = name
        self._path = path
        self._entering = threading.Lock()  # over making and removing of folders
        with _reporting("open datastore", path):
            self._root = Folder.open(path)

    @property
    def name(self) -> str:
        """The name by which the receiver's configuration calls it."""
        return self._name

    def space(self) -> Space:
        """See ``Datastore.space``."""
        self._require_root()
        with _reporting("ask for the space of", self._path):
            status = os.fstatvfs(self._root.fd)
        return Space(size=status.f_blocks * status.f_frsize, free=status.f_bavail * status.f_frsize)

    def check(self, request: ImageRequest) -> None:
        """See ``Datastore.check``."""
        self._check_place(request)
        with self._entering, _reporting("write in", self._root.path_of(request.vm)):
            try:
                folder = self._root.open_folder(request.vm)
            except FileNotFoundError:
                _require_writable(self._root)
                return
            try:
                _require_writable(folder)
                _check_folder(folder, request)
                locks.require_free(folder, _lock_file(request.disk))
            finally:
                folder.close()

    def create(self, request: ImageRequest) -> LocalImage:
        """See ``Datastore.create``."""
        self._check_place(request)
        with _reporting("create disk in", self._root.path_of(request.vm)):
            with self._entering:
                folder, is_new = self._enter(request.vm)
                try:
                    publication.finish_interrupted(folder, request.disk)
                    _check_folder(folder, request)
                    lock_fd = locks.take(folder, _lock_file(request.disk))
                except BaseException:
                    folder.close()
                    if is_new:
                        self._remove_if_empty(request.vm)
                    raise
            # The lock's file keeps the folder in place; to allocate may take hours.
            return LocalImage.create(
                folder, lock_fd, request, lambda: self._leave(request.vm, is_new=is_new)
            )

    def resume(self, request: ImageRequest) -> LocalImage | None:
        """See ``Datastore.resume``."""
        self._check_place(request, allocated=True)
        with _reporting("resume disk in", self._root.path_of(request.vm)):
            with self._entering:
                try:
                    folder = self._root.open_folder(request.vm)
                except FileNotFoundError:
                    return None
                try:
                    publication.finish_interrupted(folder, request.disk)
                    _check_folder(folder, request)
                    lock_fd = locks.take_again(folder, _lock_file(request.disk))
                except BaseException:
                    folder.close()
                    raise
                if lock_fd is None:
                    folder.close()
                    return None
            return LocalImage.resume(folder, lock_fd, request, lambda: None)

    def descriptor(self, vm: str, disk: str) -> bytes | None:
        """See ``Datastore.descriptor``."""
        check_name(vm)
        check_name(disk)
        self._require_root()
        name = vmdk.descriptor_file(disk)
        path = os.path.join(self._root.path_of(vm), name)
        with _reporting("read", path):
            try:
                folder = self._root.open_folder(vm)
            except FileNotFoundError:
                return None
            try:
                text = folder.read_file(name, MAX_DESCRIPTOR_SIZE + 1)
            except FileNotFoundError:
                return None
            finally:
                folder.close()
        if len(text) > MAX_DESCRIPTOR_SIZE:
            raise DatastoreError(
                f"{path} is longer than {MAX_DESCRIPTOR_SIZE} bytes, a descriptor is expected; move"
                " it out of the way",
                ErrorCode.FOREIGN_FILE,
            )
        return text

    def view(self, vm: str, disk: str, capacity: int, uuid: bytes) -> LocalView | None:
        """See ``Datastore.view``."""
        check_name(vm)
        check_name(disk)
        self._require_root()
        # Whoever begins to write a disk takes the same turn: so it stays that of the uuid until
        # it is open, and an open file is the same image's for ever.
        with self._entering, _reporting("read disk in", self._root.path_of(vm)):
            try:
                folder = self._root.open_folder(vm)
            except FileNotFoundError:
                return None
            try:
                return LocalView.open(folder, disk, capacity, uuid)
            finally:
                folder.close()

    def finish(self, vm: str, disk: str) -> None:
        """See ``Datastore.finish``."""
        check_name(vm)
        check_name(disk)
        self._require_root()
        with _reporting("finish the commit of", os.path.join(self._root.path_of(vm), disk)):
            try:
                folder = self._root.open_folder(vm)
            except FileNotFoundError:
                return
            try:
                publication.finish_interrupted(folder, disk)
            finally:
                folder.close()

    def recover(self) -> Recovery:
        """See ``Datastore.recover``."""
        self._require_root()
        finished: list[tuple[str, str]] = []
        failed: list[DatastoreError] = []
        with _reporting("list", self._path):
            entries = self._root.names()
        for vm in entries:
            try:
                folder = self._root.open_folder(vm)
            except (DatastoreError, OSError):
                continue  # not a VM's folder, or not ours to look into
            try:
                for disk in publication.interrupted(folder):
                    try:
                        with _reporting("finish the commit of", folder.path_of(disk)):
                            publication.finish_interrupted(folder, disk)
                    except DatastoreError as error:
                        failed.append(error)
                    else:
                        finished.append((vm, disk))
            finally:
                folder.close()
        return Recovery(tuple(finished), tuple(failed))

    def close(self) -> None:
        """See ``Datastore.close``."""
        self._root.close()

    def _check_place(self, request: ImageRequest, *, allocated: bool = False) -> None:
        """Check everything that does not need the VM's folder; space, unless it is allocated."""
        check_name(request.vm)
        check_name(request.disk)
        vmdk.check_capacity(request.capacity, request.layout)
        free = self.space().free
        thin = allocated or request.layout.provisioning is Provisioning.THIN
        if not thin and request.capacity > free:
            raise DatastoreError(
                f"datastore {self._name} at {self._path} is too full: a disk of"
                f" {request.capacity} bytes is to be allocated, {free} are free; free space there,"
                " or ask for a thin disk",
                ErrorCode.DATASTORE_FULL,
                (request.capacity, free),
            )

    def _require_root(self) -> None:
        """Find out whether the path still leads to the directory that is held open."""
        try:
            same = os.path.samestat(os.stat(self._path), os.fstat(self._root.fd))
        except OSError as error:
            raise datastore_error(error, "reach datastore", self._path) from error
        if not same:
            raise DatastoreError(
                f"datastore {self._name}: {self._path} is no longer the directory it was when the"
                " receiver started; mount the file system again, or restart the receiver",
                ErrorCode.DATASTORE_MISSING,
            )

    def _enter(self, vm: str) -> tuple[Folder, bool]:
        """Open the VM's folder, made if need be, and say whether it was."""
        try:
            self._root.make_folder(vm)
            is_new = True
        except FileExistsError:
            is_new = False
        self._root.sync()  # of an old one too: whoever made it may have got no further
        return self._root.open_folder(vm), is_new

    def _leave(self, vm: str, *, is_new: bool) -> None:
        """Remove the folder that was made for an aborted image, unless something else is in it."""
        with self._entering:
            if is_new:
                self._remove_if_empty(vm)

    def _remove_if_empty(self, vm: str) -> None:
        with suppress(OSError):
            self._root.remove_folder(vm)


def _check_folder(folder: Folder, request: ImageRequest) -> None:
    locks.require_unlocked(folder)
    publication.require_room_for(folder, request.disk, replace=request.replace)


def _lock_file(disk: str) -> str:
    return publication.part_of(vmdk.descriptor_file(disk))


def _require_writable(folder: Folder) -> None:
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder.fd):
        status = os.fstatvfs(folder.fd)
        code = errno.EROFS if status.f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(code, os.strerror(code))


@contextmanager
def _reporting(doing: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise datastore_error(error, doing, path) from error
