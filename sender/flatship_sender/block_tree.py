"""How block devices stand on each other: partitions, loop devices, device-mapper, md."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from flatship_sender.sources.devices import SYS, sysfs_folder


class Relation(Enum):
    """How a layer comes to share bytes with the source."""

    SOURCE = "the source itself"
    PARTITION = "a partition of it"
    WHOLE = "the disk that it is a partition of"
    LOOP = "a loop device attached to it"
    STACKED = "a device-mapper or md device built on it"


@dataclass(frozen=True, slots=True)
class Layer:
    """A block device through which the source's bytes can be reached."""

    rdev: int
    name: str  # as below /dev
    writable: bool
    relation: Relation


def layers_of_device(rdev: int, sys: Path = SYS) -> list[Layer]:
    """The device, what stands on it and on its partitions, and the disk that it is a part of."""
    folder = sysfs_folder(rdev, sys)
    layers = list(_upwards(folder, Relation.SOURCE, sys, _attached_loops(sys)))
    if (folder / "partition").exists():
        layers.append(_layer(folder.resolve().parent, Relation.WHOLE))
    return layers


def layers_of_file(file: tuple[int, int], sys: Path = SYS) -> list[Layer]:
    """The loop devices attached to a file, and what stands on them.

    Args:
        file: Device and inode number, as stat(2) gives them.
        sys: Where sysfs is.
    """
    loops = _attached_loops(sys)
    return [
        layer
        for loop, backing in loops
        if (backing.st_dev, backing.st_ino) == file
        for layer in _upwards(loop, Relation.LOOP, sys, loops)
    ]


def _attached_loops(sys: Path) -> list[tuple[Path, os.stat_result]]:
    """Each loop device that is attached to something, and what that is."""
    loops = []
    for loop in sorted((sys / "block").glob("loop*")):
        try:
            backing = (loop / "loop" / "backing_file").read_text().rstrip("\n")
            loops.append((loop, os.stat(backing)))
        except OSError:  # attached to nothing, or to a file that has lost its name
            continue
    return loops


def _upwards(
    folder: Path, relation: Relation, sys: Path, loops: list[tuple[Path, os.stat_result]]
) -> Iterator[Layer]:
    layer = _layer(folder, relation)
    yield layer
    for part in sorted(folder.glob("*/partition")):
        yield from _upwards(part.parent, Relation.PARTITION, sys, loops)
    for holder in sorted(folder.glob("holders/*")):
        yield from _upwards(sys / "block" / holder.name, Relation.STACKED, sys, loops)
    for loop, backing in loops:  # the kernel does not list these among the holders
        if stat.S_ISBLK(backing.st_mode) and backing.st_rdev == layer.rdev:
            yield from _upwards(loop, Relation.LOOP, sys, loops)


def _layer(folder: Path, relation: Relation) -> Layer:
    major, minor = (folder / "dev").read_text().split(":")
    return Layer(
        rdev=os.makedev(int(major), int(minor)),
        name=folder.resolve().name.replace("!", "/"),
        writable=(folder / "ro").read_text().strip() == "0",
        relation=relation,
    )
