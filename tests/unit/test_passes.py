"""The passes of a command over sessions that are fakes: each pass follows a script."""

import asyncio
from pathlib import Path

import pytest

from flatship_sender.convergence import PassFigures, Verdict
from flatship_sender.downtimes import FOLDER, HISTORY, Disk, Downtimes
from flatship_sender.job import Cancelled
from flatship_sender.pass_words import DoesNotConverge, downtime_line, pass_line
from flatship_sender.passes import Clocks, Passes
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState
from flatship_sender.results import from_progress, render_table

MIB = 1 << 20
SIZE = 1000 * MIB


class World:
    """Disks whose passes take what they are told to.

    Args:
        changes: Bytes that change before each pass; of the first one, all that is sent.
        publishes: Whether the source is at rest.
    """

    def __init__(self, *changes: int, disks: int = 1, publishes: bool = False) -> None:
        self.now = 50.0
        self.changes = list(changes)
        self.publishes = publishes
        self.passes = 0
        self.stopped = False
        self.stop_in: int | None = None
        self.fails_in: dict[int, int] = {}  # pass: disk
        self.progress = TransferProgress(
            "esx", "web", [DiskProgress(f"s{n}", f"web/{n}", SIZE) for n in range(disks)]
        )
        self.warnings: list[str] = []
        self.renewed: list[int] = []  # after which passes the sources were brought up to date

    async def run(self) -> None:
        self.passes += 1
        change = self.changes.pop(0)
        failing = self.fails_in.get(self.passes)
        for number, disk in enumerate(self.progress.disks):
            if disk.state is not TransferState.WAITING:
                continue
            if number == failing:
                disk.state, disk.exit_code = TransferState.FAILED, 5
                continue
            disk.sending = self.now + 1
            disk.read += SIZE
            disk.stage_seconds["read"] += 8.0
            self.progress.link_seconds += change / (10 * MIB)
            disk.sent += change
            disk.changed += change if self.passes > 1 else 0
            disk.wire += change
            disk.proving = disk.sending + max(4.0, change / (10 * MIB))
            disk.finished = disk.proving + 2
            disk.state = TransferState.PUBLISHED if self.publishes else TransferState.UNPUBLISHED
        self.now = max(disk.finished for disk in self.progress.disks)
        self.stopped = self.stop_in == self.passes

    def begin_pass(self) -> bool:
        again = [each for each in self.progress.disks if each.state is TransferState.UNPUBLISHED]
        for disk in again:
            disk.begin_again()
        return bool(again)

    async def renew(self) -> None:
        self.renewed.append(self.passes)

    def go(self, state: Path, budget: float | None = None) -> None:
        identities = [Disk(disk.source, disk.size) for disk in self.progress.disks]
        passes = Passes(
            self,
            self.progress,
            Downtimes(state, "esx", "web", identities, self.warnings.append),
            live=not self.publishes,
            budget=budget,
            workers=2,
            begun=self.now - 1.0,
            renew=self.renew,
            clocks=Clocks(lambda: self.now, lambda: self.now + 1e9),
        )
        asyncio.run(passes.run())


def test_what_a_pass_took_is_told_of_that_pass_alone(tmp_path: Path) -> None:
    world = World(500 * MIB, 40 * MIB, disks=2)
    world.go(tmp_path, 30.0)
    first, second = (report.figures for report in world.progress.passes)
    assert first == PassFigures(
        began=1e9 + 50,
        seconds=53.0,
        opening=1.0,
        carrying=50.0,
        proving=2.0,
        reading=8.0,  # of two disks, by two workers
        sending=100.0,
        read=2 * SIZE,
        changed=0,
        fresh=1000 * MIB,
        wire=1000 * MIB,
    )
    assert (second.began - first.began, second.seconds) == (53.0, 7.0)
    assert (second.changed, second.fresh, second.wire) == (80 * MIB, 0, 80 * MIB)
    assert second.read == 2 * SIZE


def test_passes_end_when_the_downtime_fits(tmp_path: Path) -> None:
    world = World(500 * MIB, 40 * MIB, 40 * MIB, 40 * MIB)
    world.go(tmp_path, 9.0)
    assert [report.verdict for report in world.progress.passes] == [
        *[Verdict.GO_ON] * 3,
        Verdict.FITS,
    ]
    assert "shut the guest down now" in pass_line(world.progress.passes[-1])
    assert world.renewed == [1, 2, 3]


