"""The record layer of SPEC.md: one message, sealed, behind a clear header of 8 bytes.

A (key, nonce) pair must never seal twice. So one Sealer owns the key and the
count of one direction of one connection; the count moves on before AES-GCM
runs; and whatever goes wrong after that kills the sealer. A message that must
be sent again is a new record.
"""

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flatship_protocol.constants import (
    MAX_CIPHERTEXT,
    MESSAGE_HEADER_SIZE,
    MIN_CIPHERTEXT,
    PROTOCOL_VERSION,
    RECORD_HEADER_SIZE,
    REKEY_INTERVAL,
    TAG_SIZE,
)
from flatship_protocol.errors import MalformedMessage, RecordNotAuthentic, UsageError
from flatship_protocol.noise import REKEY_NONCE, rekey

MIN_PLAINTEXT: Final = MESSAGE_HEADER_SIZE  # bytes
MAX_PLAINTEXT: Final = MAX_CIPHERTEXT - TAG_SIZE  # bytes
RECORD_OVERHEAD: Final = RECORD_HEADER_SIZE + TAG_SIZE  # bytes

_HEADER: Final = struct.Struct(">IBBH")
_NONCE: Final = struct.Struct(">4xQ")


class _Direction:
    """The key of one direction and the number of its next record."""

    __slots__ = ("_key", "aead", "sequence")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.aead = AESGCM(key)
        self.sequence = 0

    def next_nonce(self) -> bytes:
        """The nonce of record ``sequence``, after the rekey that may be due before it."""
        sequence = self.sequence
        if sequence >= REKEY_NONCE:
            raise UsageError("this connection has used up its record numbers; open another one")
        if sequence and sequence % REKEY_INTERVAL == 0:
            self._key = rekey(self._key)
            self.aead = AESGCM(self._key)
        return _NONCE.pack(sequence)


class Sealer:
    """Seals the messages of one direction of one connection, in the order of calls.

    Any exception but a refusal of the arguments' sizes leaves the sealer dead:
    every later call raises, and the connection must be closed. Not thread-safe;
    calls may come from different threads, one after another. AES-GCM runs
    without the GIL.

    Args:
        key: 32 bytes, from the handshake, never given to another sealer.
        handshake_hash: 32 bytes, bound to every record.
    """

    __slots__ = ("_direction", "_handshake_hash", "_usable", "bytes")

    def __init__(self, key: bytes, handshake_hash: bytes) -> None:
        self._direction = _Direction(key)
        self._handshake_hash = handshake_hash
        self._usable = True
        self.bytes = 0  # on the wire, headers and tags included

    @property
    def records(self) -> int:
        """Record numbers taken; the next record's number."""
        return self._direction.sequence

    def seal_into(self, plaintext: memoryview, out: memoryview) -> int:
        """Seal one message to the start of ``out`` and return the record's length in bytes.

        Args:
            plaintext: Contiguous; 24 to 1,064,944 bytes.
            out: Writable, contiguous, format "B", at least 24 bytes longer
                than ``plaintext``. It must not share memory with it: sealed
                over itself, a message may come out wrong under a valid tag.

        Raises:
            UsageError: A size is out of bounds, the numbers are used up, or
                the sealer is dead. Nothing was written.
        """
        size = plaintext.nbytes
        if not MIN_PLAINTEXT <= size <= MAX_PLAINTEXT:
            raise UsageError(
                f"a message has {MIN_PLAINTEXT} to {MAX_PLAINTEXT} bytes, this one has {size}"
            )
        end = size + RECORD_OVERHEAD
        if len(out) < end:
            raise UsageError(f"the record needs {end} bytes of room, there are {len(out)}")
        if not self._usable:
            raise UsageError("this sealer failed before; its connection must be closed")

        self._usable = False
        direction = self._direction
        nonce = direction.next_nonce()
        direction.sequence += 1
        header = _HEADER.pack(size + TAG_SIZE, PROTOCOL_VERSION, 0, 0)
        out[:RECORD_HEADER_SIZE] = header
        direction.aead.encrypt_into(
            nonce, plaintext, header + self._handshake_hash, out[RECORD_HEADER_SIZE:end]
        )
        self.bytes += end
        self._usable = True
        return end

    def seal(self, plaintext: bytes) -> bytes:
        """Seal one small message; as ``seal_into``, in memory of its own."""
        record = bytearray(len(plaintext) + RECORD_OVERHEAD)
        self.seal_into(memoryview(plaintext), memoryview(record))
        return bytes(record)


