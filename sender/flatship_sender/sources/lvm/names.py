"""What administrators call volumes: ``vg/lv``, and ``vg`` for all volumes of a group."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from flatship_protocol.errors import SourceMissing, SourceUnsuitable
from flatship_sender.sources.lvm.tools import ToolFailed, run

_FIELDS: Final = "vg_name,lv_name,lv_path,lv_layout,lv_role,lv_active"


class _Volume(msgspec.Struct, frozen=True):
    vg_name: str
    lv_name: str
    lv_path: str
    lv_layout: str
    lv_role: str
    lv_active: str

    @property
    def is_disk(self) -> bool:
        """Whether it is a disk of somebody's, and not what LVM builds such disks from."""
        kinds = self.lv_layout.split(",") + self.lv_role.split(",")
        return bool(self.lv_path) and not {"pool", "private", "snapshot"} & set(kinds)


class _Volumes(msgspec.Struct, frozen=True):
    lv: list[_Volume]


class _Report(msgspec.Struct, frozen=True):
    report: list[_Volumes]


def ask_lvm(group: str) -> str:
    """What ``lvs`` reports of a group's volumes, hidden ones too, as JSON.

    Raises:
        ToolFailed: It is not installed, or failed.
    """
    return run("lvs", "--reportformat", "json", "--all", "--options", _FIELDS, group)


def expand(
    sources: Sequence[str], dev: Path = Path("/dev"), ask: Callable[[str], str] = ask_lvm
) -> list[str]:
    """Put paths in the place of names of volumes and volume groups.

    What exists as a path is one. Of a group all active volumes are taken in the order of
    their names, without pools and snapshots.

    Args:
        sources: As an operator names them.
        dev: Where a group's folder is, and in it its volumes.
        ask: As ``ask_lvm``.

    Raises:
        SourceMissing: A group has no volume by that name, or none at all.
        SourceUnsuitable: One is not active, or LVM cannot be asked.
    """
    paths: list[str] = []
    for source in sources:
        group, _, volume = source.partition("/")
        if os.path.lexists(source) or not group or "/" in volume:
            paths.append(source)
        elif volume:
            paths.append(_volume(source, dev, ask))
        elif _is_group(group, dev):
            paths += _group(group, ask)
        else:
            paths.append(source)
    return paths


def _is_group(name: str, dev: Path) -> bool:
    return (dev / name).is_dir() and (dev / "mapper").is_dir()


def _volume(name: str, dev: Path, ask: Callable[[str], str]) -> str:
    path = dev / name
    if path.exists():
        return str(path)
    group = name.partition("/")[0]
    if not _is_group(group, dev):
        return name  # no volume group either: whoever opens it says that it is missing
    known = {f"{each.vg_name}/{each.lv_name}": each for each in _volumes(group, ask)}
    if name not in known:
        there = ", ".join(sorted(full for full, each in known.items() if each.is_disk))
        raise SourceMissing(
            f"source {name} does not exist: volume group {group} has {there or 'no volumes'}"
        )
    if not known[name].is_disk:
        raise SourceUnsuitable(f"source {name} is no disk but a part of others, such as a pool")
    raise SourceUnsuitable(f"source {name} is not active; run lvchange --activate y -K {name}")


def _group(group: str, ask: Callable[[str], str]) -> list[str]:
    disks = sorted(
        (each for each in _volumes(group, ask) if each.is_disk), key=lambda each: each.lv_name
    )
    for each in disks:
        if each.lv_active != "active":
            name = f"{group}/{each.lv_name}"
            raise SourceUnsuitable(
                f"source {name} is not active; run lvchange --activate y {name},"
                " or name the volumes that you mean"
            )
    if not disks:
        raise SourceMissing(f"volume group {group} has no volumes to send")
    return [each.lv_path for each in disks]


def _volumes(group: str, ask: Callable[[str], str]) -> list[_Volume]:
    try:
        report = msgspec.json.decode(ask(group), type=_Report)
    except (ToolFailed, msgspec.MsgspecError) as error:
        raise SourceUnsuitable(f"LVM cannot be asked what {group} holds: {error}") from error
    return [volume for each in report.report for volume in each.lv]
