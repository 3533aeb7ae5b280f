"""How much credit a session needs so that it is no bound, however far its sender is. Pure.

What is unacknowledged is under way, or waits here for its flush: the rate times the round trip,
and what is outstanding here. The credit is twice that sum. While it bounds the sender, the sum
is all of it, so that it doubles at each look until something else is the bound. It never
shrinks, so that whatever a sender has sent stays allowed, and it does not grow while a datastore
is what is waited for: that would only fill the page cache.
"""

from typing import Final

FIRST: Final = 256 << 20  # bytes of chunks a session may have unacknowledged at its beginning
BOUND: Final = 1 << 30  # and in any case: what a resume sends again at most
HEADROOM: Final = 2
STEP: Final = 64 << 20  # bytes; less is not worth a message, nor a PING while less came


class CreditWindow:
    """The credit of one session.

    Args:
        now: Seconds of a steady clock; all other times are readings of it.
    """

    def __init__(self, now: float) -> None:
        self.credit = FIRST
        self._at = now
        self._came = 0  # bytes of chunks since the last look
        self._asked: tuple[int, float] | None = None  # the token of a PING, and when it was sent
        self._round_trip = 0.0

    def came(self, length: int) -> None:
        """Count a chunk that came."""
        self._came += length

    @property
    def wants_round_trip(self) -> bool:
        """Whether so much comes that the distance matters, and no PING is under way."""
        return self._asked is None and self._came >= STEP

    def asked(self, token: int, now: float) -> None:
        """Note that a PING was sent to measure the round trip."""
        self._asked = (token, now)

    def answered(self, token: int, now: float) -> None:
        """Take a PONG; one that was not asked for says nothing."""
        if self._asked is not None and self._asked[0] == token:
            self._round_trip, self._asked = now - self._asked[1], None

    def look(self, outstanding: int, now: float) -> int | None:
        """Work out what is needed.

        Args:
            outstanding: Bytes of chunks that came and are not acknowledged.
            now: A reading of the clock.

        Returns:
            The new credit, if it has grown.
        """
        elapsed, came = now - self._at, self._came
        if elapsed <= 0:
            return None
        self._at, self._came = now, 0
        under_way = came / elapsed * self._round_trip
        needed = min(BOUND, int(HEADROOM * (under_way + outstanding)))
        if outstanding > under_way or needed < self.credit + STEP:
            return None
        self.credit = needed
        return needed
