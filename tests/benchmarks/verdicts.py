"""What was measured beside the bar that it must keep under. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure and its bar, in the same unit."""

    what: str
    measured: float
    bar: float
    unit: str = ""
    at_least: bool = False  # the bar is a floor instead of a ceiling

    @property
    def holds(self) -> bool:
        """Whether the figure keeps to its bar."""
        if self.at_least:
            return self.measured >= self.bar
        return self.measured <= self.bar


def ratio(part: float, whole: float) -> float:
    """``part`` over ``whole``; infinite if there is no whole, so that no ceiling holds."""
    return part / whole if whole else float("inf")


def judged(verdicts: Iterable[Verdict]) -> list[str]:
    """The verdicts as lines of a Markdown table."""
    lines = ["| what | measured | bar | |", "|---|---|---|---|"]
    for one in verdicts:
        unit = f" {one.unit}" if one.unit else ""
        bound = "at least" if one.at_least else "at most"
        lines.append(
            f"| {one.what} | {one.measured:.3g}{unit} | {bound} {one.bar:.3g}{unit}"
            f" | {'holds' if one.holds else '**missed**'} |"
        )
    return lines
