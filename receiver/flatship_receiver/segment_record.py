"""What the journal keeps of one digest segment: which chunks are known, and their digests. Pure."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE, DIGEST_SIZE, SEGMENT_CHUNKS
from flatship_protocol.digest import zero_digest

SEGMENT_SIZE: Final = CHUNK_SIZE * SEGMENT_CHUNKS  # bytes of disk in one digest segment
KNOWN_SIZE: Final = SEGMENT_CHUNKS // 8  # bytes of a segment's bitmap


@functools.cache
def _zero_digests(chunks: int, last: int) -> bytes:
    """Return the digests of ``chunks`` zero chunks, the last one ``last`` bytes long."""
    return zero_digest(CHUNK_SIZE) * (chunks - 1) + zero_digest(last)


def zero_segment(size: int, number: int) -> bytes:
    """Return the chunk digests of digest segment ``number`` of a zero disk of ``size`` bytes.

    Raises:
        ValueError: Such a disk has no such segment.
    """
    length = min(size - number * SEGMENT_SIZE, SEGMENT_SIZE)
    if number < 0 or length <= 0:
        raise ValueError(f"a disk of {size} bytes has no digest segment {number}")
    chunks = -(-length // CHUNK_SIZE)
    return _zero_digests(chunks, length - (chunks - 1) * CHUNK_SIZE)


def by_segment(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Cut a run of chunks at digest segments into (number, place in it, count)."""
    end = first + count
    while first < end:
        number, place = divmod(first, SEGMENT_CHUNKS)
        length = min(end - first, SEGMENT_CHUNKS - place)
        yield number, place, length
        first += length


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """What is on stable storage of one digest segment.

    ``digests`` has 32 bytes for each chunk, of which those count whose bit in
    ``known`` is set; ``zeros`` are the digests of a segment of zeros.
    """

    number: int
    zeros: bytes
    digests: bytes
    known: int

    @staticmethod
    def all_of(digests: bytes) -> int:
        """The bits of all chunks."""
        return (1 << len(digests) // DIGEST_SIZE) - 1

    @property
    def is_whole(self) -> bool:
        """Whether every chunk is known."""
        return self.known == self.all_of(self.zeros)

    def with_chunks(self, place: int, count: int, digests: bytes | None) -> "SegmentRecord":
        """The same with chunks known; None stands for zeros.

        Raises:
            ValueError: There are no such chunks.
        """
        at = self._place(place, count)
        part = self.zeros[at] if digests is None else digests
        whole = self.digests[: at.start] + part + self.digests[at.stop :]
        return SegmentRecord(self.number, self.zeros, whole, self.known | self._bits(place, count))

    def without_chunks(self, place: int, count: int) -> "SegmentRecord":
        """The same with chunks unknown.

        Raises:
            ValueError: There are no such chunks.
        """
        self._place(place, count)
        known = self.known & ~self._bits(place, count)
        return SegmentRecord(self.number, self.zeros, self.digests, known)

    def columns(self) -> tuple[bytes, bytes | None]:
        """What the database keeps: zeros and whole segments cost next to nothing."""
        known = None if self.is_whole else self.known.to_bytes(KNOWN_SIZE, "little")
        return b"" if self.digests == self.zeros else self.digests, known

    def runs(self) -> Iterator[tuple[int, int, bytes | None]]:
        """Known chunks in order: first, count, and digests, or None for zeros."""
        start = self.number * SEGMENT_CHUNKS
        run: tuple[int, int, bool] | None = None  # first place, end, whether zeros
        for place in range(len(self.zeros) // DIGEST_SIZE):
            if not self.known >> place & 1:
                continue
            at = slice(place * DIGEST_SIZE, (place + 1) * DIGEST_SIZE)
            zero = self.digests[at] == self.zeros[at]
            if run is not None and run[1:] == (place, zero):
                run = (run[0], place + 1, zero)
                continue
            if run is not None:
                yield self._run(start, *run)
            run = (place, place + 1, zero)
        if run is not None:
            yield self._run(start, *run)

    def _run(self, start: int, first: int, end: int, zero: bool) -> tuple[int, int, bytes | None]:
        digests = None if zero else self.digests[first * DIGEST_SIZE : end * DIGEST_SIZE]
        return start + first, end - first, digests

    def _place(self, place: int, count: int) -> slice:
        if (place + count) * DIGEST_SIZE > len(self.zeros):
            raise ValueError(f"digest segment {self.number} has no chunk {place + count - 1}")
        return slice(place * DIGEST_SIZE, (place + count) * DIGEST_SIZE)

    @staticmethod
    def _bits(place: int, count: int) -> int:
        return ((1 << count) - 1) << place
