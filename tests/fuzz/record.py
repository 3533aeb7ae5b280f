"""What the long runs did: a table of each, and how many inputs each decoder has seen in all."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import report

RESULTS: Final = Path(__file__).parent / "results"
TOTALS: Final = RESULTS / "totals.json"


@dataclass(slots=True)
class Outcome:
    """What became of one decoder in one run.

    Attributes:
        inputs: How many it was given.
        seconds: Of the clock.
        coverage: Edges of Flatship's own code that were reached; 0 where nobody counted.
        crash: The file of an input that broke it, or nothing.
    """

    inputs: int = 0
    seconds: float = 0.0
    coverage: int = 0
    crash: str = ""


def write(outcomes: Mapping[str, Outcome], means: str, arguments: Sequence[str]) -> Path:
    """Add to the totals, and write the table of a run; returns its file.

    Args:
        outcomes: By the decoder's name.
        means: How the inputs were made.
        arguments: The command line, without the interpreter.
    """
    RESULTS.mkdir(exist_ok=True)
    totals = _add(outcomes)
    moment = time.strftime("%Y-%m-%d-%H%M", time.gmtime())
    path = RESULTS / f"{moment}.md"
    rows = [
        f"| {name} | {outcome.inputs:,} | {totals[name]:,} | {outcome.coverage or '–'} "
        f"| {outcome.seconds:.0f} | {'**yes**' if outcome.crash else 'no'} |"
        for name, outcome in outcomes.items()
    ]
    lines = [
        f"# Fuzzing, {moment} UTC",
        "",
        f"{sum(outcome.inputs for outcome in outcomes.values()):,} inputs, {means}.",
        "Coverage counts the edges of Flatship's own code that were reached.",
        "",
        "| decoder | inputs | in all runs | coverage | seconds | broke |",
        "|---|---:|---:|---:|---:|---|",
        *rows,
        "",
        "## Conditions",
        "",
        *(f"- {line}" for line in report.machine()),
        f"- command: `{' '.join(arguments)}`",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _add(outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """Inputs of all runs, these included."""
    totals: dict[str, int] = json.loads(TOTALS.read_text()) if TOTALS.exists() else {}
    for name, outcome in outcomes.items():
        totals[name] = totals.get(name, 0) + outcome.inputs
    TOTALS.write_text(json.dumps(totals, indent=1, sort_keys=True) + "\n", encoding="ascii")
    return totals
