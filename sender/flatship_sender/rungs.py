"""The ladder of ways to code a chunk, from raw to slow and small."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Rung:
    """How to code a chunk, and what that does on a machine and disk like those of the table.

    Attributes:
        level: Of zstd; None is raw.
        speed: Bytes of disk per second of a core.
        ratio: Bytes of disk per byte of payload.
        history: As part of a stream with what went before, not as a frame of its own.
    """

    level: int | None
    speed: float
    ratio: float
    history: bool = False


# Measured on 1 MiB chunks of a Debian guest's disk (tests/benchmarks/results, compression-notes).
# Each costs more than the one before it and yields more.
ALONE: Final[Sequence[Rung]] = (
    Rung(None, float("inf"), 1.0),
    Rung(-5, 790e6, 2.34),
    Rung(-1, 580e6, 2.80),
    Rung(1, 500e6, 3.07),
    Rung(3, 270e6, 3.31),
    Rung(6, 105e6, 3.46),
    Rung(9, 65e6, 3.50),
)
WITH_HISTORY: Final[Sequence[Rung]] = (
    *ALONE[:5],
    Rung(3, 210e6, 3.40, history=True),
    Rung(6, 103e6, 3.57, history=True),
    Rung(9, 60e6, 3.64, history=True),
    Rung(16, 5.7e6, 3.80, history=True),
    Rung(18, 3.8e6, 3.93, history=True),
)
