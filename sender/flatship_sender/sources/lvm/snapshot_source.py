"""A volume that is in use, read by way of a snapshot: all of it as it was at one moment.

To the receiver, and in what is remembered of earlier passes, it is the volume itself. The
snapshot is there while it is read. What a guest writes meanwhile is kept apart for it, and that
takes room: before that runs out the snapshot is given up.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import Final, TypeAlias

from flatship_protocol.errors import SourceError, SourceReadError, SourceUnsuitable
from flatship_protocol.extents import Extent
from flatship_sender.sources.lvm.thin import ThinSource
from flatship_sender.sources.lvm.tools import ToolFailed
from flatship_sender.sources.lvm.volume_snapshots import TakenSnapshot, VolumeSnapshots
from flatship_sender.sources.lvm.volumes import Taken, Volume
from flatship_sender.sources.raw import RawSource
from flatship_service.cli import tell
from flatship_service.units import format_size

FULL: Final = 0.9  # of a pool or a snapshot; what is left is for the guest
_SHARE: Final = 0.2  # of a thick volume, that a snapshot has room for unless told otherwise

Open: TypeAlias = Callable[[str], RawSource | ThinSource]


class NoRoomForSnapshot(SourceError):
    """A snapshot would take, or has taken, room that is not there; make room and try again."""


@dataclass(frozen=True, slots=True)
class _Held:
    snapshot: TakenSnapshot
    device: RawSource | ThinSource


class SnapshotSource:
    """A ``BlockSource`` over a volume as it was when its snapshot was made.

    Args:
        origin: The volume, opened; may be closed afterwards.
        volume: The same, as LVM has it.
        snapshots: Makes them.
        room: Bytes that one of a thick volume may take; None for a fifth of it, if there is so
            much.
        open_device: Opens it.

    Raises:
        NoRoomForSnapshot: There is none for it.
        SourceError: It cannot be made or opened.
    """

    def __init__(
        self,
        origin: RawSource,
        volume: Volume,
        snapshots: VolumeSnapshots,
        room: int | None,
        open_device: Open,
    ) -> None:
        self.name = origin.name
        self.size = origin.size
        self.block_size = origin.block_size
        self.identity = origin.identity
        self.unseen_processes = 0  # whoever writes does not write here
        self._volume = volume
        self._snapshots = snapshots
        self._room = room
        self._open = open_device
        self._held: _Held | None = None
        self._given_up: SourceError | None = None
        self._readers = 0
        self._change = Condition()
        self.remarks = self._begin()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Runs of data and holes, as of the snapshot."""
        with self._reading() as held:
            return held.device.extents(offset, length)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` of the snapshot.

        Raises:
            NoRoomForSnapshot: It was given up, or overflowed.
            SourceReadError: The device failed.
            ValueError: As ``BlockSource.read_into``; or it is closed.
        """
        with self._reading() as held:
            try:
                held.device.read_into(buffer, offset)
            except SourceReadError as error:
                raise self._explained(held, error) from error

    def still_quiet(self) -> None:
        """Nothing to check: nobody writes to a snapshot."""

    def look(self) -> None:
        """Give the snapshot up, with what it takes, if there is little room left.

        Reads fail from then on, with the reason.
        """
        held = self._held
        if held is None:
            return
        try:
            problem = self._problem(self._snapshots.lvm.taken(held.snapshot.path))
        except ToolFailed as error:
            problem = f"nobody can say whether there is room for its snapshot: {error}"
        if problem is not None:
            self._release(held, NoRoomForSnapshot(f"source {self.name}: {problem}"))

    def renew(self) -> None:
        """Read the volume as it is now, from here on; one that was given up stays so.

        Raises:
            SourceError: As when it was made; then there is no snapshot any more.
        """
        if (held := self._held) is not None:
            self._release(held, None)
            self._begin()

    def close(self) -> None:
        """Remove the snapshot. Idempotent."""
        if (held := self._held) is not None:
            self._release(held, None)

    def _begin(self) -> tuple[str, ...]:
        """Take a snapshot and open it; returns what there is to say of that."""
        try:
            self._refuse_full_pool()
            snapshot = self._snapshots.take(self._volume, self._size_of_room())
        except (ToolFailed, OSError) as error:
            raise SourceUnsuitable(
                f"source {self.name}: no snapshot of it can be made: {error}"
            ) from error
        try:
            device = self._open(snapshot.path)
        except BaseException:
            self._remove(snapshot)
            raise
        held = self._held = _Held(snapshot, device)
        if device.size != self.size:
            resized = SourceUnsuitable(
                f"source {self.name} was resized just now: it has {device.size} bytes, and had"
                f" {self.size}; run the same command again"
            )
            self._release(held, resized)
            raise resized
        return device.remarks

    def _refuse_full_pool(self) -> None:
        if self._volume.pool is None:
            return
        taken = self._snapshots.lvm.taken(self.name)
        if taken.most >= FULL:
            raise NoRoomForSnapshot(
                f"source {self.name}: no snapshot of it is made, for {self._pool_has(taken)}:"
                f" {self._extend_pool()}"
            )

    def _size_of_room(self) -> int | None:
        """Bytes, whole extents, that the snapshot of a thick volume gets."""
        volume = self._volume
        if volume.pool is not None:
            return None
        extent = volume.extent
        wanted = int(volume.size * _SHARE) if self._room is None else self._room
        extents = max(1, -(-wanted // extent))
        free = volume.free // extent
        if not free or (self._room is not None and extents > free):
            raise NoRoomForSnapshot(
                f"source {self.name}: volume group {volume.group} has"
                f" {format_size(free * extent)} left, too little for a snapshot of"
                f" {format_size(extents * extent)}; make room there (vgextend, lvremove), or give"
                " --snapshot-size what there is"
            )
        return min(extents, free) * extent

    def _problem(self, taken: Taken) -> str | None:
        """Why the snapshot has to go, and what to do; None if it need not."""
        if taken.most < FULL:
            return None
        if self._volume.pool is not None:
            return (
                f"its snapshot was given up before the guest is hurt, for {self._pool_has(taken)}:"
                f" {self._extend_pool()}"
            )
        if taken.data is None:
            return f"its snapshot had no room for all that the guest has written; {_LARGER}"
        return f"its snapshot is {taken.data:.0%} full, and was given up; {_LARGER}"

    def _pool_has(self, taken: Taken) -> str:
        shares = f"data {taken.data or 0:.0%}, metadata {taken.metadata:.0%}"
        return f"its thin pool {self._volume.group}/{self._volume.pool} is almost full ({shares})"

    def _extend_pool(self) -> str:
        pool = f"{self._volume.group}/{self._volume.pool}"
        return f"extend it (lvextend {pool}, see lvmthin(7)) and run the same command again"

    def _explained(self, held: _Held, error: SourceReadError) -> SourceError:
        """What kept a snapshot from being read; an overflow rather than what follows from it."""
        try:
            problem = self._problem(self._snapshots.lvm.taken(held.snapshot.path))
        except ToolFailed:
            problem = None
        return error if problem is None else NoRoomForSnapshot(f"source {self.name}: {problem}")

    @contextmanager
    def _reading(self) -> Iterator[_Held]:
        with self._change:
            if self._held is None:
                raise self._given_up or ValueError(f"source {self.name} is closed")
            held = self._held
            self._readers += 1
        try:
            yield held
        finally:
            with self._change:
                self._readers -= 1
                self._change.notify_all()

    def _release(self, held: _Held, reason: SourceError | None) -> None:
        """Remove the snapshot once nobody reads it, unless somebody has released it already."""
        with self._change:
            if self._held is not held:
                return
            self._held, self._given_up = None, reason
            self._change.wait_for(lambda: not self._readers)
        held.device.close()
        self._remove(held.snapshot)

    def _remove(self, snapshot: TakenSnapshot) -> None:
        try:
            snapshot.remove()
        except (ToolFailed, OSError) as error:
            tell(
                f"warning: {self.name}: its snapshot {snapshot.full_name} cannot be removed:"
                f" {error}; the next run tries again"
            )


_LARGER: Final = "give it more with --snapshot-size and run the same command again"


def open_snapshot(
    path: str,
    open_origin: Callable[[str], RawSource],
    open_device: Open,
    snapshots: VolumeSnapshots,
    room: int | None,
) -> SnapshotSource:
    """Take a snapshot of a volume, to read it.

    Args:
        path: The volume, as the operator names it.
        open_origin: Opens it, as in use, and sees to it that it can be shipped.
        open_device: Opens the snapshot.
        snapshots: Makes it.
        room: As ``SnapshotSource``.

    Raises:
        UsageError: It is no logical volume.
        SourceError: As ``open_origin``, and as ``SnapshotSource``.
    """
    volume = snapshots.lvm.describe(path)
    with closing(open_origin(path)) as origin:
        return SnapshotSource(origin, volume, snapshots, room, open_device)
