"""One command's passes: a single one, or live ones until the downtime fits.

Each pass is sessions of its own (``Incarnations``). What a pass took is the difference of
counters that go on over all of them.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from flatship_sender.convergence import Convergence, Downtime, PassFigures, Verdict, project
from flatship_sender.downtimes import Downtimes
from flatship_sender.job import Cancelled
from flatship_sender.pass_words import DoesNotConverge
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState


class Sessions(Protocol):
    """What carries a pass; ``Incarnations`` is that."""

    stopped: bool

    async def run(self) -> None:
        """Send all disks once."""
        ...

    def begin_pass(self) -> bool:
        """Have ``run`` send anew what it has not published; False if there is nothing."""
        ...


async def _as_it_is() -> None:
    """Have the next pass read the sources as they are."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """``monotonic`` stamps progress, ``wall`` counts from 1970; both in seconds."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


class Passes:
    """Makes the passes of one command.

    Args:
        sessions: Carries them.
        progress: Theirs; reports are added to it.
        downtimes: What earlier commands have left, and what this one leaves.
        live: Whether the source is in use, and nothing published.
        budget: Seconds that the final pass may take; None for one live pass, whatever it shows.
        workers: Threads that read and digest.
        begun: When the command began, on the monotonic clock.
        renew: Brings the sources up to date for another pass.
        clocks: Where the time comes from.
    """

    def __init__(
        self,
        sessions: Sessions,
        progress: TransferProgress,
        downtimes: Downtimes,
        *,
        live: bool,
        budget: float | None,
        workers: int,
        begun: float,
        renew: Callable[[], Awaitable[None]] = _as_it_is,
        clocks: Clocks | None = None,
    ) -> None:
        self._sessions = sessions
        self._progress = progress
        self._downtimes = downtimes
        self._live = live
        self._budget = budget
        self._workers = workers
        self._begun = begun
        self._renew = renew
        self._clocks = clocks or Clocks()

    async def run(self) -> None:
        """Make the pass, or the passes; what became of each disk is in its progress.

        Raises:
            DoesNotConverge: More passes would not help.
            Cancelled: The command was stopped between two passes.
            SourceError: A source cannot be brought up to date.
            TransferError: A session failed, as ``Incarnations.run`` says.
        """
        earlier = self._downtimes.load()
        if not self._live:
            await self._run_final(earlier)
            return
        convergence = Convergence(self._budget, earlier)
        while True:
            figures = await self._run_one(TransferState.UNPUBLISHED)
            if figures is None:
                return
            report = convergence.add(figures)
            self._progress.passes.append(report)
            if self._all_are(TransferState.UNPUBLISHED):
                self._downtimes.save(convergence.passes)
            if self._budget is None or report.verdict is Verdict.FITS:
                return
            if report.verdict is Verdict.STUCK:
                raise DoesNotConverge(report, self._budget)
            if self._sessions.stopped:
                raise Cancelled
            await self._renew()
            if not self._sessions.begin_pass():
                return

    async def _run_final(self, earlier: list[PassFigures]) -> None:
        exposed = self._clocks.wall() - earlier[-1].began if earlier else None
        figures = await self._run_one(TransferState.PUBLISHED)
        if figures is None or not self._all_are(TransferState.PUBLISHED):
            return
        took = self._clocks.monotonic() - self._begun
        projection = None if exposed is None else project(earlier, exposed)
        self._progress.downtime = Downtime(
            seconds=took,
            opening=figures.opening,
            carrying=figures.carrying,
            proving=figures.proving,
            wire=figures.wire,
            exposed=exposed,
            projected=None if projection is None else projection.downtime,
        )
        if earlier:
            self._downtimes.conclude(self._progress.downtime, self._clocks.wall())

    async def _run_one(self, end: TransferState) -> PassFigures | None:
        """Make one pass; None if it was stopped, or brought no disk to ``end``.

        A disk that fails stops no other: the pass is that of those that did not.
        """
        taken = [disk for disk in self._progress.disks if disk.state is TransferState.WAITING]
        began, wall = self._clocks.monotonic(), self._clocks.wall()
        before = _Counts.of(self._progress)
        await self._sessions.run()
        done = [disk for disk in taken if disk.state is end]
        if not done or (self._sessions.stopped and len(done) < len(taken)):
            return None
        counts = _Counts.of(self._progress).less(before)
        return _figures(done, began, wall, counts, self._workers)

    def _all_are(self, state: TransferState) -> bool:
        return all(disk.state is state for disk in self._progress.disks)


@dataclass(frozen=True, slots=True)
class _Counts:
    """Sums over the disks: bytes, and seconds that workers and the link were busy."""

    read: int
    sent: int
    changed: int
    kept: int
    wire: int
    reading: float
    sending: float

    @classmethod
    def of(cls, progress: TransferProgress) -> "_Counts":
        disks = progress.disks
        return cls(
            read=sum(disk.read for disk in disks),
            sent=sum(disk.sent for disk in disks),
            changed=sum(disk.changed for disk in disks),
            kept=sum(disk.kept for disk in disks),
            wire=progress.wire,
            reading=sum(
                disk.stage_seconds["read"] + disk.stage_seconds["digest"] for disk in disks
            ),
            sending=progress.link_seconds,
        )

    def less(self, other: "_Counts") -> "_Counts":
        return _Counts(
            self.read - other.read,
            self.sent - other.sent,
            self.changed - other.changed,
            self.kept - other.kept,
            self.wire - other.wire,
            self.reading - other.reading,
            self.sending - other.sending,
        )


def _figures(
    disks: list[DiskProgress], began: float, wall: float, counts: _Counts, workers: int
) -> PassFigures:
    sending = min(disk.sending for disk in disks)
    proving = max(disk.proving for disk in disks)
    ended = max(disk.finished for disk in disks)
    return PassFigures(
        began=wall,
        seconds=ended - began,
        opening=max(0.0, sending - began),
        carrying=max(0.0, proving - sending),
        proving=max(0.0, ended - proving),
        reading=counts.reading / workers,
        sending=counts.sending,
        read=counts.read,
        changed=max(0, counts.changed - counts.kept),
        fresh=max(0, counts.sent - counts.changed),
        wire=counts.wire,
    )
