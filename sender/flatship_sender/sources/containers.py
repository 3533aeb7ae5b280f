"""Recognises image files that contain a disk without being one.

Shipping a qcow2 file as though it were the disk gives a virtual machine that
does not boot, hours later; the first sector tells at once. It tells of files
that somebody made as images. A guest writes what it likes into the first
sector of its raw disk: ``sources/opening.py`` judges what that is worth.
"""

import os
from enum import StrEnum
from typing import Final

from flatship_sender.sources.devices import size_of
from flatship_sender.sources.page_cache import choose_reader

HEAD_SIZE: Final = 512  # bytes from the start that ``container_format`` wants to see
TAIL_SIZE: Final = 512  # bytes up to the end that it wants to see


class ImageFormat(StrEnum):
    """How a disk is kept in a file; the values are what operators write."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VDI = "vdi"
    VHD = "vhd"
    VHDX = "vhdx"
    VMDK = "vmdk"
    QED = "qed"

    @property
    def label(self) -> str:
        """As people write it: qcow2, VDI, VHD."""
        return self.value if self in (ImageFormat.RAW, ImageFormat.QCOW2) else self.value.upper()

    @property
    def driver(self) -> str:
        """As qemu calls it."""
        return "vpc" if self is ImageFormat.VHD else self.value


READABLE: Final = tuple(each for each in ImageFormat if each is not ImageFormat.QED)

_HEAD_MAGIC: Final = (
    (0, b"QFI\xfb", ImageFormat.QCOW2),
    (0, b"KDMV", ImageFormat.VMDK),
    (0, b"COWD", ImageFormat.VMDK),
    (0, b"# Disk DescriptorFile", ImageFormat.VMDK),
    (0x40, b"\x7f\x10\xda\xbe", ImageFormat.VDI),
    (0, b"vhdxfile", ImageFormat.VHDX),
    (0, b"conectix", ImageFormat.VHD),
    (0, b"QED\0", ImageFormat.QED),
)
_VHD_FOOTER: Final = b"conectix"  # a fixed VHD is a raw disk with one sector behind it

_SUFFIXES: Final = {
    **{f".{each}": each for each in ImageFormat},
    ".vpc": ImageFormat.VHD,
    ".qcow": ImageFormat.QCOW2,
}


def container_format(head: bytes | bytearray, tail: bytes | bytearray) -> ImageFormat | None:
    """Name the container that these bytes belong to; None for a raw disk.

    Args:
        head: The first ``HEAD_SIZE`` bytes of the file or device.
        tail: Its last ``TAIL_SIZE`` bytes.
    """
    for position, magic, found in _HEAD_MAGIC:
        if head[position : position + len(magic)] == magic:
            return found
    return ImageFormat.VHD if tail.startswith(_VHD_FOOTER) else None


def format_of_name(path: str) -> ImageFormat | None:
    """What the end of a file's name says that it is; None if it says nothing."""
    return _SUFFIXES.get(os.path.splitext(path)[1].lower())


def container_of(fd: int) -> ImageFormat | None:
    """Name the container that is in an open file or block device; None for a raw disk.

    The page cache of the host is left alone.

    Raises:
        OSError: It cannot be read.
    """
    size = size_of(fd)
    head, tail = bytearray(HEAD_SIZE), bytearray(TAIL_SIZE)
    reader = choose_reader(fd)
    try:
        del head[reader.read(memoryview(head), 0) :]
        del tail[reader.read(memoryview(tail), max(0, size - TAIL_SIZE)) :]
    finally:
        reader.close()
    return container_format(head, tail)
