"""Scenarios of the slow suite in which the receiver has most of a disk already."""

import os
import random
import sys
import time
from dataclasses import dataclass

from benchmarks import disk
from benchmarks.contest import Run, assert_identical, cold_caches, empty
from benchmarks.crossing import Crossing, Rival, commands, cross, footprint
from benchmarks.disk import MIB, Disk
from benchmarks.flatship_pair import Kept, paired
from benchmarks.packaged_guests import packaged_guests, shared_pages
from benchmarks.peers import rsync_inplace
from benchmarks.plan import Plan, described, linked_workplace
from benchmarks.shaped_link import MBIT, ShapedLink
from benchmarks.verdicts import Verdict, judged, ratio
from benchmarks.workplace import Workplace

_RATE = 100 * MBIT

_PAGE = 4096
_CHANGED_PAGES = 4400
_SEED = 4400
_WIRE_TO_CHANGED = 1.15
_BEYOND_READING = 5.0  # seconds

_SECOND_TO_FIRST = 0.08  # wire bytes
_READ_SPEED = 0.80  # of a plain pass's

# Of a sender that keeps nothing of what it sent.
_PLAIN = ("--index-limit", "0")


def delta(plan: Plan) -> list[str]:
    """100 Mbit/s: a pass after 4,400 random pages changed, bytes sent against bytes changed."""
    before = plan.guest()
    with linked_workplace() as (place, link):
        changed = disk.copy_sparse(before, place.scratch / "changing.raw")
        with paired(place.scratch, place.target, link.way) as pairing:
            link.shape(None)
            live, _ = pairing.send([changed], options=("--live",))
            between = pairing.kept()  # a page index goes when its disk is published
            pages = _change_pages(changed, min(_CHANGED_PAGES, changed.size // _PAGE // 4))
            reading = _reading(changed)
            link.shape(_RATE)
            cold_caches()
            mark = link.counted()
            final, _ = pairing.send([changed])
            wire = link.counted().since(mark)
            assert_identical(changed, pairing.copy(), "Flatship")
            after = pairing.kept()
            kept = Kept(max(between.sender, after.sender), max(between.receiver, after.receiver))
            typed = pairing.commands
        peer = Rival("rsync --inplace", rsync_inplace(place.scratch, link.way, before))
        cross(link, [peer], changed, place.target, rounds=1, before=cold_caches)
        bytes_changed = pages * _PAGE
        ours = Crossing(final, wire)
        lines = [
            *described(changed),
            f"{pages} pages changed, {bytes_changed / 1e6:.1f} MB, seed {_SEED}. The pass before"
            f" took {live.seconds:.1f} s without a limit. Merely reading the disk's data, caches"
            f" cold: {reading:.1f} s.",
            "",
            "| | seconds | wire, MB | back, MB |",
            "|---|---|---|---|",
        ]
        for name, one in (("Flatship", ours), (peer.name, peer.crossings[0])):
            lines.append(
                f"| {name} | {one.run.seconds:.1f} | {one.wire.there / 1e6:.1f}"
                f" | {one.wire.back / 1e6:.1f} |"
            )
        verdicts = [
            Verdict("wire / changed bytes", ratio(wire.there, bytes_changed), _WIRE_TO_CHANGED),
            Verdict("beyond merely reading", final.seconds - reading, _BEYOND_READING, "s"),
            *footprint([live, final], kept, changed.size, changed.data),
        ]
        return [*lines, "", *judged(verdicts), *place.shown([*typed, *commands([peer])])]


def second_guest(plan: Plan) -> list[str]:
    """100 Mbit/s: a guest of the same packages after its neighbour, bytes and reading speed."""
    first, second = packaged_guests(plan.packages())
    common = shared_pages(first, second)
    with linked_workplace() as (place, link):
        link.shape(_RATE)
        after = _in_turn(place, link, [first, second])
        link.shape(None)
        plain = _in_turn(place, link, [second], _PLAIN)
        typed = place.shown([*after.commands, *plain.commands])
    lines = [
        *described(first),
        *described(second),
        f"The first has {100 * common.share:.1f} % of the second's {common.pages} pages that are"
        f" not zeros, in {common.runs} runs.",
        "",
        "| | seconds | wire, MB | of the disk's data, MB/s |",
        "|---|---|---|---|",
    ]
    for name, one, moved in (
        ("first, 100 Mbit/s", after.crossings[0], first),
        ("second, 100 Mbit/s", after.crossings[1], second),
        ("second, a plain pass without limit", plain.crossings[0], second),
    ):
        lines.append(
            f"| {name} | {one.run.seconds:.1f} | {one.wire.there / 1e6:.1f}"
            f" | {_speed(one, moved) / 1e6:.0f} |"
        )
    wires = [one.wire.there for one in after.crossings]
    verdicts = [
        Verdict("wire, second / first", ratio(wires[1], wires[0]), _SECOND_TO_FIRST),
        Verdict(
            "speed, second / plain pass without limit",
            ratio(_speed(after.crossings[1], second), _speed(plain.crossings[0], second)),
            _READ_SPEED,
            at_least=True,
        ),
        *footprint(after.runs, after.kept, first.size + second.size, first.data + second.data),
    ]
    return [*lines, "", *judged(verdicts), *typed]


@dataclass(frozen=True, slots=True)
class _Turns:
    """Disks that one sender sent one after another, and what was kept in the end."""

    crossings: list[Crossing]
    kept: Kept
    commands: list[str]

    @property
    def runs(self) -> list[Run]:
        return [one.run for one in self.crossings]


def _in_turn(
    place: Workplace, link: ShapedLink, disks: list[Disk], options: tuple[str, ...] = ()
) -> _Turns:
    """Send each disk as a machine of its own, from one sender to one datastore; caches cold."""
    empty(place.target)
    crossings = []
    with paired(place.scratch, place.target, link.way) as pairing:
        for moved in disks:
            cold_caches()
            mark = link.counted()
            run, _ = pairing.send([moved], moved.path.stem, options)
            crossings.append(Crossing(run, link.counted().since(mark)))
            print(f"  {moved.path.stem}: {run.seconds:.1f} s", file=sys.stderr)
            assert_identical(moved, pairing.copy(moved.path.stem), "Flatship")
        return _Turns(crossings, pairing.kept(), pairing.commands)


def _speed(crossing: Crossing, moved: Disk) -> float:
    """Bytes of data a second, from the start of the command to its end."""
    return moved.data / crossing.run.seconds


def _change_pages(changed: Disk, count: int) -> int:
    """Overwrite ``count`` random pages of a disk with random bytes; the same each time."""
    chance = random.Random(_SEED)
    with changed.path.open("r+b") as file:
        for page in chance.sample(range(changed.size // _PAGE), count):
            os.pwrite(file.fileno(), chance.randbytes(_PAGE), page * _PAGE)
        os.fsync(file.fileno())
    return count


def _reading(moved: Disk) -> float:
    """Seconds that merely reading what is not a hole takes, caches cold."""
    cold_caches()
    buffer = bytearray(MIB)
    started = time.perf_counter()
    with moved.path.open("rb") as file:
        for offset, length in disk.data_runs(file.fileno(), moved.size):
            for at in range(offset, offset + length, MIB):
                os.preadv(file.fileno(), [memoryview(buffer)[: offset + length - at]], at)
    return time.perf_counter() - started
