"""The queue as clients see it: submit, look, pause, resume, cancel, follow. On the event loop."""

from collections.abc import AsyncGenerator, Collection, Mapping

from flatship_sender.queue.model import Job, JobState, Submission
from flatship_sender.queue.record import Record
from flatship_sender.queue.refusals import NotTaken
from flatship_sender.queue.sizes import Sizes
from flatship_sender.queue.states import Who
from flatship_sender.queue.store import LISTED, AsyncStore, Store
from flatship_sender.queue.supervisor import Supervisor
from flatship_sender.snapshot import Snapshot


class Queue:
    """The queue of one daemon.

    Every method that is given a number raises ``NoSuchJob`` if there is no job of that number;
    every one that changes something raises ``QueueNotWritable`` if that cannot be recorded, and
    has changed nothing then.

    Args:
        record: The jobs.
        store: Has those that have ended, too.
        supervisor: Runs them.
        sizes: Finds out how large sources are.
    """

    def __init__(
        self, record: Record, store: AsyncStore, supervisor: Supervisor, sizes: Sizes
    ) -> None:
        self._record = record
        self._store = store
        self._supervisor = supervisor
        self._sizes = sizes
        self._closed = False

    @property
    def draining(self) -> bool:
        """Whether no job is started any more."""
        return self._supervisor.draining.is_set()

    @property
    def places(self) -> int:
        """How many jobs run at once."""
        return self._supervisor.at_once

    async def submit(self, submission: Submission, uid: int) -> tuple[Job, bool]:
        """Take a job; it is on stable storage when this returns.

        Args:
            submission: What is asked for.
            uid: Who asks.

        Returns:
            The job, and whether it is new: the same key and contents make no other.

        Raises:
            KeyTaken: The key belongs to a job of other contents.
            QueueFull: There are too many jobs that have not ended.
            NotTaken: The daemon is leaving.
        """
        if self._closed:
            raise NotTaken
        job, new = await self._record.add(submission, uid)
        if new:
            self._sizes.measure(job)
        return job, new

    async def known(self, submission: Submission) -> Job | None:
        """The job that was made of this key and these contents before, if any.

        Raises:
            KeyTaken: The key belongs to a job of other contents.
        """
        return await self._store.run(Store.known, submission)

    async def jobs(
        self, states: Collection[JobState] | None = None, after: int = 0, limit: int = LISTED
    ) -> list[Job]:
        """Jobs in any of ``states`` (None for all), numbers above ``after`` first, without results.

        At most ``limit``, and LISTED. The last number of one list is ``after`` of the next.
        """
        wanted = tuple(JobState) if states is None else tuple(states)
        return await self._store.run(Store.jobs, wanted, after, max(0, min(limit, LISTED)))

    async def job(self, number: int) -> Job:
        """One job, with its result if it has ended."""
        return await self._store.run(Store.job, number)

    async def pause(self, number: int) -> Job:
        """Have a job wait until it is resumed. A running one says goodbye first; see ``wanted``.

        Raises:
            WrongState: It is paused already, is being cancelled, or has ended.
        """
        return await self._wish(number, JobState.PAUSED)

    async def resume(self, number: int) -> Job:
        """Let a paused job go on, or one that waits try again at once.

        Raises:
            WrongState: It is neither.
        """
        job = await self._record.move(
            number, JobState.QUEUED, Who.OPERATOR, not_before=None, message=None
        )
        self._supervisor.retry_now(number)
        return job

    async def cancel(self, number: int) -> Job:
        """End a job without its being done. A running one says goodbye first; see ``wanted``.

        What was published before that stays published, and the job counts as done if that was all.

        Raises:
            WrongState: It has ended.
        """
        return await self._wish(number, JobState.CANCELLED)

    def drain(self) -> None:
        """Start no further job, and have the daemon leave when no more run."""
        self._supervisor.draining.set()

    async def drained(self) -> None:
        """Wait until ``drain`` was called and nothing runs any more."""
        await self._supervisor.draining.wait()
        await self._supervisor.idle.wait()

    def close(self) -> None:
        """Take no more jobs: the daemon is leaving."""
        self._closed = True

    def snapshot(self, number: int) -> Snapshot | None:
        """How far a job is, if that is known: it runs, or did and has not ended."""
        return self._record.snapshots.get(number)

    def changes(self, number: int) -> AsyncGenerator[Snapshot | Job, None]:
        """A job as it stands, and what becomes of it, to its end; close it when done with it.

        The last thing told is the job that has ended, with its result. Who is slow to take one
        gets the newest next, and what lay between is left out.
        """
        return self._record.changes(number)

    def counts(self) -> Mapping[JobState, tuple[int, int]]:
        """How many jobs are in each state, and their bytes as far as known."""
        return self._record.counts()

    async def _wish(self, number: int, state: JobState) -> Job:
        """Bring a job to a state, or have its worker leave first."""
        job = await self._record.want(number, state)
        self._supervisor.have_leave(number)
        return job
