"""What an interface says that it has sent, looked at ten times a second."""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

INTERVAL: Final = 0.1  # seconds


@dataclass
class WireWatch:
    """Counts of an interface over time; it looks while the block runs.

    Args:
        interface: Its name.
    """

    interface: str
    looks: list[tuple[float, int]] = field(default_factory=list)  # when, bytes sent

    def __enter__(self) -> "WireWatch":
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        counter = Path("/sys/class/net", self.interface, "statistics/tx_bytes")
        started = time.monotonic()
        while not self._stopped.wait(max(0.0, self._due(started) - time.monotonic())):
            before = time.monotonic()
            count = int(counter.read_text())
            self.looks.append(((before + time.monotonic()) / 2, count))

    def _due(self, started: float) -> float:
        return started + INTERVAL * (len(self.looks) + 1)

    def since(self, when: float) -> "list[tuple[float, int]]":
        """The looks from ``when`` on."""
        return [look for look in self.looks if look[0] >= when]


def rates(looks: list[tuple[float, int]], span: float) -> list[float]:
    """Bytes a second over every stretch of ``span`` seconds, from look to look."""
    found = []
    for index, (start, count) in enumerate(looks):
        later = next((look for look in looks[index:] if look[0] - start >= span), None)
        if later is not None:
            found.append((later[1] - count) / (later[0] - start))
    return found


def burst(looks: list[tuple[float, int]], rate: float) -> float:
    """The most that any stretch of time exceeds ``rate``, in seconds' worth of it."""
    worst, lowest = 0.0, float("inf")
    for when, count in looks:
        saved = count - rate * when
        lowest = min(lowest, saved)
        worst = max(worst, saved - lowest)
    return worst / rate
