"""Holds all connections of the process to one rate, counted as an interface counts.

What is written is admitted slice by slice, whoever has waited longest first, and costs what it
should take on the wire. Several times a second TCP is asked what it did take: packets that were
not full, acknowledgements, and what was sent twice are made up for by what comes after them.
The kernel's own pacing lies below that, a little faster: it is meant to spread what a link that had
stopped has left in its buffers; what that gains was not measured.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from flatship_protocol.connection import MAX_UNSENT, UNPACED, SocketStream, Wire
from flatship_protocol.errors import ConnectionLost
from flatship_sender.pacing import PACKET, TokenBucket

LOOK_INTERVAL: Final = 0.05  # seconds between two questions to TCP
LONGEST_NAP: Final = 0.1  # seconds; a rate that was raised is noticed that soon
SMOOTHING: Final = 1.25  # the kernel's pace for a connection, as a multiple of the rate


@dataclass(slots=True)
class _Account:
    """What one connection was admitted, what that should cost, and by how much it cost more."""

    wire: Wire
    admitted: int
    charged: int
    excess: int = 0

    def look(self, wire: Wire) -> int:
        """Compare with what TCP says now; returns the bytes to be charged in addition."""
        self.wire = wire
        expected = self.charged - wire.cost(self.admitted - wire.payload)
        before, self.excess = self.excess, wire.carried - expected
        return self.excess - before


class Throttle:
    """A limit in bytes a second over all connections that it was given; None for no limit.

    Args:
        rate: The limit.
        clock: A steady one, in seconds.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        rate: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._bucket: TokenBucket | None = None
        self._accounts: dict[SocketStream, _Account] = {}
        self._turn = asyncio.Lock()
        self._looked_at = self._clock()
        self.waited = False
        """Whether anything had to wait since this was last set to False."""
        self.spent = 0
        """Bytes on the wire while there was a limit, as far as they are known."""
        self.set_rate(rate)

    @property
    def rate(self) -> float | None:
        """The limit."""
        return None if self._bucket is None else self._bucket.rate

    def set_rate(self, rate: float | None) -> None:
        """Hold to another rate from now on."""
        now = self._clock()
        if rate is None:
            self._bucket = None
        elif self._bucket is None:
            self._look(now)  # what exceeded while there was no limit is not to be made up for
            self._bucket = TokenBucket(rate, now)
        elif rate != self._bucket.rate:
            self._bucket.change(rate, now)
        else:
            return
        for stream in list(self._accounts):
            self._smooth(stream)

    def add(self, stream: SocketStream) -> None:
        """Limit a connection from now on; what it has sent so far counts.

        Raises:
            ConnectionLost: It is closed.
        """
        wire = stream.wire()
        self._accounts[stream] = _Account(wire, wire.payload, wire.carried)
        self._charge(wire.carried)
        self._smooth(stream)
        stream.throttle_by(self)

    async def admit(self, stream: SocketStream, wanted: int) -> int:
        """See ``flatship_protocol.connection.Throttle``.

        Raises:
            ConnectionLost: The stream was closed meanwhile.
        """
        if self._bucket is None:
            return self._admitted(stream, wanted)
        async with self._turn:
            while (bucket := self._bucket) is not None:
                now = self._clock()
                if now - self._looked_at >= LOOK_INTERVAL:
                    self._look(now)
                wire = self._account(stream).wire
                size = min(wanted, _whole_packets(bucket.slice, wire))
                delay = bucket.wait(wire.cost(size), now)
                if not delay:
                    return self._admitted(stream, size)
                self.waited = True
                await self._sleep(min(delay, LONGEST_NAP))
            return self._admitted(stream, wanted)

    def _admitted(self, stream: SocketStream, size: int) -> int:
        account = self._account(stream)
        cost = account.wire.cost(size)
        account.admitted += size
        account.charged += cost
        self._charge(cost)
        return size

    def _account(self, stream: SocketStream) -> _Account:
        account = self._accounts.get(stream)
        if account is None:
            raise ConnectionLost(f"connection to {stream.peer} is closed")
        return account

    def _charge(self, size: int) -> None:
        self.spent += size
        if self._bucket is not None:
            self._bucket.take(size)

    def _look(self, now: float) -> None:
        self._looked_at = now
        for stream, account in list(self._accounts.items()):
            try:
                self._charge(account.look(stream.wire()))
            except ConnectionLost:
                del self._accounts[stream]

    def _smooth(self, stream: SocketStream) -> None:
        try:
            if self._bucket is None:
                stream.pace(UNPACED, MAX_UNSENT)
            else:
                unsent = max(PACKET, int(self._bucket.depth / 2))
                stream.pace(int(self._bucket.rate * SMOOTHING), unsent)
        except ConnectionLost:
            del self._accounts[stream]


def _whole_packets(size: int, wire: Wire) -> int:
    """``size`` or a little less, so that the last packet of a slice is a full one, too."""
    packets = size // (wire.segment + wire.header)
    return packets * wire.segment or size
