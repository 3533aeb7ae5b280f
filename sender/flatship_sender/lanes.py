"""Lanes: connections whose chunks are coded as one stream each, with what went before at hand.

A payload of a stream can be decoded only after all that was coded before it, and in that order. So
a lane codes one chunk after the other and sends them in the order in which they were coded. The
next chunk is coded while this one is sent, and no further ahead: what waits would have been coded
at a level that the link may have left behind.

A stream lives as long as its connection, and the receiver counts connections that carry one. A
lane whose connection was replaced begins a stream on another only when the receiver has
closed the old one; meanwhile its chunks go as frames of their own.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

from flatship_protocol.codec import HistoryEncoder
from flatship_protocol.connection import Connection
from flatship_protocol.constants import CHUNK_SIZE
from flatship_sender.client import Client
from flatship_sender.lending import Lending
from flatship_sender.prepare import Address, Laid, Prepared, encode
from flatship_sender.rungs import Rung
from flatship_service.workers import Workers

GROUP: Final = 4 * CHUNK_SIZE  # bytes of neighbouring chunks that go to one lane
REMEMBERED: Final = 64  # groups whose lane is known


class Lanes:
    """The lanes of a session, and which chunk goes to which of them.

    Args:
        client: The session's connections, all of them open.
        workers: Where chunks are coded.
        window_log: Base-2 logarithm of each stream's window, in bytes.
        streams: Connections that may carry a stream at once.
    """

    def __init__(self, client: Client, workers: Workers, window_log: int, streams: int) -> None:
        taken: dict[Lane, Connection] = {}
        count = min(streams, client.live)
        self._lanes = [Lane(client, workers, window_log, taken) for _ in range(count)]
        self._dealt: dict[tuple[int, int], Lane] = {}

    @property
    def count(self) -> int:
        """How many chunks can be coded at once."""
        return len(self._lanes)

    def lane(self, disk: int, offset: int) -> "Lane":
        """The lane for a chunk: that of its group; a new group goes to the one that has least."""
        group = disk, offset // GROUP
        lane = self._dealt.get(group)
        if lane is None:
            lane = self._dealt[group] = min(self._lanes, key=lambda each: each.waiting)
            if len(self._dealt) > REMEMBERED:
                del self._dealt[next(iter(self._dealt))]
        return lane


class Lane:
    """One connection at a time, with the stream that it carries.

    Args:
        client: Where connections come from.
        workers: Where chunks are coded.
        window_log: Base-2 logarithm of the stream's window, in bytes.
        taken: The connections of all lanes of the session.
    """

    def __init__(
        self,
        client: Client,
        workers: Workers,
        window_log: int,
        taken: "dict[Lane, Connection]",
    ) -> None:
        self.waiting = 0  # chunks that are in the lane
        self._client = client
        self._workers = workers
        self._window_log = window_log
        self._taken = taken
        self._coding: Lending[None] = Lending()  # whose turn it is, by rank
        self._coding.add(None)
        self._sending = asyncio.Lock()
        self._encoder: HistoryEncoder | None = None
        self._encoder_level: int | None = None
        self._carrier: Connection | None = None  # the connection that carries the stream

    def turn(
        self,
        laid: Laid,
        address: Address,
        rung: Callable[[], Rung],
        frame: memoryview,
        rank: float = 0.0,
    ) -> "Turn":
        """Have a chunk coded and wait until it may be sent: an asynchronous context.

        Args:
            laid: The chunk, laid out in ``frame``.
            address: Goes into the message.
            rung: How to code it, asked as late as possible.
            frame: Where the message is made.
            rank: Its place among those that wait; the lowest goes first.
        """
        return Turn(self, laid, address, rung, frame, rank)

    def _take_connection(self) -> tuple[Connection, bool]:
        """Where to send, and whether the stream may be used there.

        Raises:
            ConnectionLost: None is left.
        """
        mine = self._taken.get(self)
        if mine is None or not self._client.is_live(mine):
            others = {each for lane, each in self._taken.items() if lane is not self}
            mine = self._client.pick(others)
            if mine in others:  # so few are left
                return mine, False
            self._taken[self] = mine
        if self._carrier is None or (self._carrier is not mine and self._carrier.closed):
            self.begin_anew()
            self._carrier = mine
        return mine, self._carrier is mine

    def begin_anew(self) -> None:
        """What was coded last is not sent: the next chunk knows nothing of those before it."""
        if self._encoder is not None:
            self._encoder.restart()

    def _encoder_at(self, level: int) -> HistoryEncoder:
        if self._encoder is None or self._encoder_level != level:
            self._encoder = None  # not two at once: each takes some 50 MiB
            self._encoder = HistoryEncoder(level, self._window_log)
            self._encoder_level = level
        return self._encoder


class Turn:
    """One chunk's turn in a lane. ``send`` it, or the stream begins anew after it.

    Attributes:
        prepared: The coded chunk, within the context.
        rung: How it was coded.
        waited: Seconds, without those of its coding.
        seal_seconds: Those of its sealing, once it was sent.
    """

    def __init__(
        self,
        lane: Lane,
        laid: Laid,
        address: Address,
        rung: Callable[[], Rung],
        frame: memoryview,
        rank: float,
    ) -> None:
        self.prepared: Prepared
        self.rung: Rung
        self.waited = 0.0
        self.seal_seconds = 0.0
        self._lane = lane
        self._laid = laid
        self._address = address
        self._rung = rung
        self._frame = frame
        self._rank = rank
        self._connection: Connection | None = None
        self._sent = False

    @property
    def connection(self) -> Connection:
        """Where the chunk will go, within the context."""
        assert self._connection is not None
        return self._connection

    async def __aenter__(self) -> Self:
        lane, asked = self._lane, time.monotonic()
        lane.waiting += 1
        try:
            await lane._coding.borrow(self._rank)
            try:
                begun = time.monotonic()
                self.prepared = await self._code()
                coded = time.monotonic()
                await lane._sending.acquire()
            except BaseException:
                self._leave(sent=False)
                raise
        except BaseException:
            lane.waiting -= 1
            raise
        self.waited = begun - asked + time.monotonic() - coded
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        lane = self._lane
        lane._sending.release()
        lane.waiting -= 1
        self._leave(sent=self._sent)

    def _leave(self, *, sent: bool) -> None:
        if self._connection is not None:
            self._lane._client.let_go(self._connection)
        if not sent:
            self._lane.begin_anew()
            self._lane._coding.add(None)

    async def _code(self) -> Prepared:
        lane, rung = self._lane, self._rung()
        self._connection, has_stream = lane._take_connection()
        lane._client.keep(self._connection)
        stream = None
        if rung.history and has_stream and rung.level is not None:
            stream = lane._encoder_at(rung.level)
        self.rung = rung if stream is not None else replace(rung, history=False)
        return await lane._workers.run(
            encode, self._laid, self._address, rung.level, self._frame, stream
        )

    async def send(self) -> int:
        """Send the chunk; returns the size of its record in bytes.

        From here on the next one may be coded: it relies on this one, whose record is
        the next of the connection, or the connection's last.
        """
        connection, self._sent = self.connection, True
        self._lane._coding.add(None)
        sealed_before = connection.seal_seconds
        size = await connection.send(self.prepared.message)
        self.seal_seconds = connection.seal_seconds - sealed_before
        return size
