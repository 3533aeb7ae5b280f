"""A queue in memory that does nothing by itself: tests say what becomes of its jobs."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping

import msgspec

from flatship_protocol.errors import TransferError
from flatship_sender.queue.model import Job, JobSpec, JobState, Submission
from flatship_sender.queue.states import FINAL, Who, check
from flatship_sender.snapshot import Snapshot


class NoSuchJob(TransferError):
    exit_code = 10


class KeyTaken(TransferError):
    exit_code = 11


def job(number: int = 1, state: JobState = JobState.QUEUED, **other: object) -> Job:
    """A job of one source."""
    given = {
        "spec": JobSpec(sources=["/dev/vg0/web01"], receiver="esx", vm="web01"),
        "priority": 0,
        "not_before": None,
        "key": None,
        "attempts": 0,
        "submitted": 1000.0,
        "started": None,
        "ended": None,
        "by_uid": 0,
    }
    return Job(id=number, state=state, **{**given, **other})  # type: ignore[arg-type]


class FakeQueue:
    """As ``Queue``; jobs change by ``becomes``."""

    places = 2

    def __init__(self) -> None:
        self.draining = False
        self.all: dict[int, Job] = {}
        self.snapshots: dict[int, Snapshot] = {}
        self.uids: list[int] = []
        self.followers = 0
        self._changed = asyncio.Event()

    def becomes(self, number: int, state: JobState, **other: object) -> Job:
        self.all[number] = msgspec.structs.replace(self.all[number], state=state, **other)
        self._wake()
        return self.all[number]

    def progresses(self, number: int, snapshot: Snapshot) -> None:
        self.snapshots[number] = snapshot
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def known(self, submission: Submission) -> Job | None:
        for known in self.all.values():
            if submission.key is not None and known.key == submission.key:
                if known.spec != submission.spec:
                    raise KeyTaken(f"key {submission.key!r} is that of job {known.id}")
                return known
        return None

    async def submit(self, submission: Submission, uid: int) -> tuple[Job, bool]:
        known = await self.known(submission)
        if known is not None:
            return known, False
        self.uids.append(uid)
        new = job(
            len(self.all) + 1,
            spec=submission.spec,
            priority=submission.priority,
            not_before=submission.not_before,
            key=submission.key,
            by_uid=uid,
        )
        self.all[new.id] = new
        return new, True

    async def jobs(self, states: Collection[JobState] | None, after: int, limit: int) -> list[Job]:
        wanted = list(JobState) if states is None else states
        found = [each for each in self.all.values() if each.id > after and each.state in wanted]
        return found[:limit]

    async def job(self, number: int) -> Job:
        if number not in self.all:
            raise NoSuchJob(f"there is no job {number}")
        return self.all[number]

    async def pause(self, number: int) -> Job:
        return await self._move(number, JobState.PAUSED)

    async def resume(self, number: int) -> Job:
        return await self._move(number, JobState.QUEUED)

    async def cancel(self, number: int) -> Job:
        return await self._move(number, JobState.CANCELLED)

    async def _move(self, number: int, to: JobState) -> Job:
        check(number, (await self.job(number)).state, to, Who.OPERATOR)
        return self.becomes(number, to)

    def drain(self) -> None:
        self.draining = True

    def snapshot(self, number: int) -> Snapshot | None:
        return self.snapshots.get(number)

    async def changes(self, number: int) -> AsyncGenerator[Snapshot | Job, None]:
        self.followers += 1
        told: object = None
        shown: object = None
        try:
            while True:
                changed = self._changed
                current, snapshot = await self.job(number), self.snapshots.get(number)
                if current is not told:
                    told = current
                    yield current
                    if current.state in FINAL:
                        return
                if snapshot is not None and snapshot is not shown:
                    shown = snapshot
                    yield snapshot
                await changed.wait()
        finally:
            self.followers -= 1

    def counts(self) -> Mapping[JobState, tuple[int, int]]:
        return {
            state: (sum(each.state is state for each in self.all.values()), 0) for state in JobState
        }
