"""Starts, follows and stops the workers of jobs, and says what becomes of a job when one has left.

Nothing of it is lost with the daemon: what a transfer needs to go on is at the receiver and in
the source, and a job that was running is queued again by the next daemon.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any, Final, Protocol

import structlog

from flatship_sender.queue.model import Job, JobState, Task
from flatship_sender.queue.process import Locks, Worker, start
from flatship_sender.queue.record import Record
from flatship_sender.queue.refusals import QueueError
from flatship_sender.queue.scheduler import LONGEST_PAUSE, Candidate, claims, pause, startable
from flatship_sender.queue.settling import settle
from flatship_sender.queue.states import FINAL, MAY_START, Who, WrongState
from flatship_sender.worker_reports import Report, WorkerOutcome
from flatship_service.cli import FAILED
from flatship_service.units import format_duration

LOOK: Final = 1.0  # seconds; clocks are set, and nobody tells
GOODBYE: Final = 10.0  # seconds that a worker gets to leave before it is killed
GONE: Final = 5.0  # seconds that one gets after that, which only a device can hold up
WRITE_AGAIN: Final = 2.0  # seconds until what could not be recorded is tried again

_CHANCE: Final = SystemRandom().random

log = structlog.get_logger()


class Watcher(Protocol):
    """Who is told what workers report."""

    def began(self, job: Job) -> None:
        """A worker was started."""

    def reported(self, job: Job, report: Report) -> None:
        """It has said how far it is."""

    def left(self, job: Job) -> None:
        """It has left, and this has become of its job."""


@dataclass(slots=True)
class _Running:
    """A job that has a worker, or is about to."""

    task: asyncio.Task[None] | None = None
    worker: Worker | None = None
    leave: bool = False
    killing: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Past:
    """What was learnt of a job in this daemon's life: tries in a row that got nowhere."""

    failures: int = 0
    deaths: int = 0
    retry_at: float | None = None  # on the monotonic clock
    acked: int = 0


