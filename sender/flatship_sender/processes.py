"""Which processes have certain files or devices open, and how."""

import ctypes
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

PROC: Final = Path("/proc")
_PF_KTHREAD: Final = 0x00200000  # include/linux/sched.h
_FLAGS_FIELD: Final = 6  # of /proc/PID/stat, counted behind the name in parentheses

# statx(2) and linux/stat.h; Python has no name for them
_AT_FDCWD: Final = -100
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_WANTED: Final = 0x0103  # STATX_TYPE, STATX_MODE, STATX_INO
_STATX_RESULT: Final = struct.Struct("=28xH2xQ88xIIII112x")  # mode, ino, rdev, dev
_statx: Callable[[int, bytes, int, int, Any], int] = ctypes.CDLL(None, use_errno=True).statx


@dataclass(frozen=True, slots=True)
class Targets:
    """What is looked for."""

    files: frozenset[tuple[int, int]]  # device and inode number
    devices: frozenset[int]  # device numbers of block devices


@dataclass(frozen=True, slots=True)
class Opener:
    """A process that has one of the targets open or mapped."""

    pid: int
    command: str  # as the kernel knows it: at most 15 characters
    writes: bool
    device: int | None  # the target's number; None: a file


@dataclass(slots=True)
class Openers:
    """What a look through all processes found."""

    found: list[Opener] = field(default_factory=list)
    unseen: int = 0  # processes that did not let us look


def find_openers(targets: Targets, proc: Path = PROC, own_pid: int | None = None) -> Openers:
    """Look through the descriptors and shared mappings of every process.

    A process that ends meanwhile has nothing open. Our own is never a writer.
    One that ``hidepid`` hides is neither found nor counted as unseen.

    Args:
        targets: What to look for.
        proc: Where procfs is.
        own_pid: The process to take for our own; by default it is.
    """
    own = os.getpid() if own_pid is None else own_pid
    openers = Openers()
    for pid in process_ids(proc):
        folder = f"{proc}/{pid}"
        try:
            uses = set(_uses(folder, targets))
        except PermissionError:
            openers.unseen += not _is_kernel_thread(folder)
            continue
        except (FileNotFoundError, ProcessLookupError):
            continue
        for writes, device in sorted(uses, key=str):
            if not (writes and pid == own):
                openers.found.append(Opener(pid, _command(folder), writes, device))
    return openers


def process_ids(proc: Path = PROC) -> list[int]:
    """All processes that can be seen, in order."""
    return sorted(int(name) for name in os.listdir(proc) if name.isdecimal())


def _uses(folder: str, targets: Targets) -> Iterator[tuple[bool, int | None]]:
    """Yield, for each use of a target, whether it can write, and the device's number."""
    for fd in os.listdir(f"{folder}/fd"):
        matched, device = _match(f"{folder}/fd/{fd}", targets)
        if matched:
            yield _open_for_writing(f"{folder}/fdinfo/{fd}"), device
    for addresses in _shared_writable_mappings(folder):
        matched, device = _match(f"{folder}/map_files/{addresses}", targets)
        if matched:
            yield True, device


def _match(link: str, targets: Targets) -> tuple[bool, int | None]:
    try:
        file, device = _identity(link)
    except PermissionError:
        raise
    except OSError:  # gone, or its file system is dead, and the target's has just answered
        return False, None
    if device is not None:
        return device in targets.devices, device
    return file in targets.files, None


def _identity(link: str) -> tuple[tuple[int, int], int | None]:
    """What file a link of procfs leads to: its st_dev and st_ino, and a block device's st_rdev.

    As the kernel remembers it. stat(2) would ask the server of a file system on FUSE or NFS, and
    wait for as long as that hangs, which has nothing to do with the source.

    Raises:
        OSError: See statx(2).
    """
    result = ctypes.create_string_buffer(_STATX_RESULT.size)
    if _statx(_AT_FDCWD, os.fsencode(link), _AT_STATX_DONT_SYNC, _STATX_WANTED, result) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    mode, inode, rdev_major, rdev_minor, major, minor = _STATX_RESULT.unpack(result.raw)
    device = os.makedev(rdev_major, rdev_minor) if stat.S_ISBLK(mode) else None
    return (os.makedev(major, minor), inode), device


def _open_for_writing(fdinfo: str) -> bool:
    try:
        with open(fdinfo, "rb") as lines:
            for line in lines:
                if line.startswith(b"flags:"):
                    return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    except (FileNotFoundError, ProcessLookupError):  # closed meanwhile
        return False
    return True  # cannot happen; and a writer overlooked is worse than one too many


def _shared_writable_mappings(folder: str) -> Iterator[str]:
    """Address ranges through which the process may change a file, descriptor or not."""
    with open(f"{folder}/maps", "rb") as file:
        maps = file.read()
    if b"w-s " not in maps and b"wxs " not in maps:
        return
    for line in maps.splitlines():
        addresses, permissions, _, _, inode = line.split(maxsplit=5)[:5]
        if permissions[1:2] == b"w" and permissions[3:4] == b"s" and inode != b"0":
            # maps pads the addresses with zeros, the names in map_files do not.
            start, end = (int(address, 16) for address in addresses.split(b"-"))
            yield f"{start:x}-{end:x}"


def _is_kernel_thread(folder: str) -> bool:
    try:
        with open(f"{folder}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True  # it has ended, so there is nothing that we did not see
    return bool(int(fields[_FLAGS_FIELD]) & _PF_KTHREAD)


def _command(folder: str) -> str:
    try:
        with open(f"{folder}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return "?"
    return "".join(char if char.isprintable() else "?" for char in name)
