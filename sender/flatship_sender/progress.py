"""What a transfer has done so far: counted by the pipeline, read by bars, metrics and results.

Everything here is written on the event loop's thread and read from it.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from flatship_protocol.errors import ErrorCode

STAGES: Final = ("read", "digest", "compress", "seal", "send", "wait")


class TransferState(StrEnum):
    """Where one disk stands, in the words shown to people and exported as a label."""

    WAITING = "waiting"
    OPENING = "opening"
    SENDING = "sending"
    PROVING = "proving"
    PUBLISHED = "published"
    UNPUBLISHED = "unpublished"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATES: Final = frozenset(
    {
        TransferState.PUBLISHED,
        TransferState.UNPUBLISHED,
        TransferState.FAILED,
        TransferState.CANCELLED,
    }
)


@dataclass(slots=True)
class DiskProgress:
    """The counters of one disk. Sizes in bytes, times in seconds.

    ``skipped_hole`` was never read, ``skipped_zero`` was read and is zero.
    ``sent`` counts the bytes of chunks sealed so far, before compression;
    ``acked`` those of them that the receiver holds durably.
    ``wire`` counts whole records, headers and tags included.
    ``capacity`` is what the receiver makes of ``size``, once it has said so.
    ``started``, ``finished`` and ``last_progress`` are clock readings (monotonic);
    0 before the event.
    """

    source: str
    target: str
    size: int
    state: TransferState = TransferState.WAITING
    read: int = 0
    skipped_hole: int = 0
    skipped_zero: int = 0
    sent: int = 0
    acked: int = 0
    payload: Counter[str] = field(default_factory=Counter)
    wire: int = 0
    proved: int = 0
    to_prove: int = 0
    level: int | None = None
    started: float = 0.0
    finished: float = 0.0
    last_progress: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    root: bytes | None = None
    error: str | None = None
    error_code: ErrorCode | None = None
    exit_code: int = 0
    capacity: int | None = None

    @property
    def skipped(self) -> int:
        """Bytes of the disk that never become a chunk."""
        return self.skipped_hole + self.skipped_zero

    @property
    def remaining(self) -> int:
        """Bytes of the disk that are neither skipped nor acknowledged."""
        return max(0, self.size - self.skipped - self.acked)

    @property
    def seconds(self) -> float:
        """From the start of the disk to its end; 0 while it runs."""
        return max(0.0, self.finished - self.started)


@dataclass(slots=True)
class TransferProgress:
    """One command's transfer: its disks, and what they share.

    ``session_wire`` counts all bytes on the wire, those of handshakes and of the
    session's own records included, as of the last time somebody added them up.
    """

    receiver: str
    vm: str
    disks: list[DiskProgress] = field(default_factory=list)
    connections: int = 0
    session_wire: int = 0
    stalled_since: float | None = None

    @property
    def wire(self) -> int:
        """All bytes on the wire; never behind the disks' own counts."""
        return max(self.session_wire, sum(disk.wire for disk in self.disks))
