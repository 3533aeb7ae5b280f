"""What the control interface answers with, beside the queue's own records. Pure."""

from typing import Final

import msgspec

from flatship_sender.queue.model import Job, JobState
from flatship_sender.snapshot import Snapshot

SCHEMA_VERSION: Final = 1
MAX_JOBS: Final = 1000  # in one answer


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs, and what their sources come to in bytes as far as that is known."""

    jobs: int
    bytes: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How the daemon stands.

    ``places`` is how many jobs run at once. Once ``draining`` it starts none, and leaves when
    the last has ended. ``jobs`` has an amount for each state.
    """

    schema_version: int = SCHEMA_VERSION
    version: str
    pid: int
    draining: bool
    places: int
    jobs: dict[JobState, Amount]


class JobList(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs in the order of their numbers.

    ``next`` is what to pass as ``after`` for those that follow, null if these are the last.
    """

    schema_version: int = SCHEMA_VERSION
    jobs: list[Job]
    next: int | None


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it stands.

    ``waits_for`` says what keeps it from going on, and what to do about it; null if nothing
    does. ``snapshot`` is how far it is, null unless it runs.
    """

    schema_version: int = SCHEMA_VERSION
    job: Job
    waits_for: str | None = None
    snapshot: Snapshot | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of a job's changes: the job, or how far it is. An empty one says: still here.

    The last line is the job in the state that it ended in.
    """

    job: Job | None = None
    snapshot: Snapshot | None = None
