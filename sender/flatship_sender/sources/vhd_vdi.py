"""What the headers of VHD and VDI files say against being read.

qemu reads zeros where such a file ends too soon, and does not see that a
differencing VHD is half of a disk. Microsoft's "Virtual Hard Disk Image Format
Specification" (big-endian) and VirtualBox's VDICore.h (little-endian).
"""

import struct
from typing import Final

HEADER_SIZE: Final = 512  # bytes

_VHD_COOKIE: Final = b"conectix"
_VHD_TYPE: Final = struct.Struct(">I")
_VHD_TYPE_AT: Final = 60
_VHD_DIFFERENCING: Final = 4

_VDI_TYPE: Final = struct.Struct("<I")
_VDI_TYPE_AT: Final = 0x4C
_VDI_KINDS: Final = (1, 2)  # dynamic, fixed; others stand on a parent
_VDI_DATA: Final = struct.Struct("<I")
_VDI_DATA_AT: Final = 0x158
_VDI_BLOCKS: Final = struct.Struct("<IIII")  # block size, extra, blocks, blocks allocated
_VDI_BLOCKS_AT: Final = 0x178


def vhd_problem(head: bytes, tail: bytes) -> str | None:
    """The predicate of a refusal; None if nothing speaks against the VHD.

    Args:
        head: Its first 512 bytes.
        tail: Its last 512 bytes, which are its footer.
    """
    if len(tail) < HEADER_SIZE or not tail.startswith(_VHD_COOKIE):
        return "is a VHD without the footer that ends it, so it is cut short; copy it again"
    for footer in (head, tail):
        if footer.startswith(_VHD_COOKIE):
            (kind,) = _VHD_TYPE.unpack_from(footer, _VHD_TYPE_AT)
            if kind == _VHD_DIFFERENCING:
                return (
                    "is a differencing VHD, which holds what changed since its parent;"
                    " merge it into the parent where it was made, and send that"
                )
    return None


def vdi_problem(head: bytes, size: int) -> str | None:
    """The predicate of a refusal; None if nothing speaks against the VDI.

    Args:
        head: Its first 512 bytes.
        size: Bytes of the file.
    """
    if len(head) < HEADER_SIZE:
        return "is cut short within its VDI header; copy it again"
    (kind,) = _VDI_TYPE.unpack_from(head, _VDI_TYPE_AT)
    if kind not in _VDI_KINDS:
        return (
            "is a differencing VDI, which holds what changed since its parent;"
            " clone it with VBoxManage clonemedium, and send the clone"
        )
    (data,) = _VDI_DATA.unpack_from(head, _VDI_DATA_AT)
    block, extra, _, allocated = _VDI_BLOCKS.unpack_from(head, _VDI_BLOCKS_AT)
    needed = data + allocated * (block + extra)
    if needed > size:
        return (
            f"has {size} bytes, and its VDI header wants {needed}: it is cut short; copy it again"
        )
    return None
