"""Shows a transfer while it runs: bars on a terminal, log lines anywhere else.

A display is told nothing by the pipeline. ``following`` looks at the progress objects
a few times a second, on the event loop's thread.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol, TextIO

from flatship_sender import figures
from flatship_sender.pass_words import pass_line
from flatship_sender.progress import (
    FINAL_STATES,
    DiskProgress,
    TransferProgress,
    TransferState,
)
from flatship_sender.stall_teller import StallTeller
from flatship_service.printable import printable
from flatship_service.units import format_duration, format_rate, format_size

LOG_INTERVAL: Final = 1.0  # seconds between two looks
LOG_LINE_INTERVAL: Final = 30.0  # seconds between two lines about a disk in one state
DUMB_TERMINALS: Final = ("dumb", "unknown")


class Display(Protocol):
    """Somewhere a transfer is shown."""

    @property
    def interval(self) -> float:
        """Seconds between two calls of ``show``."""
        ...

    def show(self, progress: TransferProgress, now: float) -> None:
        """Show how things stand.

        Args:
            progress: The same object at every call.
            now: A reading of the clock that stamps ``progress``.

        Raises:
            OSError: There is nobody left to look.
        """
        ...

    def close(self) -> None:
        """Leave the terminal as it was. Idempotent."""
        ...


def choose_display(stream: TextIO, *, json: bool = False, quiet: bool = False) -> Display:
    """The display that suits ``stream``.

    Args:
        stream: Standard error; results own standard output.
        json: A program reads the results: no bars, even on a terminal.
        quiet: Show nothing at all.
    """
    if quiet:
        return Silent()
    if json or not stream.isatty() or os.environ.get("TERM") in DUMB_TERMINALS:
        return LogLines(stream)
    # Only people at a terminal wait for rich to be imported.
    from rich.console import Console  # noqa: PLC0415

    from flatship_sender.bars import LiveBars  # noqa: PLC0415

    return LiveBars(Console(file=stream))


@asynccontextmanager
async def following(
    display: Display,
    progress: TransferProgress,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[None]:
    """Keep ``display`` up to date while the body runs, then show the end and close it.

    A terminal that goes away ends the display and not the transfer.
    """
    poll = asyncio.create_task(_poll(display, progress, clock))
    try:
        yield
    finally:
        watched = not poll.done()
        poll.cancel()
        await asyncio.wait({poll})
        try:
            if watched:
                display.show(progress, clock())
            display.close()
        except OSError:
            pass  # the terminal is gone
    if not poll.cancelled():
        poll.result()


async def _poll(display: Display, progress: TransferProgress, clock: Callable[[], float]) -> None:
    try:
        while True:
            display.show(progress, clock())
            await asyncio.sleep(display.interval)
    except OSError:
        return


class Silent:
    """Shows nothing."""

    interval = LOG_INTERVAL

    def show(self, progress: TransferProgress, now: float) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class LogLines:
    """A line for each disk at every change of state, and every 30 s while it is at work.

    Also one for all of several disks every 30 s, one when the limit changes, one for each live
    pass that has ended, and one when nothing moves, or the receiver is waited for, and every
    30 s of that.

    Args:
        stream: Where the lines go.
        wall: Seconds since 1970, for the time at the start of a line.
    """

    interval = LOG_INTERVAL

    def __init__(self, stream: TextIO, wall: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._wall = wall
        self._meters = figures.TransferMeters()
        self._said: dict[int, tuple[TransferState, float]] = {}  # by index: state, when
        self._stalls = StallTeller(LOG_LINE_INTERVAL)
        self._wait_said: tuple[str, float] | None = None  # the reasons, when
        self._reconnections = 0
        self._limit_said: tuple[float | None, float] | None = None  # the limit, when
        self._passes = 0
        self._total_said: float | None = None

    def show(self, progress: TransferProgress, now: float) -> None:
        """Write the lines that are due."""
        self._meters.look(progress, now)
        self._show_stall(progress, now)
        self._show_waiting(progress, now)
        self._show_limit(progress, now)
        for report in progress.passes[self._passes :]:
            self._write(f"{printable(progress.vm)}: {pass_line(report)}")
        self._passes = len(progress.passes)
        for index, disk in enumerate(progress.disks):
            meters = self._meters.disks[index]
            state, when = self._said.get(index, (TransferState.WAITING, now))
            due = disk.state in figures.AT_WORK and now - when >= LOG_LINE_INTERVAL
            if disk.state is not state or due:
                self._said[index] = (disk.state, now)
                self._write(log_line(disk, meters))
        self._show_total(progress, now)

    def close(self) -> None:
        """Do nothing: every line is complete."""

    def _show_total(self, progress: TransferProgress, now: float) -> None:
        """Also say how all disks stand, while there are several and any is at work."""
        if len(progress.disks) < 2 or self._total_said is None:
            self._total_said = now
            return
        at_work = any(disk.state in figures.AT_WORK for disk in progress.disks)
        if at_work and now - self._total_said >= LOG_LINE_INTERVAL:
            self._total_said = now
            self._write(f"{printable(progress.vm)}: {figures.total(progress, self._meters)}")

    def _show_stall(self, progress: TransferProgress, now: float) -> None:
        for line in self._stalls.lines(progress, now):
            self._write(line)

    def _show_waiting(self, progress: TransferProgress, now: float) -> None:
        if progress.reconnections != self._reconnections:
            self._reconnections = progress.reconnections
            self._write(f"{printable(progress.receiver)}: connected again")
        waiting = progress.waiting
        if waiting is None:
            self._wait_said = None
            return
        said, reasons = self._wait_said, figures.waiting_reasons(waiting)
        if said is None or said[0] != reasons or now - said[1] >= LOG_LINE_INTERVAL:
            self._wait_said = (reasons, now)
            times = figures.waiting_times(waiting, now)
            receiver = printable(progress.receiver)
            self._write(f"waiting for receiver {receiver}: {reasons}; {times}")

    def _show_limit(self, progress: TransferProgress, now: float) -> None:
        """Say what limit is in force when it is another; not each second, if it is shared."""
        limit, when = self._limit_said or (None, now - LOG_LINE_INTERVAL)
        if progress.limit != limit and now - when >= LOG_LINE_INTERVAL:
            self._limit_said = (progress.limit, now)
            said = "none" if progress.limit is None else format_rate(progress.limit)
            self._write(f"{printable(progress.receiver)}: limit {said}")

    def _write(self, line: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self._wall()))
        self._stream.write(f"{stamp} {line}\n")
        self._stream.flush()


def log_line(disk: DiskProgress, meters: figures.DiskMeters) -> str:
    """One line that says how a disk stands."""
    facts = [figures.format_state(disk)]
    if disk.state is TransferState.SENDING:
        done = figures.percent(disk.size - disk.remaining, disk.size)
        facts[0] += f" {done} of {format_size(disk.size)}"
    if (rate := meters.rate(disk)) is not None:
        facts.append(format_rate(rate))
    if disk.state is TransferState.SENDING:
        ratio = figures.compression_ratio(disk.literal, disk.payload.total())
        facts.append(f"ratio {figures.format_ratio(ratio)}")
        facts.append(f"{format_size(disk.skipped)} skipped")
    if disk.changed:
        facts.append(figures.changed(disk.changed, disk.kept))
    if disk.known:
        facts.append(figures.known(disk.known))
    if (eta := meters.eta(disk)) is not None:
        facts.append(f"{format_duration(eta)} left")
    if disk.state in FINAL_STATES and disk.seconds:
        facts.append(f"{format_size(disk.wire)} on the wire in {format_duration(disk.seconds)}")
    if (failure := figures.failure(disk)) is not None:
        facts[0] += f": {failure}"
    return f"{printable(disk.target)}: {', '.join(facts)}"
