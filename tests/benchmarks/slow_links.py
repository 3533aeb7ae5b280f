"""Scenarios of the slow suite in which whole disks cross a link of one rate."""

import sys

from benchmarks import disk
from benchmarks.contest import assert_identical, empty
from benchmarks.crossing import Crossing, Rival, commands, cross, crossed, footprint
from benchmarks.disk import GIB, MIB, Disk
from benchmarks.flatship_pair import FlatshipPair, Kept, paired
from benchmarks.peers import slow_link_peers
from benchmarks.plan import Plan, described, linked_workplace
from benchmarks.shaped_link import MBIT, ShapedLink
from benchmarks.verdicts import Verdict, judged, ratio
from benchmarks.workplace import Workplace
from benchmarks.zstd_sizes import zstd_size

_WALL_TO_WIRE = 1.05  # seconds to those that the wire bytes take at the link's rate
_WALL_TO_PIPE = 0.67  # seconds to those of the best peer pipe
_AUTO_TO_BEST = 1.10  # seconds to those of the best fixed level
_TOGETHER = 1.0  # seconds of four disks at once to those of one after the other

_LEVELS = ("off", "-5", "-1", "1", "3", "6")
_REFERENCES = (9, 12)  # zstd levels


def link_100(plan: Plan) -> list[str]:
    """100 Mbit/s: wall time against wire / rate and the best pipe, bytes against zstd -9."""
    return _against_peers(
        plan, 100 * MBIT, plan.guest(), rounds=2, reference=9, to_pipe=_WALL_TO_PIPE
    )


def link_10(plan: Plan) -> list[str]:
    """10 Mbit/s: wall time against wire / rate, bytes against zstd -12; a quarter of the disk."""
    return _against_peers(
        plan, 10 * MBIT, plan.guest(512 * MIB), rounds=1, reference=12, to_pipe=None
    )


def levels(plan: Plan) -> list[str]:
    """At 1 Gbit/s and without limit: the level that is found against the best fixed one."""
    moved = plan.guest()
    lines = described(moved)
    verdicts, runs, typed = [], [], []
    with linked_workplace() as (place, link):
        for rate, name in ((1000 * MBIT, "1 Gbit/s"), (None, "no limit")):
            link.shape(rate)
            rivals = [Rival("auto", _flatship(place, link))]
            rivals += [Rival(level, _flatship(place, link, level)) for level in _LEVELS]
            cross(link, rivals, moved, place.target, plan.rounds or 3)
            lines += [f"## {name}", "", *crossed(rivals, rate), ""]
            auto, *fixed = rivals
            best = min(fixed, key=lambda rival: rival.seconds)
            what = f"{name}: auto / the best level, {best.name}"
            verdicts.append(Verdict(what, ratio(auto.seconds, best.seconds), _AUTO_TO_BEST))
            runs += [one.run for rival in rivals for one in rival.crossings]
            typed += commands(rivals)
        verdicts += footprint(runs, None, moved.size, moved.data)
        return [*lines, *judged(verdicts), *place.shown(typed)]


def four_disks(plan: Plan) -> list[str]:
    """100 Mbit/s: four disks together against one after the other; the link must not idle."""
    rate = 100 * MBIT
    disks = _four(plan)
    lines = [line for one in disks for line in described(one)]
    lines.append("| order | together, s | one after another, s | ratio | link busy, together |")
    lines.append("|---|---|---|---|---|")
    verdicts, runs = [], []
    typed: list[str] = []
    with linked_workplace() as (place, link):
        link.shape(rate)
        for number in range(1, 1 + (plan.rounds or 2)):
            for order, given in (("as given", disks), ("reverse", disks[::-1])):
                (together,), kept, first = _sent(place, link, [given])
                apart, _, second = _sent(place, link, [[one] for one in given])
                typed = place.shown([*first, *second])
                alone = sum(one.run.seconds for one in apart)
                found = ratio(together.run.seconds, alone)
                busy = together.use(rate)
                lines.append(
                    f"| {order} | {together.run.seconds:.1f} | {alone:.1f} | {found:.2f}"
                    f" | {100 * busy:.0f} % |"
                )
                turn = f"round {number}, {order}"
                verdicts += [
                    Verdict(f"{turn}: together / one after another", found, _TOGETHER),
                    Verdict(f"{turn}: wall / (wire / rate)", 1 / busy, _WALL_TO_WIRE),
                ]
                runs += [together.run, *(one.run for one in apart)]
    size, data = sum(one.size for one in disks), sum(one.data for one in disks)
    return [*lines, "", *judged([*verdicts, *footprint(runs, kept, size, data)]), *typed]


