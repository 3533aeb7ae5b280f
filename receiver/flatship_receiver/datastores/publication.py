"""How a finished disk gets its final names, so that a crash at any step can be continued.

The files of ``web01`` while it is written end in ``.flatship-part``. Once the
disk is proven and its descriptor is written and synced, *one rename* of that
descriptor decides: from then on the disk will be published, by this process or
by the next one.

    web01.vmdk.flatship-part       the lock of whoever writes the disk; later its descriptor
    web01.vmdk.flatship-proven     decided: publish; nothing of that name may exist
    web01.vmdk.flatship-replacing  decided: publish in place of the disk of that name
    web01.vmdk.flatship-old        descriptor of the replaced disk, until its extents are gone

An old descriptor disappears before the first new extent takes an old name, and
the new descriptor appears last: none ever describes extents of another disk.
Each step finds out whether it was done before, and is synced before the next.
"""

import errno
import os
import re
from collections.abc import Iterable
from typing import Final

from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_receiver import vmdk
from flatship_receiver.datastores.faults import datastore_error, foreign_file
from flatship_receiver.datastores.folder import Folder
from flatship_receiver.datastores.locks import lock, require_unlocked
from flatship_receiver.descriptor_text import (
    MAX_DESCRIPTOR_SIZE,
    Descriptor,
    DescriptorError,
    parse,
)

PART: Final = ".flatship-part"
PROVEN: Final = ".flatship-proven"
REPLACING: Final = ".flatship-replacing"
OLD: Final = ".flatship-old"

_MARKED = re.compile(
    rf"(.+)\.vmdk(?:{re.escape(PROVEN)}|{re.escape(REPLACING)}|{re.escape(OLD)})", re.DOTALL
)


def part_of(name: str) -> str:
    """The name of a file while it is written."""
    return name + PART


def own_names(folder: Folder, disk: str) -> list[str]:
    """Entries of a folder that bear a name of this disk.

    Raises:
        DatastoreError: With code FOREIGN_FILE: one of them is no plain file.
    """
    descriptor = vmdk.descriptor_file(disk)
    found = []
    for name in folder.names():
        base = name
        for suffix in (PART, PROVEN, REPLACING, OLD):
            base = base.removesuffix(suffix)
        if base == descriptor or vmdk.is_extent_file(disk, base):
            folder.regular(name)
            found.append(name)
    return found


def require_room_for(folder: Folder, disk: str, *, replace: bool) -> None:
    """Refuse to publish where a disk of that name stands, unless it may be replaced.

    Raises:
        DatastoreError: With code DISK_EXISTS, or FOREIGN_FILE if what stands
            there is not a disk that can be replaced file by file, or one
            that has snapshots.
    """
    names = own_names(folder, disk)
    standing = [name for name in names if not name.endswith(PART)]
    if not standing:
        return
    if not replace:
        raise _disk_exists(folder, standing[0])
    _require_no_snapshots(folder, disk)
    descriptor = vmdk.descriptor_file(disk)
    if descriptor in standing:
        _read_descriptor(folder, descriptor)


def publish(folder: Folder, disk: str, *, replace: bool) -> None:
    """Take the decision, then do what it says. The descriptor's part is complete and synced."""
    decide(folder, disk, replace=replace)
    finish(folder, disk)


def decide(folder: Folder, disk: str, *, replace: bool) -> None:
    """Make the publication inevitable."""
    descriptor = vmdk.descriptor_file(disk)
    folder.rename(part_of(descriptor), descriptor + (REPLACING if replace else PROVEN))
    folder.sync()


def interrupted(folder: Folder) -> list[str]:
    """The disks of a VM's folder whose publication was decided and not finished."""
    matches = (_MARKED.fullmatch(name) for name in folder.names())
    return sorted({found[1] for found in matches if found})


def finish_interrupted(folder: Folder, disk: str) -> None:
    """``finish`` what another process decided, unless it lives and does so itself.

    Raises:
        DatastoreError: As for ``finish``, and DISK_BUSY.
        OSError: The device failed.
    """
    fds = []
    try:
        for suffix in (PROVEN, REPLACING):
            marker = vmdk.descriptor_file(disk) + suffix
            if folder.regular(marker):
                fds.append(folder.open_file(marker, os.O_RDWR))
                lock(folder, marker, fds[-1])
        finish(folder, disk)
    finally:
        for fd in fds:
            os.close(fd)


