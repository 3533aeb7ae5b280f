"""What records travel on: a byte stream, and TCP as one."""

import asyncio
import socket
import struct
from contextlib import suppress
from types import TracebackType
from typing import Final, Protocol

from flatship_protocol.connection.deadlines import IDLE_TIMEOUT
from flatship_protocol.connection.movement import Movement, read_counts
from flatship_protocol.connection.wire import Path, Wire, read_path, read_wire
from flatship_protocol.errors import ConnectionClosed, ConnectionLost

MAX_UNSENT: Final = 256 << 10  # bytes the kernel holds unsent: more would hide how fast the link is
UNPACED: Final = (1 << 64) - 1  # bytes a second; what the kernel takes for no pace at all
SOCKET_READ: Final = 64 * 1024  # bytes discarded at a time
PROBE_AFTER: Final = 10  # seconds of silence before TCP asks whether the peer's host still lives
PROBE_INTERVAL: Final = 5  # seconds between two such questions

# tcp(7) and asm-generic/socket.h; the socket module of Python 3.11 has no names for them
_TCP_NOTSENT_LOWAT: Final = 25
_SO_MAX_PACING_RATE: Final = 47


class Stream(Protocol):
    """A reliable, ordered stream of bytes in both directions."""

    @property
    def peer(self) -> str:
        """The other end's address, for people."""
        ...

    @property
    def heard_at(self) -> float:
        """When the peer's bytes last came, read or not; the loop's clock."""
        ...

    @property
    def taken_at(self) -> float:
        """When the peer's host last took bytes and more waited behind them; the loop's clock."""
        ...

    async def read_exactly(self, view: memoryview) -> None:
        """Fill ``view``.

        Raises:
            ConnectionLost: The stream ended or failed first.
        """
        ...

    async def write_all(self, view: memoryview) -> None:
        """Hand all of ``view`` to the transport; waits while that is full.

        Raises:
            ConnectionLost: The stream failed; how much was written is unknown.
        """
        ...

    async def drain(self, seconds: float) -> None:
        """End the outgoing direction and discard what comes, at most for ``seconds``.

        What was written last then reaches a peer that is still sending.
        """
        ...

    def close(self) -> None:
        """Drop the stream at once; what waits on it ends with ConnectionLost. Idempotent."""
        ...


class Throttle(Protocol):
    """Says how much may be written now; one for all the streams that share a limit."""

    async def admit(self, stream: "SocketStream", wanted: int) -> int:
        """Wait until something may be written to ``stream``.

        Returns:
            How many bytes, from 1 to ``wanted``; they count as written.
        """
        ...


class SocketStream:
    """A Stream over a connected TCP socket, which it owns.

    Args:
        sock: The socket.
        unread: Seconds for which the peer may leave unread what is sent to it. Then the
            kernel ends the connection, although the peer's host answers: see tcp(7),
            TCP_USER_TIMEOUT, which counts while the window is shut, too.
    """

    def __init__(self, sock: socket.socket, *, unread: float = IDLE_TIMEOUT) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_INTERVAL)
        # In milliseconds; it also takes the place of TCP_KEEPCNT.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unread * 1000))
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, MAX_UNSENT)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self.peer = _address(sock)
        self._movement = Movement(self._loop.time())
        self._use = _Use(sock, self.peer)
        self._throttle: Throttle | None = None
        self._written = 0  # bytes

    @property
    def heard_at(self) -> float:
        """See Stream."""
        self._look()
        return self._movement.heard_at

    @property
    def taken_at(self) -> float:
        """See Stream."""
        self._look()
        return self._movement.taken_at

    def _look(self) -> None:
        with suppress(OSError):  # closed: nothing moves any more
            self._movement.look(read_counts(self._sock), self._loop.time())

    async def read_exactly(self, view: memoryview) -> None:
        """See Stream."""
        with self._use:
            while view:
                try:
                    count = self._sock.recv_into(view)
                except (BlockingIOError, InterruptedError):
                    count = await self._loop.sock_recv_into(self._sock, view)
                if count == 0:
                    raise ConnectionClosed(f"{self.peer} closed the connection")
                self._movement.heard(self._loop.time())
                view = view[count:]

    async def write_all(self, view: memoryview) -> None:
        """See Stream."""
        with self._use:
            while view:
                size = len(view)
                if self._throttle is not None:
                    size = await self._throttle.admit(self, size)
                await self._write(view[:size])
                view = view[size:]

    async def _write(self, view: memoryview) -> None:
        while view:
            try:
                count = self._sock.send(view)
            except (BlockingIOError, InterruptedError):
                await self._writable()
            else:
                self._written += count
                view = view[count:]

    async def drain(self, seconds: float) -> None:
        """See Stream."""
        rest = memoryview(bytearray(SOCKET_READ))
        with self._use, suppress(TimeoutError):
            self._sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(seconds):
                while await self._loop.sock_recv_into(self._sock, rest):
                    pass

    async def _writable(self) -> None:
        ready = self._loop.create_future()
        descriptor = self._sock.fileno()
        self._loop.add_writer(descriptor, _resolve, ready)
        try:
            await ready
        finally:
            self._loop.remove_writer(descriptor)

    def throttle_by(self, throttle: Throttle) -> None:
        """From now on write only what ``throttle`` admits."""
        self._throttle = throttle

    def pace(self, rate: int, unsent: int) -> None:
        """Have the kernel smooth what is written; see tcp(7), SO_MAX_PACING_RATE.

        Args:
            rate: Bytes of the stream a second, at most; UNPACED for no smoothing.
            unsent: Bytes that may wait in the kernel for their turn, up to MAX_UNSENT.

        Raises:
            ConnectionLost: The stream is closed.
        """
        with self._use:
            pacing = struct.pack("=Q", min(rate, UNPACED))
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, pacing)
            self._sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, min(unsent, MAX_UNSENT))

    def wire(self) -> Wire:
        """What the stream has put on the wire so far.

        Raises:
            ConnectionLost: The stream is closed.
        """
        with self._use:
            return read_wire(self._sock, self._written)

    def path(self) -> Path:
        """How the connection has fared so far.

        Raises:
            ConnectionLost: The stream is closed.
        """
        with self._use:
            return read_path(self._sock)

    def close(self) -> None:
        """See Stream."""
        self._use.end()


class _Use:
    """Keeps a socket's descriptor open while the loop watches it, and names the peer in errors."""

    __slots__ = ("_ended", "_peer", "_sock", "_users")

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self._sock = sock
        self._peer = peer
        self._users = 0
        self._ended = False

    def __enter__(self) -> None:
        if self._ended:
            raise ConnectionLost(f"connection to {self._peer} is closed")
        self._users += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._users -= 1
        if self._ended and not self._users:
            self._sock.close()
        if isinstance(error, OSError):
            raise ConnectionLost(f"connection to {self._peer}: {error.strerror}") from error

    def end(self) -> None:
        """Wake whoever uses the socket; the last of them closes it."""
        if self._ended:
            return
        self._ended = True
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if not self._users:
            self._sock.close()


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _address(sock: socket.socket) -> str:
    host, port = sock.getpeername()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
