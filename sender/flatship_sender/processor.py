"""How much of this machine's processors is left for us: what we use, and what nobody uses."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STAT: Final = Path("/proc/stat")
_IDLE_FIELDS: Final = slice(4, 6)  # of the line "cpu": idle and iowait, in clock ticks; proc(5)


@dataclass(frozen=True, slots=True)
class Share:
    """Of the processors, in a stretch of time.

    Attributes:
        used: Seconds of a core that this process took.
        cores: That it used or could have used.
    """

    used: float
    cores: float


class ProcessorWatch:
    """Measures from one look to the next.

    Args:
        stat: The kernel's counters.
    """

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._last = self._read()

    def look(self) -> Share:
        """What this process had since the last look."""
        now, own, idle = self._read()
        then, own_then, idle_then = self._last
        self._last = (now, own, idle)
        used = own - own_then
        return Share(used, (used + idle - idle_then) / max(now - then, 1e-3))

    def _read(self) -> tuple[float, float, float]:
        fields = self._stat.read_text().partition("\n")[0].split()
        idle = sum(int(ticks) for ticks in fields[_IDLE_FIELDS]) / self._ticks
        return time.monotonic(), time.process_time(), idle
