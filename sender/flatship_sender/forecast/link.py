"""Measures the link to a receiver before there is anything to send.

As many connections as a transfer would use send PROBE messages for a few seconds, under the limits
that hold for all that this host sends. The receiver says again and again how much has come and
when, by its own clock: the rate is that of what arrived, not of what this host's buffers took.
The first second is left out, for TCP was still finding out how fast it may be.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Final

from flatship_protocol.connection import MAX_CIPHERTEXT_TO_SENDER, Connection, SocketStream
from flatship_protocol.errors import UnexpectedMessage
from flatship_protocol.messages import Error, Message, Ping, Pong, Probe, Probed, encode
from flatship_sender.connecting import receive
from flatship_sender.refusals import RefusedByReceiver

DURATION: Final = 4.0  # seconds that probes are sent for
PATIENCE: Final = 3.0  # seconds after that for what is on its way to arrive
WARM_UP: Final = 1.0  # seconds at the beginning that say little
FILLER: Final = 16 << 10  # bytes; small enough for a report to be soon where the link is slow
MAX_BYTES: Final = 384 << 20  # of all connections; receivers bear more
REPORT_INTERVAL: Final = 0.2  # seconds between two reports that a connection asks for
SLICE: Final = 0.5  # seconds; the spread of the rate is that of slices
MOST_SLICES: Final = 60  # whatever the receiver's clock says
MIN_SPAN: Final = 0.2  # seconds between first and last report, or nothing was measured
MICROSECOND: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Link:
    """What was measured.

    Attributes:
        rate: Bytes of records a second, that arrived.
        spread: Standard deviation of the rate over half a second, as a share of it.
        round_trip: Seconds, before the link was full.
        loss: Share of packets that were sent again.
        seconds: That were measured.
    """

    rate: float
    spread: float
    round_trip: float
    loss: float
    seconds: float


@dataclass(slots=True)
class Reports:
    """What a receiver has said of one connection: seconds on its clock, and bytes by then."""

    points: list[tuple[float, int]] = field(default_factory=list)

    def bytes_at(self, when: float) -> float:
        """How much had come by then, between reports in proportion."""
        before = (self.points[0][0], self.points[0][1])
        for point in self.points:
            if point[0] >= when:
                span = point[0] - before[0]
                part = (when - before[0]) / span if span > 0 else 0.0
                return before[1] + part * (point[1] - before[1])
            before = point
        return before[1]


def rate_of(reports: Sequence[Reports]) -> tuple[float, float, float] | None:
    """Rate, its relative spread and the seconds that they are of; None if too little came. Pure."""
    heard = [each for each in reports if len(each.points) > 1]
    if not heard:
        return None
    began = min(each.points[0][0] for each in heard)
    # Until the first of them is done: from then on the others have the link to themselves.
    ended = min(each.points[-1][0] for each in heard)
    if ended - began < MIN_SPAN:
        return None
    since = began + min(WARM_UP, (ended - began) / 4)

    def came(start: float, end: float) -> float:
        return sum(each.bytes_at(end) - each.bytes_at(start) for each in heard) / (end - start)

    slices = min(MOST_SLICES, max(1, int((ended - since) / SLICE)))
    width = (ended - since) / slices
    rates = [came(since + n * width, since + (n + 1) * width) for n in range(slices)]
    mean = fmean(rates)
    return (mean, pstdev(rates) / mean, ended - since) if mean > 0 else None


async def measure(
    connections: Sequence[Connection], epoch: int, *, duration: float = DURATION
) -> Link | None:
    """Fill the link for ``duration`` seconds; None if nothing could be told from what came.

    Args:
        connections: Of a session with the capability PROBE; nobody else uses them. Those over
            TCP are throttled by whoever made them.
        epoch: The session's.
        duration: Seconds.

    Raises:
        ConnectionLost: The link failed.
        PeerError: The receiver broke a rule, or refuses.
    """
    streams = [each.stream for each in connections if isinstance(each.stream, SocketStream)]
    before = [stream.path() for stream in streams]
    reports = [Reports() for _ in connections]
    train = _Train(epoch, asyncio.get_running_loop().time() + duration)
    async with asyncio.TaskGroup() as tasks:
        readers = [
            tasks.create_task(train.read(connection, each))
            for connection, each in zip(connections, reports, strict=True)
        ]
        writers = [tasks.create_task(train.write(connection)) for connection in connections]
        # A link that is much slower than its buffers are large gets no more time than that.
        await asyncio.wait([*writers, *readers], timeout=duration + PATIENCE)
        for task in (*writers, *readers):
            task.cancel()
    found = rate_of(reports)
    if found is None:
        return None
    rate, spread, seconds = found
    after = [stream.path() for stream in streams]
    packets = sum(each.segments for each in after) - sum(each.segments for each in before)
    again = sum(each.retransmitted for each in after) - sum(each.retransmitted for each in before)
    round_trip = min((each.round_trip for each in before), default=0.0)
    return Link(rate, spread, round_trip, again / packets if packets else 0.0, seconds)


class _Train:
    """The probes of all connections."""

    def __init__(self, epoch: int, until: float) -> None:
        self._epoch = epoch
        self._until = until
        self._left = MAX_BYTES
        self._asked: dict[Connection, int] = {}
        self._done: set[Connection] = set()

    async def write(self, connection: Connection) -> None:
        """Send until the time or the bytes are used up; the last probe asks for a report."""
        loop = asyncio.get_running_loop()
        plain = encode(Probe(FILLER), self._epoch)
        report = encode(Probe(FILLER, report=True), self._epoch)
        due = 0.0
        last = False
        while not last:
            now = loop.time()
            self._left -= Probe(FILLER).record_size
            last = now >= self._until or self._left < Probe(FILLER).record_size
            asks = last or now >= due
            if asks:
                due = now + REPORT_INTERVAL
                self._asked[connection] = self._asked.get(connection, 0) + 1
            if last:
                self._done.add(connection)
            await connection.send(report if asks else plain)
            await asyncio.sleep(0)  # a link that takes everything leaves the reader its turn

    async def read(self, connection: Connection, reports: Reports) -> None:
        """Take reports until the last one that was asked for."""
        buffer = bytearray(MAX_CIPHERTEXT_TO_SENDER)
        while connection not in self._done or self._asked[connection]:
            message = await self._next(connection, buffer)
            if not isinstance(message, Probed):
                continue
            if not self._asked.get(connection):
                raise UnexpectedMessage("PROBED that was not asked for")
            self._asked[connection] -= 1
            point = (message.clock * MICROSECOND, message.came)
            if reports.points and point < reports.points[-1]:
                raise UnexpectedMessage("PROBED that counts backwards")
            reports.points.append(point)

    async def _next(self, connection: Connection, buffer: bytearray) -> Message:
        _, message = await receive(connection, buffer)
        if isinstance(message, Error):
            raise RefusedByReceiver(message.code, message.numbers)
        if isinstance(message, Ping):
            await connection.send(encode(Pong(message.token), self._epoch))
        return message
