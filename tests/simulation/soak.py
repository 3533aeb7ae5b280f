"""Runs schedules by the thousand, in as many processes as there are processors.

    python tests/simulation/soak.py --schedules 2000
    python tests/simulation/soak.py --first 250000 --schedules 250000 --seconds 3600 --keep FOLDER

The seeds of a run are a range, so several machines share a million by taking a range
each. A run that is bounded by ``--seconds`` says how far it came. Exits 1 if a schedule
failed; each failure is printed with the command that repeats it, and after some it stops.
"""

import argparse
import multiprocessing
import multiprocessing.pool
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trial import Record, run_seed

HUNG: Final = 120.0  # seconds of the machine's time after which a schedule counts as hung
ENOUGH: Final = 3  # failures after which no more are looked for
CLOCK: Final = time.monotonic  # schedules read another one


@dataclass(slots=True)
class Tally:
    """What came of many schedules."""

    schedules: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    commands: int = 0
    lives: int = 0
    patched: int = 0
    copied: int = 0
    wanted: int = 0
    virtual_seconds: float = 0.0
    failures: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, record: Record) -> None:
        """Count a schedule that was run to its end."""
        self.schedules += 1
        self.faults += record.faults
        self.commands += record.commands
        self.lives += record.lives
        self.patched += record.patched
        self.copied += record.copied
        self.wanted += record.wanted
        self.virtual_seconds += record.virtual_seconds

    def lines(self) -> list[str]:
        """The figures, for people."""
        each = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.items()))
        return [
            f"schedules {self.schedules}, failed {len(self.failures)}",
            f"faults {self.faults.total()} ({self.faults.total() / max(1, self.schedules):.1f}"
            f" a schedule): {each}",
            f"commands {self.commands}, lives of the receiver {self.lives}",
            f"chunks sent in pages {self.patched}, with copies {self.copied},"
            f" of both wanted whole {self.wanted}",
            f"{self.virtual_seconds / 86_400:.0f} days of virtual time in {self.seconds:.0f} s",
        ]


def run_one(seed: int) -> Record | str:
    """The record of a schedule, or what went wrong in it."""
    try:
        return run_seed(seed)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # whatever it is, it is the result
        return f"{type(error).__name__}: {error}"


def soak(first: int, schedules: int, *, jobs: int, seconds: float | None, report: bool) -> Tally:
    """Run the schedules of the seeds from ``first`` on.

    Args:
        first: The first seed.
        schedules: How many.
        jobs: Processes.
        seconds: After so many none is begun any more; None for no such bound.
        report: Whether to say each minute how far it came.
    """
    tally = Tally()
    began = said = CLOCK()
    seeds = range(first, first + schedules)
    # Not forked: what a process has mapped for scratch would be shared by all its children.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for seed, outcome in zip(seeds, _outcomes(pool, seeds), strict=True):
            if isinstance(outcome, str):
                tally.schedules += 1
                tally.failures.append((seed, outcome))
                print(f"seed {seed}: {outcome}\n    {repeat(seed)}", flush=True)
            else:
                tally.add(outcome)
            now = CLOCK()
            if report and now - said >= 60:
                said = now
                rate = tally.schedules / (now - began)
                left = (schedules - tally.schedules) / rate
                print(
                    f"{tally.schedules} of {schedules} schedules, {len(tally.failures)} failed,"
                    f" {rate:.0f} a second, {left:.0f} s to go",
                    flush=True,
                )
            late = seconds is not None and now - began >= seconds
            if late or len(tally.failures) >= ENOUGH:
                break
        pool.terminate()
    tally.seconds = CLOCK() - began
    return tally


def _outcomes(pool: multiprocessing.pool.Pool, seeds: range) -> Iterator[Record | str]:
    results = pool.imap(run_one, seeds)
    for seed in seeds:
        try:
            yield results.next(HUNG)
        except multiprocessing.TimeoutError:
            raise SystemExit(f"hung near seed {seed}: {repeat(seed)}") from None


def repeat(seed: int) -> str:
    """The command that runs one schedule again."""
    return f"python tests/simulation/soak.py --first {seed} --schedules 1"


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--schedules", type=int, default=2_000, help="how many")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seconds", type=float, help="stop after so many")
    parser.add_argument("--keep", type=Path, help="add the figures to a file in this folder")
    options = parser.parse_args()
    tally = soak(
        options.first,
        options.schedules,
        jobs=options.jobs,
        seconds=options.seconds,
        report=True,
    )
    last = options.first + tally.schedules - 1
    lines = [f"seeds {options.first} to {last}", *tally.lines()]
    print("\n".join(lines))
    if options.keep is not None:
        keep(options.keep, lines)
    return 1 if tally.failures else 0


def keep(folder: Path, lines: list[str]) -> None:
    """Add figures to the file of this day."""
    folder.mkdir(exist_ok=True)
    conditions = (
        f"{time.strftime('%F %R')} UTC, {os.cpu_count()} processors, {_processor()},"
        f" Linux {platform.release()}, CPython {platform.python_version()}"
    )
    with (folder / f"{time.strftime('%F')}-soak.md").open("a") as file:
        print(f"## {conditions}\n", *(f"- {line}" for line in lines), "", sep="\n", file=file)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
