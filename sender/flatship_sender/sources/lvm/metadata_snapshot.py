"""A thin pool's metadata, held still for as long as it is read.

A pool has one metadata snapshot at most, and it has no name: that it is ours is noted in a file
before it is reserved. The file is locked while its maker lives. Whoever comes next and finds
it unlocked and not empty knows that somebody was killed in between, and releases it.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from flatship_sender.sources.lvm.device_mapper import (
    pool_named,
    pool_status,
    release_snapshot,
    reserve_snapshot,
)
from flatship_sender.sources.lvm.tools import ToolFailed
from flatship_service.files import make_private_folder
from flatship_service.paths import state_folder

LOCK_TIMEOUT: Final = 60.0  # seconds that another run may take to read the same pool's metadata
_LOCK_INTERVAL: Final = 0.1
_RESERVED: Final = b"reserved\n"
_SAFE: Final = re.compile(r"[A-Za-z0-9._-]+")


class SnapshotTaken(Exception):
    """The pool has a metadata snapshot already, and it is not ours to use or release."""


class _Busy(SnapshotTaken):
    """Another run of ours is reading it."""

    def __init__(self, uuid: str) -> None:
        super().__init__(f"another flatship-sender is reading the metadata of pool {uuid}")


def notes_folder() -> Path:
    """Where reservations are noted, for all runs on this machine."""
    return state_folder("sender", None) / "metadata-snapshots"


@contextmanager
def metadata_snapshot(pool: str, uuid: str, folder: Path) -> Iterator[None]:
    """Keep a pool's metadata still during the block.

    Args:
        pool: Its name in /dev/mapper.
        uuid: What device-mapper calls it for ever.
        folder: Where the reservation is noted, as ``notes_folder``.

    Raises:
        SnapshotTaken: Somebody else has reserved one, or reads it for too long.
        ToolFailed: device-mapper refused.
        OSError: It cannot be noted.
    """
    with _locked(folder, uuid) as note:
        if pool_status(pool).snapshot:
            if not os.pread(note, len(_RESERVED), 0):
                raise SnapshotTaken(
                    f"{pool} has a metadata snapshot that somebody else has reserved"
                )
            release_snapshot(pool)
        _write(note, _RESERVED)
        try:
            reserve_snapshot(pool)
            try:
                yield
            finally:
                release_snapshot(pool)
        finally:
            # Empty it only when there is none: a release that failed stays on record.
            with suppress(ToolFailed):
                if not pool_status(pool).snapshot:
                    _write(note, b"")


def release_leftovers(folder: Path) -> list[str]:
    """Release what runs that were killed have left; returns the pools' names.

    Raises:
        ToolFailed: device-mapper could not be asked, or refused.
    """
    released = []
    for note in sorted(folder.glob("*")):
        if not _SAFE.fullmatch(note.name) or not note.stat().st_size:
            continue
        with suppress(_Busy), _locked(folder, note.name, patience=0) as fd:
            pool = pool_named(note.name)
            if pool is None:
                continue  # not active: kept for when it is
            if os.fstat(fd).st_size and pool_status(pool).snapshot:
                release_snapshot(pool)
                released.append(pool)
            _write(fd, b"")
    return released


@contextmanager
def _locked(folder: Path, uuid: str, patience: float = LOCK_TIMEOUT) -> Iterator[int]:
    if not _SAFE.fullmatch(uuid):
        raise ToolFailed(f"a pool with the uuid {uuid!r} is none of LVM's")
    make_private_folder(folder)
    fd = os.open(folder / uuid, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _Busy(uuid) from None
            time.sleep(_LOCK_INTERVAL)
        yield fd
    finally:
        os.close(fd)


def _write(fd: int, content: bytes) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, content, 0)
    os.fsync(fd)
