"""What a worker thread does to one chunk: read, recognise zeros, digest, compress, lay out."""

import threading
import time
from dataclasses import dataclass
from typing import Final

from flatship_protocol.codec import Compressor
from flatship_protocol.connection import MESSAGE_START, PAGE
from flatship_protocol.constants import PAGE_SIZE
from flatship_protocol.digest import chunk_digest
from flatship_protocol.messages import Chunk, Codec, Segment, SegmentKind, frame_chunk
from flatship_sender.plan import ReadChunk
from flatship_sender.sources.base import BlockSource
from flatship_sender.zeros import is_zero, zero_runs

MIN_ZERO_RUN: Final = 4  # pages; shorter runs of zeros travel, and are written, as data
WORTH_COMPRESSING: Final = 0.95  # a larger payload than this share of the literals goes raw

_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A chunk ready to be sealed, or one that need not be sent.

    ``message`` is a view of the frame; it and ``chunk`` are None for a chunk that is zero, or
    that the receiver has: then ``held`` is its digest. ``literal`` and ``payload`` are bytes
    before and after compression at ``level``.
    """

    chunk: Chunk | None
    message: memoryview | None
    level: int | None
    literal: int
    payload: int
    read_seconds: float
    digest_seconds: float
    compress_seconds: float
    held: bytes | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """Where prepared chunks go: what every CHUNK of one pass has in common."""

    disk: int
    pass_number: int
    epoch: int


def prepare(
    source: BlockSource,
    work: ReadChunk,
    address: Address,
    level: int | None,
    frame: memoryview,
    held: bytes | None = None,
) -> Prepared:
    """Read one chunk into ``frame`` and make the CHUNK message there.

    Args:
        source: What is read.
        work: Which chunk.
        address: Goes into the message.
        level: zstd level, or None to send raw.
        frame: From a FramePool; its payload area is read into directly.
        held: Digest of what the receiver has in its place, if anything.

    Raises:
        SourceReadError: The frame's content is undefined.
    """
    started = time.perf_counter()
    data = frame[PAGE : PAGE + work.length]
    source.read_into(data, work.offset)
    read = time.perf_counter()
    if is_zero(data):
        return Prepared(None, None, level, 0, 0, read - started, time.perf_counter() - read, 0.0)
    digest = chunk_digest(data)
    if digest == held:
        taken = time.perf_counter() - read
        return Prepared(None, None, level, 0, 0, read - started, taken, 0.0, held)
    segments = _segments(data)
    literal = _gather(data, segments)
    digested = time.perf_counter()
    codec, payload = Codec.RAW, literal
    if level is not None:
        compressed = _compressor().compress(data[:literal], level)
        if len(compressed) <= literal * WORTH_COMPRESSING:
            codec, payload = Codec.ZSTD, len(compressed)
            data[:payload] = compressed
    chunk = Chunk(
        disk=address.disk,
        pass_number=address.pass_number,
        offset=work.offset,
        length=work.length,
        codec=codec,
        literal_length=literal,
        digest=digest,
        segments=segments,
        payload=data[:payload],
    )
    message = frame[MESSAGE_START:]
    size = frame_chunk(message, chunk, address.epoch)
    return Prepared(
        chunk,
        message[:size],
        level,
        literal,
        payload,
        read - started,
        digested - read,
        time.perf_counter() - digested,
    )


def _segments(data: memoryview) -> tuple[Segment, ...]:
    """The literal and zero runs of a chunk; empty when all of it is literal."""
    runs = [run for run in zero_runs(data) if run[1] >= MIN_ZERO_RUN]
    if not runs:
        return ()
    pages = -(-len(data) // PAGE_SIZE)
    segments: list[Segment] = []
    position = 0
    for first, count in runs:
        if first > position:
            segments.append(Segment(SegmentKind.LITERAL, first - position))
        segments.append(Segment(SegmentKind.ZERO, count))
        position = first + count
    if position < pages:
        segments.append(Segment(SegmentKind.LITERAL, pages - position))
    return tuple(segments)


def _gather(data: memoryview, segments: tuple[Segment, ...]) -> int:
    """Move the literal runs together at the start of ``data``; returns their bytes."""
    if not segments:
        return len(data)
    source = target = 0
    for segment in segments:
        length = min(segment.pages * PAGE_SIZE, len(data) - source)
        if segment.kind is SegmentKind.LITERAL:
            data[target : target + length] = data[source : source + length]
            target += length
        source += length
    return target


def _compressor() -> Compressor:
    compressor: Compressor | None = getattr(_thread, "compressor", None)
    if compressor is None:
        compressor = _thread.compressor = Compressor()
    return compressor
