"""Who may write a disk: the locks of hosts, and those of other transfers."""

import fcntl
import os
from contextlib import suppress

from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_receiver.datastores.folder import Folder


def require_unlocked(folder: Folder) -> None:
    """Refuse a VM's folder in which a host holds a file open.

    Raises:
        DatastoreError: With code DISK_LOCKED.
    """
    for name in folder.names():
        if name.startswith(".lck") or name.endswith(".lck"):
            raise DatastoreError(
                f"{folder.path_of(name)} says that a host has the VM's files open; power the VM"
                " off, or detach the disk, then try again",
                ErrorCode.DISK_LOCKED,
            )


def lock(folder: Folder, name: str, fd: int) -> None:
    """Lock the file ``fd`` against everybody who would write the same disk, until it is closed.

    Raises:
        DatastoreError: With code DISK_BUSY: somebody else was first.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = folder.is_same_file(name, fd)  # else its old owner has removed it meanwhile
    except BlockingIOError:
        mine = False
    if not mine:
        raise DatastoreError(
            f"{folder.path_of(name)} is in use: the disk is being written by another transfer;"
            " wait for its end, or cancel it",
            ErrorCode.DISK_BUSY,
        )


def take(folder: Folder, name: str) -> int:
    """Make the file that stands for the right to write a disk, and lock it.

    One that an earlier attempt left is replaced.

    Returns:
        The file, open and empty. To close it is to give the right back.

    Raises:
        DatastoreError: With code DISK_BUSY, or FOREIGN_FILE.
        OSError: The file system refused.
    """
    with suppress(FileNotFoundError):
        leftover = folder.open_file(name, os.O_RDWR)
        try:
            lock(folder, name, leftover)
            folder.unlink(name)
        finally:
            os.close(leftover)
    fd = folder.create_file(name)
    try:
        lock(folder, name, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def take_again(folder: Folder, name: str) -> int | None:
    """Lock the file that an earlier attempt left, and keep what is in it.

    Returns:
        The file, open; None if there is none.

    Raises:
        DatastoreError, OSError: As for ``take``.
    """
    try:
        fd = folder.open_file(name, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        lock(folder, name, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def require_free(folder: Folder, name: str) -> None:
    """Refuse what ``take`` would refuse; make and remove nothing.

    Raises:
        DatastoreError, OSError: As for ``take``.
    """
    with suppress(FileNotFoundError):
        fd = folder.open_file(name, os.O_RDWR)
        try:
            lock(folder, name, fd)
        finally:
            os.close(fd)
