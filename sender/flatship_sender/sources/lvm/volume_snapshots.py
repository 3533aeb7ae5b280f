"""Snapshots of volumes that go with their maker, even if he is killed.

Each has a name by chance, and a note of that name in the state folder: written before the snapshot
is made, locked while its maker lives, and gone only after the snapshot is. Whoever comes next
and finds a note unlocked knows that somebody was killed, and removes what he has left. What has
no note is never touched, whatever it is called.

LVM's tools run on when their caller is killed. So they hold a lock of their own, and nobody looks
for what is left, or concludes that nothing is, while one of them is at work.
"""

import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from flatship_sender.sources.lvm.tools import TIMEOUT, ToolFailed
from flatship_sender.sources.lvm.volumes import Volume, VolumeManager
from flatship_service import files
from flatship_service.paths import default_state_folder

PREFIX: Final = "flatship-"
_INTERVAL: Final = 0.2  # seconds between two tries
_TRIES: Final = 10  # to remove what udev is still looking at
_LOCK: Final = "lvm.lock"
_GROUP: Final = re.compile(r"[A-Za-z0-9._+][A-Za-z0-9._+-]{0,126}")
_NAME: Final = re.compile(re.escape(PREFIX) + "[0-9a-f]{16}")


def snapshot_notes() -> Path:
    """Where snapshots are noted, for all runs on this machine."""
    return default_state_folder("sender") / "volume-snapshots"


class TakenSnapshot:
    """A snapshot that is ours, until it is removed; made by ``VolumeSnapshots.take``."""

    def __init__(self, owner: "VolumeSnapshots", group: str, name: str, note: int) -> None:
        self.path = ""
        """Its node in /dev, once it is made."""
        self.full_name = f"{group}/{name}"
        self._owner = owner
        self._group = group
        self._name = name
        self._note = note

    def remove(self) -> None:
        """Remove it. Idempotent.

        Raises:
            ToolFailed: It is still there, and so is its note: the next run tries again.
            OSError: Likewise.
        """
        if self._note < 0:
            return
        try:
            with self._owner.changing() as lock:
                self._owner.remove(lock, self._group, self._name)
        finally:
            note, self._note = self._note, -1
            os.close(note)


class VolumeSnapshots:
    """Makes snapshots, and removes those that nobody has any more.

    Args:
        lvm: Where.
        folder: Of the notes, as ``snapshot_notes``.
    """

    def __init__(self, lvm: VolumeManager, folder: Path) -> None:
        self.lvm = lvm
        self._folder = folder

    def take(self, origin: Volume, size: int | None) -> TakenSnapshot:
        """Make a snapshot.

        Args:
            origin: Of which volume.
            size: As ``VolumeManager.create``.

        Raises:
            ToolFailed: LVM refused, or has not ended yet.
            OSError: It cannot be noted.
        """
        name = f"{PREFIX}{secrets.token_hex(8)}"
        with self.changing():
            files.create(self._folder / name, origin.group.encode())
            note = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(note, fcntl.LOCK_EX)
            taken = TakenSnapshot(self, origin.group, name, note)
        try:
            with self.changing() as lock:
                taken.path = self.lvm.create(lock, origin, name, size)
        except BaseException:
            with suppress(ToolFailed, OSError):  # if it fails the note stays
                taken.remove()
            raise
        return taken

    def remove_leftovers(self) -> list[str]:
        """Remove what runs that were killed have left; returns the names.

        Of a group that is not there they are kept for when it is.

        Raises:
            ToolFailed: LVM refused.
            OSError: The notes cannot be read or removed.
        """
        if not any(_NAME.fullmatch(note.name) for note in self._folder.glob(f"{PREFIX}*")):
            return []
        removed = []
        with self.changing() as lock:
            for path in sorted(self._folder.glob(f"{PREFIX}*")):
                if _NAME.fullmatch(path.name) and (left := self._remove_left(lock, path)):
                    removed.append(left)
        return removed

    def _remove_left(self, lock: int, path: Path) -> str | None:
        """Remove one, unless its maker lives, or there is none; returns its name."""
        with path.open("rb") as note:
            try:
                fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            group = note.read().decode(errors="replace")
            if not _GROUP.fullmatch(group):
                return None
            try:
                there = self.lvm.names(group)
            except ToolFailed:
                return None
            self.remove(lock, group, path.name)
            return f"{group}/{path.name}" if path.name in there else None

    def remove(self, lock: int, group: str, name: str) -> None:
        """Remove a snapshot if it is there, and then its note.

        Args:
            lock: Of ``changing``.
            group: Where it is.
            name: Its own.

        Raises:
            ToolFailed: LVM refused.
            OSError: The note cannot be removed.
        """
        for left in reversed(range(_TRIES)):
            if name not in self.lvm.names(group):
                break
            try:
                self.lvm.remove(lock, group, name)
                break
            except ToolFailed:
                if not left:
                    raise
            time.sleep(_INTERVAL)
        with suppress(FileNotFoundError):
            files.remove(self._folder / name)

    @contextmanager
    def changing(self) -> Iterator[int]:
        """Hold the lock of those who change volumes; their tools inherit it, and may outlive them.

        Raises:
            ToolFailed: A tool of another run holds it for too long.
            OSError: It cannot be had.
        """
        for folder in (self._folder.parent, self._folder):
            files.make_private_folder(folder)
        # Opened anew each time: a tool that runs on keeps the lock of that time.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._folder / _LOCK, flags, files.PRIVATE_FILE)
        try:
            deadline = time.monotonic() + TIMEOUT
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise ToolFailed(
                            "another run's lvcreate or lvremove has been at work for "
                            f"{TIMEOUT:.0f} s"
                        ) from None
                time.sleep(_INTERVAL)
            yield descriptor
        finally:
            os.close(descriptor)
