"""A log of everything that was written to a block device, in the format of Linux's dm-log-writes.

QEMU's ``blklogwrites`` makes it. A superblock, then for each request an entry of one sector
(place, length and flags) and the bytes that were written. A request is logged when it is
done and before whoever made it hears so: what a program was told is durable lies before the
flush that made it so.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SECTOR: Final = 512  # bytes; the smallest thing that a device writes whole
MAGIC: Final = 0x6A736677736872
VERSION: Final = 1

FLUSH: Final = 1 << 0
FUA: Final = 1 << 1
DISCARD: Final = 1 << 2

_SUPERBLOCK: Final = struct.Struct("<QQQI")  # magic, version, entries, bytes of a sector
_ENTRY: Final = struct.Struct("<QQQQ")  # sector, sectors, flags, bytes of a mark


class NotAWriteLog(Exception):
    """The file is not what a ``blklogwrites`` of this version makes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One request to the device; offsets and lengths in bytes.

    ``at`` is where its bytes are in the log, of which a discard has none.
    """

    offset: int
    length: int
    flags: int
    at: int

    @property
    def is_flush(self) -> bool:
        """Whether all that was written before it is durable once it is done."""
        return bool(self.flags & FLUSH)

    @property
    def is_write(self) -> bool:
        """Whether it changes what the device holds."""
        return self.length > 0


def entry_count(log: int) -> int:
    """How many entries had been made when the device was last flushed, of an open log."""
    return _superblock(os.pread(log, _SUPERBLOCK.size, 0))


def read_entries(path: Path) -> list[Entry]:
    """Every entry of a log, in order.

    Raises:
        NotAWriteLog: It is something else, or ends early.
    """
    entries: list[Entry] = []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        count = _superblock(file.read(_SUPERBLOCK.size))
        at = SECTOR
        for _ in range(count):
            file.seek(at)
            head = file.read(_ENTRY.size)
            if len(head) < _ENTRY.size:
                raise NotAWriteLog(f"{path} ends after {len(entries)} of {count} entries")
            sector, sectors, flags, _ = _ENTRY.unpack(head)
            entry = Entry(sector * SECTOR, sectors * SECTOR, flags, at + SECTOR)
            entries.append(entry)
            at = entry.at if flags & DISCARD else entry.at + entry.length
        if at > size:
            raise NotAWriteLog(f"{path} ends within its last entry")
    return entries


def last_flush(entries: Sequence[Entry], end: int) -> int:
    """How many of the first ``end`` entries are durable, whatever the device did."""
    while end and not entries[end - 1].is_flush:
        end -= 1
    return end


def _superblock(head: bytes) -> int:
    if len(head) < _SUPERBLOCK.size:
        raise NotAWriteLog("no superblock")
    magic, version, count, sector = _SUPERBLOCK.unpack(head)
    if (magic, version, sector) != (MAGIC, VERSION, SECTOR):
        raise NotAWriteLog(f"magic {magic:#x}, version {version}, sectors of {sector} bytes")
    return int(count)
