"""The queue, as the control interface sees it. All of it on the event loop."""

from collections.abc import AsyncGenerator, Collection, Mapping
from typing import Protocol

from flatship_sender.queue.model import Job, JobState, Submission
from flatship_sender.snapshot import Snapshot


class Queue(Protocol):
    """What is asked of the queue, on the event loop."""

    @property
    def draining(self) -> bool:
        """Whether it starts no job any more."""
        ...

    @property
    def places(self) -> int:
        """How many jobs run at once."""
        ...

    async def submit(self, submission: Submission, uid: int) -> tuple[Job, bool]:
        """Take a job in; whether it is new."""
        ...

    async def known(self, submission: Submission) -> Job | None:
        """The job that an earlier submission of the same key and contents has made."""
        ...

    async def jobs(self, states: Collection[JobState] | None, after: int, limit: int) -> list[Job]:
        """Jobs in these states, in any for None, with larger numbers than ``after``."""
        ...

    async def job(self, number: int) -> Job:
        """A job with its result."""
        ...

    async def pause(self, number: int) -> Job:
        """Keep it from running."""
        ...

    async def resume(self, number: int) -> Job:
        """Let it run again."""
        ...

    async def cancel(self, number: int) -> Job:
        """End it."""
        ...

    def drain(self) -> None:
        """Start none any more, and leave when the last has ended."""
        ...

    def snapshot(self, number: int) -> Snapshot | None:
        """How far a running job is."""
        ...

    def changes(self, number: int) -> AsyncGenerator[Snapshot | Job, None]:
        """A job as it stands, and what becomes of it to its end; close it when done with it."""
        ...

    def counts(self) -> Mapping[JobState, tuple[int, int]]:
        """Jobs and bytes by state."""
        ...
