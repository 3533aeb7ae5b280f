"""What the sender's page shows: transfers, and the queue they come from. Never blocks."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from flatship_sender import figures
from flatship_sender.figures import TransferMeters
from flatship_sender.progress import FINAL_STATES, DiskProgress, TransferProgress, TransferState
from flatship_sender.queue.model import Job, JobState
from flatship_service.meter import ETA_SPAN, Meter, seconds_left
from flatship_service.page.view import (
    MAX_DISKS,
    MAX_JOBS,
    MAX_PROBLEMS,
    DiskView,
    JobView,
    Problem,
    Sample,
    Tone,
    View,
    shown,
)

# What to do, by exit code: the messages say what was wrong.
_ADVICE: Final[Mapping[int, str]] = {
    2: "Change what the message names, and send it again.",
    3: "Send it again in the same way: it goes on where it stopped.",
    5: "Send it again in the same way, later: it goes on where it stopped.",
    10: "Check the name that the message gives, and send it again.",
    11: "Let the other one end or let go of the disk, and send it again.",
    12: "Have the receiver's operator permit it, or pair again with flatship-sender join.",
    130: "Send it again in the same way to go on with it.",
}
_OTHERWISE: Final = "See the message and the receiver's log; then send it again."
_STALLED: Final = "It goes on by itself when what it waits for does."
_LOST: Final = "Nothing: it connects again by itself for as long as --patience allows."

_TONES: Final[Mapping[TransferState, Tone]] = {
    TransferState.WAITING: Tone.IDLE,
    TransferState.PUBLISHED: Tone.GOOD,
    TransferState.UNPUBLISHED: Tone.GOOD,
    TransferState.FAILED: Tone.BAD,
    TransferState.CANCELLED: Tone.WARN,
}
_JOB_TONES: Final[Mapping[JobState, Tone]] = {
    JobState.RUNNING: Tone.BUSY,
    JobState.WAITING: Tone.WARN,
    JobState.DONE: Tone.GOOD,
    JobState.FAILED: Tone.BAD,
    JobState.CANCELLED: Tone.WARN,
}

Transfers = Callable[[], Iterable[tuple[str, TransferProgress]]]
"""The transfers that are under way, each under a name of its own that stays."""


class SenderPage:
    """See ``PageSource``.

    Args:
        transfers: What is looked at, once a second.
        version: Of the software.
        host: The machine's name.
        jobs: The queue's jobs that are worth showing, and how many there are in all; None
            where there is no queue.
        wall: Seconds since 1970.
    """

    def __init__(
        self,
        transfers: Transfers,
        version: str,
        host: str,
        *,
        jobs: Callable[[], tuple[Sequence[Job], int]] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._transfers = transfers
        self._version = version
        self._host = host
        self._jobs = jobs
        self._wall = wall
        self._watched: dict[str, tuple[TransferProgress, TransferMeters]] = {}
        self._wire = Meter()
        self._moved = Meter()
        self._last: dict[str, int] = {}
        self._looked = 0.0
        self._sent = 0
        self._told: set[tuple[str, str, str]] = set()
        self._problems: deque[Problem] = deque(maxlen=MAX_PROBLEMS)

    def look(self, now: float) -> Sample:
        """See ``PageSource.look``."""
        watched: dict[str, tuple[TransferProgress, TransferMeters]] = {}
        for name, progress in self._transfers():
            _, meters = self._watched.get(name, (progress, TransferMeters()))
            meters.look(progress, now)
            watched[name] = (progress, meters)
            if self._jobs is None:
                self._note_failures(name, progress)
        self._watched = watched
        progresses = [progress for progress, _ in watched.values()]
        wire = {name: progress.wire for name, (progress, _) in watched.items()}
        grown = sum(max(0, count - self._last.get(name, 0)) for name, count in wire.items())
        elapsed, first = now - self._looked, not self._looked
        self._last, self._looked = wire, now
        self._sent += grown
        self._wire.add(now, self._sent)
        rate = 0.0 if first or elapsed <= 0 else grown / elapsed
        levels = [disk.level for progress in progresses for disk in _at_work(progress)]
        return Sample(
            round(self._wall(), 1),
            round(rate),
            _limit(progresses),
            max((level for level in levels if level is not None), default=None),
        )

    def view(self, now: float) -> View:
        """See ``PageSource.view``."""
        disks: list[DiskView] = []
        count = 0
        for name, (progress, meters) in self._watched.items():
            count += len(progress.disks)
            for number, disk in enumerate(progress.disks[: MAX_DISKS - len(disks)]):
                disks.append(_disk(f"{name}-{number}", progress, disk, number, meters, now))
        progresses = [progress for progress, _ in self._watched.values()]
        every = [disk for progress in progresses for disk in progress.disks]
        state, tone = _state(progresses, every)
        jobs, in_all = ([], 0) if self._jobs is None else self._jobs()
        return View(
            program="sender",
            version=self._version,
            host=shown(self._host),
            at=round(self._wall(), 1),
            state=state,
            tone=tone,
            rate_of="on the wire, all overhead",
            rate=self._wire.rate(),
            left=self._left(),
            limit=_limit(progresses),
            compression=_compression(every),
            ratio=_ratio(every),
            disks=disks,
            more_disks=count - len(disks),
            queue=None if self._jobs is None else [_job(job) for job in jobs[:MAX_JOBS]],
            more_jobs=max(0, in_all - MAX_JOBS),
            problems=list(self._problems)[::-1],
        )

    def failed(self, job: Job) -> None:
        """A job has failed; its message tells which disks, if it came that far."""
        self._problems.append(
            Problem(
                at=round(self._wall(), 1),
                subject=shown(f"job {job.id}, {job.spec.vm}"),
                message=shown(job.message or "it failed"),
                advice=_ADVICE.get(job.exit_code or 1, _OTHERWISE),
            )
        )

    def _left(self) -> float | None:
        """Seconds until all that is under way is sent; the last of the transfers counts."""
        lefts = [
            seconds_left(
                sum(disk.remaining for disk in progress.disks if disk.state not in FINAL_STATES),
                meters.moved.rate(ETA_SPAN),
            )
            for progress, meters in self._watched.values()
            if progress.stall is None and progress.waiting is None
        ]
        return max((left for left in lefts if left), default=None)

    def _note_failures(self, name: str, progress: TransferProgress) -> None:
        for disk in progress.disks:
            key = (name, disk.target, disk.error or "")
            if disk.error is None or key in self._told:
                continue
            if len(self._told) >= 10 * MAX_PROBLEMS:
                self._told.clear()
            self._told.add(key)
            self._problems.append(
                Problem(
                    at=round(self._wall(), 1),
                    subject=shown(disk.target),
                    message=shown(disk.error),
                    advice=_ADVICE.get(disk.exit_code, _OTHERWISE),
                )
            )


def _at_work(progress: TransferProgress) -> Iterable[DiskProgress]:
    return (disk for disk in progress.disks if disk.state in figures.AT_WORK)


def _limit(progresses: Sequence[TransferProgress]) -> float | None:
    """The sum of the transfers' limits, None unless each has one."""
    limits = [progress.limit for progress in progresses]
    known = [limit for limit in limits if limit is not None]
    return sum(known) if known and len(known) == len(limits) else None


