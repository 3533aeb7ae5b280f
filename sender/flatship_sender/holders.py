"""Who may write to a source while it is read?

Whoever holds the file or device open for writing, or maps it shared and
writable; a file system mounted from it; swap; a writable loop,
device-mapper or md device built on it - and all of these on each such device and
on each partition, to any depth. What only reads does no harm, and is told
apart.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flatship_sender.block_tree import Layer, Relation, layers_of_device, layers_of_file
from flatship_sender.processes import PROC, Targets, find_openers, process_ids
from flatship_sender.sources.devices import SYS

_HYPERVISORS: Final = ("qemu", "kvm", "cloud-hyperviso", "firecracker")  # as the kernel cuts them


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who uses the source now."""

    does: str  # the predicate of a sentence about the source
    remedy: str  # what ends that, in the imperative
    writes: bool  # it may write; else it only reads


@dataclass(frozen=True, slots=True)
class Survey:
    """What a look around found."""

    holders: tuple[Holder, ...]
    unseen_processes: int  # those whose open files this user may not see

    @property
    def writers(self) -> tuple[Holder, ...]:
        """Those who may write, the most telling first."""
        return tuple(holder for holder in self.holders if holder.writes)

    @property
    def readers(self) -> tuple[Holder, ...]:
        """Those who only read."""
        return tuple(holder for holder in self.holders if not holder.writes)


def find_holders(path: str, *, proc: Path = PROC, sys: Path = SYS) -> Survey:
    """Find everybody who uses the file or block device ``path``.

    Without root's rights, other users' processes do not show their files: they are
    counted, and whoever asked should say so. A snapshot of a moment: somebody
    may come a moment later.

    Raises:
        OSError: ``path`` cannot be looked at.
    """
    status = os.stat(path)
    if stat.S_ISBLK(status.st_mode):
        layers = layers_of_device(status.st_rdev, sys)
        files: frozenset[tuple[int, int]] = frozenset()
    else:
        file = (status.st_dev, status.st_ino)
        layers = layers_of_file(file, sys)
        files = frozenset((file,))
    by_device = {layer.rdev: layer for layer in layers}
    openers = find_openers(Targets(files, frozenset(by_device)), proc)
    holders = [
        Holder(
            f"is open for {'writing' if opener.writes else 'reading'} by "
            f"{opener.command} (pid {opener.pid}){_through(by_device.get(opener.device or -1))}",
            _how_to_stop(opener.command),
            opener.writes,
        )
        for opener in openers.found
    ]
    holders += _mounts(by_device, proc)
    holders += _swap(files, by_device, proc)
    holders += _stacked(layers)
    return Survey(tuple(dict.fromkeys(holders)), openers.unseen)


def _how_to_stop(command: str) -> str:
    return "shut the guest down" if command.startswith(_HYPERVISORS) else "stop that process"


def _through(layer: Layer | None) -> str:
    if layer is None or layer.relation is Relation.SOURCE:
        return ""
    return f" through /dev/{layer.name}"


def _stacked(layers: list[Layer]) -> Iterator[Holder]:
    for layer in layers:
        device = f"/dev/{layer.name}"
        access = "writable" if layer.writable else "read-only"
        if layer.relation is Relation.LOOP:
            yield Holder(
                f"is attached to {device}, which is {access}",
                f"detach it with losetup -d {device}",
                layer.writable,
            )
        elif layer.relation is Relation.STACKED:
            yield Holder(
                f"is a part of {device}, which is {access}", f"deactivate {device}", layer.writable
            )


def _mounts(by_device: dict[int, Layer], proc: Path) -> Iterator[Holder]:
    """File systems on these devices, in every mount namespace that some process is in."""
    if not by_device:
        return
    known: set[str] = set()
    for pid in ["self", *process_ids(proc)]:
        try:
            namespace = os.readlink(f"{proc}/{pid}/ns/mnt")
            if namespace in known:
                continue
            text = Path(f"{proc}/{pid}/mountinfo").read_text(errors="surrogateescape")
        except (OSError, ValueError):  # it has ended, or is counted among the unseen
            continue
        where = f", in the mount namespace of pid {pid}" if known else ""
        known.add(namespace)
        for line in text.splitlines():
            yield from _mount(line, by_device, where)


def _mount(line: str, by_device: dict[int, Layer], where: str) -> Iterator[Holder]:
    left, _, right = line.partition(" - ")
    numbers, point = left.split(" ")[2], _unescape(left.split(" ")[4])
    _, device, options = right.split(" ", 2)
    major, minor = numbers.split(":")
    # btrfs shows a number of its own making here, and its device by name alone.
    layer = by_device.get(os.makedev(int(major), int(minor))) or by_device.get(
        _device_number(_unescape(device))
    )
    if layer is None:
        return
    # The file system's own options: a read-only mount point may belong to one that is writable.
    writes = "rw" in options.split(",")
    yield Holder(
        f"is mounted {'' if writes else 'read-only '}at {point}{_through(layer)}{where}",
        f"unmount {point}",
        writes,
    )


def _swap(
    files: frozenset[tuple[int, int]], by_device: dict[int, Layer], proc: Path
) -> Iterator[Holder]:
    try:
        lines = (proc / "swaps").read_text().splitlines()[1:]
    except FileNotFoundError:  # a kernel without swap
        return
    for line in lines:
        name = _unescape(line.split()[0])
        try:
            status = os.stat(name)
        except OSError:
            continue
        layer = by_device.get(status.st_rdev) if stat.S_ISBLK(status.st_mode) else None
        if layer is not None or (status.st_dev, status.st_ino) in files:
            yield Holder(f"is in use as swap{_through(layer)}", f"run swapoff {name}", True)


def _device_number(name: str) -> int:
    if not name.startswith("/"):
        return -1
    try:
        status = os.stat(name)
    except OSError:
        return -1
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else -1


def _unescape(text: str) -> str:
    """Undo the kernel's \\040 for blanks in names; see getmntent(3)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
