"""The table that finds pages by their content: from a fingerprint to the chunk that has it.

A mapped file of buckets. A fingerprint's high bits choose the bucket; a cell of it holds the
number of a chunk and 12 more bits of the fingerprint, 5 bytes in all. So an answer is a guess, to
be verified in the chunk's slot (``known_pages``), and anything may stand here: what is torn, stale
or made up costs a look and nothing else. Several processes write to one file without a
lock. It is made anew from the slots when it is full, or lost; a bucket that is full gives up
a cell. What can be read of it in the clear are parts of enciphered fingerprints.
"""

import mmap
import os
import secrets
from pathlib import Path
from struct import Struct
from typing import Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flatship_sender.fingerprints import FINGERPRINT_SIZE

VERSION: Final = 1
NUMBER_BITS: Final = 28  # of a chunk, among all of a store
MAX_NUMBER: Final = (1 << NUMBER_BITS) - 2
CELLS: Final = 32  # in a bucket
FULL: Final = 0.85  # share of cells taken; from there on buckets overflow
HEADROOM: Final = 1.25  # cells of a new table, against those that it needs
_MAGIC: Final = b"FLTSANCH"
_HEADER: Final = Struct("<8sI4xQ8s")  # magic, version, buckets, which key
_HEADER_SIZE: Final = 4096  # so that the buckets begin with a page
_BUCKET: Final = np.dtype([("low", "<u4", CELLS), ("high", "u1", CELLS)])
_TAG_LOW_BITS: Final = 32 - NUMBER_BITS
_FEWEST: Final = 16  # buckets
_SAMPLE: Final = 1024  # buckets that are looked at to tell how full a table is
_FILE: Final = 0o600
_RESIDENT: Final = 24 << 20  # bytes of the mapping that may stay in this process's memory
_LOOKS: Final = 2  # chunks looked up before a larger one is let go of again

Numbers: TypeAlias = NDArray[np.uint64]
_Cells: TypeAlias = tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint8]]


