"""Giving up what an interrupted transfer left: its files, and what is on record of them."""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from flatship_protocol.errors import DatastoreError, ErrorCode, TransferError
from flatship_receiver import vmdk
from flatship_receiver.datastores import locks, publication
from flatship_receiver.datastores.faults import datastore_error
from flatship_receiver.datastores.folder import Folder
from flatship_receiver.journal import ImageState, Journal, JournalLocked, JournalMissing

_DESCRIPTOR: Final = ".vmdk"


class NothingIncomplete(TransferError):
    """There is no incomplete disk of that name."""

    exit_code = 10


class BeingWritten(TransferError):
    """A transfer is writing the disk."""

    exit_code = 11


def discard(path: Path) -> int:
    """Remove the incomplete files of a disk, unless somebody is writing them.

    Args:
        path: Where the descriptor would be: ``DATASTORE/VM/DISK.vmdk``. A disk
            that stands there already is not touched.

    Returns:
        How many files were removed.

    Raises:
        NothingIncomplete: There are none.
        BeingWritten: A transfer is writing them.
        DatastoreError: The file system refused.
    """
    if path.suffix != _DESCRIPTOR:
        raise NothingIncomplete(
            f"{path}: name the disk by its descriptor, as in web01/web01{_DESCRIPTOR}"
        )
    disk = path.name.removesuffix(_DESCRIPTOR)
    lock_file = publication.part_of(vmdk.descriptor_file(disk))
    with ExitStack() as cleanup:
        try:
            folder = Folder.open(str(path.parent))
            cleanup.callback(folder.close)
            lock_fd = locks.take_again(folder, lock_file)
            if lock_fd is None:
                raise FileNotFoundError
            cleanup.callback(os.close, lock_fd)
            parts = [
                name
                for name in publication.own_names(folder, disk)
                if name.endswith(publication.PART) and name != lock_file
            ]
            for name in [*parts, lock_file]:  # the lock goes last: a crash leaves it to be found
                folder.unlink(name)
            folder.sync()
        except FileNotFoundError:
            raise NothingIncomplete(
                f"{path} has no incomplete files; flatship-receiver list shows what has"
            ) from None
        except DatastoreError as error:
            if error.code is ErrorCode.DISK_BUSY:
                raise BeingWritten(str(error)) from error
            raise
        except OSError as error:
            raise datastore_error(error, "remove incomplete files of", str(path)) from error
        return len(parts) + 1


def forget(state: Path, path: Path) -> None:
    """Take the incomplete disk of that name off the record, if no receiver is using it.

    One that runs does so itself when the disk is opened again.
    """
    try:
        journal = Journal.open(state)
    except (JournalMissing, JournalLocked):
        return
    try:
        disk = path.name.removesuffix(_DESCRIPTOR)
        for image in journal.images():
            if (image.vm, image.disk, image.state) == (
                path.parent.name,
                disk,
                ImageState.RECEIVING,
            ):
                journal.set_state(image.uuid, ImageState.DISCARDED, when=time.time())
    finally:
        journal.close()
