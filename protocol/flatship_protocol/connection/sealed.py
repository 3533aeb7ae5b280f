"""One connection: records over a byte stream, after a handshake.

Records are sealed and opened on the event loop's thread. AES-256-GCM runs at
about 10 GB/s and releases the interpreter lock: a 1 MiB record takes 0.1 ms,
which is less than handing it to a worker and back costs, and it leaves each
direction's (key, n) with one owner that cannot be overtaken.
"""

import asyncio
import mmap
import time
from types import TracebackType
from typing import Final, Self

from flatship_protocol.connection.stream import Stream
from flatship_protocol.connection.watchdog import Watchdog
from flatship_protocol.constants import PREFACE_SIZE, RECORD_HEADER_SIZE
from flatship_protocol.errors import ConnectionLost, MalformedMessage
from flatship_protocol.handshake import RESPONSE_SIZE, Initiator, Keys, parse_preface
from flatship_protocol.records import Opener, Sealer

MAX_CIPHERTEXT_TO_SENDER: Final = 32 * 1024  # bytes; SPEC.md, "Records"
HANDSHAKE_TIMEOUT: Final = 10.0  # seconds


class Connection:
    """Sealed records in both directions after a completed handshake.

    Args:
        stream: Positioned after the handshake. The connection owns it.
        keys: What the handshake yielded.
        max_receive: Largest ciphertext accepted, in bytes.
        max_send: Largest ciphertext that will be sent, in bytes.

    A failure or cancellation of ``send`` closes the connection: what the peer
    got of the record is unknown, and its number must not be used again. After
    one of ``receive_header`` or ``receive_body`` nothing more can be received;
    an ERROR may still be sent.
    """

    def __init__(self, stream: Stream, keys: Keys, *, max_receive: int, max_send: int) -> None:
        self.stream = stream
        self.closed = False
        self._sealer = Sealer(keys.send, keys.handshake_hash)
        self._opener = Opener(keys.receive, keys.handshake_hash)
        self._max_receive = max_receive
        self._outgoing = memoryview(mmap.mmap(-1, RECORD_HEADER_SIZE + max_send))
        self._incoming = memoryview(mmap.mmap(-1, RECORD_HEADER_SIZE + max_receive))
        self._sending = asyncio.Lock()
        self._watchdog = Watchdog(stream)
        self.seal_seconds = 0.0
        self.sent_at = asyncio.get_running_loop().time()

    @property
    def sealed_bytes(self) -> int:
        """Bytes sealed so far, for the rule that replaces old connections."""
        return self._sealer.bytes

    @property
    def opened_bytes(self) -> int:
        """Bytes of records opened so far."""
        return self._opener.bytes

    @property
    def busy(self) -> bool:
        """Whether something is being sent right now."""
        return self._sending.locked()

    async def send(self, message: memoryview | bytes) -> int:
        """Seal one message and write its record.

        Returns:
            Size of the record in bytes, header and tag included.

        Raises:
            ConnectionLost: The stream failed, or is dead.
        """
        async with self._sending:
            if self.closed:
                raise ConnectionLost(f"connection to {self.stream.peer} is closed")
            try:
                started = time.perf_counter()  # the loop's clock stands still within a turn
                size = self._sealer.seal_into(memoryview(message), self._outgoing)
                self.seal_seconds += time.perf_counter() - started
                await self._watchdog.during(self.stream.write_all(self._outgoing[:size]))
            except BaseException:
                self.close()
                raise
            self.sent_at = asyncio.get_running_loop().time()
            return size

    async def receive_header(self) -> bytes:
        """Wait for a record and return its header, checked.

        Split from ``receive_body`` so that memory is taken only when something came.

        Raises:
            ConnectionLost: The stream ended, or is dead.
            MalformedMessage: The header is not one; nothing more was read.
        """
        header = self._incoming[:RECORD_HEADER_SIZE]
        await self._watchdog.during(self.stream.read_exactly(header))
        length = self._opener.body_length(header)
        if length > self._max_receive:
            raise MalformedMessage(
                f"record of {length} bytes where {self._max_receive} are allowed"
            )
        return bytes(header)

    async def receive_ciphertext(self, header: bytes) -> None:
        """Read the body that ``header`` announced, for ``open``.

        Args:
            header: What ``receive_header`` returned last.

        Raises:
            ConnectionLost: The stream ended or was slower than MIN_PROGRESS.
        """
        length = self._opener.body_length(header)
        body = self._incoming[RECORD_HEADER_SIZE : RECORD_HEADER_SIZE + length]
        await self._watchdog.during_body(length, self.stream.read_exactly(body))

    def open(self, header: bytes, out: memoryview) -> int:
        """Open what ``receive_ciphertext`` read.

        Args:
            header: The record's.
            out: Where the message goes; at least ``max_receive`` bytes.

        Returns:
            Length of the message in ``out``, padding included.

        Raises:
            RecordNotAuthentic: The record is not the peer's; nothing of it may be used.
        """
        length = self._opener.body_length(header)
        body = self._incoming[RECORD_HEADER_SIZE : RECORD_HEADER_SIZE + length]
        return self._opener.open_into(header, body, out)

    async def receive_body(self, header: bytes, out: memoryview) -> int:
        """Read and open the body that ``header`` announced: both of the above.

        Args:
            header: What ``receive_header`` returned last.
            out: Where the message goes; at least ``max_receive`` bytes.

        Returns:
            Length of the message in ``out``, padding included.

        Raises:
            ConnectionLost: The stream ended or was slower than MIN_PROGRESS.
            RecordNotAuthentic: The record is not the peer's; nothing of it may be used.
        """
        await self.receive_ciphertext(header)
        return self.open(header, out)

    def close(self) -> None:
        """Drop the connection at once. Idempotent."""
        self.closed = True
        self._watchdog.end()
        self.stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


async def initiate(stream: Stream, initiator: Initiator) -> Keys:
    """Run the sender's half of the handshake.

    Raises:
        ConnectionLost: The receiver closed: it does not know this sender, or
            it is not the receiver that was meant.
        ProtocolVersionMismatch: The receiver speaks another version.
        HandshakeFailed: The answer is not from that receiver.
    """
    async with asyncio.timeout(HANDSHAKE_TIMEOUT):
        await stream.write_all(memoryview(initiator.initiation()))
        response = bytearray(RESPONSE_SIZE)
        await stream.read_exactly(memoryview(response)[:PREFACE_SIZE])
        parse_preface(bytes(response[:PREFACE_SIZE]))
        await stream.read_exactly(memoryview(response)[PREFACE_SIZE:])
    return initiator.read_response(bytes(response))
