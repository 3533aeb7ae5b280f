"""Digests of chunks, of digest segments and of whole disks. See SPEC.md, "Digests"."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Final

from blake3 import blake3

from flatship_protocol.constants import CHUNK_SIZE, DIGEST_SIZE, SEGMENT_CHUNKS
from flatship_protocol.errors import DuplicateDiffers

_SEGMENT_CONTEXT: Final = "flatship/1 segment digest"
_ROOT_CONTEXT: Final = "flatship/1 root digest"


def chunk_digest(data: memoryview | bytes | bytearray) -> bytes:
    """BLAKE3-256 of a chunk's bytes; computed on the calling thread, without the GIL."""
    return blake3(data).digest()


@cache  # a disk asks for two lengths: that of a whole chunk and that of its last one
def zero_digest(length: int) -> bytes:
    """Digest of a chunk of ``length`` zero bytes."""
    return chunk_digest(bytes(length))


def segment_digest(chunk_digests: bytes | bytearray) -> bytes:
    """Digest of a digest segment.

    Args:
        chunk_digests: Of the segment's chunks, in order, 32 bytes each.
    """
    return blake3(chunk_digests, derive_key_context=_SEGMENT_CONTEXT).digest()


def root_digest(size: int, segment_digests: bytes | bytearray) -> bytes:
    """Digest of a disk.

    Args:
        size: Bytes of the disk.
        segment_digests: Of all its digest segments, in order, 32 bytes each.
    """
    hasher = blake3(size.to_bytes(8, "big"), derive_key_context=_ROOT_CONTEXT)
    return hasher.update(segment_digests).digest()


@cache
def _zero_segment() -> bytes:
    """Chunk digests of a whole segment of zeros: always the same object."""
    return zero_digest(CHUNK_SIZE) * SEGMENT_CHUNKS


@cache
def _zero_segment_digest() -> bytes:
    return segment_digest(_zero_segment())


class _OpenSegment:
    """A digest segment of which some chunks are known and some are missing.

    ``digests`` starts as those of zeros and is only made writable, a copy of
    32 KiB, by the first chunk that is not zero.
    """

    __slots__ = ("digests", "known")

    def __init__(self, zeros: bytes) -> None:
        self.digests: bytes | bytearray = zeros
        self.known = 0  # bit i: the digest of the segment's chunk i is known

    def chunk(self, place: int) -> bytes | None:
        if not self.known >> place & 1:
            return None
        return bytes(self.digests[place * DIGEST_SIZE : (place + 1) * DIGEST_SIZE])

    def set_chunk(self, place: int, digest: bytes) -> None:
        at = slice(place * DIGEST_SIZE, (place + 1) * DIGEST_SIZE)
        if isinstance(self.digests, bytearray):
            self.digests[at] = digest
        elif self.digests[at] != digest:
            self.digests = bytearray(self.digests)
            self.digests[at] = digest
        self.known |= 1 << place


