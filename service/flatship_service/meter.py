"""How fast counts grow, and how long what is left will take. Pure."""

from collections import deque
from typing import Final

RATE_SPAN: Final = 10.0  # seconds over which a rate is taken
ETA_SPAN: Final = 60.0  # seconds; longer, so that the time left does not jump about
MIN_SPAN: Final = 3.0  # seconds before a rate means anything
MAX_ETA: Final = 100 * 86400.0  # seconds; more than that is not a forecast


class Meter:
    """A count that grows, and how fast it has grown of late."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, count: int) -> None:
        """Note that at ``now``, in seconds, the count was ``count``.

        A count lower than the last one is a new beginning.
        """
        if self._samples and count < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, count))
        while len(self._samples) > 2 and now - self._samples[1][0] >= ETA_SPAN:
            self._samples.popleft()

    def rate(self, span: float = RATE_SPAN) -> float | None:
        """Counts a second over the last ``span`` seconds; None while that is unknown."""
        if not self._samples:
            return None
        now, count = self._samples[-1]
        first = next(sample for sample in self._samples if now - sample[0] <= span)
        elapsed = now - first[0]
        return (count - first[1]) / elapsed if elapsed >= MIN_SPAN else None


def seconds_left(remaining: int, rate: float | None) -> float | None:
    """Time for ``remaining`` bytes at ``rate``; None if it cannot be told."""
    if rate is None or rate <= 0:
        return None
    seconds = max(0, remaining) / rate
    return seconds if seconds <= MAX_ETA else None
