"""Bars on a terminal. The only module that imports rich; ``display`` imports it when needed."""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flatship_sender import figures
from flatship_sender.pass_words import pass_line
from flatship_sender.progress import (
    DiskProgress,
    TransferProgress,
    TransferState,
)
from flatship_sender.stall_teller import StallTeller
from flatship_service.printable import printable
from flatship_service.units import format_rate, format_size

INTERVAL: Final = 0.25  # seconds between two pictures

_STYLES: Final = {
    TransferState.PUBLISHED: "green",
    TransferState.FAILED: "bold red",
    TransferState.CANCELLED: "yellow",
    TransferState.UNPUBLISHED: "yellow",
}


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    width: int  # cells
    right: bool = True


_NAME: Final = _Column("disk", 16, right=False)
_BAR: Final = _Column("", 10, right=False)
_PERCENT: Final = _Column("done", 4)
_RATE: Final = _Column("rate", 10)
_RATIO: Final = _Column("ratio", 5)
_SKIPPED: Final = _Column("skipped", 10)
_ETA: Final = _Column("left", 7)
_STATE: Final = _Column("state", 11, right=False)
_COLUMNS: Final = (_NAME, _BAR, _PERCENT, _RATE, _RATIO, _SKIPPED, _ETA, _STATE)
_EXPENDABLE: Final = (_SKIPPED, _RATIO, _BAR, _RATE)  # in this order on narrow terminals
_MAX_NAME: Final = 40  # cells
_OTHER_LINES: Final = 5  # heading, stall, more, total, and where the cursor stands
_MORE_WAITING: Final = 1  # line in addition, while there is no session


class LiveBars:
    """A bar for each disk and a line for all of them, redrawn in place.

    Args:
        console: Where to draw. It decides on colours (``NO_COLOR``), width and height.
    """

    interval = INTERVAL

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._meters = figures.TransferMeters()
        self._stalls = StallTeller(again=None)
        self._passes = 0

    def show(self, progress: TransferProgress, now: float) -> None:
        """Draw the bars anew."""
        drawn = self.draw(progress, now)
        if self._live is None:
            # Standard output carries results: it is not to be drawn around.
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False)
            self._live.start()
        for line in self._stalls.lines(progress, now):
            # Above the bars, where it stays: whoever comes back later wants to know.
            self._console.print(_line(f"{time.strftime('%H:%M:%S')} {line}", "yellow"))
        for report in progress.passes[self._passes :]:
            self._console.print(Text(f"{time.strftime('%H:%M:%S')} {pass_line(report)}"))
        self._passes = len(progress.passes)
        self._live.update(drawn, refresh=True)

    def close(self) -> None:
        """Leave the last picture standing."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def draw(self, progress: TransferProgress, now: float) -> RenderableType:
        """The picture at ``now``, no larger than the console."""
        self._meters.look(progress, now)
        stalled = figures.stall(progress, now)
        size = self._console.size
        others = _OTHER_LINES + (_MORE_WAITING if progress.waiting is not None else 0)
        shown = visible(progress.disks, max(1, size.height - others))
        lines: list[RenderableType] = [self._table(progress, shown, size.width)]
        for index in shown:
            if (reason := figures.failure(progress.disks[index])) is not None:
                name = printable(progress.disks[index].target)
                lines.append(_line(f"{name}: {reason}", "red"))
        hidden = [disk for i, disk in enumerate(progress.disks) if i not in set(shown)]
        if hidden:
            lines.append(_line(more(hidden), "dim"))
        lines.append(Text(figures.total(progress, self._meters), no_wrap=True, overflow="ellipsis"))
        if stalled is not None:
            lines.append(_line(stalled, "bold yellow"))
        if (waiting := progress.waiting) is not None:
            # On lines of their own, so that a long reason never hides the times.
            times = figures.waiting_times(waiting, now)
            receiver = printable(progress.receiver)
            lines.append(_line(f"waiting for receiver {receiver}: {times}", "bold yellow"))
            lines.append(_line(figures.waiting_reasons(waiting), "yellow"))
        return Group(*lines)

    def _table(self, progress: TransferProgress, shown: list[int], width: int) -> Table:
        columns = fitting(width)
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
        for column, cells in columns.items():
            table.add_column(
                column.title,
                width=cells,
                no_wrap=True,
                overflow="ellipsis",
                justify="right" if column.right else "left",
            )
        for index in shown:
            disk = progress.disks[index]
            texts = cells_of(disk, self._meters.disks[index], progress.stall is not None)
            row: list[RenderableType] = [
                ProgressBar(total=max(1, disk.size), completed=disk.size - disk.remaining)
                if column is _BAR
                else Text(texts[column.title], _STYLES.get(disk.state, ""))
                for column in columns
            ]
            table.add_row(*row)
        return table


def cells_of(disk: DiskProgress, meters: figures.DiskMeters, stalled: bool) -> dict[str, str]:
    """What stands in a disk's row, by the column's title."""
    rate = meters.rate(disk)
    eta = None if stalled else meters.eta(disk)
    ratio = figures.compression_ratio(disk.literal, disk.payload.total())
    return {
        _NAME.title: printable(disk.target),
        _PERCENT.title: figures.percent(disk.size - disk.remaining, disk.size),
        _RATE.title: figures.UNKNOWN if rate is None else format_rate(rate),
        _RATIO.title: figures.format_ratio(ratio),
        _SKIPPED.title: format_size(disk.skipped),
        _ETA.title: figures.format_eta(eta),
        _STATE.title: figures.format_state(disk),
    }


def fitting(width: int) -> dict[_Column, int]:
    """The columns that fit on ``width`` cells, and the cells each of them gets."""
    columns = list(_COLUMNS)
    for expendable in _EXPENDABLE:
        if _needed(columns) > width:
            columns.remove(expendable)
    cells = {column: column.width for column in columns}
    cells[_NAME] += min(_MAX_NAME - _NAME.width, max(0, width - _needed(columns)))
    return cells


def _needed(columns: list[_Column]) -> int:
    return sum(column.width + 1 for column in columns) - 1


def visible(disks: list[DiskProgress], lines: int) -> list[int]:
    """Indices of the disks to show on ``lines``: those at work and failed ones before the rest.

    A failed disk takes two lines. The order of the disks is kept.
    """

    def urgency(index: int) -> int:
        state = disks[index].state
        return 0 if state in figures.AT_WORK else 1 if state is TransferState.FAILED else 2

    chosen: list[int] = []
    for index in sorted(range(len(disks)), key=urgency):
        lines -= 2 if disks[index].error is not None else 1
        if lines < 0 and chosen:
            break
        chosen.append(index)
    return sorted(chosen)


def more(hidden: list[DiskProgress]) -> str:
    """Sum up the disks for which there is no room."""
    states = Counter(disk.state.value for disk in hidden)
    return f"and {len(hidden)} more: {', '.join(f'{n} {state}' for state, n in states.items())}"


def _line(text: str, style: str) -> RenderableType:
    return Text(text, style, no_wrap=True, overflow="ellipsis")
