"""What people are told of passes and of the downtime that they lead up to. Pure."""

from typing import Final

from flatship_protocol.errors import TransferError
from flatship_sender.convergence import (
    Bound,
    Downtime,
    PassReport,
    Projection,
    Range,
    Verdict,
)
from flatship_service.units import format_duration, format_rate, format_size

_REMEDIES: Final = {
    Bound.READ: "reading the source takes most of it: faster storage here would help",
    Bound.PROOF: "the re-read of the target takes most of it: faster storage at the receiver"
    " would help",
    Bound.CHANGE: "the source changes as fast as the link carries it: stop what writes there"
    " (backups, updates, databases) before the last pass, or give more of the link",
    Bound.LINK: "carrying what changes takes most of it: a faster link or a higher --limit would"
    " help, or fewer writes in the guest",
    None: "the passes go up and down; try at a quieter time",
}


class DoesNotConverge(TransferError):
    """Further passes would not bring the downtime down to what was asked for.

    Args:
        report: The last pass.
        budget: Seconds that the final pass was to take at most.
    """

    exit_code = 3

    def __init__(self, report: PassReport, budget: float) -> None:
        projection = report.projection
        expected = "" if projection is None else f", it is {downtime(projection.downtime)}"
        super().__init__(
            f"after {_passes(report.number)} the projected downtime does not get down to"
            f" {brief(budget)}{expected}; {_REMEDIES[report.bound]}. What was sent stays: run"
            " the same command again, allow more with --until-downtime, or shut the guest down and"
            " send it without --live"
        )


def pass_line(report: PassReport) -> str:
    """One line that says what a pass came to, and what a final one would take."""
    figures = report.figures
    facts = [f"pass {report.number} took {brief(figures.seconds)}"]
    if report.change_rate is None:
        facts.append(f"{format_size(figures.wire)} on the wire")
    else:
        facts.append(f"{format_size(figures.changed)} changed since the one before")
        facts.append(f"{format_rate(report.change_rate)}")
        facts.append(f"{format_size(figures.wire)} on the wire")
    if report.projection is None:
        facts.append("the next one shows how fast the source changes")
    else:
        facts.append(f"projected downtime {downtime(report.projection.downtime)}")
        facts.append(_parts(report.projection))
    if report.verdict is Verdict.FITS:
        facts.append("that fits: shut the guest down now and send it without --live")
    return ", ".join(facts[:-1]) + f"; {facts[-1]}"


def downtime(projected: Range) -> str:
    """Write a projection with its range."""
    low, expected, high = projected.low, projected.expected, projected.high
    return f"{brief(expected)} ({brief(low)} to {brief(high)})"


def downtime_line(took: Downtime) -> str:
    """What the final pass took, and what it had been expected to take."""
    line = f"down for {brief(took.seconds)}, from the start of this command to publication"
    if took.projected is None:
        return line
    return f"{line}; projected were {downtime(took.projected)}"


def brief(seconds: float) -> str:
    """Write a duration; short ones with a digit behind the point, where that matters."""
    return f"{seconds:.1f}s" if seconds < 10 else format_duration(seconds)


def _parts(projection: Projection) -> str:
    """Where the time goes, the parts that overlap together."""
    return (
        f"reading {brief(projection.reading)} beside the link's {brief(projection.carrying)},"
        f" then the proof's {brief(projection.proving)}"
    )


def _passes(count: int) -> str:
    return "one pass" if count == 1 else f"{count} passes"
