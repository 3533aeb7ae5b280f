"""The scenario of the slow suite in which ``plan`` says beforehand what ``send`` then takes."""

import json
import sys
from dataclasses import dataclass

from benchmarks import disk
from benchmarks.contest import assert_identical, cold_caches, empty
from benchmarks.disk import MIB, Disk
from benchmarks.flatship_pair import SENDER, Pairing, paired
from benchmarks.plan import Plan, described, linked_workplace
from benchmarks.processes import Command, run
from benchmarks.shaped_link import MBIT
from benchmarks.verdicts import Verdict, judged, ratio

_PART = 320 * MIB
_RATES = {100: 5, 50: 4, 10: 1}  # Mbit/s, and disks sent at that rate
_OFF = 0.15  # of the median, at most
_WITHIN = 0.9  # of the truths lie below p90, at least
_PLANNING = 20.0  # seconds

# Of a sender that keeps nothing of what it sent: a forecast is of all the data.
_PLAIN = ("--index-limit", "0")


@dataclass(frozen=True, slots=True)
class _Row:
    """One forecast and its truth, in seconds and bytes."""

    rate: int
    corrected: float
    bound: str
    planning: float
    p50: float
    p90: float
    took: float
    wire: float
    sent: int


def forecast(plan: Plan) -> list[str]:
    """10, 50 and 100 Mbit/s: what plan foresees against what send takes, disk after disk."""
    size = plan.data or _PART
    guest = disk.guest_disk()
    disks = [disk.dense_file(guest, size, skipped=n * size) for n in range(max(_RATES.values()))]
    rows, typed = [], []
    with linked_workplace() as (place, link):
        for rate, count in _RATES.items():
            link.shape(rate * MBIT)
            empty(place.target)
            # A sender of its own for each rate: past forecasts of one say nothing of another.
            with paired(place.scratch, place.target, link.way) as pairing:
                state = ("--state", pairing.state / "sender")
                for number, moved in enumerate(disks[: min(count, plan.rounds or count)]):
                    vm = f"guest{number}"
                    rows.append(_foreseen_and_sent(pairing, state, moved, vm, rate))
                typed = pairing.commands
        lines = [line for one in disks for line in described(one)]
        lines += [
            "| Mbit/s | p50, s | p90, s | took, s | took / p50 | wire / foreseen | limited by"
            " | corrected by | planning, s |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in rows]
        verdicts = [
            Verdict(
                f"{rate} Mbit/s: took / p50, farthest from 1, off by",
                max(abs(row.took / row.p50 - 1) for row in rows if row.rate == rate),
                _OFF,
            )
            for rate in _RATES
        ]
        within = sum(row.took <= row.p90 for row in rows) / len(rows)
        verdicts.append(Verdict("share within p90", within, _WITHIN, at_least=True))
        slowest = max(row.planning for row in rows)
        verdicts.append(Verdict("plan itself", slowest, _PLANNING, "s"))
        return [*lines, "", *judged(verdicts), *place.shown(typed)]


def _foreseen_and_sent(pairing: Pairing, state: Command, moved: Disk, vm: str, rate: int) -> _Row:
    asked = (SENDER, "plan", *state, moved.path, "--to", "bench", "--vm", vm, "--json")
    cold_caches()
    planned = run(asked)
    said = json.loads(planned.output)
    cold_caches()
    _, result = pairing.send([moved], vm, _PLAIN)
    assert_identical(moved, pairing.copy(vm), "Flatship")
    truth = result["forecast"]
    row = _Row(
        rate,
        said["correction"],
        said["bound"],
        planned.seconds,
        truth["seconds"]["p50"],
        truth["seconds"]["p90"],
        truth["took"],
        truth["wire"]["p50"],
        truth["sent"],
    )
    print(f"  {row}", file=sys.stderr)
    return row


def _line(row: _Row) -> str:
    return (
        f"| {row.rate} | {row.p50:.1f} | {row.p90:.1f} | {row.took:.1f}"
        f" | {ratio(row.took, row.p50):.2f} | {ratio(row.sent, row.wire):.2f} | {row.bound}"
        f" | {row.corrected:.2f} | {row.planning:.1f} |"
    )
