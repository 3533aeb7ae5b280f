"""Decoders of records: forged ones, and what an authenticated peer puts into true ones."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flatship_protocol import messages
from flatship_protocol.connection import MAX_CIPHERTEXT_TO_SENDER, Connection
from flatship_protocol.errors import (
    ConnectionLost,
    MalformedMessage,
    PeerError,
    RecordNotAuthentic,
)
from flatship_protocol.handshake import Keys
from flatship_protocol.records import Opener
from fuzz.message_targets import SEEDS, with_body_length
from fuzz.target import Target

T = TypeVar("T")

KEY, HASH = bytes(range(32)), bytes(range(32, 64))
HEADER_SIZE: Final = 8
SMALL: Final = 256  # bytes of ciphertext; that a record is too large must not take long to try


def header_of(plaintext: bytes) -> bytes:
    """The 8 bytes in front of the record that carries ``plaintext``."""
    return (len(plaintext) + 16).to_bytes(4, "big") + b"\x01\0\0\0"


def seal(sequence: int, plaintext: bytes, header: bytes | None = None) -> bytes:
    """A record as SPEC.md, "Records", has it, of a sealer that refuses nothing."""
    header = header_of(plaintext) if header is None else header
    nonce = sequence.to_bytes(12, "big")
    return header + AESGCM(KEY).encrypt(nonce, plaintext, header + HASH)


RECORDS: Final = (seal(0, bytes(range(24, 96))), seal(0, bytes(24)))


def decode_record(data: bytes) -> None:
    """Nobody without the key makes one that opens; of others nothing is left in the buffer."""
    opener = Opener(KEY, HASH)
    out = memoryview(bytearray(len(data)))
    try:
        length = opener.body_length(data[:HEADER_SIZE])
        if length > len(data):
            raise ConnectionLost("the stream ends before the record")
        opener.open_into(data[:HEADER_SIZE], memoryview(data)[HEADER_SIZE:], out)
    except (PeerError, ConnectionLost):
        assert opener.records == 0
        assert not any(out)
        raise
    assert opener.records == 1
    assert data in RECORDS


def with_record_length(data: bytes) -> bytes:
    """``data`` with its header's length as it is."""
    return max(len(data) - HEADER_SIZE, 0).to_bytes(4, "big") + data[4:]


class _Incoming:
    """A Stream that holds what came, and is never waited for."""

    peer = "the peer"
    moved_at = 0.0

    def __init__(self) -> None:
        self.data = b""

    async def read_exactly(self, view: memoryview) -> None:
        if len(self.data) < len(view):
            raise ConnectionLost("the stream ended")
        view[:] = self.data[: len(view)]
        self.data = self.data[len(view) :]

    async def write_all(self, view: memoryview) -> None:
        raise AssertionError("a decoder sends nothing")

    async def drain(self, seconds: float) -> None:
        raise AssertionError("a decoder sends nothing")

    def close(self) -> None:
        self.data = b""


class Peer:
    """An authenticated peer's records, and the connection that receives them.

    Args:
        limit: Largest ciphertext that the connection accepts, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._loop = asyncio.new_event_loop()
        self._frame = memoryview(bytearray(limit))
        self._connect()

    def receive(self, plaintext: bytes, header: bytes | None = None) -> memoryview:
        """What the connection makes of one more record; ``header`` in place of the right one.

        Raises:
            MalformedMessage: Its size is out of bounds, or its header is wrong.
            ConnectionLost: Its header says that more follows.
            RecordNotAuthentic: Its header says that less follows.
        """
        self._stream.data = seal(self._sequence, plaintext, header)
        self._sequence += 1
        opened = False
        try:
            header = _run(self._connection.receive_header())
            assert int.from_bytes(header[:4], "big") <= self._limit  # no body is waited for else
            size = _run(self._connection.receive_body(header, self._frame))
            opened = True
        finally:
            if not opened:
                self._connection.close()
                self._connect()
        assert self._frame[:size] == plaintext
        assert not self._stream.data
        return self._frame[:size]

    def _connect(self) -> None:
        self._sequence = 0
        self._stream = _Incoming()
        self._connection = self._loop.run_until_complete(self._make())

    async def _make(self) -> Connection:
        keys = Keys(bytes(32), KEY, HASH)
        return Connection(self._stream, keys, max_receive=self._limit, max_send=self._limit)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stopped:
        return stopped.value
    raise AssertionError("waited")


_PEER: Final = Peer(MAX_CIPHERTEXT_TO_SENDER)
_LIMITED: Final = Peer(SMALL)


def decode_in_connection(data: bytes) -> None:
    """A record's message is what its plaintext decodes to, whatever came before it."""
    try:
        expected: object = messages.decode(memoryview(data))
    except MalformedMessage as error:
        expected = str(error)
    try:
        found: object = messages.decode(_PEER.receive(data))
    except MalformedMessage as error:
        in_bounds = 24 <= len(data) <= MAX_CIPHERTEXT_TO_SENDER - 16
        assert not in_bounds or str(error) == expected
        raise
    assert found == expected


def decode_limited(data: bytes) -> None:
    """A record within the limits is opened if its header, 8 bytes here, is the right one."""
    header, plaintext = data[:HEADER_SIZE].ljust(HEADER_SIZE, b"\0"), data[HEADER_SIZE:]
    assert _LIMITED.receive(plaintext, header) == plaintext
    assert header == header_of(plaintext)
    assert 24 <= len(plaintext) <= SMALL - 16


def with_own_header(data: bytes) -> bytes:
    """``data`` with the header of what stands behind it."""
    return header_of(data[HEADER_SIZE:]) + data[HEADER_SIZE:]


TARGETS: Final = (
    Target(
        "record",
        decode_record,
        (MalformedMessage, RecordNotAuthentic, ConnectionLost),
        RECORDS,
        repair=with_record_length,
    ),
    Target(
        "sealed-record",
        decode_limited,
        (MalformedMessage, RecordNotAuthentic, ConnectionLost),
        tuple(header_of(bytes(size)) + bytes(size) for size in (24, 30, SMALL - 16)),
        repair=with_own_header,
    ),
    Target(
        "connection",
        decode_in_connection,
        (MalformedMessage,),
        SEEDS,
        repair=with_body_length,
    ),
)
