"""A table of jobs for people, no wider than 80 columns. Pure, and light to import."""

from collections.abc import Sequence
from typing import Final

import msgspec

from flatship_service.printable import printable
from flatship_service.units import format_duration

WIDTH: Final = 80  # columns
NOTHING: Final = "no jobs"
_GAP: Final = "  "
_HEADINGS: Final = ("ID", "STATE", "PRIO", "DISKS", "AGE", "TO", "VM")
_MIN_NAME: Final = 8  # columns that a receiver's name keeps, however long the VM's is
_TO, _VM = 5, 6


class Spec(msgspec.Struct):
    """What the table shows of a job's contents."""

    vm: str
    receiver: str
    sources: list[str]


class Row(msgspec.Struct):
    """What the table shows of a job; the daemon says more."""

    id: int
    state: str
    priority: int
    submitted: float
    spec: Spec
    wanted: str | None = None


def render(jobs: Sequence[Row], now: float) -> str:
    """A line a job, and one that says so if there are none; no newline at the end.

    Names that leave no room for the rest are cut.

    Args:
        jobs: In the order in which they are shown.
        now: Unix time in seconds.
    """
    if not jobs:
        return NOTHING
    rows = [_HEADINGS, *(_cells(job, now) for job in jobs)]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    left = WIDTH - sum(widths[:_TO]) - len(_GAP) * (len(widths) - 1)
    widths[_TO] = min(widths[_TO], max(_MIN_NAME, left - widths[_VM]))
    widths[_VM] = min(widths[_VM], left - widths[_TO])
    return "\n".join(_line(row, widths) for row in rows)


def _cells(job: Row, now: float) -> tuple[str, ...]:
    return (
        str(job.id),
        job.state if job.wanted is None else "stopping",
        str(job.priority),
        str(len(job.spec.sources)),
        format_duration(max(0.0, now - job.submitted)),
        printable(job.spec.receiver),
        printable(job.spec.vm),
    )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    number, state, *numbers, receiver, vm = row
    cells = [
        number.rjust(widths[0]),
        state.ljust(widths[1]),
        *(cell.rjust(width) for cell, width in zip(numbers, widths[2:_TO], strict=True)),
        _cut(receiver, widths[_TO]).ljust(widths[_TO]),
        _cut(vm, widths[_VM]),
    ]
    return _GAP.join(cells).rstrip()


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"
