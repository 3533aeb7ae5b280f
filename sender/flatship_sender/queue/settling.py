"""What becomes of a job whose worker has left. Pure."""

from dataclasses import dataclass
from typing import Final

from flatship_sender.queue.model import JobState
from flatship_sender.worker_reports import WorkerOutcome
from flatship_service.cli import FAILED, INTERRUPTED

MAX_DEATHS: Final = 5  # workers in a row that died of a job


@dataclass(frozen=True, slots=True)
class Settled:
    """What becomes of a job: its state, and fields beside it."""

    state: JobState
    message: str | None = None
    exit_code: int | None = None


def settle(
    outcome: WorkerOutcome | None,
    died_of: str | None,
    *,
    wanted: JobState | None,
    leaving: bool,
    deaths: int,
) -> Settled:
    """Judge what becomes of a job whose worker has left.

    Args:
        outcome: What the worker said at the end; None if nothing.
        died_of: What ended it, if that was not itself.
        wanted: What an operator wants of the job.
        leaving: Whether the daemon had it leave, to leave itself.
        deaths: How many workers of this job have died in a row, with this one if it did.
    """
    if outcome is not None and outcome.exit_code == 0:
        return Settled(JobState.DONE, None, 0)  # whatever was wanted came too late
    if wanted is not None:
        exit_code = INTERRUPTED if wanted is JobState.CANCELLED else None
        return Settled(wanted, None, exit_code)
    if outcome is None and not leaving:
        cause = "its worker died" + (f" by {died_of}" if died_of else " and did not say of what")
        if deaths >= MAX_DEATHS:
            return Settled(
                JobState.FAILED,
                f"{cause}, as did {deaths - 1} before it; see the daemon's log, and the kernel's"
                " if memory was short",
                FAILED,
            )
        return Settled(JobState.WAITING, f"{cause}; see the daemon's log")
    if outcome is None or outcome.exit_code == INTERRUPTED:
        if leaving:
            return Settled(JobState.QUEUED)
        return Settled(JobState.WAITING, "its worker was interrupted, by nobody who had it run")
    if outcome.again:
        return Settled(JobState.WAITING, outcome.message)
    return Settled(JobState.FAILED, outcome.message, outcome.exit_code)
