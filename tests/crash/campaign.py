"""Recordings, and the power cuts that are judged on each."""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from typing import Final

from crash.judge import Judge, Violation
from crash.power_cut import choose_cuts
from crash.recording import Layout, record
from crash.steps import make_steps

LAYOUTS: Final = ("ext4-apart", "xfs-together", "ext4-together", "xfs-apart")
GO_ON_EVERY: Final = 8  # cuts to one after which the command is run again
_MEMORY: Final = Path("/dev/shm")  # faster, where there is one
_OWN_HOSTS: Final = IPv4Address("127.64.0.0")  # with a process's id added, nobody else's


@dataclass(slots=True)
class Tally:
    """What was judged so far."""

    recordings: int = 0
    cuts: Counter[tuple[str, str]] = field(default_factory=Counter)  # by layout and kind
    gone_on: int = 0
    violations: list[str] = field(default_factory=list)
    recording_seconds: float = 0.0
    judging_seconds: float = 0.0

    @property
    def total(self) -> int:
        """Cuts."""
        return self.cuts.total()

    def __str__(self) -> str:
        return (
            f"{self.total} power cuts on {self.recordings} recordings, {self.gone_on} of them gone"
            f" on from: {len(self.violations)} violations; {self.recording_seconds:.0f} s"
            f" recording, {self.judging_seconds:.0f} s judging"
        )


def run_recording(
    layout_name: str, seed: int, points: int, tally: Tally, enough: Callable[[], bool]
) -> None:
    """Make one recording and judge power cuts on it; what was found is added to ``tally``.

    Args:
        layout_name: One of ``LAYOUTS``.
        seed: Everything drawn follows from it. What the kernel writes when does not, so the
            same seed is the same work and not the same log.
        points: How many cuts.
        tally: Is added to.
        enough: Asked after each cut whether to leave the rest.
    """
    layout, random = Layout.named(layout_name), Random(f"{layout_name} {seed}")
    steps = make_steps(random)
    with tempfile.TemporaryDirectory(
        prefix="flatship-crash-", dir=_MEMORY if _MEMORY.is_dir() else None
    ) as name:
        folder, began = Path(name), time.monotonic()
        host = str(_OWN_HOSTS + os.getpid())
        recording = record(folder / "recording", layout, steps, host)
        tally.recordings += 1
        recorded = time.monotonic()
        tally.recording_seconds += recorded - began
        judge = Judge(recording, layout, steps, folder / "judged")
        try:
            cuts = choose_cuts(recording.entries, recording.start, recording.end, points, random)
            for number, cut in enumerate(cuts):
                goes_on = number % GO_ON_EVERY == 0
                tally.cuts[layout_name, cut.kind] += 1
                tally.gone_on += goes_on
                try:
                    judge.judge(cut, go_on=goes_on)
                except Violation as violation:
                    tally.violations.append(
                        f"{layout_name}, seed {seed}, {cut}, of {len(recording.entries)} entries,"
                        f" {judge.what_had_happened(cut)}: {violation}"
                    )
                if enough():
                    break
            judge.check_log()
        finally:
            judge.close()
            tally.judging_seconds += time.monotonic() - recorded
