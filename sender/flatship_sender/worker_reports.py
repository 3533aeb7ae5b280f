"""What a worker tells the daemon."""

import msgspec

from flatship_sender.results import SendResult
from flatship_sender.snapshot import Snapshot


class WorkerOutcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of a job, as far as this worker got with it.

    ``again`` is whether another worker may do better later. ``message`` is null if all went well.
    """

    exit_code: int
    again: bool
    message: str | None
    result: SendResult | None


class Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of a worker. ``errors`` counts what went wrong so far, by error code in lower case."""

    snapshot: Snapshot | None = None
    errors: dict[str, int] = {}
    outcome: WorkerOutcome | None = None
