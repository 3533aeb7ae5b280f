"""A link that is long: what goes in comes out after a while, at most at a rate; nothing is lost."""

import socket
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

READ: Final = 256 << 10  # bytes


@dataclass
class _Line:
    """When one direction of the link, shared by all connections, is free again."""

    rate: float
    free_at: float = 0.0

    def __post_init__(self) -> None:
        self._turn = threading.Lock()

    def book(self, size: int) -> float:
        """Put ``size`` bytes onto the line; returns when the last of them is on it."""
        with self._turn:
            self.free_at = max(self.free_at, time.monotonic()) + size / self.rate
            return self.free_at


class LongLink:
    """Passes connections on to ``upstream``, ``HOST:PORT``.

    Args:
        upstream: The other end.
        delay: Seconds, each way.
        rate: Bytes a second, each way, over all connections.
    """

    def __init__(self, upstream: str, delay: float, rate: float) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._delay = delay
        self._there, self._back = _Line(rate), _Line(rate)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listening]
        self.passed = 0  # bytes that have arrived at the other end

    @property
    def address(self) -> str:
        """Where it listens, as ``HOST:PORT``."""
        host, port = self._listening.getsockname()
        return f"{host}:{port}"

    def __enter__(self) -> "LongLink":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                down, _ = self._listening.accept()
                up = socket.create_connection(self._upstream)
            except OSError:
                return
            self._sockets += (down, up)
            for source, target, line in ((down, up, self._there), (up, down, self._back)):
                for sock in (source, target):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                held: deque[tuple[float, bytes]] = deque()
                news = threading.Condition()
                for work in (self._take, self._give):
                    threading.Thread(
                        target=work, args=(source, target, line, held, news), daemon=True
                    ).start()

    def _take(
        self,
        source: socket.socket,
        _: socket.socket,
        line: _Line,
        held: deque[tuple[float, bytes]],
        news: threading.Condition,
    ) -> None:
        data = b"."
        while data:
            try:
                data = source.recv(READ)
            except OSError:
                data = b""
            on_line = line.book(len(data))
            with news:
                held.append((on_line + self._delay, data))
                news.notify()
            # A sender meets a full line, not a proxy that takes whatever comes.
            time.sleep(max(0.0, on_line - time.monotonic() - 0.01))  # the full line itself

    def _give(
        self,
        _: socket.socket,
        target: socket.socket,
        line: _Line,
        held: deque[tuple[float, bytes]],
        news: threading.Condition,
    ) -> None:
        while True:
            with news:
                news.wait_for(lambda: held)
                due, data = held.popleft()
            time.sleep(max(0.0, due - time.monotonic()))  # the delay itself
            try:
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
            except OSError:
                return
            if line is self._there:
                self.passed += len(data)
