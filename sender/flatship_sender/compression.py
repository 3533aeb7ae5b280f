"""Which zstd level to use now: the one that makes the slower of link and CPU fastest. Pure.

At level L the disk should advance at min(CPU_L, link * ratio_L) bytes a
second. Both factors start from a table and are corrected by one number each:
how much faster than the table this machine compresses, and how much more than
the table's disk this disk yields. The link's rate is what it took while
chunks had to wait for it; while none waited, it is unknown and assumed to be
larger. What a level really achieved, while that is recent, counts for more
than what it should: chunks also wait for a receiver that is short of CPU, and
compression would make that worse.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Policy: TypeAlias = Literal["auto", "off"] | int

MIN_LEVEL: Final = -7
MAX_LEVEL: Final = 19


@dataclass(frozen=True, slots=True)
class Rung:
    """What a level is expected to do: bytes of disk per second and core, bytes of disk per byte."""

    level: int | None
    speed: float
    ratio: float


# Measured on 1 MiB chunks of a Debian guest's disk (tests/benchmarks).
LADDER: Final = (
    Rung(None, float("inf"), 1.0),
    Rung(-5, 600e6, 1.8),
    Rung(1, 400e6, 3.2),
    Rung(3, 280e6, 3.9),
    Rung(6, 90e6, 4.1),
    Rung(9, 50e6, 4.2),
)
CPU_PER_BYTE: Final = 1 / 1.5e9  # seconds of a core to read, digest, seal and send
MEMORY: Final = 80  # windows that an achieved rate is believed
LEAST_CORES: Final = 0.25
PROBE_INTERVAL: Final = 32  # chunks sent raw between two that are compressed to learn from
PROBE_LEVEL: Final = 1
GAIN_TO_CHANGE: Final = 1.1  # a level must promise this much more than the present one
SMOOTHING: Final = 0.2  # weight of the newest sample
OPTIMISM: Final = 1.05  # growth of the assumed link rate per window in which nothing waited
FASTEST_LINK: Final = 50e9  # bytes per second; where optimism ends


class CompressionController:
    """Chooses a level for each chunk.

    Args:
        policy: ``auto``, ``off``, or a fixed zstd level.
        cores: How many workers compress at once; corrected by what is at hand.
    """

    def __init__(self, policy: Policy, cores: int) -> None:
        self._policy = policy
        self._cores = float(cores)
        self._rung = LADDER[0]
        self._machine = 1.0
        self._disk = 1.0
        self._link: float | None = None
        self._raw_in_a_row = 0
        self._window = 0
        self._changed_in = 0
        self._achieved: dict[Rung, tuple[int, float]] = {}  # in which window, bytes a second

    @property
    def level(self) -> int | None:
        """The level in force; None sends raw."""
        if self._policy == "off":
            return None
        return self._rung.level if self._policy == "auto" else self._policy

    def next_level(self) -> int | None:
        """The level for the next chunk; now and then a probe where raw is in force."""
        if self._policy != "auto" or self._rung.level is not None or self._link is None:
            return self.level
        self._raw_in_a_row += 1
        if self._raw_in_a_row < PROBE_INTERVAL:
            return None
        self._raw_in_a_row = 0
        return PROBE_LEVEL

    def note_chunk(self, level: int, literal: int, payload: int, seconds: float) -> None:
        """Learn from one compressed chunk: bytes before and after, and the worker's time."""
        rung = next((rung for rung in LADDER if rung.level == level), None)
        if rung is None or seconds <= 0:
            return
        self._machine += SMOOTHING * (literal / seconds / rung.speed - self._machine)
        yielded = max(0.0, literal / payload - 1) / (rung.ratio - 1)
        self._disk += SMOOTHING * (yielded - self._disk)

    def note_window(
        self,
        wire: int,
        sent: int,
        seconds: float,
        *,
        saturated: bool,
        cores: float | None = None,
    ) -> None:
        """Learn from a stretch of time.

        Args:
            wire: Bytes that went onto the wire.
            sent: Bytes of the disk that they were.
            seconds: How long it took.
            saturated: Whether chunks had to wait for a connection.
            cores: How many were at our disposal, if that is known: a receiver
                on the same machine, or a guest that is busy, leaves fewer.
        """
        if cores is not None:
            self._cores += 0.5 * (max(cores, LEAST_CORES) - self._cores)
        if wire == 0 or seconds <= 0:
            return
        self._window += 1
        rate = wire / seconds
        if saturated:
            self._link = rate if self._link is None else self._link + 0.5 * (rate - self._link)
        elif self._link is not None:
            self._link = min(FASTEST_LINK, max(self._link, rate) * OPTIMISM)
        if self._window - self._changed_in > 1:  # the first window after a change is mixed
            self._achieved[self._rung] = (self._window, sent / seconds)
            self._choose()

    def _choose(self) -> None:
        if self._link is None:
            return
        present = self._expect(self._rung)
        best = max(LADDER, key=self._expect)
        if self._expect(best) <= GAIN_TO_CHANGE * present:
            # None is faster, but one that is as fast may cost less.
            best = next(rung for rung in LADDER if self._expect(rung) >= present)
        if best is not self._rung:
            self._rung = best
            self._changed_in = self._window

    def _expect(self, rung: Rung) -> float:
        """Bytes of disk a second: as achieved lately, or else as the model promises."""
        window, achieved = self._achieved.get(rung, (-MEMORY, 0.0))
        return achieved if self._window - window < MEMORY else self._promise(rung)

    def _promise(self, rung: Rung) -> float:
        assert self._link is not None
        ratio = 1 + (rung.ratio - 1) * self._disk
        cpu = self._cores / (1 / (rung.speed * self._machine) + CPU_PER_BYTE)
        return min(cpu, self._link * ratio)