def _state(
    progresses: Sequence[TransferProgress], disks: Sequence[DiskProgress]
) -> tuple[str, Tone]:
    left = [disk for disk in disks if disk.state not in FINAL_STATES]
    if not left:
        failed = sum(disk.state is TransferState.FAILED for disk in disks)
        if failed:
            return f"{failed} of {len(disks)} failed", Tone.BAD
        return ("done", Tone.GOOD) if disks else ("idle", Tone.IDLE)
    count = f"{len(left)} disk" + ("s" if len(left) > 1 else "")
    if all(progress.waiting is not None for progress in progresses):
        return "waiting for the receiver", Tone.WARN
    if all(progress.stall is not None for progress in progresses):
        return f"{count} not getting on", Tone.WARN
    return f"sending {count}", Tone.BUSY


def _compression(disks: Sequence[DiskProgress]) -> str | None:
    at_work = [disk for disk in disks if disk.state is TransferState.SENDING and disk.payload]
    if not at_work:
        return None
    disk = at_work[0]
    if disk.level is None:
        return "off"
    return f"zstd level {disk.level}" + (" with history" if disk.history else "")


def _ratio(disks: Sequence[DiskProgress]) -> float | None:
    return figures.compression_ratio(
        sum(disk.literal for disk in disks), sum(disk.payload.total() for disk in disks)
    )


def _disk(
    key: str,
    progress: TransferProgress,
    disk: DiskProgress,
    number: int,
    meters: TransferMeters,
    now: float,
) -> DiskView:
    tone = _TONES.get(disk.state, Tone.BUSY)
    note, advice = figures.failure(disk), None
    ended = disk.state in FINAL_STATES
    if note is not None:
        advice = _ADVICE.get(disk.exit_code, _OTHERWISE)
    elif not ended and progress.waiting is not None:
        times = figures.waiting_times(progress.waiting, now)
        note, advice = f"{figures.waiting_reasons(progress.waiting)}; {times}", _LOST
        tone = Tone.WARN
    elif not ended and (stall := figures.stall(progress, now)) is not None:
        note, advice, tone = stall, _STALLED, Tone.WARN
    proving = disk.state is TransferState.PROVING and disk.to_prove
    vm, _, name = disk.target.partition("/")
    return DiskView(
        id=shown(key),
        vm=shown(vm),
        disk=shown(name.removesuffix(".vmdk")),
        peer=shown(progress.receiver),
        place=shown(disk.source),
        state=disk.state.value,
        tone=tone,
        size=disk.size,
        done=disk.size - disk.remaining,
        proof=disk.proved / disk.to_prove if proving else None,
        rate=meters.disks[number].rate(disk) if number < len(meters.disks) else None,
        left=meters.disks[number].eta(disk) if number < len(meters.disks) else None,
        ratio=_ratio([disk]),
        map=disk.map.text(),
        cell=disk.map.cell,
        note=None if note is None else shown(note),
        advice=advice,
    )


def _job(job: Job) -> JobView:
    return JobView(
        id=job.id,
        vm=shown(job.spec.vm),
        receiver=shown(job.spec.receiver),
        state=job.state.value,
        tone=_JOB_TONES.get(job.state, Tone.IDLE),
        disks=len(job.spec.sources),
        priority=job.priority,
        attempts=job.attempts,
        not_before=job.not_before,
        note=None if job.message is None else shown(job.message),
    )