def _flatship(place: Workplace, link: ShapedLink, level: str = "auto") -> FlatshipPair:
    options = ("--compression", level)
    return FlatshipPair(place.scratch, send_options=options, way=link.way)


def _four(plan: Plan) -> list[Disk]:
    """Four disks that have no data in common: two dense ones, one incompressible, one sparse."""
    guest, part = disk.guest_disk(), plan.part(160 * MIB)
    return [
        disk.dense_file(guest, part),
        disk.random_file(plan.part(32 * MIB)),
        disk.scattered_file(guest, part, 4 * GIB, pieces=16, skipped=part),
        disk.dense_file(guest, part, skipped=2 * part),
    ]


def _sent(
    place: Workplace, link: ShapedLink, batches: list[list[Disk]]
) -> tuple[list[Crossing], Kept, list[str]]:
    """Send each batch by a command of its own, from a sender to which all of it is new."""
    crossings = []
    empty(place.target)
    with paired(place.scratch, place.target, link.way) as pairing:
        for number, batch in enumerate(batches):
            vm = f"guest{number}"
            before = link.counted()
            run, _ = pairing.send(batch, vm)
            crossings.append(Crossing(run, link.counted().since(before)))
            print(f"  {len(batch)} disks: {run.seconds:.1f} s", file=sys.stderr)
            for place_of, one in enumerate(batch):
                assert_identical(one, pairing.copy(vm, place_of), "Flatship")
        return crossings, pairing.kept(), pairing.commands


def _against_peers(
    plan: Plan, rate: float, moved: Disk, *, rounds: int, reference: int, to_pipe: float | None
) -> list[str]:
    """Flatship and its peers over a link of one rate.

    Args:
        plan: May say otherwise than ``rounds``.
        rate: Of the link, bits a second.
        moved: What they move.
        rounds: How often each moves it.
        reference: The zstd level whose size bounds the bytes on the wire.
        to_pipe: The bar of wall time to the best peer's, if there is one.
    """
    sizes = {level: zstd_size(moved, level) for level in _REFERENCES}
    with linked_workplace() as (place, link):
        link.shape(rate)
        ours = FlatshipPair(place.scratch, way=link.way)
        flatship = Rival("Flatship", ours)
        peers = slow_link_peers(place.scratch, link.way)
        rivals = [flatship, *(Rival(name, peer) for name, peer in peers.items())]
        cross(link, rivals, moved, place.target, plan.rounds or rounds)
        lines = [*described(moved), *crossed(rivals, rate), ""]
        lines += [
            f"zstd -{level} --long=27: {size / 1e6:.1f} MB; Flatship's wire is"
            f" {ratio(flatship.wire, size):.3f} of it.  "
            for level, size in sizes.items()
        ]
        best = min(rivals[1:], key=lambda rival: rival.seconds)
        worst = max(1 / one.use(rate) for one in flatship.crossings)
        verdicts = [
            Verdict("wall / (wire / rate), worst round", worst, _WALL_TO_WIRE),
            Verdict(
                f"wire / zstd -{reference} --long=27",
                ratio(flatship.wire, sizes[reference]),
                1.0,
            ),
        ]
        if to_pipe is not None:
            over_best = ratio(flatship.seconds, best.seconds)
            verdicts.append(Verdict(f"wall / {best.name}", over_best, to_pipe))
        runs = [one.run for one in flatship.crossings]
        verdicts += footprint(runs, flatship.kept, moved.size, moved.data)
        return [*lines, "", *judged(verdicts), *place.shown(commands(rivals))]
