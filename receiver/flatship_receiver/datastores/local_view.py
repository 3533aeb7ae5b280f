"""A disk of a VM's folder to be read, as it stands: copies are taken from it.

It is opened with no more than the right to read, and holds no lock: a host that runs the
VM, a transfer that replaces the disk, and ``discard`` do as if it were not there.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from flatship_protocol.constants import SECTOR_SIZE
from flatship_protocol.messages import DiskFormat
from flatship_receiver import vmdk
from flatship_receiver.datastores import locks, publication
from flatship_receiver.datastores.faults import datastore_error
from flatship_receiver.datastores.flat import read_through
from flatship_receiver.datastores.folder import Folder
from flatship_receiver.datastores.local_image import image_named_in
from flatship_receiver.descriptor_text import MAX_DESCRIPTOR_SIZE, DescriptorError

MAX_FILES: Final = 8  # of one view; a disk cut into more is not copied from


@dataclass(frozen=True, slots=True)
class _File:
    fd: int
    name: str
    offset: int  # of its first byte on the disk
    length: int


class LocalView:
    """The extents of a disk, open for reading. See ``View``."""

    def __init__(self, files: Sequence[_File], capacity: int) -> None:
        self._files = files
        self._capacity = capacity

    @classmethod
    def open(cls, folder: Folder, disk: str, capacity: int, uuid: bytes) -> "LocalView | None":
        """See ``Datastore.view``. Nobody takes the right to write the disk meanwhile.

        Raises:
            DatastoreError: With code DISK_BUSY or FOREIGN_FILE.
            OSError: The file system refused.
        """
        return _published(folder, disk, capacity, uuid) or _incomplete(folder, disk, capacity, uuid)

    @classmethod
    def of(cls, folder: Folder, files: Sequence[tuple[str, int]]) -> "LocalView | None":
        """Open files by name and length, in the order of the disk; None if one has another length.

        Raises:
            DatastoreError: With code FOREIGN_FILE.
            OSError: One is not there, or may not be read.
        """
        with ExitStack() as cleanup:
            opened, position = [], 0
            for name, length in files:
                fd = folder.open_file(name, os.O_RDONLY)
                cleanup.callback(os.close, fd)
                if os.fstat(fd).st_size != length:
                    return None
                opened.append(_File(fd, folder.path_of(name), position, length))
                position += length
            cleanup.pop_all()
        return cls(opened, position)

    def read(self, buffer: memoryview, offset: int) -> None:
        """See ``View.read``."""
        if not self._files or offset < 0 or offset + len(buffer) > self._capacity:
            raise ValueError(f"{len(buffer)} bytes at {offset}: past the end, or closed")
        for file, position, part in self._pieces(buffer, offset):
            try:
                read_through(file.fd, part, position)
            except OSError as error:
                raise datastore_error(error, "read", file.name) from error

    def close(self) -> None:
        """See ``View.close``."""
        files, self._files = self._files, ()
        for file in files:
            with suppress(OSError):
                os.close(file.fd)

    def _pieces(self, buffer: memoryview, offset: int) -> Iterator[tuple[_File, int, memoryview]]:
        """Cut a read at files: the file, the offset in it, the part of the buffer."""
        end = offset + len(buffer)
        for file in self._files:
            start, stop = max(offset, file.offset), min(end, file.offset + file.length)
            if start < stop:
                yield file, start - file.offset, buffer[start - offset : stop - offset]


def _published(folder: Folder, disk: str, capacity: int, uuid: bytes) -> LocalView | None:
    files = _described(folder, disk, uuid)
    if files is None or not _may_be_viewed(files, capacity):
        return None
    view = LocalView.of(folder, files)
    # A replacement takes the old descriptor away before the first of its files has an old
    # one's name. So if the descriptor stands after they were opened, they were the right ones.
    if view is not None and _described(folder, disk, uuid) != files:
        view.close()
        return None
    return view


def _described(folder: Folder, disk: str, uuid: bytes) -> list[tuple[str, int]] | None:
    """Files and lengths of the disk of that uuid, by its descriptor; None if another stands."""
    try:
        text = folder.read_file(vmdk.descriptor_file(disk), MAX_DESCRIPTOR_SIZE + 1)
        descriptor = vmdk.parse(text)
    except (FileNotFoundError, DescriptorError):
        return None
    if vmdk.uuid_of(descriptor) != uuid:
        return None
    files = [(line.file, line.sectors * SECTOR_SIZE) for line in descriptor.extents]
    return files if all(vmdk.is_extent_file(disk, name) for name, _ in files) else None


def _incomplete(folder: Folder, disk: str, capacity: int, uuid: bytes) -> LocalView | None:
    lock_file = publication.part_of(vmdk.descriptor_file(disk))
    locks.require_free(folder, lock_file)
    try:
        lock_fd = folder.open_file(lock_file, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if image_named_in(lock_fd) != uuid:
            return None
    finally:
        os.close(lock_fd)
    for disk_format in DiskFormat:
        extents = vmdk.extent_files(disk, capacity, disk_format)
        files = [(publication.part_of(extent.name), extent.length) for extent in extents]
        if _may_be_viewed(files, capacity):
            with suppress(FileNotFoundError):
                return LocalView.of(folder, files)
    return None


def _may_be_viewed(files: Sequence[tuple[str, int]], capacity: int) -> bool:
    return len(files) <= MAX_FILES and sum(length for _, length in files) == capacity
