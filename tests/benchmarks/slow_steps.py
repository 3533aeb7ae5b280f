"""The scenario of the slow suite in which the link's rate changes under a transfer."""

import sys

from benchmarks import report
from benchmarks.contest import assert_identical, empty
from benchmarks.crossing import footprint
from benchmarks.disk import Disk
from benchmarks.flatship_pair import paired
from benchmarks.packaged_guests import packaged_guests
from benchmarks.plan import Plan, described, linked_workplace
from benchmarks.processes import free_port
from benchmarks.settling import Fixed, Step, best_at, course, oracle_seconds, settle
from benchmarks.shaped_link import MBIT, ShapedLink
from benchmarks.step_plot import plot
from benchmarks.step_recorder import recording
from benchmarks.verdicts import Verdict, judged, ratio
from benchmarks.workplace import Workplace

# Long enough to settle in, and short enough that 3 GB of data last into the final one.
_STEPS = (
    Step(100 * MBIT, 12),
    Step(10 * MBIT, 15),
    Step(1000 * MBIT, 9),
    Step(50 * MBIT, 60),
)
_LEVELS = ("off", "-5", "1", "3", "6", "9")
_SETTLES = 5.0  # seconds
_TO_ORACLE = 1.10


def steps(plan: Plan) -> list[str]:
    """100, 10, 1000, 50 Mbit/s in one transfer: settles within 5 s, and as fast as an oracle."""
    disks = [plan.guest()]
    if plan.data is None:
        disks.append(packaged_guests()[0])
    with linked_workplace() as (place, link):
        fixed = [_fixed(place, link, disks, level) for level in _LEVELS]
        link.shape(_STEPS[0].rate)
        metrics = f"127.0.0.1:{free_port()}"
        empty(place.target)
        options = ("--http", metrics)
        with paired(place.scratch, place.target, link.way) as pairing:
            with recording(link, _STEPS, metrics) as samples:
                run, said = pairing.send(disks, options=options)
            for number, one in enumerate(disks):
                assert_identical(one, pairing.copy(number=number), "Flatship")
            kept = pairing.kept()
            typed = pairing.commands
        picture = report.beside("steps" if plan.data is None else "steps-of-a-part", ".png")
        plot(samples, _STEPS, picture)
        oracle = oracle_seconds(said["totals"]["bytes"]["sent"], _STEPS, fixed)
        took = said["totals"]["seconds"]["total"]
        found = settle(samples, _STEPS)
        lines = [line for one in disks for line in described(one)]
        lines += [
            f"![Rate, level and queue over time]({picture.name})",
            "",
            "| link | lasted | settled after | level then | link used | disk, MB/s"
            " | best fixed level, MB/s at most |",
            "|---|---|---|---|---|---|---|",
        ]
        for step in found:
            best = best_at(fixed, step.rate)
            lines.append(
                f"| {step.rate / MBIT:.0f} Mbit/s | {step.seconds:.1f} s"
                f" | {step.settled_after:.1f} s"
                f" | {'raw' if step.level is None else step.level} | {100 * step.use:.0f} %"
                f" | {step.advance / 1e6:.1f} | {best.name}: {best.at(step.rate) / 1e6:.1f} |"
            )
        lines += [
            "",
            f"Reached {len(found)} of {len(_STEPS)} steps. From the first disk's start to the last"
            f" one's end {took:.1f} s, an oracle {oracle:.1f} s: in each step it advances by the"
            " best fixed level, at the link's rate times what that level makes of the bytes that"
            " are due then or at the speed it has without a limit, whichever is less.",
            "",
            "| fixed level, no limit | data, MB/s | ratio |",
            "|---|---|---|",
            *(f"| {one.name} | {one.advance / 1e6:.0f} | {one.ratio:.2f} |" for one in fixed),
            "",
        ]
        verdicts = [
            Verdict(f"{step.rate / MBIT:.0f} Mbit/s: settled", step.settled_after, _SETTLES, "s")
            for step in found
        ]
        verdicts.append(Verdict("seconds / the oracle's", ratio(took, oracle), _TO_ORACLE))
        size, data = sum(one.size for one in disks), sum(one.data for one in disks)
        verdicts += footprint([run], kept, size, data)
        return [*lines, *judged(verdicts), *place.shown(typed)]


def _fixed(place: Workplace, link: ShapedLink, disks: list[Disk], level: str) -> Fixed:
    """What a level does on these disks without a limit."""
    link.shape(None)
    empty(place.target)
    metrics = f"127.0.0.1:{free_port()}"
    with paired(place.scratch, place.target, link.way) as pairing:
        before = link.counted()
        with recording(link, (Step(float("inf"), float("inf")),), metrics) as samples:
            _, said = pairing.send(disks, options=("--compression", level, "--http", metrics))
        wire = link.counted().since(before).there
    sent = said["totals"]["bytes"]["sent"]
    seconds = said["totals"]["seconds"]["total"]
    print(f"  level {level}: {seconds:.1f} s, {wire / 1e6:.1f} MB", file=sys.stderr)
    return Fixed(level, sent / seconds, sent / wire, course(samples))