class Supervisor:
    """The workers of one daemon. On the event loop.

    Args:
        record: The jobs.
        state: The sender's state folder.
        config: The configuration file; None for the system's.
        at_once: How many jobs may run at once.
        locks: The workers' locks.
        watcher: Told what workers report.
        launch: Starts a worker, as ``process.start`` does.
        wall: Unix time in seconds.
        monotonic: The clock of pauses.
        chance: Draws a number from 0 to 1.
    """

    def __init__(
        self,
        record: Record,
        state: Path,
        config: Path | None,
        at_once: int,
        locks: Locks,
        watcher: Watcher,
        *,
        launch: Callable[[Task, int], Awaitable[Worker]] = start,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = _CHANCE,
    ) -> None:
        self._record = record
        self._state = state
        self._config = config
        self._locks = locks
        self._watcher = watcher
        self._launch = launch
        self._wall = wall
        self._monotonic = monotonic
        self._chance = chance
        self._running: dict[int, _Running] = {}
        self._past: dict[int, _Past] = {}
        self._held: set[int] = set()  # by workers of an earlier daemon
        self._leaving = False
        self.at_once = at_once
        """How many jobs may run at once; may be set at any time."""
        self.draining = asyncio.Event()
        """Set when no further job is to be started."""
        self.idle = asyncio.Event()
        """Set while no worker runs."""
        self.idle.set()

    @property
    def running(self) -> int:
        """How many jobs have a worker."""
        return len(self._running)

    async def run(self) -> None:
        """Start what may start, until cancelled."""
        while True:
            self._record.changed.clear()
            if not self.draining.is_set():
                await self._start_due()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._record.changed.wait()

    def have_leave(self, job: int) -> None:
        """Have a job's worker leave, if it has one; what it is to become is on record."""
        running = self._running.get(job)
        if running is not None:
            running.leave = True
            self._tell_to_leave(running)

    def retry_now(self, job: int) -> None:
        """Forget that a job was to wait."""
        self._past.pop(job, None)

    def read_again(self) -> None:
        """Have all workers read their configuration again."""
        for running in self._running.values():
            if running.worker is not None:
                running.worker.read_again()

    async def stop(self) -> None:
        """Have all workers leave, and wait until they have or cannot be made to.

        Their jobs are queued again.
        """
        self._leaving = True
        self.draining.set()
        tasks = []
        for running in self._running.values():
            running.leave = True
            self._tell_to_leave(running)
            if running.task is not None:
                tasks.append(running.task)
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=GOODBYE + GONE)
            for task in left:  # a device holds it up; its lock tells the next daemon
                task.cancel()

    async def _start_due(self) -> None:
        live = self._record.live
        self._past = {job: past for job, past in self._past.items() if job in live}
        self._held = {job for job in self._held if job in live and self._locks.is_held(job)}
        taken = {
            claim for number in self._running if number in live for claim in _claims(live[number])
        }
        due = startable(
            (self._candidate(job) for job in live.values() if self._may_start(job)),
            taken,
            self.at_once - len(self._running),
            wall=self._wall(),
            monotonic=self._monotonic(),
        )
        for number in due:
            try:
                await self._start(number)
            except (QueueError, OSError) as error:
                log.error("job cannot be started", job=number, reason=str(error))  # noqa: TRY400
                return  # the disk is full, or the system out of something; at the next look
            except WrongState:
                continue  # an operator was faster

    def _may_start(self, job: Job) -> bool:
        return job.state in MAY_START and job.id not in self._running and job.id not in self._held

    def _candidate(self, job: Job) -> Candidate:
        if job.state is not JobState.WAITING:
            return Candidate(job.id, job.priority, _claims(job), job.not_before)
        past = self._past.setdefault(job.id, _Past())
        if past.retry_at is None:  # an earlier daemon has set the time, by a clock that was set
            left = max(0.0, (job.not_before or 0.0) - self._wall())
            past.retry_at = self._monotonic() + min(left, LONGEST_PAUSE)
        return Candidate(job.id, job.priority, _claims(job), retry_at=past.retry_at)

    async def _start(self, number: int) -> None:
        lock = self._locks.take(number)
        if lock is None:
            self._held.add(number)
            self._record.changed.set()  # another may start in its place
            log.warning("the job's worker of before still lives; waiting for it", job=number)
            return
        try:
            before = self._record.live[number]
            job = await self._record.move(
                number,
                JobState.RUNNING,
                Who.DAEMON,
                attempts=before.attempts + 1,
                started=before.started or self._wall(),
                message=None,
                exit_code=None,
            )
        except BaseException:
            os.close(lock)
            raise
        running = self._running[number] = _Running()
        self.idle.clear()
        running.task = asyncio.create_task(self._run(job, running, lock))

    async def _run(self, job: Job, running: _Running, lock: int) -> None:
        try:
            try:
                outcome, died_of = await self._follow(job, running, lock)
            except Exception as error:  # of ours; the job is not to be left without an end
                log.exception("worker cannot be followed", job=job.id)
                if running.worker is not None:
                    running.worker.kill()
                outcome, died_of = None, f"{type(error).__name__}: {error}"
            self._watcher.left(await self._end(job.id, outcome, died_of))
        finally:
            if running.killing is not None:
                running.killing.cancel()
            del self._running[job.id]
            if not self._running:
                self.idle.set()
            self._record.changed.set()

    async def _follow(
        self, job: Job, running: _Running, lock: int
    ) -> tuple[WorkerOutcome | None, str | None]:
        # A job that was tried before may have got further than anybody noted.
        in_doubt = job.attempts > 1
        config = None if self._config is None else str(self._config)
        task = Task(
            job=job.id, spec=job.spec, state=str(self._state), config=config, in_doubt=in_doubt
        )
        try:
            worker = running.worker = await self._launch(task, lock)
        except OSError as error:
            message = f"no worker could be started: {error.strerror or error}"
            return WorkerOutcome(exit_code=FAILED, again=True, message=message, result=None), None
        finally:
            os.close(lock)  # from here on it is the worker's
        log.info("job started", job=job.id, vm=job.spec.vm, attempt=job.attempts)
        self._watcher.began(job)
        if running.leave:
            self._tell_to_leave(running)
        outcome = None
        async for report in worker.reports():
            if report.snapshot is not None:
                self._record.report(job.id, report.snapshot)
                self._note_progress(job.id, report)
            self._watcher.reported(job, report)
            outcome = report.outcome or outcome
        return outcome, await worker.wait()

    def _note_progress(self, number: int, report: Report) -> None:
        """Let pauses be short again once something got on."""
        assert report.snapshot is not None
        acked = sum(disk.acked + disk.acked_before for disk in report.snapshot.disks)
        past = self._past.setdefault(number, _Past())
        if acked > past.acked:
            past.failures = past.deaths = 0
        past.acked = acked

    async def _end(self, number: int, outcome: WorkerOutcome | None, died_of: str | None) -> Job:
        """Record what has become of a job, however long that takes."""
        past = self._past.setdefault(number, _Past())
        past.deaths = past.deaths + 1 if outcome is None else 0
        while True:
            settled = settle(
                outcome,
                died_of,
                wanted=self._record.live[number].wanted,
                leaving=self._leaving,
                deaths=past.deaths,
            )
            fields: dict[str, Any] = {
                "wanted": None,
                "message": settled.message,
                "exit_code": settled.exit_code,
            }
            delay = 0.0
            if settled.state is JobState.WAITING:
                delay = pause(past.failures + 1, self._chance())
                fields["not_before"] = self._wall() + delay
                past.retry_at = self._monotonic() + delay
                self._past[number] = past
            if settled.state in FINAL and outcome is not None:
                fields["result"] = outcome.result
            try:
                job = await self._record.move(number, settled.state, Who.DAEMON, **fields)
            except QueueError as error:
                log.error("job cannot be recorded", job=number, reason=str(error))  # noqa: TRY400
                await asyncio.sleep(WRITE_AGAIN)
                continue
            break
        if settled.state is JobState.WAITING:
            past.failures += 1
        else:
            self._past.pop(number, None)
        if settled.state in FINAL:
            self._locks.forget(number)
        self._say(job, delay)
        return job

    def _say(self, job: Job, delay: float) -> None:
        again = {"again_in": format_duration(delay)} if delay else {}
        why = {"reason": job.message} if job.message else {}
        log.info(f"job {job.state.value}", job=job.id, vm=job.spec.vm, **why, **again)

    def _tell_to_leave(self, running: _Running) -> None:
        worker = running.worker
        if worker is None or running.killing is not None:
            return  # it is told as soon as it is there, or was
        worker.leave()
        running.killing = asyncio.get_running_loop().call_later(GOODBYE, worker.kill)


def _claims(job: Job) -> frozenset[tuple[str, ...]]:
    return claims(job.spec)
