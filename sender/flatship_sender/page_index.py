"""What the sender remembers of the pages of one disk at one receiver, for its next pass.

A file of slots, one a chunk: fingerprints of its pages, sealed under a key of this file's
own and bound to the chunk's digest. A slot opens only under the digest that the receiver
states for what it holds: same digest, same bytes, so that nothing needs to be kept in
step and nothing can lie. A slot that is empty, torn, damaged, or another file's does not
open, and then nothing is known of its chunk.

Whatever goes wrong here costs bytes on the wire, and never the transfer.
"""

import fcntl
import os
import secrets
from collections import deque
from pathlib import Path
from struct import Struct
from typing import Final, Self

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_sender.fingerprints import FINGERPRINT_SIZE, fingerprints

VERSION: Final = 1
_MAGIC: Final = b"FLTSPAGE"
# magic, version, bytes of a page, which key, bytes of the disk, source id
_HEADER: Final = Struct(">8sII8sQ32s")
_NONCE_SIZE: Final = 12  # bytes
_TAG_SIZE: Final = 16  # bytes
SLOT_SIZE: Final = _NONCE_SIZE + CHUNK_SIZE // PAGE_SIZE * FINGERPRINT_SIZE + _TAG_SIZE
_FILE: Final = 0o600


class PageIndex:
    """The page index of one disk; made by ``open``.

    ``note`` belongs to the event loop and touches no file; all else is for worker threads, several
    at a time, on different chunks.
    """

    def __init__(
        self, path: Path, descriptor: int, header: bytes, secret: bytes, room: int
    ) -> None:
        self._path = path
        self._descriptor = descriptor
        self._room = room
        self._left = 0  # of the room, bytes that are surely not taken
        self._key = _derived("flatship/1 page fingerprints", secret)
        self._seal_key = _derived("flatship/1 page index", secret + header)
        self._noted: deque[tuple[int, bytes, bytes]] = deque()
        self._broken = False

    @classmethod
    def open(
        cls, path: Path, size: int, source_id: bytes, secret: bytes, room: int, *, make: bool
    ) -> Self | None:
        """Open the index of a disk; what is there for another disk, key or version is dropped.

        Args:
            path: Its file.
            size: Bytes of the disk.
            source_id: Whose pages they are, 32 bytes.
            secret: 32 bytes that seal it.
            room: Bytes that it may take; chunks that find none are not remembered.
            make: Whether to begin one if there is none.

        Returns:
            None if there is none, it cannot be used, or another process uses it.
        """
        key_id = _derived("flatship/1 page index key", secret)[:8]
        header = _HEADER.pack(_MAGIC, VERSION, PAGE_SIZE, key_id, size, source_id)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if make else 0)
        try:
            descriptor = os.open(path, flags, _FILE)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.pread(descriptor, _HEADER.size, 0) != header:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, header, 0)
            os.utime(descriptor)  # it is the last to be given up for want of room
        except OSError:
            os.close(descriptor)
            return None
        return cls(path, descriptor, header, secret, room)

    def fingerprints(self, data: memoryview) -> bytes:
        """Fingerprints of a chunk's pages under the key of this index."""
        return fingerprints(self._key, data)

    def recall(self, chunk: int, digest: bytes) -> bytes | None:
        """Fingerprints of the pages of a chunk as it was when it had that digest; None if unknown.

        Args:
            chunk: Its number on the disk.
            digest: What the receiver says it holds there.
        """
        if self._broken:
            return None
        self._write_noted()
        try:
            slot = os.pread(self._descriptor, SLOT_SIZE, _place(chunk))
        except OSError:
            self._broken = True
            return None
        nonce, sealed = slot[:_NONCE_SIZE], slot[_NONCE_SIZE:]
        try:
            return AESGCM(self._seal_key).decrypt(nonce, sealed, digest)
        except (InvalidTag, ValueError):  # ValueError: it ends before its tag
            return None

    def note(self, chunk: int, digest: bytes, pages: bytes) -> None:
        """Remember a chunk that the receiver has on stable storage now; written later."""
        self._noted.append((chunk, digest, pages))

    def record(self, chunk: int, digest: bytes, pages: bytes) -> None:
        """Remember a chunk that the receiver has on stable storage."""
        self.note(chunk, digest, pages)
        self._write_noted()

    def remove(self) -> None:
        """Forget the disk."""
        self._noted.clear()
        self._broken = True
        try:
            self._path.unlink(missing_ok=True)
        except OSError:
            return

    def close(self) -> None:
        """Write what was noted, and let go of the file. Idempotent."""
        if self._descriptor >= 0:
            self._write_noted()
            os.close(self._descriptor)
            self._descriptor = -1
            self._broken = True

    def _write_noted(self) -> None:
        while self._noted and not self._broken:
            try:
                chunk, digest, pages = self._noted.popleft()
            except IndexError:
                return  # another thread was faster
            nonce = secrets.token_bytes(_NONCE_SIZE)
            sealed = AESGCM(self._seal_key).encrypt(nonce, pages, digest)
            self._write(_place(chunk), nonce + sealed)

    def _write(self, place: int, slot: bytes) -> None:
        try:
            if self._left < len(slot):
                self._left = self._room - os.fstat(self._descriptor).st_blocks * 512
            if self._left >= len(slot):
                self._left -= len(slot)
                os.pwrite(self._descriptor, slot, place)
        except OSError:
            self._broken = True


def _place(chunk: int) -> int:
    return _HEADER.size + chunk * SLOT_SIZE


def _derived(context: str, material: bytes) -> bytes:
    return blake3(material, derive_key_context=context).digest()
