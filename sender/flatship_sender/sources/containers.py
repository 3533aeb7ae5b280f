"""Recognises image files that contain a disk without being one.

Shipping a qcow2 file as though it were the disk gives a virtual machine that
does not boot, hours later; the first sector tells at once.
"""

from typing import Final

HEAD_SIZE: Final = 512  # bytes from the start that ``container_format`` wants to see
TAIL_SIZE: Final = 512  # bytes up to the end that it wants to see

_HEAD_MAGIC: Final = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0, b"QED\0", "QED"),
)
_VHD_FOOTER: Final = b"conectix"  # a fixed VHD is a raw disk with one sector behind it


def container_format(head: bytes | bytearray, tail: bytes | bytearray) -> str | None:
    """Name the container that these bytes belong to; None for a raw disk.

    Args:
        head: The first ``HEAD_SIZE`` bytes of the file or device.
        tail: Its last ``TAIL_SIZE`` bytes.
    """
    for position, magic, name in _HEAD_MAGIC:
        if head[position : position + len(magic)] == magic:
            return name
    return "VHD" if tail.startswith(_VHD_FOOTER) else None