class Manifest:
    """The digests of a disk's chunks, collected in any order, folded as soon as may be.

    A digest segment whose chunks are all known is folded to its own digest,
    32 bytes for 1 GiB of disk, and its chunks' digests are let go. An open one
    costs about 0.3 KiB while it holds only zeros, 33 KiB otherwise. Chunks
    that come roughly in order keep few segments open; whoever takes them from
    a peer that may jump about bounds ``open_segments``.

    Args:
        size: Bytes of the disk.
        on_segment: Called with ``(index, chunk_digests)`` when a segment is
            folded, before the call that completed it returns; the digests are
            32 bytes a chunk, in order. What it raises passes through, and the
            segment counts as folded.

    Not thread-safe.
    """

    def __init__(self, size: int, on_segment: Callable[[int, bytes], None] | None = None) -> None:
        self._size = size
        self._chunks = -(-size // CHUNK_SIZE)
        self._segments = -(-self._chunks // SEGMENT_CHUNKS)
        self._on_segment = on_segment
        self._open: dict[int, _OpenSegment] = {}
        self._folded = bytearray(self._segments * DIGEST_SIZE)
        self._is_folded = bytearray(self._segments)  # one byte a segment, 0 or 1
        self._unfolded = self._segments

    @property
    def chunks(self) -> int:
        """How many chunks the disk has."""
        return self._chunks

    @property
    def complete(self) -> bool:
        """Whether the digest of every chunk is known."""
        return self._unfolded == 0

    @property
    def open_segments(self) -> int:
        """How many segments have some of their chunks, and cost memory for it."""
        return len(self._open)

    def chunk(self, index: int) -> bytes | None:
        """Digest of a chunk; None when it is missing or its segment is folded."""
        self._check_range(index, 1)
        segment = self._open.get(index // SEGMENT_CHUNKS)
        return None if segment is None else segment.chunk(index % SEGMENT_CHUNKS)

    def set_chunk(self, index: int, digest: bytes) -> bool:
        """Take note of a chunk's digest.

        Returns:
            Whether it was news. False when the same digest was known, and
            when the segment is folded: then nothing can be compared any more
            and the digest is ignored.

        Raises:
            DuplicateDiffers: The segment is open and has another digest for
                this chunk, which stays.
            ValueError: No such chunk, or not a digest.
        """
        self._check_range(index, 1)
        if len(digest) != DIGEST_SIZE:
            raise ValueError(f"digest of {len(digest)} bytes; expected {DIGEST_SIZE}")
        number, place = divmod(index, SEGMENT_CHUNKS)
        if self._is_folded[number]:
            return False
        segment = self._opened(number)
        known = segment.chunk(place)
        if known is not None:
            if known != digest:
                raise DuplicateDiffers(index * CHUNK_SIZE)
            return False
        segment.set_chunk(place, digest)
        self._fold_if_full(number, segment)
        return True

    def set_zeros(self, first: int, count: int) -> None:
        """Take note that ``count`` chunks from ``first`` are zeros.

        Takes a step a segment, not a chunk, but where something is known
        already. Chunks of folded segments are ignored.

        Raises:
            DuplicateDiffers: A chunk in an open segment has another digest,
                which stays. The segments before it have been set.
            ValueError: Not a run of this disk's chunks.
        """
        self._check_range(first, count)
        end = first + count
        while first < end:
            number, place = divmod(first, SEGMENT_CHUNKS)
            length = min(end - first, self._length(number) - place)
            if not self._is_folded[number]:
                self._set_zeros_in(number, place, length)
            first += length

    def missing(self) -> Iterator[tuple[int, int]]:
        """Runs of chunks that are not known, in order, as ``(first, count)``.

        The manifest must not be changed while the iterator is in use.
        """
        run_first = run_count = 0
        for first, count in self._missing_by_segment():
            if run_count and first == run_first + run_count:
                run_count += count
                continue
            if run_count:
                yield run_first, run_count
            run_first, run_count = first, count
        if run_count:
            yield run_first, run_count

    def root(self) -> bytes:
        """The disk's root digest.

        Raises:
            ValueError: Chunks are missing.
        """
        if not self.complete:
            raise ValueError(f"{self._unfolded} of {self._segments} digest segments are missing")
        return root_digest(self._size, self._folded)

    def _check_range(self, first: int, count: int) -> None:
        if first < 0 or count < 0 or first + count > self._chunks:
            raise ValueError(f"chunks {first} + {count} of a disk that has {self._chunks}")

    def _length(self, number: int) -> int:
        """Chunks in a segment."""
        return min(SEGMENT_CHUNKS, self._chunks - number * SEGMENT_CHUNKS)

    def _zeros(self, number: int) -> bytes:
        """Chunk digests that a segment has when it is all zeros."""
        length = self._length(number)
        tail = self._size % CHUNK_SIZE
        if tail and number == self._segments - 1:
            return _zero_segment()[: (length - 1) * DIGEST_SIZE] + zero_digest(tail)
        return _zero_segment()[: length * DIGEST_SIZE]  # the same object when the segment is whole

    def _opened(self, number: int) -> _OpenSegment:
        segment = self._open.get(number)
        if segment is None:
            segment = self._open[number] = _OpenSegment(self._zeros(number))
        return segment

    def _set_zeros_in(self, number: int, place: int, length: int) -> None:
        segment = self._opened(number)
        run = ((1 << length) - 1) << place
        if segment.known & run:
            self._check_zeros(number, segment, place, length)
        segment.known |= run  # what is not known has the digests of zeros already
        self._fold_if_full(number, segment)

    def _check_zeros(self, number: int, segment: _OpenSegment, place: int, length: int) -> None:
        zeros = self._zeros(number)
        for at in range(place, place + length):
            known = segment.chunk(at)
            if known is not None and known != zeros[at * DIGEST_SIZE : (at + 1) * DIGEST_SIZE]:
                raise DuplicateDiffers((number * SEGMENT_CHUNKS + at) * CHUNK_SIZE)

    def _fold_if_full(self, number: int, segment: _OpenSegment) -> None:
        if segment.known == (1 << self._length(number)) - 1:
            del self._open[number]
            self._fold(number, bytes(segment.digests))

    def _fold(self, number: int, chunk_digests: bytes) -> None:
        at = slice(number * DIGEST_SIZE, (number + 1) * DIGEST_SIZE)
        zeros = chunk_digests is _zero_segment()  # spares terabytes of holes a hash a segment
        self._folded[at] = _zero_segment_digest() if zeros else segment_digest(chunk_digests)
        self._is_folded[number] = 1
        self._unfolded -= 1
        if self._on_segment is not None:
            self._on_segment(number, chunk_digests)

    def _missing_by_segment(self) -> Iterator[tuple[int, int]]:
        for number in range(self._segments):
            if self._is_folded[number]:
                continue
            first, length = number * SEGMENT_CHUNKS, self._length(number)
            segment = self._open.get(number)
            missing = (1 << length) - 1
            if segment is not None:
                missing &= ~segment.known
            yield from _runs_of_ones(missing, first)


def _runs_of_ones(bits: int, first: int) -> Iterator[tuple[int, int]]:
    """Runs of set bits as ``(first + lowest bit, count)``, ascending."""
    while bits:
        skipped = (bits & -bits).bit_length() - 1
        bits >>= skipped
        count = (~bits & (bits + 1)).bit_length() - 1
        yield first + skipped, count
        bits >>= count
        first += skipped + count
