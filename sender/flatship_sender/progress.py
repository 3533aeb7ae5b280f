"""What a transfer has done so far: counted by the pipeline, read by bars, metrics and results.

Everything here is written on the event loop's thread and read from it.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.errors import ErrorCode
from flatship_sender.convergence import Downtime, PassReport
from flatship_sender.forecast.truth import Judged
from flatship_sender.stalls import Stall
from flatship_service.disk_map import DiskMap

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
    ``held`` are bytes that the receiver held already when the session opened the disk,
    and that were not sent again.
    ``changed`` are bytes of chunks that the receiver held otherwise than they were read now:
    they are sent again, as data or as zeros. Those of all sessions of the command.
    ``kept`` are bytes of pages in those of them that were sent as data, and that need not have
    crossed the wire: they are as the receiver holds them. They are part of ``sent``.
    ``known`` are bytes of pages that the receiver has elsewhere, and was told to copy. They are
    part of ``sent``, too.
    ``wanted`` counts chunks that the receiver wanted whole after all.
    ``wire`` counts whole records, headers and tags included.
    ``resent`` is how much of ``sent`` went into sessions that were lost before it was
    acknowledged: counted twice, unless it turned out to be held after all.
    ``level`` is the zstd level in force, None where chunks go raw; with ``history`` they are coded
    as streams. ``sending`` and ``proving`` are since when the disk is at that, in the last
    session that came so far. ``capacity`` is what the receiver makes of ``size``, once it has
    said so. ``map`` is what became of each part of the disk, in the session that is on.
    ``started``, ``sending``, ``proving``, ``finished`` and ``last_progress`` are clock readings
    (monotonic); 0 before the event.
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
    held: int = 0
    changed: int = 0
    kept: int = 0
    known: int = 0
    wanted: int = 0
    resent: int = 0
    acked_before: int = 0  # in sessions that were lost
    payload: Counter[str] = field(default_factory=Counter)
    wire: int = 0
    proved: int = 0
    to_prove: int = 0
    level: int | None = None
    history: bool = False
    started: float = 0.0
    sending: float = 0.0
    proving: float = 0.0
    finished: float = 0.0
    last_progress: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    root: bytes | None = None
    error: str | None = None
    error_code: ErrorCode | None = None
    exit_code: int = 0
    capacity: int | None = None
    map: DiskMap = field(init=False)

    def __post_init__(self) -> None:
        self.map = DiskMap(self.size, CHUNK_SIZE)

    @property
    def skipped(self) -> int:
        """Bytes of the disk that never become a chunk."""
        return self.skipped_hole + self.skipped_zero

    @property
    def literal(self) -> int:
        """Bytes of the disk that crossed the wire, or would have without compression."""
        return self.sent - self.kept - self.known

    @property
    def remaining(self) -> int:
        """Bytes of the disk that are neither skipped nor held, then or now, by the receiver."""
        return max(0, self.size - self.skipped - self.held - self.acked)

    @property
    def seconds(self) -> float:
        """From the start of the disk to its end; 0 while it runs."""
        return max(0.0, self.finished - self.started)

    def begin_again(self) -> None:
        """Wait for another session: one was lost, or another pass is to follow.

        What was done in it stays done: bytes read, sent and on the wire, time
        spent. What says how far the copy is starts from nothing, because the
        next session counts all of the disk anew.
        """
        self.acked_before += self.acked
        self.resent = self.sent - self.acked_before
        self.state = TransferState.WAITING
        self.skipped_hole = self.skipped_zero = self.acked = self.held = 0
        self.proved = self.to_prove = 0
        self.finished = 0.0
        self.root = self.error = self.error_code = None
        self.exit_code = 0
        self.map.clear()


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why there is no session, and until when.

    ``reason`` is what the last one was lost by, ``last_try`` why no other took its place
    since, if that was tried. Both times are clock readings (monotonic).
    """

    reason: str
    last_try: str | None
    next_try: float
    gives_up: float


@dataclass(slots=True)
class TransferProgress:
    """One command's transfer: its disks, and what they share.

    ``session_wire`` counts all bytes on the wire but ``earlier_overhead``, those of
    handshakes and of the session's own records included, as of the last time somebody
    added them up. ``reconnections`` are sessions after the first.
    ``link_seconds`` is how long the link kept chunks waiting.
    ``stall`` is set while nothing gets on, and a session is there to blame for it.
    ``limit`` is the one in force, in bytes a second on the wire; None for none.
    ``waiting`` is set from the loss of a session until the next one stands.
    ``passes`` are the live ones that have ended, ``downtime`` a final one that was published.
    ``forecast`` is what ``plan`` had foreseen of it, beside the truth.
    """

    receiver: str
    vm: str
    disks: list[DiskProgress] = field(default_factory=list)
    connections: int = 0
    session_wire: int = 0
    limit: float | None = None
    link_seconds: float = 0.0
    stall: Stall | None = None
    reconnections: int = 0
    waiting: Waiting | None = None
    earlier_overhead: int = 0  # bytes that ended sessions put on the wire beside the disks' own
    passes: list[PassReport] = field(default_factory=list)
    downtime: Downtime | None = None
    forecast: Judged | None = None

    @property
    def wire(self) -> int:
        """All bytes on the wire; never behind the disks' own counts."""
        return self.earlier_overhead + max(self.session_wire, self._disks_wire)

    @property
    def _disks_wire(self) -> int:
        return sum(disk.wire for disk in self.disks)

    def begin_again(self, waiting: Waiting | None) -> None:
        """Note that a session has ended, and that there will be another one.

        Args:
            waiting: For what, if it was lost.
        """
        self.earlier_overhead += max(0, self.session_wire - self._disks_wire)
        self.session_wire = 0
        self.stall = None
        self.waiting = waiting
