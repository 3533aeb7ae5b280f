"""What the sender remembers of the pages of one image, for later passes and other disks.

``recall`` gives what is known of a chunk under the digest that the receiver states for what it
holds: same digest, same bytes, so that nothing needs to be kept in step and nothing can
lie. What other chunks may copy from is found by ``known_pages``.

Whatever goes wrong here costs bytes on the wire, and never the transfer.
"""

import fcntl
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final, Self

from flatship_sender.fingerprints import KEYS_SIZE, fingerprints
from flatship_sender.page_slots import HEADER_SIZE, SLOT_SIZE, Heading, Slot, Slots, derived

_FILE: Final = 0o600
_TOGETHER: Final = 64  # slots that are told of at once


class PageIndex:
    """The page index of one image; made by ``open``.

    ``note`` belongs to the event loop and touches no file; all else is for worker threads, several
    at a time, on different chunks.
    """

    def __init__(
        self, path: Path, descriptor: int, heading: Heading, secret: bytes, room: Callable[[], int]
    ) -> None:
        self.heading = heading
        self.on_written: Callable[[Sequence[tuple[int, Slot]]], None] | None = None
        """Told of slots that were written, with their chunks' numbers, by whoever wrote them."""
        self._path = path
        self._descriptor = descriptor
        self._slots = Slots(descriptor, heading, secret)
        self._room = room
        self._left = 0  # of the room, bytes that are surely not taken
        self._keys = derived("flatship/1 page fingerprints", secret, KEYS_SIZE)
        self._noted: deque[tuple[int, Slot]] = deque()
        self._broken = False

    @classmethod
    def open(
        cls, path: Path, heading: Heading, secret: bytes, room: Callable[[], int]
    ) -> Self | None:
        """Open the index of an image; what is there for another one, key or version is dropped.

        Args:
            path: Its file.
            heading: What it is about; where an earlier file knows its ``first``, that holds.
            secret: 32 bytes that seal it.
            room: Says how many bytes more it may take; chunks that find none are not remembered.

        Returns:
            None if it cannot be used, or another process uses it.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_CREAT
        try:
            descriptor = os.open(path, flags, _FILE)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = Heading.unpack(os.pread(descriptor, HEADER_SIZE, 0), secret)
            if found is not None and replace(found, first=heading.first) == heading:
                heading = found
            else:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, heading.pack(secret), 0)
            os.utime(descriptor)  # it is the last to be given up for want of room
        except OSError:
            os.close(descriptor)
            return None
        return cls(path, descriptor, heading, secret, room)

    def fingerprints(self, data: memoryview) -> bytes:
        """Fingerprints of a chunk's pages; the same pages have the same in all indexes of a key."""
        return fingerprints(self._keys, data)

    def recall(self, chunk: int, digest: bytes) -> Slot | None:
        """What is remembered of a chunk as it was when it had that digest; None if nothing is.

        Args:
            chunk: Its number on the disk.
            digest: What the receiver says it holds there.
        """
        slot = self.read(chunk)
        return None if slot is None or slot.digest != digest else slot

    def read(self, chunk: int) -> Slot | None:
        """What is remembered of a chunk as the receiver had it last; None if nothing is."""
        if self._broken:
            return None
        self.write_noted()
        try:
            return self._slots.read(chunk)
        except OSError:
            self._broken = True
            return None

    def note(self, chunk: int, slot: Slot) -> None:
        """Remember a chunk that the receiver has on stable storage now; written later."""
        self._noted.append((chunk, slot))

    def record(self, chunk: int, slot: Slot) -> None:
        """Remember a chunk that the receiver has on stable storage."""
        self.note(chunk, slot)
        self.write_noted()

    def write_noted(self) -> None:
        """Write what was noted."""
        while written := list(islice(self._written(), _TOGETHER)):
            if self.on_written is not None:
                self.on_written(written)

    def remove(self) -> None:
        """Forget the image."""
        self._noted.clear()
        self._broken = True
        try:
            self._path.unlink(missing_ok=True)
        except OSError:
            return

    def close(self) -> None:
        """Write what was noted, and let go of the file; one without a slot goes. Idempotent."""
        if self._descriptor < 0:
            return
        self.write_noted()
        try:
            if os.fstat(self._descriptor).st_size <= HEADER_SIZE:
                self._path.unlink(missing_ok=True)
        except OSError:
            self._broken = True
        self._slots.close()
        self._descriptor = -1
        self._broken = True

    def _written(self) -> Iterator[tuple[int, Slot]]:
        """Write one slot after another, and yield those that found room."""
        while self._noted and not self._broken:
            try:
                chunk, slot = self._noted.popleft()
            except IndexError:
                return  # another thread was faster
            if self._write(chunk, slot):
                yield chunk, slot

    def _write(self, chunk: int, slot: Slot) -> bool:
        try:
            if self._left < SLOT_SIZE:
                self._left = self._room()
            if self._left < SLOT_SIZE:
                return False
            self._left -= SLOT_SIZE
            self._slots.write(chunk, slot)
        except OSError:
            self._broken = True
            return False
        return True
