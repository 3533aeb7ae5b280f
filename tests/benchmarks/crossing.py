"""Transfers over a shaped link: what crossed it, beside what the transfer cost."""

import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contest import Contestant, Run, assert_identical, empty
from benchmarks.disk import MIB, Disk
from benchmarks.flatship_pair import FlatshipPair, Kept
from benchmarks.shaped_link import ShapedLink, Wire
from benchmarks.verdicts import Verdict, ratio

PEAK_RSS = 256 * MIB  # the bar for each end
_RECEIVER_STATE = 0.0005  # bars: of the disk's size,
_SENDER_STATE = 0.0025  # and of its data


@dataclass(frozen=True, slots=True)
class Crossing:
    """One transfer of one disk, and the bytes that left each end meanwhile."""

    run: Run
    wire: Wire

    def use(self, rate: float) -> float:
        """Which part of the time a link of ``rate`` bits a second was busy with the disk."""
        return self.wire.there * 8 / rate / self.run.seconds


@dataclass(slots=True)
class Rival:
    """A contestant, and its transfers round after round."""

    name: str
    contestant: Contestant
    crossings: list[Crossing] = field(default_factory=list)
    kept: Kept | None = None

    @property
    def seconds(self) -> float:
        """Median over the rounds."""
        return statistics.median(one.run.seconds for one in self.crossings)

    @property
    def wire(self) -> float:
        """Bytes from the sender to the receiver, median over the rounds."""
        return statistics.median(one.wire.there for one in self.crossings)


def cross(
    link: ShapedLink,
    rivals: Sequence[Rival],
    disk: Disk,
    folder: Path,
    rounds: int,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Let every rival's contestant move ``disk`` over ``link`` as it is, taking turns.

    Every copy is compared: a round over a slow link is too long to be for that alone.

    Raises:
        BenchmarkError: A transfer failed, or its copy differs.
    """
    for number in range(1, rounds + 1):
        for rival in rivals:
            empty(folder)
            before()
            start = _Start(link)
            run, copy = rival.contestant.transfer(disk, folder, start)
            crossing = Crossing(run, link.counted().since(start.wire))
            print(
                f"  round {number}: {rival.name}: {run.seconds:.1f} s,"
                f" {crossing.wire.there / 1e6:.1f} MB",
                file=sys.stderr,
            )
            if copy is not None:
                assert_identical(disk, copy, rival.name)
            rival.crossings.append(crossing)
            if isinstance(rival.contestant, FlatshipPair):
                rival.kept = rival.contestant.kept
    empty(folder)


class _Start:
    """Called just before a transfer's clock starts, it reads the link's account."""

    def __init__(self, link: ShapedLink) -> None:
        self._link = link
        self.wire = Wire(0, 0, 0)

    def __call__(self) -> None:
        self.wire = self._link.counted()


def commands(rivals: Iterable[Rival]) -> list[str]:
    """The command lines of each rival's last transfer."""
    return [rival.contestant.command for rival in rivals]


def crossed(rivals: Sequence[Rival], rate: float | None) -> list[str]:
    """The rivals as lines of a Markdown table; ``rate`` is the link's in bits a second."""
    lines = [
        "| | seconds, median | of each round | wire, MB | back, MB | link busy"
        " | CPU s, sender / receiver | peak RSS, sender / receiver |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rival in rivals:
        last = rival.crossings[-1]
        busy = "" if rate is None else f"{100 * last.use(rate):.0f} %"
        rounds = " ".join(f"{one.run.seconds:.1f}" for one in rival.crossings)
        lines.append(
            f"| {rival.name} | {rival.seconds:.1f} | {rounds} | {rival.wire / 1e6:.1f}"
            f" | {last.wire.back / 1e6:.1f} | {busy}"
            f" | {last.run.sender.cpu:.1f} / {last.run.receiver.cpu:.1f}"
            f" | {last.run.sender.peak_rss >> 20} / {last.run.receiver.peak_rss >> 20} MiB |"
        )
    return lines


def footprint(runs: Iterable[Run], kept: Kept | None, disk_size: int, data: int) -> list[Verdict]:
    """What both ends took of memory and of their state folders, against the bars.

    Args:
        runs: Flatship's.
        kept: At the end; None leaves the state folders out.
        disk_size: Bytes of all disks that the state folders know.
        data: Bytes of them that are not holes.
    """
    peaks = [(run.sender.peak_rss, run.receiver.peak_rss) for run in runs]
    verdicts = [
        Verdict(f"peak RSS, {end}", max(peak[at] for peak in peaks) / MIB, PEAK_RSS / MIB, "MiB")
        for at, end in enumerate(("sender", "receiver"))
    ]
    if kept is not None:
        verdicts += [
            Verdict(
                "receiver's state / disk",
                100 * ratio(kept.receiver, disk_size),
                100 * _RECEIVER_STATE,
                "%",
            ),
            Verdict(
                "sender's state / data", 100 * ratio(kept.sender, data), 100 * _SENDER_STATE, "%"
            ),
        ]
    return verdicts
