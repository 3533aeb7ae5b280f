"""A block device that logs what is written to it, and file systems on it.

No device mapper is needed: ``qemu-storage-daemon`` offers a file by FUSE whose writes pass
its ``blklogwrites`` driver, and loop devices are laid over that file. Whatever happens,
``close`` takes all of it down: should the file not answer any more, its daemon is ended
first, which fails what waits for it.
"""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from processes import STOP_TIMEOUT, Running, wait_until

MIB: Final = 1 << 20
PATIENCE: Final = 60.0  # seconds that mounting may take before it counts as hung
LOG_SIZE: Final = 1 << 40  # bytes; a hole but for what was written

_PROGRAMS: Final = ("qemu-storage-daemon", "losetup", "mkfs.ext4", "mkfs.xfs", "mount", "umount")
_NODES: Final = (Path("/dev/fuse"), Path("/dev/loop-control"))


@dataclass(frozen=True, slots=True)
class FileSystem:
    """How a kind of file system is made and mounted.

    ``size`` is in bytes, of each; ``atom`` is what it trusts a device to write whole, in bytes.
    """

    name: str
    size: int
    atom: int
    make: tuple[str, ...]
    options: str


# Blocks of 4 KiB, as large file systems have them. What would be initialised in the background
# is so at once: nothing but the test writes. ext4 reads its superblock, 1 KiB, before its journal:
# torn within its block it would have to be repaired, so ext4 trusts a device not to do that.
FILE_SYSTEMS: Final = {
    "ext4": FileSystem(
        "ext4",
        96 * MIB,
        4096,
        (
            *("mkfs.ext4", "-q", "-F", "-b", "4096"),
            *("-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"),
        ),
        "rw",
    ),
    # The least that mkfs.xfs makes. Its copies have its uuid, and may be mounted beside it.
    "xfs": FileSystem("xfs", 304 * MIB, 512, ("mkfs.xfs", "-q", "-K"), "nouuid"),
}


def missing() -> str | None:
    """Why such a device cannot be had here; None if it can."""
    if os.geteuid() != 0:
        return "attaches loop devices and mounts file systems, which takes root"
    absent = [str(node) for node in _NODES if not node.exists()]
    absent += [program for program in _PROGRAMS if shutil.which(program) is None]
    return f"not on this machine: {', '.join(absent)}" if absent else None


class MountRefused(Exception):
    """The kernel does not take what is on the device for a file system."""


class LoggedDevice:
    """A device of ``size`` bytes, and what is mounted from it.

    ``log`` is the file of its log, ``content`` the one that holds what it holds.

    Args:
        folder: Where its files and mount points are made; there must be nothing yet.
        size: Bytes.
    """

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir()
        self.log = folder / "log"
        self._folder = folder
        self._export = folder / "export"
        self._loops: list[str] = []
        self._mounts: list[Path] = []
        self.content = folder / "content"
        for path, length in ((self.content, size), (self.log, LOG_SIZE), (self._export, 0)):
            path.touch()
            os.truncate(path, length)
        self._daemon = Running(
            (
                # A keyboard's Ctrl-C is not for it: it ends last.
                *("setsid", "qemu-storage-daemon"),
                *("--blockdev", f"driver=file,node-name=content,filename={self.content}"),
                *("--blockdev", f"driver=file,node-name=log,filename={self.log},cache.no-flush=on"),
                *("--blockdev", "driver=blklogwrites,node-name=logged,file=content,log=log"),
                "--export",
                f"type=fuse,id=export,node-name=logged,mountpoint={self._export},writable=on",
            ),
            folder / "daemon",
        )
        try:
            wait_until(lambda: self._daemon.ended or self._export.stat().st_size, "the export")
            if self._daemon.ended:
                raise MountRefused(f"no logged device: {self._daemon.stderr.strip()}")
        except BaseException:
            self.close()
            raise

    def make(self, kind: FileSystem, name: str, offset: int) -> Path:
        """Make a file system at ``offset`` bytes of the device; returns where it is mounted."""
        place = ("--offset", str(offset), "--sizelimit", str(kind.size))
        loop = _said("losetup", "--find", "--show", *place, str(self._export))
        self._loops.append(loop)
        _said(*kind.make, loop)
        where = self._folder / name
        where.mkdir()
        _said("mount", "-t", kind.name, "-o", kind.options, loop, str(where))
        self._mounts.append(where)
        return where

    def close(self) -> None:
        """Unmount, detach, end. What does not go in good order is made to go."""
        while self._mounts:
            where = self._mounts.pop()
            if not _succeeds("umount", str(where)):
                self._daemon.kill()  # what waits for it fails from now on
                _succeeds("umount", "--lazy", str(where))
        while self._loops:
            _succeeds("losetup", "--detach", self._loops.pop())
        self._end_daemon()
        if os.path.ismount(self._export):
            _succeeds("umount", "--lazy", str(self._export))

    def _end_daemon(self) -> None:
        self._daemon.signal(signal.SIGTERM)
        with suppress(AssertionError):  # it was killed then
            self._daemon.wait(STOP_TIMEOUT)


def mount_copy(kind: FileSystem, image: Path, offset: int, where: Path) -> None:
    """Mount the file system that lies at ``offset`` bytes of a file.

    Raises:
        MountRefused: As the kernel says.
    """
    where.mkdir(exist_ok=True)
    options = f"{kind.options},loop,offset={offset},sizelimit={kind.size}"
    _said("mount", "-t", kind.name, "-o", options, str(image), str(where))


def unmount(where: Path) -> None:
    """Unmount what is mounted there, if anything is; its loop device goes with it."""
    if os.path.ismount(where) and not _succeeds("umount", str(where)):
        _succeeds("umount", "--lazy", str(where))


def _said(*command: str) -> str:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    try:
        said, complaint = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        process.kill()  # and not waited for: it ends when what it waits for has failed
        raise MountRefused(f"{' '.join(command)} hangs") from error
    if process.returncode:
        raise MountRefused(f"{' '.join(command)}: {complaint.strip()}")
    return said.strip()


def _succeeds(*command: str) -> bool:
    with suppress(MountRefused):
        _said(*command)
        return True
    return False
