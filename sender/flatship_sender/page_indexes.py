"""The page indexes in the sender's state folder: whose is whose, and how much they take."""

import fcntl
import os
import secrets
from pathlib import Path
from typing import Final

from blake3 import blake3

from flatship_protocol.constants import CHUNK_SIZE
from flatship_sender.page_index import SLOT_SIZE, PageIndex
from flatship_service import files
from flatship_service.errors import KeyFileError
from flatship_service.keys import KEY_SIZE, read_secret, write_secret

FOLDER: Final = "pages"
DEFAULT_LIMIT: Final = 4 << 30  # bytes; enough for two terabytes of data
_KEY: Final = "key"
_SUFFIX: Final = ".index"


class PageIndexes:
    """Opens the index of a disk; the least recently used ones make room for it.

    Args:
        state: The sender's state folder.
        limit: Bytes that all of them may take together; 0 for none at all.
    """

    def __init__(self, state: Path, limit: int = DEFAULT_LIMIT) -> None:
        self._folder = state / FOLDER
        self._limit = limit

    def open(
        self, target: tuple[str, str, str], size: int, source_id: bytes, *, make: bool
    ) -> PageIndex | None:
        """Open the index of a disk.

        Args:
            target: Receiver, virtual machine, and the disk's name.
            size: Bytes of the disk.
            source_id: Whose pages they are.
            make: Whether to begin one if there is none.

        Returns:
            None if there is none, or none can be had: the transfer does without.
        """
        name = blake3("\0".join(target).encode()).hexdigest(length=16)
        path = self._folder / (name + _SUFFIX)
        if not (make or path.exists()) or not self._limit:
            return None
        try:
            files.make_private_folder(self._folder)
            room = self._make_room(path, -(-size // CHUNK_SIZE) * SLOT_SIZE)
            return PageIndex.open(path, size, source_id, self._secret(), room, make=make)
        except OSError:
            return None

    def _secret(self) -> bytes:
        """What seals all of them; a lost one costs what it sealed."""
        path = self._folder / _KEY
        with files.locked(self._folder / ".lock"):
            try:
                return read_secret(path)
            except KeyFileError:
                write_secret(path, secret := secrets.token_bytes(KEY_SIZE))
                return secret

    def _make_room(self, path: Path, needed: int) -> int:
        """Remove the oldest others until ``needed`` bytes fit; returns what ``path`` may take.

        Never more than half of what is free: sessions need a little of it, too.
        """
        others = [each for each in self._folder.glob("*" + _SUFFIX) if each != path]
        sizes = {each: _allocated(each) for each in others}
        for oldest in sorted(others, key=_used):
            if sum(sizes.values()) + needed <= self._limit:
                break
            if _remove_unused(oldest):
                del sizes[oldest]
        system = os.statvfs(self._folder)
        free = system.f_bavail * system.f_frsize
        return min(self._limit - sum(sizes.values()), _allocated(path) + free // 2)


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _remove_unused(path: Path) -> bool:
    """Remove an index; False if another process uses it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
