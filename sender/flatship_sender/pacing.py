"""How many bytes may go now, so that a rate is kept in every second and no burst is large. Pure.

A bucket fills at the rate and holds ``DEPTH`` seconds' worth. What goes is taken out of it, by
what it is expected to take on the wire; what it took in truth is set right afterwards, which
may leave a debt. So over any T seconds at most rate * (T + DEPTH) bytes go, whatever was the
matter before: an idle hour is worth no more than DEPTH.
"""

from typing import Final

DEPTH: Final = 0.08  # seconds' worth that may go at once; timers and threads are late now and then
SLICE: Final = 0.01  # seconds' worth written in one go, so that connections take turns
MAX_SLICE: Final = 64 << 10  # bytes
PACKET: Final = 1514  # bytes of a whole packet on Ethernet; nothing less can be sent well
LEAST_DEPTH: Final = 2 * PACKET
MAX_DEBT: Final = 5.0  # seconds' worth; more would silence a connection for as long as a dead one


class TokenBucket:
    """Bytes that may go at a rate.

    Args:
        rate: Bytes a second; at least 1.
        now: Seconds of a steady clock; all other times are readings of it.
    """

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._at = now
        self._level = 0.0

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self._rate

    @property
    def depth(self) -> float:
        """The most bytes that go at once."""
        return max(LEAST_DEPTH, self._rate * DEPTH)

    @property
    def slice(self) -> int:
        """Bytes to send in one go."""
        return int(min(MAX_SLICE, max(PACKET, self._rate * SLICE)))

    def change(self, rate: float, now: float) -> None:
        """Go on at another rate; what was saved up is worth no more than its burst."""
        self._fill(now)
        self._rate = rate
        self._set(self._level)

    def wait(self, size: float, now: float) -> float:
        """Seconds until ``size`` bytes may go, at most ``depth`` of them; 0 if they may now."""
        self._fill(now)
        missing = min(size, self.depth) - self._level
        return missing / self._rate if missing >= 1 else 0.0  # bytes are whole, clocks are not

    def take(self, size: float) -> None:
        """Count ``size`` bytes as gone; negative for what was counted and did not go."""
        self._set(self._level - size)

    def _fill(self, now: float) -> None:
        self._set(self._level + self._rate * max(0.0, now - self._at))
        self._at = max(self._at, now)

    def _set(self, level: float) -> None:
        self._level = max(-self._rate * MAX_DEBT, min(self.depth, level))
