"""What Linux tells about a block device: its size, its sectors, its lasting name."""

import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Final

_BLKGETSIZE64: Final = 0x80081272  # linux/fs.h; bytes, u64
_BLKSSZGET: Final = 0x1268  # linux/fs.h; logical sector size in bytes, int
_SYS_SECTOR: Final = 512  # bytes; unit of /sys/dev/block/*/stat, whatever the device's own

SYS: Final = Path("/sys")
BY_ID: Final = Path("/dev/disk/by-id")


def device_size(fd: int) -> int:
    """Bytes of the block device that ``fd`` is open on."""
    answer = fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8))
    return int(struct.unpack("=Q", answer)[0])


def size_of(fd: int) -> int:
    """Bytes of the regular file or block device that ``fd`` is open on."""
    status = os.fstat(fd)
    return device_size(fd) if stat.S_ISBLK(status.st_mode) else status.st_size


def logical_sector_size(fd: int) -> int:
    """Bytes of the smallest read that the block device of ``fd`` serves."""
    answer = fcntl.ioctl(fd, _BLKSSZGET, bytes(4))
    return int(struct.unpack("=i", answer)[0])


def sysfs_folder(rdev: int, sys: Path = SYS) -> Path:
    """The folder of /sys that describes the block device with this number."""
    return sys / "dev" / "block" / f"{os.major(rdev)}:{os.minor(rdev)}"


def bytes_written(rdev: int, sys: Path = SYS) -> int | None:
    """Bytes written to the device since it appeared, whoever wrote them.

    None where the kernel does not count. See Documentation/block/stat.rst:
    the seventh field counts written sectors.
    """
    try:
        fields = (sysfs_folder(rdev, sys) / "stat").read_text().split()
    except OSError:
        return None
    return int(fields[6]) * _SYS_SECTOR


def lasting_name(path: str, rdev: int, sys: Path = SYS, by_id: Path = BY_ID) -> str:
    """A name of the device that a reboot does not hand to another one.

    Numbers and names such as /dev/dm-3 or /dev/sdb are given out in the order of
    appearance. In this order, the first that exists: the UUID of the
    device-mapper device (an LV keeps it when renamed), what a loop device is
    attached to, the first of udev's links in /dev/disk/by-id (which carry
    serial numbers), the absolute path as given.
    """
    folder = sysfs_folder(rdev, sys)
    if uuid := _line(folder / "dm" / "uuid"):
        return f"dm:{uuid}"
    if backing := _line(folder / "loop" / "backing_file"):
        return f"loop:{_line(folder / 'loop' / 'offset')}:{backing}"
    try:
        links = sorted(by_id.iterdir())
    except OSError:
        links = []
    for link in links:
        if _refers_to(link, rdev):
            return f"id:{link.name}"
    return f"path:{os.path.abspath(path)}"


def _refers_to(link: Path, rdev: int) -> bool:
    try:
        return link.stat().st_rdev == rdev
    except OSError:  # a link whose device has gone
        return False


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
