"""What a qcow2 file says of itself: read here, so that nobody follows it unasked.

A header names other files. Whoever opens the image with qemu opens those as
well, so they are looked at first. The layout is qemu's docs/interop/qcow2.txt;
all numbers are big-endian.
"""

import struct
from dataclasses import dataclass
from typing import Final

HEADER_LIMIT: Final = 64 << 10  # bytes from the start that ``parse_qcow2`` wants to see
SNAPSHOTS_LIMIT: Final = 64 << 10  # bytes of the table that ``snapshot_names`` is worth

_FIXED: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_VERSION_3: Final = struct.Struct(">QQQII")
_EXTENSION: Final = struct.Struct(">II")
_SNAPSHOT: Final = struct.Struct(">QIHHIIQII")
_BACKING_FORMAT: Final = 0xE2792ACA
_DIRTY, _CORRUPT, _DATA_FILE = 1, 2, 4  # of the incompatible features
_MAX_NAME: Final = 1023  # bytes of the backing file's name
_CLUSTER_BITS: Final = range(9, 22)


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """What decides whether the image can be read, and what else it takes."""

    size: int  # bytes of the disk
    backing: str | None  # name as it stands there, relative to the image's folder
    backing_format: str | None  # as qemu calls it; None: the image does not say
    encrypted: bool
    snapshots: int  # internal ones
    snapshots_offset: int  # bytes from the start of the file to their table
    dirty: bool
    corrupt: bool
    data_file: bool  # the disk's content is in another file


def parse_qcow2(head: bytes) -> Qcow2Header:
    """Read the header of a qcow2 file.

    Args:
        head: The first ``HEADER_LIMIT`` bytes, or all of a shorter file.

    Raises:
        ValueError: It is none that can be read; the message is a predicate.
    """
    if len(head) < _FIXED.size:
        raise ValueError("is cut short within its qcow2 header")
    magic, version, name_offset, name_length, cluster_bits, size, crypt, *_, count, table = (
        _FIXED.unpack_from(head)
    )
    if magic != b"QFI\xfb":
        raise ValueError("does not begin as a qcow2 image does")
    if version not in (2, 3):
        raise ValueError(f"is of version {version} of the format, and 2 and 3 can be read")
    if cluster_bits not in _CLUSTER_BITS:
        raise ValueError(f"claims clusters of 2^{cluster_bits} bytes")
    features, extensions = 0, _FIXED.size
    if version == 3:
        if len(head) < _FIXED.size + _VERSION_3.size:
            raise ValueError("is cut short within its qcow2 header")
        features, _, _, _, extensions = _VERSION_3.unpack_from(head, _FIXED.size)
    return Qcow2Header(
        size,
        _name(head, name_offset, name_length) if name_offset else None,
        _backing_format(head, extensions, 1 << cluster_bits),
        crypt != 0,
        count,
        table,
        bool(features & _DIRTY),
        bool(features & _CORRUPT),
        bool(features & _DATA_FILE),
    )


def snapshot_names(table: bytes, count: int) -> list[str]:
    """Names of the internal snapshots, as many as ``table`` shows.

    Args:
        table: Up to ``SNAPSHOTS_LIMIT`` bytes from where the table begins.
        count: How many the header claims.
    """
    names: list[str] = []
    position = 0
    while len(names) < count and position + _SNAPSHOT.size <= len(table):
        _, _, id_length, name_length, _, _, _, _, extra = _SNAPSHOT.unpack_from(table, position)
        start = position + _SNAPSHOT.size + extra + id_length
        end = start + name_length
        if end > len(table):
            break
        names.append(table[start:end].decode(errors="replace"))
        position = end + -end % 8
    return names


def _name(head: bytes, offset: int, length: int) -> str:
    if length > _MAX_NAME or offset + length > len(head):
        raise ValueError("has a header that names its backing file where no name can be")
    try:
        name = head[offset : offset + length].decode()
    except UnicodeDecodeError:
        raise ValueError("has a backing file whose name is not UTF-8") from None
    if not name or not name.isprintable():
        raise ValueError("has a backing file whose name cannot be printed")
    return name


def _backing_format(head: bytes, position: int, end: int) -> str | None:
    end = min(end, len(head))
    while position + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(head, position)
        position += _EXTENSION.size
        if kind == 0 or position + length > end:
            return None
        if kind == _BACKING_FORMAT:
            return head[position : position + length].decode(errors="replace")
        position += length + -length % 8
    return None
