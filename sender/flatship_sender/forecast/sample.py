"""What a disk will put on the wire, from a random chunk of each stratum of its data.

The data is divided into equal strata, and of each one chunk is read: so every part of the disk
has its say, and no regularity of what is on it can coincide with where is looked. They are taken
in a random order, which makes those that were read before the time was up a sample, too. Each
chunk is compressed at several levels: by how much it shrinks says what the link has to carry, and
how long that takes says what this machine's processors can do.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from random import Random
from statistics import fmean, variance
from typing import Final

import zstandard

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.extents import Extent, ExtentKind
from flatship_sender.sources.base import BlockSource
from flatship_sender.zeros import zero_runs

STRATA: Final = 192  # chunks read of a disk at most, each of a MiB
LEVELS: Final = (-5, -1, 1, 3, 6, 9)  # of zstd, as on the ladder of rungs
REFERENCE: Final = 3  # the level at which the error of the sample is judged


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen of a disk, scaled up to all of it; sizes in bytes.

    Attributes:
        size: Of the disk.
        to_read: In chunks that hold data as far as the source can tell.
        literal: Of those, in pages that are not zero.
        chunks: So many of them hold anything but zeros.
        shares: Bytes of payload for one of ``literal``, by level.
        seconds: A processor's, to compress one byte of ``literal``, by level.
        reading: Seconds to read one byte of the source.
        error: Standard error of what goes onto the wire, as a share of it.
        looked_at: Bytes that were read.
    """

    size: int
    to_read: int
    literal: int
    chunks: int
    shares: Mapping[int, float]
    seconds: Mapping[int, float]
    reading: float
    error: float
    looked_at: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """One chunk: sizes in bytes, times in seconds."""

    length: int
    literal: int
    payloads: Mapping[int, int]
    seconds: Mapping[int, float]
    reading: float


def sample(
    source: BlockSource,
    budget: float,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Sample:
    """Look at a source for about ``budget`` seconds; at one chunk of data at least.

    Raises:
        SourceReadError: The device failed.
    """
    runs = list(_runs(source.extents(0, source.size), source.size))
    chunks = sum(count for _, count in runs)
    until = clock() + budget
    seen: list[_Seen] = []
    memory = memoryview(bytearray(CHUNK_SIZE))
    for index in picks(chunks, Random(source.identity)):  # noqa: S311  # no secret
        if seen and clock() >= until:
            break
        offset = _offset(runs, index)
        seen.append(_look(source, offset, memory[: min(CHUNK_SIZE, source.size - offset)]))
    return _scaled_up(source.size, chunks, seen)


def picks(chunks: int, chance: Random) -> list[int]:
    """Which of so many chunks to look at: a random one of each stratum, in random order."""
    strata = min(chunks, STRATA)
    bounds = [number * chunks // strata for number in range(strata + 1)] if strata else []
    chosen = [chance.randrange(low, high) for low, high in pairwise(bounds)]
    chance.shuffle(chosen)
    return chosen


def _runs(extents: Iterable[Extent], size: int) -> Iterable[tuple[int, int]]:
    """Runs of chunks that a transfer would read: the offset of the first, and how many."""
    end = 0
    for extent in extents:
        if extent.kind is not ExtentKind.DATA or extent.end <= end:
            continue
        # The same cut as a transfer makes, but of a run as a whole.
        first = max(extent.offset - extent.offset % CHUNK_SIZE, end)
        end = min(-(-extent.end // CHUNK_SIZE) * CHUNK_SIZE, size)
        yield first, -(-(end - first) // CHUNK_SIZE)


def _offset(runs: list[tuple[int, int]], index: int) -> int:
    for first, count in runs:
        if index < count:
            return first + index * CHUNK_SIZE
        index -= count
    raise IndexError(index)


def _look(source: BlockSource, offset: int, buffer: memoryview) -> _Seen:
    started = time.perf_counter()
    source.read_into(buffer, offset)
    reading = time.perf_counter() - started
    literal = without_zeros(buffer)
    payloads, seconds = {}, {}
    for level in LEVELS if literal else ():
        begun = time.thread_time()
        coded = len(zstandard.ZstdCompressor(level=level).compress(literal))
        seconds[level] = time.thread_time() - begun
        payloads[level] = min(coded, len(literal))
    return _Seen(len(buffer), len(literal), payloads, seconds, reading)


def without_zeros(buffer: memoryview) -> bytes:
    """What travels of a chunk: its pages that are not zero, moved together."""
    position, pieces = 0, []
    for first, count in zero_runs(buffer):
        pieces.append(buffer[position : first * PAGE_SIZE])
        position = (first + count) * PAGE_SIZE
    return b"".join([*pieces, buffer[position:]])


def _scaled_up(size: int, chunks: int, seen: list[_Seen]) -> Sample:
    looked_at = sum(each.length for each in seen)
    literal = sum(each.literal for each in seen)
    to_read = min(size, chunks * CHUNK_SIZE)
    scale = to_read / looked_at if looked_at else 0.0
    dense = [each for each in seen if each.literal]
    return Sample(
        size=size,
        to_read=to_read,
        literal=round(literal * scale),
        chunks=round(len(dense) * scale * looked_at / len(seen) / CHUNK_SIZE) if seen else 0,
        shares={
            level: sum(each.payloads[level] for each in dense) / literal if literal else 1.0
            for level in LEVELS
        },
        seconds={
            level: sum(each.seconds[level] for each in dense) / literal if literal else 0.0
            for level in LEVELS
        },
        reading=sum(each.reading for each in seen) / looked_at if looked_at else 0.0,
        error=_error([each.payloads.get(REFERENCE, 0) for each in seen], chunks),
        looked_at=looked_at,
    )


def _error(payloads: list[int], chunks: int) -> float:
    """Relative standard error of the mean, of a sample without repetition."""
    mean = fmean(payloads) if payloads else 0.0
    if not mean or len(payloads) == chunks:
        return 0.0
    if len(payloads) < 2:
        return 1.0
    left_out = 1 - len(payloads) / chunks
    return sqrt(variance(payloads) / len(payloads) * left_out) / mean


def together(samples: list[Sample]) -> Sample:
    """Several disks as one."""
    literal = sum(each.literal for each in samples)
    to_read = sum(each.to_read for each in samples)
    part = [each.literal / literal if literal else 0.0 for each in samples]
    weighed = list(zip(samples, part, strict=True))
    return Sample(
        size=sum(each.size for each in samples),
        to_read=to_read,
        literal=literal,
        chunks=sum(each.chunks for each in samples),
        shares={
            level: sum(each.shares[level] * share for each, share in weighed) if literal else 1.0
            for level in LEVELS
        },
        seconds={
            level: sum(each.seconds[level] * share for each, share in weighed) for level in LEVELS
        },
        reading=sum(each.reading * each.to_read for each in samples) / to_read if to_read else 0.0,
        error=sqrt(sum((each.error * share) ** 2 for each, share in weighed)),
        looked_at=sum(each.looked_at for each in samples),
    )
