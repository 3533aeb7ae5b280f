"""One command's sessions, one after another, until its disks are done or patience ends."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from random import SystemRandom
from typing import Final, TypeAlias

from flatship_protocol.errors import TransferError
from flatship_sender.claims import Claim
from flatship_sender.client import Client
from flatship_sender.connecting import SessionName
from flatship_sender.job import Job
from flatship_sender.persistence import (
    PatienceEnded,
    Persistence,
    lacking,
    lost_with,
    worth_another_try,
)
from flatship_sender.pipeline import Transfer
from flatship_sender.progress import TransferProgress, TransferState, Waiting

_CHANCE: Final = SystemRandom().random

Begin: TypeAlias = Callable[
    [Sequence[Job], SessionName, Callable[[], None]], tuple[Transfer, Client]
]
"""Makes a session for some disks; the callback is the client's ``on_open``."""


class Incarnations:
    """Sends disks in as many sessions as it takes. Made on the event loop.

    Args:
        jobs: The disks.
        progress: Theirs.
        claim: Names the sessions.
        begin: Makes them.
        connections: How many each of them opens.
        patience: Seconds without progress after which the command gives up.
        command: The command line, to be told to the operator.
        clock: The one that stamps ``progress``.
        chance: Draws a number from 0 to 1.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        progress: TransferProgress,
        claim: Claim,
        begin: Begin,
        *,
        connections: int,
        patience: float,
        command: str,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = _CHANCE,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._all = self._jobs = jobs
        self._progress = progress
        self._claim = claim
        self._begin = begin
        self._connections = connections
        self._command = command
        self._clock = clock
        self._chance = chance
        self._sleep = sleep
        self._persistence = Persistence(patience, clock())
        self._established = False
        self._lost = False
        self.stopped = False
        """Whether ``stop`` was called."""
        self._transfer, self._client = begin(jobs, claim.current, self._opened)

    @property
    def shortfall(self) -> TransferError | None:
        """Why the last session made fewer connections than it was to make, if it did."""
        return self._client.shortfall

    async def run(self) -> None:
        """Send all disks once; what became of each is in its progress.

        Raises:
            PatienceEnded: A session was lost, and no other could be had in time.
            TransferError: The first session could not be had, the next one
                not be noted, or one failed in a way that would repeat itself.
                Disks that were not finished are marked failed, as with
                PatienceEnded.
        """
        try:
            while (lost_by := await self._run_one()) is not None:
                await self._sleep(self._prepare_next(lost_by))
        finally:
            self._progress.waiting = None

    def begin_pass(self) -> bool:
        """Have ``run`` send anew those disks that it has brought to their end and not published.

        Returns:
            False if there is none.

        Raises:
            EpochNotNoted: The next session could not be made durable.
        """
        again = [job for job in self._all if job.progress.state is TransferState.UNPUBLISHED]
        if not again:
            return False
        following = self._claim.renew()
        for job in again:
            job.progress.begin_again()
        self._persistence.progressed(self._clock())
        self._progress.begin_again(None)
        self._jobs = again
        self._transfer, self._client = self._begin(again, following, self._opened)
        return True

    def stop(self) -> bool:
        """Give up all disks; ``run`` ends soon after, if it is not cancelled.

        Returns:
            Whether there is somebody to say goodbye to, and so a reason to let ``run`` end.
        """
        self.stopped = True
        self._transfer.stop()
        for job in self._jobs:
            job.progress.finished = job.progress.finished or self._clock()
        return self._client.live > 0

    async def _run_one(self) -> TransferError | None:
        """Run the session that was begun; returns what it was lost by, if it was."""
        try:
            await self._transfer.run(self._client, self._connections)
        except TransferError as error:
            if not self._established or not worth_another_try(error):
                raise
            return error
        return None

    def _prepare_next(self, lost_by: TransferError) -> float:
        """Begin the next session with what the last one has left; returns when to run it."""
        now = self._clock()
        lost = [job for job in self._jobs if lost_with(job.progress, lost_by)]
        self._persistence.progressed(max(job.progress.last_progress for job in self._jobs))
        delay = self._persistence.next_delay(now, self._chance())
        if delay is None:
            for job in lost:
                job.progress.exit_code = PatienceEnded.exit_code
            missing = [lacking(job.progress) for job in lost]
            waited = self._persistence.waited(now)
            raise PatienceEnded(lost_by, waited, missing, self._command) from lost_by
        self._lost = True
        following = self._claim.renew()
        lost = [job.again() for job in lost]
        for job in lost:
            job.progress.begin_again()
        waited_for = self._progress.waiting
        reason, last_try = (
            (str(lost_by), None) if waited_for is None else (waited_for.reason, str(lost_by))
        )
        gives_up_at = self._persistence.gives_up_at
        self._progress.begin_again(Waiting(reason, last_try, now + delay, gives_up_at))
        self._jobs = lost
        self._transfer, self._client = self._begin(lost, following, self._opened)
        return delay

    def _opened(self) -> None:
        self._progress.reconnections += self._lost
        self._lost = False
        self._progress.waiting = None
        self._established = True
