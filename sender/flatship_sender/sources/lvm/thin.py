"""Thin volumes: what the pool has not mapped is a hole, and is not read."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from flatship_protocol.errors import SourceUnsuitable
from flatship_protocol.extents import Extent
from flatship_sender.sources.lvm.device_mapper import (
    ThinVolume,
    device_path,
    pool_status,
    thin_volume,
)
from flatship_sender.sources.lvm.metadata_snapshot import (
    SnapshotTaken,
    metadata_snapshot,
    notes_folder,
    release_leftovers,
)
from flatship_sender.sources.lvm.thin_map import ChunkMap, MapUnreadable, read_thin_map
from flatship_sender.sources.lvm.tools import ToolFailed, reading
from flatship_sender.sources.raw import RawSource


class ThinSource:
    """A ``BlockSource`` over a thin volume: the device's bytes, and the pool's knowledge of holes.

    Args:
        device: The volume, opened; what was written to it before is in the pool.
        mapped: Where it has anything, taken since.
    """

    def __init__(self, device: RawSource, mapped: ChunkMap) -> None:
        self._device = device
        self._mapped = mapped
        self.name = device.name
        self.size = device.size
        self.block_size = device.block_size
        self.identity = device.identity
        self.unseen_processes = device.unseen_processes
        self.remarks: tuple[str, ...] = ()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Runs of data and holes, in whole chunks, as the pool has them."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"[{offset}, {offset + length}) is not within {self.size} bytes")
        return self._mapped.extents(offset, length)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``, mapped or not."""
        self._device.read_into(buffer, offset)

    def still_quiet(self) -> None:
        """Check that nobody has written, and nobody could; nothing to check when live."""
        self._device.still_quiet()

    def close(self) -> None:
        """Release the volume. Idempotent."""
        self._device.close()


def with_mapping(device: RawSource) -> RawSource | ThinSource:
    """Give a thin volume what its pool knows of it; anything else is returned as it is.

    Where the pool cannot be asked the volume is read in full, and ``remarks`` say so.

    Raises:
        SourceUnsuitable: The pool has failed, or its metadata needs repair.
    """
    status = os.stat(device.name)
    if not stat.S_ISBLK(status.st_mode):
        return device
    try:
        volume = thin_volume(status.st_rdev)
        if volume is None:
            return device
        _refuse_trouble(device.name, volume.pool)
        folder = notes_folder()
        release_leftovers(folder)
        return ThinSource(device, _mapping(volume, device.size, folder))
    except (ToolFailed, SnapshotTaken, MapUnreadable, OSError) as error:
        device.remarks = (
            *device.remarks,
            f"its thin pool cannot be asked what is mapped, so all of it is read: {error}",
        )
        return device


def _refuse_trouble(name: str, pool: str) -> None:
    trouble = pool_status(pool).trouble
    if trouble is not None:
        raise SourceUnsuitable(
            f"source {name} is in the thin pool {pool}, which {trouble}: what it holds cannot be"
            " trusted; repair it first, see lvmthin(7), lvconvert --repair"
        )


def _mapping(volume: ThinVolume, size: int, folder: Path) -> ChunkMap:
    with (
        metadata_snapshot(volume.pool, volume.pool_uuid, folder),
        reading(
            *("thin_dump", "--metadata-snap", "--dev-id", str(volume.number)),
            device_path(volume.metadata),
        ) as dump,
    ):
        return read_thin_map(dump, volume.number, size)
