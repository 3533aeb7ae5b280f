"""Logical volumes as LVM manages them: described, and snapshots of them made and removed."""

import os
import stat
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from flatship_protocol.errors import SourceUnsuitable, UsageError
from flatship_sender.sources.devices import sysfs_folder
from flatship_sender.sources.lvm.device_mapper import (
    name_of,
    pool_of,
    pool_status,
    snapshot_taken,
)
from flatship_sender.sources.lvm.tools import ToolFailed, change, run
from flatship_sender.sources.raw import open_error

_FIELDS: Final = "vg_name,lv_name,lv_layout,lv_size,pool_lv,vg_free,vg_extent_size"
_BYTES: Final = ("--units", "b", "--nosuffix")


@dataclass(frozen=True, slots=True)
class Volume:
    """A logical volume; sizes in bytes.

    ``pool`` is the thin pool that it is in, None for a thick volume. ``free`` is what its group
    has left, ``extent`` what that is given out in.
    """

    group: str
    name: str
    size: int
    pool: str | None
    free: int
    extent: int

    @property
    def full_name(self) -> str:
        """As LVM and its operators call it."""
        return f"{self.group}/{self.name}"


@dataclass(frozen=True, slots=True)
class Taken:
    """How much room is taken where a snapshot keeps what its origin had, from 0 to 1.

    Of a thin pool, its data and metadata. Of a thick snapshot, its own room: ``data`` is None when
    that did not suffice, and then it cannot be read any more.
    """

    data: float | None
    metadata: float = 0.0

    @property
    def most(self) -> float:
        """The larger share."""
        return 1.0 if self.data is None else max(self.data, self.metadata)


class VolumeManager(Protocol):
    """What knows and changes volumes; ``Lvm`` is that."""

    def describe(self, path: str) -> Volume:
        """The logical volume that a path is.

        Raises:
            UsageError: It is none.
            SourceMissing: Nothing has this name.
            SourceUnsuitable: LVM does not say.
        """
        ...

    def taken(self, path: str) -> Taken:
        """How full a thin volume's pool is, or a thick snapshot.

        Raises:
            ToolFailed: device-mapper could not be asked.
        """
        ...

    def create(self, lock: int, origin: Volume, name: str, size: int | None) -> str:
        """Make a snapshot that cannot be written to; returns its path.

        Args:
            lock: Stays locked until it is made, as ``tools.change`` says.
            origin: What it is of.
            name: In the group of the origin.
            size: Bytes of room, whole extents; None of a thin volume.

        Raises:
            ToolFailed: LVM refused.
        """
        ...

    def remove(self, lock: int, group: str, name: str) -> None:
        """Remove a snapshot.

        Raises:
            ToolFailed: LVM refused.
        """
        ...

    def names(self, group: str) -> set[str]:
        """The names of all volumes of a group.

        Raises:
            ToolFailed: It is not there, or LVM could not be asked.
        """
        ...


class _Row(msgspec.Struct, frozen=True):
    vg_name: str
    lv_name: str
    lv_layout: str
    lv_size: str
    pool_lv: str
    vg_free: str
    vg_extent_size: str


class _Rows(msgspec.Struct, frozen=True):
    lv: list[_Row]


class _Report(msgspec.Struct, frozen=True):
    report: list[_Rows]


class Lvm:
    """The ``VolumeManager`` of this host."""

    def describe(self, path: str) -> Volume:
        """Ask ``lvs``."""
        name = _volume_device(path)
        if name is None:
            raise UsageError(
                f"{path} is no LVM volume, and --snapshot takes those; leave it out, or shut the"
                " guest down and leave out --live"
            )
        try:
            device = f"/dev/mapper/{name}"
            text = run("lvs", "--reportformat", "json", *_BYTES, "--options", _FIELDS, device)
            return read_volume(text)
        except ToolFailed as error:
            raise SourceUnsuitable(f"LVM cannot be asked what {path} is: {error}") from error

    def taken(self, path: str) -> Taken:
        """Ask ``dmsetup``."""
        try:
            name = name_of(os.stat(path).st_rdev)
        except OSError as error:
            raise ToolFailed(f"{path} is not there: {error.strerror}") from error
        if name is None:
            raise ToolFailed(f"{path} is none of device-mapper's")
        pool = pool_of(name)
        if pool is None:
            return Taken(snapshot_taken(name))
        status = pool_status(pool)
        return Taken(status.data, status.metadata)

    def create(self, lock: int, origin: Volume, name: str, size: int | None) -> str:
        """Run ``lvcreate``."""
        room = ("--size", f"{size}b") if size is not None else ("--setactivationskip", "n")
        change(
            lock,
            *("lvcreate", "--quiet", "--yes", "--snapshot", "--permission", "r"),
            *("--name", name, *room, origin.full_name),
        )
        return f"/dev/{origin.group}/{name}"

    def remove(self, lock: int, group: str, name: str) -> None:
        """Run ``lvremove``."""
        change(lock, "lvremove", "--quiet", "--yes", "--force", f"{group}/{name}")

    def names(self, group: str) -> set[str]:
        """Ask ``lvs``."""
        return set(run("lvs", "--noheadings", "--options", "lv_name", group).split())


def read_volume(text: str) -> Volume:
    """Read the report of ``lvs`` on one volume.

    Raises:
        ToolFailed: It is no such report.
    """
    try:
        (rows,) = msgspec.json.decode(text, type=_Report).report
        (row,) = rows.lv
        thin = "thin" in row.lv_layout.split(",")
        return Volume(
            row.vg_name,
            row.lv_name,
            int(row.lv_size),
            row.pool_lv if thin and row.pool_lv else None,
            int(row.vg_free),
            int(row.vg_extent_size),
        )
    except (ValueError, msgspec.MsgspecError) as error:
        raise ToolFailed(f"lvs says what cannot be read: {error}") from error


def _volume_device(path: str) -> str | None:
    """The name in /dev/mapper of what is, by its uuid, one of LVM's volumes."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise open_error(path, error) from error
    if not stat.S_ISBLK(status.st_mode):
        return None
    try:
        uuid = (sysfs_folder(status.st_rdev) / "dm" / "uuid").read_text()
    except OSError:
        return None
    return name_of(status.st_rdev) if uuid.startswith("LVM-") else None
