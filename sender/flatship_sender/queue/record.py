"""The jobs that have not ended, in memory and in step with the store; and who follows them.

On the event loop. A change is on stable storage first and known here after, and one change
follows the other: whoever decides on one sees all that came before.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import structlog
from msgspec.structs import replace

from flatship_sender.queue.model import Job, JobState, Submission
from flatship_sender.queue.refusals import QueueError, QueueFull
from flatship_sender.queue.states import FINAL, Who, WrongState, check
from flatship_sender.queue.store import AsyncStore, Store
from flatship_sender.snapshot import Snapshot
from flatship_service.cli import INTERRUPTED
from flatship_service.workers import finished

MAX_LIVE: Final = 10_000  # jobs that have not ended; a few KiB of memory each
HISTORY: Final = 1_000  # jobs that have ended and are kept, whatever the clock says

log = structlog.get_logger()


class Record:
    """The jobs of one state folder.

    Args:
        store: Has them.
        wall: Unix time in seconds.
    """

    def __init__(self, store: AsyncStore, wall: Callable[[], float] = time.time) -> None:
        self._store = store
        self._wall = wall
        self._turn = asyncio.Lock()
        self._ended: Mapping[JobState, tuple[int, int]] = {}
        self._followers: dict[int, set[_Follower]] = {}
        self.live: dict[int, Job] = {}
        """By number; those that have not ended, without results."""
        self.snapshots: dict[int, Snapshot] = {}
        """How far running jobs are, and where those that wait or are paused were left."""
        self.changed = asyncio.Event()
        """Set whenever a job may have become one to start."""

    async def load(self) -> None:
        """Settle what an earlier daemon left running, and read what there is.

        Raises:
            QueueError: The store cannot be read, or not be written.
        """
        await self._store.run(Store.recover, self._wall())
        self.live = {job.id: job for job in await self._store.run(Store.live)}
        await self._forget_old()

    async def add(self, submission: Submission, uid: int) -> tuple[Job, bool]:
        """Take a job; see ``Queue.submit``."""
        return await finished(self._add(submission, uid))

    async def move(self, number: int, to: JobState, who: Who, **fields: Any) -> Job:
        """Bring a job to a state, and set further fields of it.

        Raises:
            NoSuchJob: There is none of that number.
            WrongState: It cannot get there from where it is.
            QueueError: It cannot be recorded. Nothing has changed.
        """
        return await finished(self._move(number, to, who, fields))

    async def note(self, number: int, **fields: Any) -> Job | None:
        """Set fields of a job that has not ended; None if it has.

        Raises:
            QueueError: They cannot be recorded. Nothing has changed.
        """
        return await finished(self._note(number, fields))

    async def want(self, number: int, state: JobState) -> Job:
        """Note what an operator wants of a running job; one that is not has it at once.

        Raises:
            NoSuchJob: There is none of that number.
            WrongState: It cannot get there, or is to be cancelled.
            QueueError: It cannot be recorded. Nothing has changed.
        """
        return await finished(self._want(number, state))

    def report(self, number: int, snapshot: Snapshot) -> None:
        """Make known how far a job is."""
        self.snapshots[number] = snapshot
        for follower in self._followers.get(number, ()):
            follower.show(snapshot)

    def counts(self) -> Mapping[JobState, tuple[int, int]]:
        """How many jobs are in each state, and how many bytes that is, as far as known."""
        counts = dict.fromkeys(JobState, (0, 0)) | dict(self._ended)
        for job in self.live.values():
            jobs, size = counts[job.state]
            counts[job.state] = (jobs + 1, size + (job.size or 0))
        return counts

    async def changes(self, number: int) -> AsyncGenerator[Snapshot | Job, None]:
        """What becomes of a job, from how it stands now to its end; see ``Queue.changes``.

        Raises:
            NoSuchJob: There is none of that number.
        """
        follower = _Follower()
        followers = self._followers.setdefault(number, set())
        followers.add(follower)
        try:
            job = self.live.get(number)
            follower.show(await self._store.run(Store.job, number) if job is None else job)
            if number in self.snapshots:
                follower.show(self.snapshots[number])
            while True:
                for change in await follower.next():
                    yield change
                    if isinstance(change, Job) and change.state in FINAL:
                        return
        finally:
            followers.discard(follower)
            if not followers and self._followers.get(number) is followers:
                del self._followers[number]

    # Whoever stops waiting for one of these waits all the same: what is on record is known here.

    async def _add(self, submission: Submission, uid: int) -> tuple[Job, bool]:
        async with self._turn:
            if len(self.live) >= MAX_LIVE:
                raise QueueFull(MAX_LIVE)
            job, new = await self._store.run(Store.add, submission, uid, self._wall())
            if new:
                self.live[job.id] = job
                self.changed.set()
        return job, new

    async def _move(self, number: int, to: JobState, who: Who, fields: dict[str, Any]) -> Job:
        async with self._turn:
            job = await self._current(number, to)
            check(number, job.state, to, who)
            ended = self._wall() if to in FINAL else None
            return await self._put(job, replace(job, state=to, ended=ended, **fields))

    async def _note(self, number: int, fields: dict[str, Any]) -> Job | None:
        async with self._turn:
            job = self.live.get(number)
            return None if job is None else await self._put(job, replace(job, **fields))

    async def _want(self, number: int, state: JobState) -> Job:
        async with self._turn:
            job = await self._current(number, state)
            if job.state is not JobState.RUNNING:
                check(number, job.state, state, Who.OPERATOR)
                cancelled = state is JobState.CANCELLED
                ended, exit_code = (self._wall(), INTERRUPTED) if cancelled else (None, None)
                return await self._put(
                    job, replace(job, state=state, ended=ended, exit_code=exit_code)
                )
            if job.wanted is JobState.CANCELLED and state is not JobState.CANCELLED:
                raise WrongState(number, JobState.CANCELLED, state)
            return await self._put(job, replace(job, wanted=state))

    async def _current(self, number: int, to: JobState) -> Job:
        job = self.live.get(number)
        if job is None:  # it has ended, or never was
            ended = await self._store.run(Store.job, number)
            raise WrongState(number, ended.state, to)
        return job

    async def _put(self, job: Job, becomes: Job) -> Job:
        await self._store.run(Store.put, becomes, job.state)
        if becomes.state in FINAL:
            del self.live[job.id]
            self.snapshots.pop(job.id, None)
            jobs, size = self._ended.get(becomes.state, (0, 0))
            self._ended = {**self._ended, becomes.state: (jobs + 1, size + (becomes.size or 0))}
        else:
            self.live[job.id] = becomes
        for follower in self._followers.get(job.id, ()):
            follower.show(becomes)
        self.changed.set()
        if becomes.state in FINAL:
            with suppress(QueueError):  # the job's end is on record, and the next one prunes too
                await self._forget_old()
        return becomes

    async def _forget_old(self) -> None:
        await self._store.run(Store.prune, HISTORY)
        self._ended = await self._store.run(Store.ended)


class _Follower:
    """Somebody who follows a job: has the newest of what is not yet told, and no more."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._snapshot: Snapshot | None = None
        self._news = asyncio.Event()

    def show(self, change: Snapshot | Job) -> None:
        if isinstance(change, Job):
            self._job = change
        else:
            self._snapshot = change
        self._news.set()

    async def next(self) -> list[Snapshot | Job]:
        """Wait for news; a snapshot comes before the end that it leads to."""
        await self._news.wait()
        self._news.clear()
        job, snapshot = self._job, self._snapshot
        self._job = self._snapshot = None
        told = [each for each in (snapshot, job) if each is not None]
        return told if job is not None and job.state in FINAL else told[::-1]
