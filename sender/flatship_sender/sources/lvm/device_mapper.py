"""What device-mapper says of a device: its table, its state, its names.

See Documentation/admin-guide/device-mapper/thin-provisioning.rst for the fields.
"""

from dataclasses import dataclass
from pathlib import Path

from flatship_sender.sources.devices import SYS, sysfs_folder
from flatship_sender.sources.lvm.tools import ToolFailed, run


@dataclass(frozen=True, slots=True)
class ThinVolume:
    """A device that is one thin volume of a pool, and nothing else.

    ``pool`` is the pool's name in /dev/mapper, ``pool_uuid`` what stays its name, ``metadata`` the
    device with the pool's metadata as (major, minor), ``number`` the volume's in the pool.
    """

    number: int
    pool: str
    pool_uuid: str
    metadata: str


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What a pool says of itself.

    ``snapshot`` is whether a metadata snapshot is reserved, ``trouble`` what keeps its metadata
    from being believed, None for nothing. ``data`` and ``metadata`` are the shares of its room,
    from 0 to 1, that are taken.
    """

    snapshot: bool
    trouble: str | None
    data: float = 1.0
    metadata: float = 1.0


def thin_volume(rdev: int, sys: Path = SYS) -> ThinVolume | None:
    """The thin volume that a block device is; None if it is something else.

    A volume whose unmapped parts show another device (an external origin) is something else.

    Raises:
        ToolFailed: device-mapper could not be asked.
    """
    name = name_of(rdev, sys)
    if name is None:
        return None
    words = _only_target(run("dmsetup", "table", name))
    if words is None or words[0] != "thin" or len(words) != 3:
        return None
    pool = _device(words[1], sys)
    pool_words = _only_target(run("dmsetup", "table", pool))
    if pool_words is None or pool_words[0] != "thin-pool":
        raise ToolFailed(f"{pool} is no thin pool, though {name} says so")
    uuid = run("dmsetup", "info", "-c", "--noheadings", "-o", "uuid", pool).strip()
    return ThinVolume(int(words[2]), pool, uuid, pool_words[1])


def pool_of(name: str, sys: Path = SYS) -> str | None:
    """The pool, by its name in /dev/mapper, of a thin volume; None if the device is none.

    Raises:
        ToolFailed: device-mapper could not be asked.
    """
    words = _only_target(run("dmsetup", "table", name))
    return None if words is None or words[0] != "thin" else _device(words[1], sys)


def pool_status(pool: str) -> PoolStatus:
    """Ask a pool how it is.

    Raises:
        ToolFailed: device-mapper could not be asked.
    """
    return read_pool_status(run("dmsetup", "status", pool))


def read_pool_status(line: str) -> PoolStatus:
    """Read a thin pool's line of ``dmsetup status``.

    Raises:
        ToolFailed: It is no such line.
    """
    words = line.split()[2:]  # behind start and length, in sectors
    if not words or words[0] != "thin-pool":
        raise ToolFailed(f"not the status of a thin pool: {line.strip()}")
    if len(words) < 6:
        return PoolStatus(snapshot=False, trouble="has failed")
    needs_check = "needs_check" in words[5:]
    return PoolStatus(
        snapshot=words[4] != "-",
        trouble="needs to be checked" if needs_check else None,
        data=_share(words[3], line),
        metadata=_share(words[2], line),
    )


def snapshot_taken(name: str) -> float | None:
    """The share of a thick snapshot's room, from 0 to 1, that is taken; None: it overflowed.

    Raises:
        ToolFailed: device-mapper could not be asked.
    """
    return read_snapshot_status(run("dmsetup", "status", name))


def read_snapshot_status(line: str) -> float | None:
    """Read a thick snapshot's line of ``dmsetup status``; as ``snapshot_taken``.

    Raises:
        ToolFailed: It is no such line.
    """
    words = line.split()[2:]
    if len(words) < 2 or words[0] != "snapshot":
        raise ToolFailed(f"not the status of a snapshot: {line.strip()}")
    return _share(words[1], line) if "/" in words[1] else None  # "Invalid", "Overflow"


def _share(words: str, line: str) -> float:
    taken, _, all_of_it = words.partition("/")
    try:
        return int(taken) / int(all_of_it)
    except (ValueError, ZeroDivisionError):
        raise ToolFailed(f"a status that says nothing: {line.strip()}") from None


def pool_named(uuid: str) -> str | None:
    """The active pool that has this uuid, by its name in /dev/mapper.

    Raises:
        ToolFailed: device-mapper could not be asked.
    """
    listed = run("dmsetup", "info", "-c", "--noheadings", "--separator", " ", "-o", "uuid,name")
    for line in listed.splitlines():
        found, _, name = line.strip().partition(" ")
        if found == uuid:
            return name
    return None


def reserve_snapshot(pool: str) -> None:
    """Have a pool keep its metadata as it is now, for others to read."""
    run("dmsetup", "message", pool, "0", "reserve_metadata_snap")


def release_snapshot(pool: str) -> None:
    """Undo ``reserve_snapshot``."""
    run("dmsetup", "message", pool, "0", "release_metadata_snap")


def device_path(numbers: str) -> str:
    """The node of a device that a table names by its numbers, or by its path."""
    return numbers if numbers.startswith("/") else f"/dev/block/{numbers}"


def _only_target(table: str) -> list[str] | None:
    """The target's type and arguments, if the device has one from its start to its end."""
    lines = table.splitlines()
    return lines[0].split()[2:] if len(lines) == 1 else None


def name_of(rdev: int, sys: Path = SYS) -> str | None:
    """The name in /dev/mapper of a block device; None if it is not device-mapper's."""
    try:
        return (sysfs_folder(rdev, sys) / "dm" / "name").read_text().strip()
    except OSError:
        return None


def _device(numbers: str, sys: Path) -> str:
    try:
        return (sys / "dev" / "block" / numbers / "dm" / "name").read_text().strip()
    except OSError as error:
        raise ToolFailed(f"device {numbers} is not there: {error.strerror}") from error
