"""A job for people: what it is, how far it is, what it waits for and what to do. Pure."""

import time
from collections.abc import Iterator

from flatship_sender.control.answers import JobView
from flatship_sender.display import log_line
from flatship_sender.figures import DiskMeters, stall, waiting_reasons, waiting_times
from flatship_sender.queue.model import Job
from flatship_sender.results import render_table
from flatship_sender.snapshot import Snapshot, restore
from flatship_service.printable import printable


def render(view: JobView, now: float) -> str:
    """Several lines; no newline at the end.

    Args:
        view: As the daemon answered.
        now: A monotonic reading, the moment at which it did.
    """
    return "\n".join(_lines(view, now))


def _lines(view: JobView, now: float) -> Iterator[str]:
    job = view.job
    state = job.state.value if job.wanted is None else f"stopping, to be {job.wanted.value}"
    attempts = f", attempt {job.attempts}" if job.attempts > 1 else ""
    yield f"job {job.id}: {state}{attempts}"
    if view.waits_for is not None:
        yield f"  waits for  {printable(view.waits_for)}"
    elif job.message is not None:
        yield f"  because    {printable(job.message)}"
    yield from _contents(job)
    if view.snapshot is not None:
        yield from _progress(view.snapshot, now)
    if job.result is not None:
        yield from render_table(job.result).splitlines()


def _contents(job: Job) -> Iterator[str]:
    spec = job.spec
    datastore = f", datastore {spec.datastore}" if spec.datastore else ""
    yield f"  VM         {printable(spec.vm)} to {printable(spec.receiver)}{printable(datastore)}"
    heading = "sources"
    for source in spec.sources:
        yield f"  {heading:<9}  {printable(source)}"
        heading = ""
    facts = [f"priority {job.priority}"]
    facts += [word for word, given in (("live", spec.live), ("replace", spec.replace)) if given]
    if job.key is not None:
        facts.append(f"key {job.key}")
    yield f"  {'with':<9}  {printable(', '.join(facts))}"
    for heading, moment in (
        ("submitted", job.submitted),
        ("started", job.started),
        ("ended", job.ended),
    ):
        if moment is not None:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
            by = f" by user {job.by_uid}" if heading == "submitted" else ""
            yield f"  {heading:<9}  {stamp}{by}"
    if job.exit_code is not None:
        yield f"  {'exit code':<9}  {job.exit_code}"


def _progress(snapshot: Snapshot, now: float) -> Iterator[str]:
    progress = restore(snapshot, now)
    for disk in progress.disks:
        yield f"  {log_line(disk, DiskMeters())}"
    if (stalled := stall(progress, now)) is not None:
        yield f"  {stalled}"
    if (waiting := progress.waiting) is not None:
        yield f"  {waiting_reasons(waiting)}; {waiting_times(waiting, now)}"
