"""A network that misbehaves on purpose, between a real sender and a real receiver.

The proxy knows where one record ends and the next begins, which is all that anybody on the
path can know, and does its harm at a place that the test names.
"""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final

from raw_peer import Ended, read_exactly

from flatship_protocol.constants import RECORD_HEADER_SIZE
from flatship_protocol.handshake import INITIATION_SIZE, RESPONSE_SIZE

JOIN_TIMEOUT: Final = 20.0  # seconds

Harm = Callable[["Flow", int, bytes], Iterator[bytes]]
"""Takes a flow, the number of a unit and its bytes; yields what goes on instead.

Unit 0 is the handshake's message, unit n the record n - 1. Raise ``Cut`` to end the connection.
"""


class Direction(Enum):
    """Where bytes flow to."""

    TO_RECEIVER = "to receiver"
    TO_SENDER = "to sender"


class Cut(Exception):
    """Ends both directions of a connection at once."""


@dataclass
class Flow:
    """One direction of one connection."""

    direction: Direction
    connection: int  # counted from 0, in the order they were accepted
    held: bytes = b""  # what a harm keeps back


def cut_before(direction: Direction, unit: int) -> Harm:
    """Cut the connection in place of a unit."""

    def harm(flow: Flow, number: int, data: bytes) -> Iterator[bytes]:
        if flow.direction is direction and number == unit:
            raise Cut
        yield data

    return harm


def cut_inside(direction: Direction, unit: int, size: int) -> Harm:
    """Let ``size`` bytes of a unit through and cut."""

    def harm(flow: Flow, number: int, data: bytes) -> Iterator[bytes]:
        if flow.direction is direction and number == unit:
            yield data[:size]
            raise Cut
        yield data

    return harm


def flip(direction: Direction, unit: int, bit: int) -> Harm:
    """Flip a bit of a unit; ``bit`` is taken modulo its length."""

    def harm(flow: Flow, number: int, data: bytes) -> Iterator[bytes]:
        if flow.direction is direction and number == unit:
            changed = bytearray(data)
            at = bit % (8 * len(changed))
            changed[at // 8] ^= 1 << at % 8
            yield bytes(changed)
        else:
            yield data

    return harm


def duplicate(direction: Direction, unit: int) -> Harm:
    """Send a unit twice."""

    def harm(flow: Flow, number: int, data: bytes) -> Iterator[bytes]:
        yield data
        if flow.direction is direction and number == unit:
            yield data

    return harm


def drop(direction: Direction, unit: int) -> Harm:
    """Leave a unit out."""

    def harm(flow: Flow, number: int, data: bytes) -> Iterator[bytes]:
        if flow.direction is not direction or number != unit:
            yield data

    return harm


def swap(direction: Direction, unit: int) -> Harm:
    """Send a unit after the one that follows it."""

    def harm(flow: Flow, number: int, data: bytes) -> Iterator[bytes]:
        if flow.direction is direction and number == unit:
            flow.held = data
        else:
            yield data
            if flow.held:
                yield flow.held
                flow.held = b""

    return harm


def stall(direction: Direction, unit: int) -> Harm:
    """Keep back a unit and all that follows it, and leave the connection open."""

    def harm(flow: Flow, number: int, data: bytes) -> Iterator[bytes]:
        if flow.direction is not direction or number < unit:
            yield data

    return harm


class Toll:
    """A harm that does none: counts the bytes to the receiver, and once does what it was told.

    What comes over several connections is counted together.
    """

    def __init__(self) -> None:
        self.passed = 0  # bytes
        self._turn = threading.Lock()
        self._due: tuple[int, Callable[[], None]] | None = None

    def at(self, passed: int, act: Callable[[], None]) -> None:
        """Call ``act`` when so many bytes more have passed, in the middle of a unit if need be."""
        with self._turn:
            self._due = (self.passed + passed, act)

    def forget(self) -> None:
        """Call nothing any more."""
        with self._turn:
            self._due = None

    def __call__(self, flow: Flow, number: int, data: bytes) -> Iterator[bytes]:
        if flow.direction is Direction.TO_SENDER:
            yield data
            return
        before, act = len(data), None
        with self._turn:
            if self._due is not None and self.passed + len(data) >= self._due[0]:
                before, act = max(0, self._due[0] - self.passed), self._due[1]
                self._due = None
            self.passed += len(data)
        yield data[:before]
        if act is not None:
            act()
            yield data[before:]


def no_harm(flow: Flow, number: int, data: bytes) -> Iterator[bytes]:
    """Pass everything on."""
    yield data


class Proxy:
    """Passes connections on to ``upstream``, ``HOST:PORT``, with what ``harm`` does to them.

    Records are counted in ``units``: the most that were seen in each direction of a connection.
    """

    def __init__(self, upstream: str, harm: Harm = no_harm) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self.harm = harm
        self.units = dict.fromkeys(Direction, 0)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def address(self) -> str:
        """Where it listens, as ``HOST:PORT``."""
        host, port = self._listening.getsockname()
        return f"{host}:{port}"

    def __enter__(self) -> "Proxy":
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._listening, *self._sockets)
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT)

    def _accept(self) -> None:
        accepted = 0
        while True:
            try:
                down, _ = self._listening.accept()
            except OSError:
                return
            try:
                up = socket.create_connection(self._upstream)
            except OSError:  # nobody listens there just now
                _shut(down)
                continue
            self._sockets += (down, up)
            to_receiver = Flow(Direction.TO_RECEIVER, accepted)
            to_sender = Flow(Direction.TO_SENDER, accepted)
            self._start(to_receiver, down, up, INITIATION_SIZE)
            self._start(to_sender, up, down, RESPONSE_SIZE)
            accepted += 1

    def _start(self, flow: Flow, source: socket.socket, target: socket.socket, first: int) -> None:
        arguments = (flow, source, target, first)
        thread = threading.Thread(target=self._pass_on, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _pass_on(
        self, flow: Flow, source: socket.socket, target: socket.socket, first: int
    ) -> None:
        try:
            for number, unit in enumerate(_units(source, first)):
                self.units[flow.direction] = max(self.units[flow.direction], number + 1)
                for data in self.harm(flow, number, unit):
                    target.sendall(data)
        except Ended:
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)
        except (Cut, OSError):
            _shut(source, target)


def _units(source: socket.socket, first: int) -> Iterator[bytes]:
    yield read_exactly(source, first)
    while True:
        header = read_exactly(source, RECORD_HEADER_SIZE)
        (length,) = struct.unpack(">I", header[:4])
        yield header + read_exactly(source, length)


def _shut(*sockets: socket.socket) -> None:
    for sock in sockets:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
