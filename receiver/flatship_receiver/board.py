"""The disks of a receiver as people are shown them: those that come, and those that came last.

Pipelines write here what happens to their disk, on the event loop; the page reads it.
"""

import time
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE, MAX_DISK_SIZE
from flatship_protocol.errors import ErrorCode, TransferError
from flatship_protocol.messages import OpenDisk
from flatship_receiver.stalls import WaitsFor
from flatship_service.disk_map import DiskMap, MapState

MAX_ENDED: Final = 64  # disks that are remembered after their end
MAX_TROUBLES: Final = 30


class DiskState(StrEnum):
    """Where a disk stands, in the words shown to people."""

    OPENING = "opening"
    RECEIVING = "receiving"
    PROVING = "proving"
    PUBLISHING = "publishing"
    COMPLETE = "complete"
    UNPUBLISHED = "proven, not published"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that went wrong; ``at`` is seconds since 1970."""

    at: float
    subject: str
    message: str
    code: ErrorCode


@dataclass(slots=True)
class ProofProgress:
    """Bytes read again and to be read, by the final read. Written in the proof's thread."""

    done: int = 0
    total: int = 0

    def update(self, done: int, total: int) -> None:
        """Note how far it is."""
        self.done, self.total = done, total


@dataclass(slots=True, eq=False)
class ShownDisk:
    """One disk. ``begun`` is a reading of the monotonic clock, and so is ``got_on_at``."""

    opening: OpenDisk
    sender: str
    datastore: str
    begun: float
    map: DiskMap
    state: DiskState = DiskState.OPENING
    proof: ProofProgress = field(default_factory=ProofProgress)
    waits_for: WaitsFor | None = None
    got_on_at: float = 0.0
    trouble: Trouble | None = None
    ended: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """Datastore, VM and disk: what stands there once it is complete."""
        return self.datastore, self.opening.vm, self.opening.name

    def held(self, offset: int, length: int) -> None:
        """A range is on record from an earlier session."""
        self.map.move(offset, length, MapState.UNREAD, MapState.HELD)

    def let_go(self, offset: int, length: int) -> None:
        """Part of what was held may come anew."""
        self.map.move(offset, length, MapState.HELD, MapState.UNREAD)

    def came(self, offset: int, length: int) -> None:
        """A chunk was written."""
        self.map.move(offset, length, MapState.UNREAD, MapState.SENT)

    def zeroed(self, offset: int, length: int, *, hole: bool) -> None:
        """A range was made zeros; ``hole``: its sender did not have to read it."""
        state = MapState.HOLE if hole else MapState.ZERO
        self.map.move(offset, length, MapState.UNREAD, state)

    def stored(self, offset: int, length: int) -> None:
        """A chunk is on stable storage, and on record."""
        self.map.move(offset, length, MapState.SENT, MapState.STORED)

    def proven(self, offset: int, length: int) -> None:
        """A chunk was read again, and is as it was sent."""
        self.map.move(offset, length, MapState.STORED, MapState.PROVEN)

    def all_proven(self) -> None:
        """All of the disk was, now or before."""
        self.map.prove()


class Board:
    """All disks worth showing, and what went wrong of late. Bounded."""

    def __init__(self) -> None:
        self.running: list[ShownDisk] = []
        self.ended: deque[ShownDisk] = deque(maxlen=MAX_ENDED)
        self.troubles: deque[Trouble] = deque(maxlen=MAX_TROUBLES)

    def begin(self, opening: OpenDisk, sender: str, datastore: str) -> ShownDisk:
        """A disk was asked for, and may come; ``end`` is due. A dry run is not shown."""
        now = time.monotonic()
        drawn = DiskMap(min(opening.size, MAX_DISK_SIZE), CHUNK_SIZE)
        disk = ShownDisk(opening, sender, datastore, now, drawn, got_on_at=now)
        if not opening.dry_run:
            for earlier in [each for each in self.ended if each.key == disk.key]:
                self.ended.remove(earlier)
            self.running.append(disk)
        return disk

    def end(self, disk: ShownDisk) -> None:
        """Nothing is to be expected of a disk any more."""
        disk.ended = True
        if disk in self.running:
            self.running.remove(disk)
            self.ended.append(disk)

    def failed(self, disk: ShownDisk, error: TransferError, *, resumable: bool) -> None:
        """A disk was given up; ``resumable``: what came of it stays, to be gone on with."""
        disk.state = DiskState.INTERRUPTED if resumable else DiskState.FAILED
        subject = f"{disk.opening.vm}/{disk.opening.name}"
        disk.trouble = Trouble(time.time(), subject, str(error), error.code)
        if not disk.opening.dry_run:
            self.troubles.append(disk.trouble)

    def refused(self, subject: str, message: str, code: ErrorCode) -> None:
        """Somebody asked for what is not to be had."""
        self.troubles.append(Trouble(time.time(), subject, message, code))
