"""What keeps a job from going on, and what to do about it. Pure."""

import time
from collections.abc import Iterable

from flatship_sender.queue.model import Job, JobState, paths_of


def waits_for(
    job: Job, running: Iterable[Job], *, places: int, draining: bool, now: float
) -> str | None:
    """Say in a sentence what ``job`` waits for; None if it waits for nothing.

    Args:
        job: Any job.
        running: Those that run at the moment.
        places: How many run at once.
        draining: Whether the daemon starts none any more.
        now: Unix time in seconds.
    """
    if job.state is JobState.RUNNING:
        return None if job.wanted is None else f"its worker, to leave and be {job.wanted.value}"
    if job.state is JobState.PAUSED:
        return f"you; run: flatship-sender resume {job.id}"
    if job.state not in (JobState.QUEUED, JobState.WAITING):
        return None
    if job.not_before is not None and job.not_before > now:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.not_before))
        if job.state is JobState.QUEUED:
            return f"its time, {when}"
        why = f" ({job.message})" if job.message else ""
        return f"its next try, {when}{why}; for one now run: flatship-sender resume {job.id}"
    if draining:
        return "the daemon, which is leaving, to be started again"
    running = list(running)
    for other in running:
        if both := paths_of(job.spec.sources) & paths_of(other.spec.sources):
            return f"job {other.id}, which reads {min(both)}"
        if (other.spec.receiver, other.spec.vm) == (job.spec.receiver, job.spec.vm):
            return f"job {other.id}, which sends {job.spec.vm} to {job.spec.receiver}"
    if len(running) >= places:
        return f"a place; {places} jobs run at once, those of higher priority first"
    return "its turn, which comes at once"