def test_passes_that_do_not_get_shorter_end_with_what_to_do(tmp_path: Path) -> None:
    world = World(*[500 * MIB] * 20)
    with pytest.raises(DoesNotConverge) as caught:
        world.go(tmp_path, 20.0)
    assert caught.value.exit_code == 3
    assert world.passes == 4
    text = str(caught.value)
    assert "after 4 passes" in text
    assert "does not get down to 20s" in text
    assert "the source changes as fast as the link carries it" in text
    assert "--until-downtime" in text


def test_a_single_live_pass_is_one(tmp_path: Path) -> None:
    world = World(500 * MIB, 1 * MIB)
    world.go(tmp_path)
    (report,) = world.progress.passes
    assert report.projection is None
    assert "shows how fast the source changes" in pass_line(report)


def test_a_second_command_goes_on_from_what_the_first_has_seen(tmp_path: Path) -> None:
    World(500 * MIB).go(tmp_path)
    later = World(0)
    later.passes, later.now = 1, 200.0
    later.go(tmp_path)
    (report,) = later.progress.passes
    assert report.change_rate == 0
    assert report.projection is not None


def test_a_disk_that_fails_ends_no_other(tmp_path: Path) -> None:
    world = World(500 * MIB, 40 * MIB, 40 * MIB, disks=2)
    world.fails_in = {1: 0}
    world.go(tmp_path, 30.0)
    assert world.progress.passes[-1].verdict is Verdict.FITS
    assert [disk.state.value for disk in world.progress.disks] == ["failed", "unpublished"]
    assert not (tmp_path / FOLDER).exists(), "a part of the disks says little of all"


def test_nothing_is_judged_when_every_disk_failed(tmp_path: Path) -> None:
    world = World(0)
    world.fails_in = {1: 0}
    world.go(tmp_path, 30.0)
    assert world.progress.passes == []


def test_a_stop_between_passes_is_an_interruption(tmp_path: Path) -> None:
    world = World(500 * MIB, 40 * MIB)
    world.stop_in = 1
    with pytest.raises(Cancelled):
        world.go(tmp_path, 1.0)
    assert world.passes == 1


def test_a_final_pass_is_held_against_its_projection(tmp_path: Path) -> None:
    World(500 * MIB, 40 * MIB).go(tmp_path, 30.0)
    final = World(40 * MIB, publishes=True)
    final.now = 120.0
    final.go(tmp_path)
    took = final.progress.downtime
    assert took is not None
    assert (took.seconds, took.exposed) == (8.0, 17.0)
    assert took.projected is not None
    assert took.projected.low <= 7.0 <= took.projected.high
    table = render_table(from_progress(final.progress))
    assert table.endswith(downtime_line(took))
    assert "down for 8.0s" in table
    assert "projected were" in table
    assert len((tmp_path / FOLDER / HISTORY).read_text().splitlines()) == 1
    assert Downtimes(tmp_path, "esx", "web", [Disk("s0", SIZE)], print).load() == []


def test_a_final_pass_without_live_ones_is_told_and_not_kept(tmp_path: Path) -> None:
    final = World(500 * MIB, publishes=True)
    final.go(tmp_path)
    took = final.progress.downtime
    assert took is not None
    assert (took.exposed, took.projected) == (None, None)
    assert not (tmp_path / FOLDER).exists()
    assert "down for" not in render_table(from_progress(final.progress))


def test_a_final_pass_that_did_not_publish_all_keeps_what_is_known(tmp_path: Path) -> None:
    World(500 * MIB, 40 * MIB, disks=2).go(tmp_path, 30.0)
    final = World(40 * MIB, disks=2, publishes=True)
    final.now, final.fails_in = 120.0, {1: 1}
    final.go(tmp_path)
    assert final.progress.downtime is None
    again = [Disk("s0", SIZE), Disk("s1", SIZE)]
    assert len(Downtimes(tmp_path, "esx", "web", again, print).load()) == 2
