"""The page indexes in the sender's state folder: whose is whose, and how much they take."""

import fcntl
import os
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_sender.fingerprints import KEYS_SIZE, fingerprints
from flatship_sender.page_index import PageIndex
from flatship_sender.page_slots import Heading, Slots, derived
from flatship_service import files
from flatship_service.errors import KeyFileError
from flatship_service.keys import KEY_SIZE, read_secret, write_secret

if TYPE_CHECKING:
    from flatship_sender.known_pages import KnownPages

FOLDER: Final = "pages"
DEFAULT_LIMIT: Final = 4 << 30  # bytes; enough for a terabyte and a half of data
_KEY: Final = "key"
_INDEX: Final = ".index"
_TABLE: Final = ".anchors"
_GRANT: Final = 1 << 20  # bytes given to an index at a time
_ID_SIZE: Final = 16  # bytes
_MAX_FIRST: Final = 1 << 28  # see ``anchors``


@dataclass(frozen=True, slots=True)
class Place:
    """Where a disk goes: a receiver's public key, a datastore there, and the disk's names."""

    receiver: bytes
    datastore: str
    vm: str
    name: str

    @property
    def store(self) -> bytes:
        """Names what may copy from each other."""
        return _id(self.receiver, self.datastore)

    @property
    def target(self) -> bytes:
        """Names the disk, whichever image it is."""
        return _id(self.receiver, self.datastore, self.vm, self.name)


class PageIndexes:
    """Opens the index of an image; the least recently used ones make room for it. Thread-safe.

    Args:
        state: The sender's state folder.
        limit: Bytes that all of them may take together, tables included; 0 for none at all.
    """

    def __init__(self, state: Path, limit: int = DEFAULT_LIMIT) -> None:
        self._folder = state / FOLDER
        self._limit = limit
        self._turn = threading.RLock()
        self._known: dict[bytes, KnownPages] = {}

    def open(self, place: Place, image: bytes, size: int, *, make: bool) -> PageIndex | None:
        """Open the index of an image.

        Args:
            place: Where the disk goes.
            image: The uuid that the receiver gave the image.
            size: Bytes of the disk.
            make: Whether to begin one if there is none.

        Returns:
            None if there is none, or none can be had: the transfer does without.
        """
        path = self._folder / (image.hex() + _INDEX)
        if not self._limit or not (make or path.exists()):
            return None
        try:
            files.make_private_folder(self._folder)
            secret = self._secret()
            with self._turn, files.locked(self._folder / ".lock"):
                self._drop_foreign(secret)
                others = [each.heading for each in self._read_all(secret)]
                first = _first_free([each for each in others if each.image != image], size)
                if first is None:
                    return None
                heading = Heading(place.store, place.target, image, size, first)
                return PageIndex.open(path, heading, secret, lambda: self._grant(path, _GRANT))
        except OSError:
            return None

    def is_any_known(self, place: Place) -> bool:
        """Whether pages were remembered before for the disks of a place."""
        return self.known(place) is not None or self._table(place).exists()

    def search(self, place: Place, index: PageIndex) -> None:
        """Have other chunks find pages in an index that is open; ``known`` may be asked then.

        It changes nothing if that cannot be had: the transfer does without.
        """
        try:
            secret = self._secret()
            slots = Slots.open(self._folder / (index.heading.image.hex() + _INDEX), secret)
            if slots is not None:
                self._known_pages(place, secret).add(index, slots)
        except OSError:
            return

    def known(self, place: Place) -> "KnownPages | None":
        """What finds known pages for the disks of a place; None before any was opened for that."""
        with self._turn:
            return self._known.get(place.store)

    def forget(self, place: Place, image: bytes) -> None:
        """An image is not there, or not as it was: nothing is to be copied from it."""
        known = self.known(place)
        if known is not None:
            known.forget(image)
        _remove_unused(self._folder / (image.hex() + _INDEX))

    def published(self, place: Place, image: bytes) -> None:
        """A disk stands as this image: whatever else was under its name is no more."""
        try:
            earlier = [
                each.heading.image
                for each in self._read_all(self._secret())
                if each.heading.target == place.target and each.heading.image != image
            ]
        except OSError:
            return
        for each in earlier:
            self.forget(place, each)

    def close(self) -> None:
        """Let go of the tables. Idempotent."""
        with self._turn:
            for known in self._known.values():
                known.close()
            self._known.clear()

    def _known_pages(self, place: Place, secret: bytes) -> "KnownPages":
        # Only those who look for known pages wait for numpy. One thread is enough for its sums.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from flatship_sender.known_pages import KnownPages  # noqa: PLC0415  # see above

        with self._turn:
            known = self._known.get(place.store)
            if known is None:
                path = self._table(place)
                keys = derived("flatship/1 page fingerprints", secret, KEYS_SIZE)
                zero_page = fingerprints(keys, memoryview(bytes(PAGE_SIZE)))
                images = [
                    each for each in self._read_all(secret) if each.heading.store == place.store
                ]
                known = KnownPages(
                    path, images, secret, zero_page, lambda size: self._grant(path, size)
                )
                self._known[place.store] = known
            return known

    def _table(self, place: Place) -> Path:
        return self._folder / (place.store.hex() + _TABLE)

    def _read_all(self, secret: bytes) -> list[Slots]:
        found = (Slots.open(path, secret) for path in self._folder.glob("*" + _INDEX))
        return [each for each in found if each is not None]

    def _drop_foreign(self, secret: bytes) -> None:
        """Remove what another version or another key has left; nobody can read it."""
        for path in self._folder.glob("*" + _INDEX):
            if Slots.open(path, secret) is None:
                _remove_unused(path)

    def _secret(self) -> bytes:
        """What seals all of them; a lost one costs what it sealed."""
        path = self._folder / _KEY
        with files.locked(self._folder / ".lock"):
            try:
                return read_secret(path)
            except KeyFileError:
                write_secret(path, secret := secrets.token_bytes(KEY_SIZE))
                return secret

    def _grant(self, path: Path, wanted: int) -> int:
        """Remove the oldest others until ``wanted`` bytes fit; returns what ``path`` may take more.

        Never more than half of what is free: sessions need a little of it, too.
        """
        with self._turn:
            sizes = {
                each: _allocated(each)
                for suffix in (_INDEX, _TABLE)
                for each in self._folder.glob("*" + suffix)
            }
            others = [each for each in sizes if each != path and each.suffix == _INDEX]
            for oldest in sorted(others, key=_used):
                if sum(sizes.values()) + wanted <= self._limit:
                    break
                if _remove_unused(oldest):
                    del sizes[oldest]
                    for known in self._known.values():
                        known.forget_file(oldest)
            try:
                system = os.statvfs(self._folder)
            except OSError:
                return 0
            free = system.f_bavail * system.f_frsize
            return max(0, min(wanted, self._limit - sum(sizes.values()), free // 2))


def _first_free(taken: list[Heading], size: int) -> int | None:
    """The first of numbers for the chunks of a disk that nobody has; None if there are too few.

    Between two images one stays free, so that none seems to go on in another.
    """
    first, chunks = 0, -(-size // CHUNK_SIZE)
    for heading in sorted(taken, key=lambda each: each.first):
        if first + chunks < heading.first:
            break
        first = max(first, heading.first + heading.chunks + 1)
    return first if first + chunks < _MAX_FIRST else None


def _id(*words: bytes | str) -> bytes:
    """Names what these words name together."""
    hasher = blake3()
    for word in words:
        data = word if isinstance(word, bytes) else word.encode()
        hasher.update(len(data).to_bytes(4) + data)
    return hasher.digest(_ID_SIZE)


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
