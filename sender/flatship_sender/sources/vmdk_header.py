"""What a VMDK says of itself: its extents, and whether it stands alone.

VMware's "Virtual Disk Format 5.0" describes both kinds of file: a descriptor of
text, whose extents are other files, and a sparse extent, which may hold its
descriptor within. Numbers are little-endian.
"""

import re
import struct
from dataclasses import dataclass
from typing import Final

DESCRIPTOR_LIMIT: Final = 1 << 20  # bytes of a descriptor that are read
TEXT_MAGIC: Final = b"# Disk DescriptorFile"

_SECTOR: Final = 512
_SPARSE: Final = struct.Struct("<4sIIQQQQ")  # up to the descriptor's place and length
_EXTENT: Final = re.compile(
    r'(?:RW|RDONLY|NOACCESS)\s+(\d{1,18})\s+([A-Z]+)\s+"([^"]*)"(?:\s+(\d{1,18}))?'
)
_PARENT: Final = re.compile(r"parentCID\s*=\s*([0-9a-fA-F]+)", re.IGNORECASE)
_NO_PARENT: Final = 0xFFFFFFFF
_FLAT: Final = ("FLAT", "VMFS")


@dataclass(frozen=True, slots=True)
class ExtentFile:
    """A file with a part of the disk."""

    name: str  # a plain name, in the descriptor's folder
    least_size: int  # bytes that it must have; 0 where its own header says


@dataclass(frozen=True, slots=True)
class VmdkDescriptor:
    """What decides whether the image can be read, and what else it takes."""

    extents: tuple[ExtentFile, ...]
    has_parent: bool


def descriptor_place(head: bytes) -> tuple[int, int] | None:
    """Where the descriptor of this VMDK is in its file, in bytes: offset and length.

    None if a sparse extent has none, and belongs to a descriptor elsewhere.

    Args:
        head: The first 512 bytes of the file.

    Raises:
        ValueError: It is no VMDK that can be read; the message is a predicate.
    """
    if head.startswith(TEXT_MAGIC):
        return 0, DESCRIPTOR_LIMIT
    if head.startswith(b"COWD"):
        raise ValueError("is a redo log of an ESX host, which is no disk by itself")
    if len(head) < _SPARSE.size or not head.startswith(b"KDMV"):
        raise ValueError("does not begin as a VMDK does")
    _, _, _, capacity, _, place, length = _SPARSE.unpack_from(head)
    if capacity == 0:
        raise ValueError("is a VMDK whose header has no capacity")
    if place == 0 or length == 0:
        return None
    if place > 1 << 40 or length * _SECTOR > DESCRIPTOR_LIMIT:
        raise ValueError("is a VMDK whose header places its descriptor where none can be")
    return place * _SECTOR, length * _SECTOR


def parse_descriptor(text: bytes) -> VmdkDescriptor:
    """Read a descriptor.

    Raises:
        ValueError: It is none that can be followed; the message is a predicate.
    """
    decoded = text.split(b"\0", 1)[0].decode("utf-8", errors="surrogateescape")
    extents: list[ExtentFile] = []
    has_parent = False
    for line in map(str.strip, decoded.splitlines()):
        parent = _PARENT.match(line)
        if parent is not None:
            has_parent = int(parent[1], 16) != _NO_PARENT
        found = _EXTENT.match(line)
        if found is None:
            continue
        sectors, kind, name, offset = found.groups()
        if not name.isprintable() or "/" in name or ":" in name or name in ("", ".", ".."):
            raise ValueError(
                f"is a VMDK with an extent {name!r}; one with a plain name in its own folder"
                " can be read"
            )
        least = (int(sectors) + int(offset or 0)) * _SECTOR if kind in _FLAT else 0
        extents.append(ExtentFile(name, least))
    return VmdkDescriptor(tuple(extents), has_parent)
