"""What ``plan`` tells people."""

from flatship_sender.forecast.foresee import Bound
from flatship_sender.forecast.report import DiskReport, PlanReport, rung_name
from flatship_sender.forecast.truth import Quantiles
from flatship_sender.rungs import Rung
from flatship_service.printable import printable
from flatship_service.units import format_duration, format_rate, format_size

_BOUNDS = {
    Bound.LINK: "the link",
    Bound.LIMIT: "the limit of rate",
    Bound.PROCESSORS: "this host's processors",
    Bound.SOURCE: "reading the source",
}


def describe(plan: PlanReport) -> str:
    """A plan for people, in some lines without a newline at the end."""
    lines = [_disk(disk) for disk in plan.disks]
    lines.append(f"link to {printable(plan.receiver)}: {_link(plan)}")
    lines.append(f"datastore: {_space(plan)}")
    lines.append(f"on the wire: {_sizes(plan.wire)}")
    if plan.seconds is not None and plan.downtime is not None and plan.bound is not None:
        lines.append(f"time: {times(plan.seconds)}")
        why = (
            "the last pass, after the live ones that were made"
            if plan.after_passes
            else "all of it, unless live passes go before"
        )
        lines.append(f"downtime: {times(plan.downtime)}; {why}")
        rung = rung_name(Rung(plan.level, 1.0, 1.0, plan.history))
        lines.append(f"limited by {_BOUNDS[plan.bound]}, with {rung}")
    lines += plan.advice
    if plan.past:
        past = "one past forecast" if plan.past == 1 else f"{plan.past} past forecasts"
        lines.append(f"times are corrected by {plan.correction:.2f}, from {past}")
    return "\n".join(lines)


def times(seconds: Quantiles) -> str:
    """A duration as it is expected, and nine times of ten at most."""
    most = format_duration(seconds.p90)
    return f"about {format_duration(seconds.p50)}, nine times of ten at most {most}"


def _sizes(wire: Quantiles) -> str:
    most = format_size(round(wire.p90))
    return f"about {format_size(round(wire.p50))}, nine times of ten at most {most}"


def _disk(disk: DiskReport) -> str:
    facts = [
        f"{format_size(disk.size)}",
        f"{format_size(disk.to_read)} to read",
        f"{format_size(disk.data)} of data",
        f"{_sizes(disk.wire)} on the wire",
    ]
    if disk.seconds is not None:
        facts.append(f"alone {times(disk.seconds)}")
    if disk.exists:
        facts.append("a disk of that name is there already")
    if disk.refusal is not None:
        facts.append(f"the receiver would not take it: {printable(disk.refusal)}")
    return f"{printable(disk.source)}: {', '.join(facts)}"


def _link(plan: PlanReport) -> str:
    link = plan.link
    if link.rate is None:
        return "not measured, and no rate was named"
    facts = [f"{format_rate(link.rate)}{'' if link.measured else ', not measured'}"]
    if link.spread is not None:
        facts.append(f"give or take {link.spread:.0%}")
    if link.round_trip is not None:
        facts.append(f"round trip {link.round_trip * 1000:.1f} ms")
    if link.loss is not None:
        facts.append(f"{link.loss:.2%} sent again")
    if link.limit is not None:
        facts.append(f"limit {format_rate(link.limit)}")
    return ", ".join(facts)


def _space(plan: PlanReport) -> str:
    needed = f"{format_size(plan.space.needed)} needed"
    if plan.space.free is None:
        return f"{needed}, the receiver does not say how much is free"
    return f"{needed}, {format_size(plan.space.free)} free"