def finish(folder: Folder, disk: str) -> None:
    """Do what is left of a decided publication; nothing if none was decided.

    Raises:
        DatastoreError: With code DISK_EXISTS, DISK_LOCKED or FOREIGN_FILE if
            something stands in the way; it can be tried again.
        OSError: The device failed.
    """
    descriptor = vmdk.descriptor_file(disk)
    for suffix in (PROVEN, REPLACING):
        marker = descriptor + suffix
        if folder.regular(marker) is None:
            continue
        extents = [line.file for line in _read_descriptor(folder, marker).extents]
        if not all(vmdk.is_extent_file(disk, name) for name in extents):
            raise foreign_file(folder.path_of(marker), "naming files that are not this disk's")
        if suffix == REPLACING:
            _put_old_away(folder, disk)
        else:
            _require_free(folder, descriptor, extents)
        _rename_extents(folder, extents)
        folder.rename(marker, descriptor)
        folder.sync()
    if folder.regular(descriptor + OLD) is not None:
        _remove_old(folder, disk)


def _put_old_away(folder: Folder, disk: str) -> None:
    descriptor = vmdk.descriptor_file(disk)
    if folder.regular(descriptor) is None:
        return
    require_unlocked(folder)
    _require_no_snapshots(folder, disk)
    folder.rename(descriptor, descriptor + OLD)
    folder.sync()


def _require_no_snapshots(folder: Folder, disk: str) -> None:
    """A snapshot holds what changed since; without its own parent it is worth nothing."""
    snapshot = re.compile(rf"{re.escape(disk)}-[0-9]{{6}}(?:-delta|-sesparse)?\.vmdk")
    for name in folder.names():
        if snapshot.fullmatch(name):
            raise DatastoreError(
                f"{folder.path_of(vmdk.descriptor_file(disk))} has snapshots ({name}), which its"
                " replacement would destroy; consolidate them first, then try again",
                ErrorCode.FOREIGN_FILE,
            )


def _require_free(folder: Folder, descriptor: str, extents: Iterable[str]) -> None:
    """Somebody may have made a disk of that name since the decision."""
    if folder.regular(descriptor) is not None:
        raise _disk_exists(folder, descriptor)
    for name in extents:
        if folder.regular(part_of(name)) and folder.regular(name):
            raise _disk_exists(folder, name)


def _rename_extents(folder: Folder, extents: Iterable[str]) -> None:
    for name in extents:
        if folder.regular(part_of(name)):
            folder.rename(part_of(name), name)
        elif folder.regular(name) is None:
            error = OSError(errno.EIO, "the extent is gone")
            raise datastore_error(error, "publish", folder.path_of(name))
    folder.sync()


def _remove_old(folder: Folder, disk: str) -> None:
    """Remove extents of the replaced disk that no new one took the name of."""
    descriptor = vmdk.descriptor_file(disk)
    old = {line.file for line in _read_descriptor(folder, descriptor + OLD).extents}
    new = {line.file for line in _read_descriptor(folder, descriptor).extents}
    for name in sorted(old - new):
        if vmdk.is_extent_file(disk, name) and folder.regular(name):
            folder.unlink(name)
    folder.unlink(descriptor + OLD)
    folder.sync()


def _read_descriptor(folder: Folder, name: str) -> Descriptor:
    try:
        return parse(folder.read_file(name, MAX_DESCRIPTOR_SIZE + 1))
    except DescriptorError as error:
        raise DatastoreError(
            f"{folder.path_of(name)} is not a descriptor that can be replaced: {error}; move the"
            " disk out of the way",
            ErrorCode.FOREIGN_FILE,
        ) from error


def _disk_exists(folder: Folder, name: str) -> DatastoreError:
    return DatastoreError(
        f"{folder.path_of(name)} exists; choose another name for the disk, or allow it to be"
        " replaced",
        ErrorCode.DISK_EXISTS,
    )
