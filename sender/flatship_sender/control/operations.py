"""What can be asked of the daemon: the table that its server and its description are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from flatship_sender.control.answers import MAX_JOBS, Change, JobList, JobView, Status
from flatship_sender.queue.model import Job, JobState, Submission

MAX_BODY: Final = 256 << 10  # bytes
MAX_ID: Final = (1 << 63) - 1
LINES: Final = "application/x-ndjson"
JSON: Final = "application/json"

JobId: TypeAlias = Annotated[
    int, msgspec.Meta(ge=1, le=MAX_ID, description="The job's number.", examples=[1])
]


class JobPath(msgspec.Struct, frozen=True):
    """What stands in the path of one job."""

    id: JobId


class JobsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which jobs are asked for; all of them if nothing is said."""

    state: Annotated[
        list[JobState], msgspec.Meta(description="Jobs in these states; it may be repeated.")
    ] = []
    after: Annotated[
        int, msgspec.Meta(ge=0, le=MAX_ID, description="Jobs with larger numbers than this.")
    ] = 0
    limit: Annotated[
        int, msgspec.Meta(ge=1, le=MAX_JOBS, description="At most so many of them.")
    ] = MAX_JOBS


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A query that must be empty."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing to ask for.

    ``name`` is also that of the server's method which answers. ``answers`` are the successes,
    by status: the body's type, None for a body that ``content`` describes alone. ``faults``
    are the statuses beside those that every operation has.
    """

    name: str
    method: str
    path: str
    summary: str
    answers: Mapping[int, tuple[str, Any]]
    path_type: type[msgspec.Struct] = Nothing
    query_type: type[msgspec.Struct] = Nothing
    body: Any = None
    content: str = JSON
    faults: Sequence[int] = field(default=())


_OF_A_JOB: Final = "/v1/jobs/{id}"


def _steering(name: str, summary: str) -> Operation:
    return Operation(
        name,
        "POST",
        f"{_OF_A_JOB}/{name}",
        summary,
        {200: ("The job as it is now. A running one is `wanted` to get there.", Job)},
        path_type=JobPath,
        faults=(404, 409, 503),
    )


OPERATIONS: Final = (
    Operation(
        "status", "GET", "/v1/status", "How the daemon stands.", {200: ("Its status.", Status)}
    ),
    Operation(
        "jobs",
        "GET",
        "/v1/jobs",
        "The jobs, without their results.",
        {200: ("Jobs, in the order of their numbers.", JobList)},
        query_type=JobsQuery,
        faults=(503,),
    ),
    Operation(
        "submit",
        "POST",
        "/v1/jobs",
        "Put a job into the queue. A source that is not there is refused, unless the job has a"
        " time before which it does not start.",
        {
            200: ("The job that this key was given to before, with the same contents.", Job),
            201: ("The new job.", Job),
        },
        body=Submission,
        faults=(404, 409, 413, 415, 422, 503),
    ),
    Operation(
        "job",
        "GET",
        _OF_A_JOB,
        "A job as it stands, with its result once it has one.",
        {200: ("The job.", JobView)},
        path_type=JobPath,
        faults=(404, 503),
    ),
    Operation(
        "changes",
        "GET",
        f"{_OF_A_JOB}/changes",
        "A job's changes until it has ended, a JSON object a line as they come. Who reads slowly"
        " misses some, who does not read at all is dropped.",
        {200: ("Lines; the last one has the job in the state in which it ended.", Change)},
        path_type=JobPath,
        content=LINES,
        faults=(404, 503),
    ),
    _steering("pause", "Keep a job from running until it is resumed; a running one stops."),
    _steering("resume", "Let a paused job run again, or one that waits for its next try run now."),
    _steering("cancel", "End a job; what the receiver has of its disks stays incomplete there."),
    Operation(
        "drain",
        "POST",
        "/v1/drain",
        "Start no job, let running ones end, then leave.",
        {200: ("The daemon's status.", Status)},
    ),
    Operation(
        "openapi",
        "GET",
        "/v1/openapi.json",
        "This description.",
        {200: ("An OpenAPI document.", dict[str, Any])},
    ),
)
EVERYWHERE: Final = (400, 403)  # faults of every operation
