"""Contestants side by side: interleaved rounds, medians, and ratios within a round."""

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.disk import GIB, Disk
from benchmarks.memory import reservoir
from benchmarks.processes import BenchmarkError, Usage

_READ_WHOLE_UP_TO = 64 * GIB  # beyond it a comparison must skip holes
_COMPARE_SKIPPING_HOLES = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw"]
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True, slots=True)
class Run:
    """One transfer of one disk by one contestant."""

    seconds: float
    sender: Usage
    receiver: Usage


class Contestant(Protocol):
    """Something that moves a disk from a file to a folder, over loopback."""

    @property
    def command(self) -> str:
        """The command line of the last transfer, as a user would type it."""
        ...

    def transfer(
        self, disk: Disk, folder: Path, at_start: Callable[[], None]
    ) -> tuple[Run, Path | None]:
        """Move ``disk`` into ``folder``, which is empty; ``at_start`` comes just before the clock.

        Returns:
            What it cost, from the start of the command to its end (servers run
            before), and the file that now equals the disk; None if it only reads.

        Raises:
            BenchmarkError: It failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A contestant and the disk that it moves."""

    name: str
    contestant: Contestant
    disk: Disk


@dataclass(slots=True)
class Result:
    """The rounds of one entry."""

    name: str
    command: str = ""
    runs: list[Run] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median over the rounds."""
        return statistics.median(run.seconds for run in self.runs)

    def ratio_to(self, other: "Result") -> float:
        """Median of this one's time over the other's in the same round."""
        return statistics.median(
            mine.seconds / theirs.seconds
            for mine, theirs in zip(self.runs, other.runs, strict=True)
        )

    def peak_rss(self, side: Callable[[Run], Usage]) -> int:
        """Bytes: the highest over the rounds, at the given end."""
        return max(side(run).peak_rss for run in self.runs)

    def cpu(self) -> float:
        """Seconds of both ends together, median over the rounds."""
        return statistics.median(run.sender.cpu + run.receiver.cpu for run in self.runs)


def compete(
    entries: Sequence[Entry],
    folder: Path,
    *,
    rounds: int,
    before: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Let every entry move its disk, one after another, ``rounds`` times.

    A round that does not count comes first: its copies are compared with the
    disks, byte by byte. Each run finds memory that has just been freed; see ``Reservoir``.

    Args:
        entries: In the order of a round.
        folder: Where to; emptied before and after every transfer.
        rounds: How often each one runs.
        before: Called before every transfer, outside its time.

    Raises:
        BenchmarkError: A transfer failed, or its copy differs.
    """
    results = [Result(entry.name) for entry in entries]
    turns = [
        (number, entry, result)
        for number in range(rounds + 1)
        for entry, result in zip(entries, results, strict=True)
    ]
    with reservoir() as memory:
        for number, entry, result in turns:
            empty(folder)
            before()
            memory.fill(entry.disk)
            run, copy = entry.contestant.transfer(entry.disk, folder, memory.release)
            print(f"  round {number}: {entry.name}: {run.seconds:.2f} s", file=sys.stderr)
            if number > 0:
                result.runs.append(run)
            elif copy is not None:
                assert_identical(entry.disk, copy, entry.name)
            result.command = entry.contestant.command
    empty(folder)
    return results


def empty(folder: Path) -> None:
    """Remove everything in ``folder``."""
    for path, folders, files in os.walk(folder, topdown=False):
        for name in files:
            Path(path, name).unlink()
        for name in folders:
            Path(path, name).rmdir()


def cold_caches() -> None:
    """Write back everything and, with the right to, forget every cached page."""
    os.sync()
    with contextlib.suppress(PermissionError, OSError):
        _DROP_CACHES.write_text("3\n")


def assert_identical(disk: Disk, copy: Path, by: str) -> None:
    """Compare a disk and its copy by a program that is not ours."""
    compare = ["cmp"] if disk.size <= _READ_WHOLE_UP_TO else _COMPARE_SKIPPING_HOLES
    finished = subprocess.run(
        [*compare, disk.path, copy], capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        raise BenchmarkError(f"the copy by {by} differs: {finished.stdout}{finished.stderr}")


def table(results: Iterable[Result], reference: Result) -> list[str]:
    """The results as lines of a Markdown table, ratios to ``reference``."""
    lines = [
        f"| | seconds, median | of each round | x {reference.name}"
        " | CPU s, both ends | peak RSS, sender / receiver |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        rounds = " ".join(f"{run.seconds:.2f}" for run in result.runs)
        sender = result.peak_rss(lambda run: run.sender)
        receiver = result.peak_rss(lambda run: run.receiver)
        lines.append(
            f"| {result.name} | {result.seconds:.2f} | {rounds}"
            f" | {result.ratio_to(reference):.2f} | {result.cpu():.1f}"
            f" | {sender >> 20} / {receiver >> 20} MiB |"
        )
    return lines
