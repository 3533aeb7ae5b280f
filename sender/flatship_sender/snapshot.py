"""A transfer's progress at a moment, for whoever is not in its process.

Clock readings mean something in one process alone, so a snapshot has ages in their place.
What reads progress (bars, metrics, results) reads a restored snapshot just as well.
"""

import time
from collections import Counter
from typing import Final

import msgspec

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.errors import ErrorCode
from flatship_sender.convergence import Downtime, PassReport
from flatship_sender.forecast.truth import Judged
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState, Waiting
from flatship_sender.stalls import Stall, WaitsFor
from flatship_service.disk_map import DiskMap
from flatship_service.printable import as_unicode

_READINGS: Final = ("started", "sending", "proving", "finished", "last_progress")


class DiskSnapshot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The counters of ``DiskProgress``, under its names. Sizes in bytes, times in seconds.

    ``started``, ``sending``, ``proving``, ``finished`` and ``last_progress`` are how long ago that
    was, null before the event. ``root`` is in hexadecimal, ``error_code`` in lower case, ``map`` a
    letter of ``MapState`` a cell.
    """

    source: str
    target: str
    size: int
    state: TransferState
    read: int
    skipped_hole: int
    skipped_zero: int
    sent: int
    acked: int
    held: int
    changed: int
    kept: int
    known: int
    wanted: int
    resent: int
    acked_before: int
    payload: dict[str, int]
    wire: int
    proved: int
    to_prove: int
    level: int | None
    history: bool
    started: float | None
    sending: float | None
    proving: float | None
    finished: float | None
    last_progress: float | None
    stage_seconds: dict[str, float]
    root: str | None
    error: str | None
    error_code: str | None
    exit_code: int
    capacity: int | None
    map: str


class WaitingSnapshot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why there is no session; ``next_try`` and ``gives_up`` are in so many seconds."""

    reason: str
    last_try: str | None
    next_try: float
    gives_up: float


class StallSnapshot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What has been waited for, and for how many seconds."""

    age: float
    waits_for: WaitsFor


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The counters of ``TransferProgress``, under its names; ``taken`` is Unix time in seconds."""

    taken: float
    receiver: str
    vm: str
    disks: list[DiskSnapshot]
    connections: int
    session_wire: int
    limit: float | None
    link_seconds: float
    stall: StallSnapshot | None
    reconnections: int
    waiting: WaitingSnapshot | None
    earlier_overhead: int
    passes: list[PassReport]
    downtime: Downtime | None
    forecast: Judged | None


def take(progress: TransferProgress, now: float, wall: float | None = None) -> Snapshot:
    """Take down how things stand.

    Args:
        progress: What to take; it is not kept.
        now: A reading of the clock that stamps ``progress``.
        wall: Unix time in seconds, the system's if absent.
    """
    stall, waiting = progress.stall, progress.waiting
    return Snapshot(
        taken=time.time() if wall is None else wall,
        receiver=as_unicode(progress.receiver),
        vm=as_unicode(progress.vm),
        disks=[_take_disk(disk, now) for disk in progress.disks],
        connections=progress.connections,
        session_wire=progress.session_wire,
        limit=progress.limit,
        link_seconds=progress.link_seconds,
        stall=None
        if stall is None
        else StallSnapshot(age=now - stall.since, waits_for=stall.waits_for),
        reconnections=progress.reconnections,
        waiting=None
        if waiting is None
        else WaitingSnapshot(
            reason=as_unicode(waiting.reason),
            last_try=None if waiting.last_try is None else as_unicode(waiting.last_try),
            next_try=waiting.next_try - now,
            gives_up=waiting.gives_up - now,
        ),
        earlier_overhead=progress.earlier_overhead,
        passes=list(progress.passes),
        downtime=progress.downtime,
        forecast=progress.forecast,
    )


def restore(snapshot: Snapshot, now: float) -> TransferProgress:
    """Make progress of a snapshot, as if it had been taken at ``now``, a monotonic reading."""
    stall, waiting = snapshot.stall, snapshot.waiting
    return TransferProgress(
        receiver=snapshot.receiver,
        vm=snapshot.vm,
        disks=[_restore_disk(disk, now) for disk in snapshot.disks],
        connections=snapshot.connections,
        session_wire=snapshot.session_wire,
        limit=snapshot.limit,
        link_seconds=snapshot.link_seconds,
        stall=None if stall is None else Stall(now - stall.age, stall.waits_for),
        reconnections=snapshot.reconnections,
        waiting=None
        if waiting is None
        else Waiting(
            waiting.reason, waiting.last_try, now + waiting.next_try, now + waiting.gives_up
        ),
        earlier_overhead=snapshot.earlier_overhead,
        passes=list(snapshot.passes),
        downtime=snapshot.downtime,
        forecast=snapshot.forecast,
    )


def _take_disk(disk: DiskProgress, now: float) -> DiskSnapshot:
    same = {name: getattr(disk, name) for name in DiskSnapshot.__struct_fields__}
    readings = {name: same[name] for name in _READINGS}
    return DiskSnapshot(
        **same
        | {name: now - reading if reading else None for name, reading in readings.items()}
        | {
            "source": as_unicode(disk.source),
            "target": as_unicode(disk.target),
            "payload": dict(disk.payload),
            "stage_seconds": dict(disk.stage_seconds),
            "root": None if disk.root is None else disk.root.hex(),
            "error": None if disk.error is None else as_unicode(disk.error),
            "error_code": None if disk.error_code is None else disk.error_code.name.lower(),
            "map": disk.map.text(),
        }
    )


def _restore_disk(disk: DiskSnapshot, now: float) -> DiskProgress:
    restored = DiskProgress(disk.source, disk.target, disk.size)
    for name in DiskSnapshot.__struct_fields__:
        setattr(restored, name, getattr(disk, name))
    for name in _READINGS:
        age = getattr(disk, name)
        setattr(restored, name, 0.0 if age is None else now - age)
    # Not those of the snapshot: a restored disk is free to count on.
    restored.payload = Counter(disk.payload)
    restored.stage_seconds = dict(disk.stage_seconds)
    restored.root = None if disk.root is None else bytes.fromhex(disk.root)
    restored.map = DiskMap.of_text(disk.size, CHUNK_SIZE, disk.map)
    restored.error_code = None if disk.error_code is None else ErrorCode[disk.error_code.upper()]
    return restored
