"""The file in which the sender keeps what it knows of the pages of one image, and its slots.

A slot a chunk: the chunk's digest, which of its pages are anchors, and the fingerprints of all,
sealed under a key of this file's own and bound to the chunk's number. A slot that is empty,
torn, damaged, or another file's does not open, and then nothing is known of its chunk.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final, Self

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flatship_protocol.constants import CHUNK_SIZE, DIGEST_SIZE, PAGE_SIZE
from flatship_sender.fingerprints import FINGERPRINT_SIZE

VERSION: Final = 2
_MAGIC: Final = b"FLTSPAGE"
# magic, version, bytes of a page, which key, bytes of the disk, first number, store, target, image
_HEADER: Final = Struct(">8sII8sQQ16s16s16s")
_NUMBER: Final = Struct(">Q")
_NONCE_SIZE: Final = 12  # bytes
_TAG_SIZE: Final = 16  # bytes
_PAGES: Final = CHUNK_SIZE // PAGE_SIZE
_ANCHORS_SIZE: Final = _PAGES // 8
_FRONT: Final = DIGEST_SIZE + _ANCHORS_SIZE
HEADER_SIZE: Final = _HEADER.size
SLOT_SIZE: Final = _NONCE_SIZE + _FRONT + _PAGES * FINGERPRINT_SIZE + _TAG_SIZE


@dataclass(frozen=True, slots=True)
class Heading:
    """Whose pages a file is about.

    Attributes:
        store: The place where the image is, 16 bytes: what is in one copies from what is in it.
        target: Under which name, 16 bytes.
        image: The uuid that the receiver gave it.
        size: Bytes of the disk.
        first: The number of its first chunk among all chunks of a store.
    """

    store: bytes
    target: bytes
    image: bytes
    size: int
    first: int = 0

    @property
    def chunks(self) -> int:
        """How many the disk has."""
        return -(-self.size // CHUNK_SIZE)

    def pack(self, secret: bytes) -> bytes:
        """The header of a file that is sealed by ``secret``."""
        key_id = derived("flatship/1 page index key", secret)[:8]
        return _HEADER.pack(
            _MAGIC,
            VERSION,
            PAGE_SIZE,
            key_id,
            self.size,
            self.first,
            self.store,
            self.target,
            self.image,
        )

    @classmethod
    def unpack(cls, header: bytes, secret: bytes) -> Self | None:
        """What a header says; None if it is of another make, version or key."""
        if len(header) != _HEADER.size:
            return None
        *_, size, first, store, target, image = _HEADER.unpack(header)
        heading = cls(store, target, image, size, first)
        return heading if heading.pack(secret) == header else None


@dataclass(frozen=True, slots=True)
class Slot:
    """What is known of one chunk.

    Attributes:
        digest: Of its bytes.
        pages: Fingerprints of its pages.
        anchors: A bit for each of them that is to be found by its content, the first one lowest.
    """

    digest: bytes
    pages: bytes
    anchors: int = 0


class Slots:
    """The slots of an open file. Thread-safe, for different chunks.

    Args:
        descriptor: Of the file; closed by ``close``.
        heading: What its header says.
        secret: 32 bytes that seal it.
    """

    def __init__(self, descriptor: int, heading: Heading, secret: bytes) -> None:
        self.heading = heading
        self._descriptor = descriptor
        self._key = derived("flatship/1 page index", secret + heading.pack(secret))

    @classmethod
    def open(cls, path: Path, secret: bytes) -> Self | None:
        """Open a file to read it; None if that cannot be, or it is of another make."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            heading = Heading.unpack(os.pread(descriptor, HEADER_SIZE, 0), secret)
        except OSError:
            heading = None
        if heading is None:
            os.close(descriptor)
            return None
        return cls(descriptor, heading, secret)

    def read(self, chunk: int) -> Slot | None:
        """What is known of a chunk; None if nothing is.

        Raises:
            OSError: The file cannot be read.
        """
        slot = os.pread(self._descriptor, SLOT_SIZE, place(chunk))
        nonce, sealed = slot[:_NONCE_SIZE], slot[_NONCE_SIZE:]
        try:
            content = AESGCM(self._key).decrypt(nonce, sealed, _bound(chunk))
        except (InvalidTag, ValueError):  # ValueError: it ends before its tag
            return None
        anchors = int.from_bytes(content[DIGEST_SIZE:_FRONT], "little")
        return Slot(content[:DIGEST_SIZE], content[_FRONT:], anchors)

    def write(self, chunk: int, slot: Slot) -> None:
        """Remember a chunk.

        Raises:
            OSError: The file cannot be written.
        """
        anchors = slot.anchors.to_bytes(_ANCHORS_SIZE, "little")
        nonce = secrets.token_bytes(_NONCE_SIZE)
        sealed = AESGCM(self._key).encrypt(nonce, slot.digest + anchors + slot.pages, _bound(chunk))
        os.pwrite(self._descriptor, nonce + sealed, place(chunk))

    def remembered(self) -> Iterator[int]:
        """Chunks that may have a slot, in order; what is not among them has none.

        Raises:
            OSError: The file cannot be read.
        """
        chunk, end = 0, os.fstat(self._descriptor).st_size
        while chunk < self.heading.chunks and place(chunk) < end:
            try:
                data = os.lseek(self._descriptor, place(chunk), os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole is left
                    return
                raise
            chunk = max(chunk, (data - HEADER_SIZE) // SLOT_SIZE)
            hole = os.lseek(self._descriptor, data, os.SEEK_HOLE)
            while chunk < self.heading.chunks and place(chunk) < hole:
                yield chunk
                chunk += 1

    def close(self) -> None:
        """Let go of the file. Idempotent; nothing may be read any more."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        # One that was given up while others read from it goes with the last of them.
        self.close()


def _bound(chunk: int) -> bytes:
    """What a slot is bound to beside its key."""
    return _NUMBER.pack(chunk)


def place(chunk: int) -> int:
    """Where in the file the slot of a chunk begins."""
    return HEADER_SIZE + chunk * SLOT_SIZE


def derived(context: str, material: bytes, length: int = 32) -> bytes:
    """A key for one purpose."""
    return blake3(material, derive_key_context=context).digest(length)
