"""What a VMDK says of itself: its extents, and whether it stands alone.

VMware's "Virtual Disk Format 5.0" describes both kinds of file: a descriptor of
text, whose extents are other files, and a sparse extent, which may hold its
descriptor within. Numbers are little-endian.

qemu reads the descriptor again, and more leniently: a number may have a sign, a line may be
broken within. What it could take for an extent is therefore one here, or the whole is refused.
"""

import re
import struct
from dataclasses import dataclass
from typing import Final

DESCRIPTOR_LIMIT: Final = 1 << 20  # bytes of a descriptor that are read
TEXT_MAGIC: Final = b"# Disk DescriptorFile"

_SECTOR: Final = 512
_SPARSE: Final = struct.Struct("<4sIIQQQQ")  # up to the descriptor's place and length
_ACCESS: Final = (b"RW", b"RDONLY", b"NOACCESS")  # how the line of an extent begins
_EXTENT: Final = re.compile(rb'\s*RW\s+(\d{1,18})\s+([A-Z]+)\s+"([^"\r\n]*)"(?:\s+(\d{1,18}))?\s*')
_PARENT: Final = re.compile(rb"parentCID\s*=\s*([0-9a-f]+)", re.IGNORECASE)
_PARENT_NAME: Final = b"parentFileNameHint"
_NO_PARENT: Final = 0xFFFFFFFF
_FLAT: Final = (b"FLAT", b"VMFS")


@dataclass(frozen=True, slots=True)
class ExtentFile:
    """A file with a part of the disk."""

    name: str  # a plain name, in the descriptor's folder
    least_size: int  # bytes that it must have; 0 where its own header says


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


def names_parent(descriptor: bytes) -> bool:
    """Whether the disk is what changed since another, which a descriptor says in two ways."""
    text = descriptor.split(b"\0", 1)[0]
    return _PARENT_NAME in text or any(int(cid, 16) != _NO_PARENT for cid in _PARENT.findall(text))


def parse_extents(descriptor: bytes) -> tuple[ExtentFile, ...]:
    """The files that a descriptor by itself names.

    Raises:
        ValueError: It is none that can be followed; the message is a predicate.
    """
    extents = []
    for line in descriptor.split(b"\0", 1)[0].split(b"\n"):
        first, *_ = (*line.split(maxsplit=1), b"")
        if first.upper() in _ACCESS:
            extents.append(_extent(line))
    if not extents:
        raise ValueError("is a VMDK descriptor without extents")
    return tuple(extents)


def check_extent(head: bytes) -> None:
    """Make sure that a file that a descriptor calls sparse is a sparse extent.

    Args:
        head: Its first 512 bytes.

    Raises:
        ValueError: It is another descriptor, of which qemu would follow the names, or nothing.
    """
    if head.startswith(TEXT_MAGIC):
        raise ValueError("is a VMDK whose extent is another descriptor")
    descriptor_place(head)


def _extent(line: bytes) -> ExtentFile:
    found = _EXTENT.fullmatch(line)
    if found is None:
        raise ValueError(f"is a VMDK with an extent that cannot be read: {line.strip()!r}")
    sectors, kind, raw_name, offset = found.groups()
    name = raw_name.decode("utf-8", errors="surrogateescape")
    if not name.isprintable() or "/" in name or ":" in name or name in ("", ".", ".."):
        raise ValueError(
            f"is a VMDK with an extent {name!r}; one with a plain name in its own folder"
            " can be read"
        )
    return ExtentFile(name, (int(sectors) + int(offset or 0)) * _SECTOR if kind in _FLAT else 0)