def as_numbers(pages: bytes) -> Numbers:
    """Fingerprints as numbers of 48 bits."""
    wide = np.zeros((len(pages) // FINGERPRINT_SIZE, 8), np.uint8)
    wide[:, :FINGERPRINT_SIZE] = np.frombuffer(pages, np.uint8).reshape(-1, FINGERPRINT_SIZE)
    return wide.view("<u8").reshape(-1)


class Anchors:
    """An open table. Thread-safe, but for ``close``: what two threads do at once may get lost.

    Args:
        mapping: Of the whole file.
        buckets: How many it has.
    """

    def __init__(self, mapping: mmap.mmap, buckets: int) -> None:
        self._mapping = mapping
        self._buckets = buckets
        table = np.frombuffer(mapping, _BUCKET, buckets, _HEADER_SIZE)
        self._low: NDArray[np.uint32] = table["low"]
        self._high: NDArray[np.uint8] = table["high"]
        self._looks = 0
        self._taken = self._estimate()

    @classmethod
    def open(cls, path: Path, key_id: bytes) -> Self | None:
        """Open a table; None if there is none, or it is of another make or key."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            header = os.pread(descriptor, _HEADER.size, 0)
            size = os.fstat(descriptor).st_size
            magic, version, buckets, key = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
            expected = _HEADER_SIZE + buckets * _BUCKET.itemsize
            if (
                (magic, version, key) != (_MAGIC, VERSION, key_id)
                or size != expected
                or not buckets
            ):
                return None
            return cls(mmap.mmap(descriptor, size), buckets)
        except (OSError, ValueError):
            return None
        finally:
            os.close(descriptor)

    @classmethod
    def make(cls, path: Path, key_id: bytes, anchors: int) -> Self | None:
        """Put an empty table in the place of what is there.

        Args:
            anchors: For how many there is to be room.

        Returns:
            None if the file cannot be written.
        """
        buckets = _buckets_for(anchors)
        size = table_size(anchors)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, _FILE)
        except OSError:
            return None
        try:
            # Allocated now: a mapped page that finds no room would end the process.
            os.posix_fallocate(descriptor, 0, size)
            os.pwrite(descriptor, _HEADER.pack(_MAGIC, VERSION, buckets, key_id), 0)
            mapping = mmap.mmap(descriptor, size)
            temporary.rename(path)
        except (OSError, ValueError):
            temporary.unlink(missing_ok=True)
            return None
        finally:
            os.close(descriptor)
        return cls(mapping, buckets)

    @property
    def taken(self) -> int:
        """About how many cells are taken."""
        return self._taken

    @property
    def full(self) -> bool:
        """Whether it is time for a larger table."""
        return self._taken > FULL * self._buckets * CELLS

    def find(self, numbers: Numbers) -> list[tuple[int, int]]:
        """Which chunks may have a page.

        Returns:
            Pairs in order of the first: an index into ``numbers``, the number of a chunk.
        """
        at, low, high = self._cells(numbers, np.zeros_like(numbers))
        # First by the smaller part of the cells: next to none are left for the other.
        page, cell = np.nonzero(self._high[at] == high[:, None])
        entries = self._low[at[page], cell]
        hits = (entries >> NUMBER_BITS == (low >> NUMBER_BITS)[page]) & (entries > 0)
        page = page[hits]
        chunk = (entries[hits] & ((1 << NUMBER_BITS) - 1)).astype(np.int64) - 1
        self._let_go()
        return list(zip(page.tolist(), chunk.tolist(), strict=True))

    def enter(self, numbers: Numbers, chunks: Numbers) -> None:
        """Have pages found: for each fingerprint, the number of the chunk that has it."""
        at, low, high = self._cells(numbers, chunks + np.uint64(1))
        while len(at):
            # One of each bucket at a time, or two would take the same cell.
            _, once = np.unique(at, return_index=True)
            self._place(at[once], low[once], high[once])
            left = np.ones(len(at), bool)
            left[once] = False
            at, low, high = at[left], low[left], high[left]
        self._let_go()

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        self._low = self._low[:0].copy()
        self._high = self._high[:0].copy()
        self._buckets = 0
        try:
            self._mapping.close()
        except BufferError:
            return  # somebody looks at it yet; it goes with the last who does

    def _cells(self, numbers: Numbers, entries: Numbers) -> _Cells:
        """For each fingerprint its bucket, and the cell that leads from there to its entry."""
        at = ((numbers >> np.uint64(16)) * np.uint64(self._buckets)) >> np.uint64(32)
        tag_low = numbers & np.uint64((1 << _TAG_LOW_BITS) - 1)
        low = (tag_low << np.uint64(NUMBER_BITS) | entries).astype(np.uint32)
        high = ((numbers >> np.uint64(_TAG_LOW_BITS)) & np.uint64(0xFF)).astype(np.uint8)
        return at.astype(np.int64), low, high

    def _place(
        self, at: NDArray[np.int64], low: NDArray[np.uint32], high: NDArray[np.uint8]
    ) -> None:
        """Put one cell into each of these buckets, which are distinct."""
        rows = self._low[at]
        row, cell = np.nonzero(rows == low[:, None])
        new = np.ones(len(at), bool)
        new[row[self._high[at[row], cell] == high[row]]] = False  # it is there already
        free = rows == 0
        has_room = free.any(axis=1)
        cell = np.where(has_room, free.argmax(axis=1), high % CELLS)  # any, if none is free
        self._low[at[new], cell[new]] = low[new]
        self._high[at[new], cell[new]] = high[new]
        self._taken += int((new & has_room).sum())

    def _estimate(self) -> int:
        step = max(1, self._buckets // _SAMPLE)
        sample = self._low[::step]
        return int(np.count_nonzero(sample) / sample.size * self._buckets * CELLS)

    def _let_go(self) -> None:
        """Have a large mapping leave this process's memory; the page cache keeps it."""
        self._looks += 1
        if len(self._mapping) > _RESIDENT and self._looks % _LOOKS == 0:
            self._mapping.madvise(mmap.MADV_DONTNEED)


def table_size(anchors: int) -> int:
    """Bytes of a table that is made for so many anchors."""
    return _HEADER_SIZE + _buckets_for(anchors) * _BUCKET.itemsize


def anchored(numbers: Numbers, anchors: int) -> Numbers:
    """Those of a chunk's fingerprints whose bit is set in ``anchors``."""
    size = -(-len(numbers) // 8)
    flags = np.frombuffer(anchors.to_bytes(32, "little")[:size], np.uint8)
    chosen: Numbers = numbers[np.unpackbits(flags, count=len(numbers), bitorder="little") > 0]
    return chosen


def _buckets_for(anchors: int) -> int:
    return max(_FEWEST, int(anchors * HEADROOM / FULL / CELLS) + 1)