class Opener:
    """Opens the records of one direction of one connection, in the order they came.

    Any PeerError leaves the opener dead: every later call raises, and the
    connection must be closed. Not thread-safe; see Sealer.

    Args:
        key: 32 bytes, from the handshake.
        handshake_hash: 32 bytes, bound to every record.
    """

    __slots__ = ("_direction", "_handshake_hash", "_usable", "bytes")

    def __init__(self, key: bytes, handshake_hash: bytes) -> None:
        self._direction = _Direction(key)
        self._handshake_hash = handshake_hash
        self._usable = True
        self.bytes = 0  # opened, headers and tags included

    @property
    def records(self) -> int:
        """Records opened; the next record's number."""
        return self._direction.sequence

    def body_length(self, header: bytes | memoryview) -> int:
        """Bytes of ciphertext that follow ``header``, 40 to 1,064,960. Call before reading them.

        Raises:
            MalformedMessage: Not the 8 bytes of a header of this version, or
                the length is out of bounds. The opener is dead.
            UsageError: The opener was dead before.
        """
        self._require_usable()
        self._usable = False
        if len(header) != RECORD_HEADER_SIZE:
            raise MalformedMessage(
                f"a record header has {RECORD_HEADER_SIZE} bytes, {len(header)} came"
            )
        length, version, reserved_byte, reserved_word = _HEADER.unpack(header)
        if version != PROTOCOL_VERSION or reserved_byte or reserved_word:
            raise MalformedMessage("a record header's version or reserved bytes are wrong")
        if not MIN_CIPHERTEXT <= length <= MAX_CIPHERTEXT:
            raise MalformedMessage(
                f"a record of {length} bytes; {MIN_CIPHERTEXT} to {MAX_CIPHERTEXT} are allowed"
            )
        self._usable = True
        return int(length)

    def open_into(self, header: bytes | memoryview, ciphertext: memoryview, out: memoryview) -> int:
        """Open one record to the start of ``out`` and return the message's length in bytes.

        Args:
            header: The record's 8 bytes.
            ciphertext: What followed them, contiguous, tag included.
            out: Writable, contiguous, format "B", at most 16 bytes shorter
                than ``ciphertext``. It must not share memory with it.

        Raises:
            RecordNotAuthentic: Altered, out of order, repeated, or sealed
                under other keys. The opener is dead; what was written to
                ``out`` is zeroed.
            MalformedMessage: As ``body_length``, or ``ciphertext`` has another
                length than the header says. The opener is dead.
            UsageError: ``out`` is too short (nothing was done), the numbers
                are used up, or the opener is dead. ``out`` is untouched.
        """
        length = self.body_length(header)
        if ciphertext.nbytes != length:
            self._usable = False
            raise MalformedMessage(
                f"a record of {length} bytes by its header has {ciphertext.nbytes}"
            )
        size = length - TAG_SIZE
        if len(out) < size:
            raise UsageError(f"the message needs {size} bytes of room, there are {len(out)}")

        self._usable = False
        direction = self._direction
        nonce = direction.next_nonce()
        plaintext = out[:size]
        try:
            direction.aead.decrypt_into(
                nonce, ciphertext, bytes(header) + self._handshake_hash, plaintext
            )
        except InvalidTag:
            # decrypt_into writes as it goes and learns only at the end that it must not.
            plaintext[:] = bytes(size)
            raise RecordNotAuthentic(direction.sequence) from None
        direction.sequence += 1
        self.bytes += RECORD_HEADER_SIZE + length
        self._usable = True
        return size

    def _require_usable(self) -> None:
        if not self._usable:
            raise UsageError("this opener failed before; its connection must be closed")
