"""What a worker thread does to one chunk: read, find zeros, digest, compare, compress, frame."""

import threading
import time
from dataclasses import dataclass
from typing import Final

from flatship_protocol.codec import Compressor
from flatship_protocol.connection import MESSAGE_START, PAGE
from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.digest import chunk_digest
from flatship_protocol.messages import Chunk, Codec, Segment, frame_chunk
from flatship_sender.fingerprints import FINGERPRINT_SIZE, changed_pages
from flatship_sender.layout import gather, patch, whole
from flatship_sender.page_index import PageIndex
from flatship_sender.plan import ReadChunk
from flatship_sender.sources.base import BlockSource
from flatship_sender.zeros import is_zero

WORTH_KEEPING: Final = 0.25  # a smaller share of pages is not worth a read at the receiver
WORTH_COMPRESSING: Final = 0.95  # a larger payload than this share of the literals goes raw

_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A chunk ready to be sealed, or one that need not be sent.

    ``message`` is a view of the frame; it and ``chunk`` are None for a chunk that is zero, or
    that the receiver has: then ``held`` is its digest. ``literal`` and ``payload`` are bytes
    before and after compression at ``level``; ``kept`` are bytes that the receiver is to take
    from what it has. ``pages`` are fingerprints for the page index, where one is kept.
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
    kept: int = 0
    pages: bytes | None = None


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known of an earlier pass over a chunk.

    ``digest`` is what the receiver says it holds in its place, if anything. With ``remember``
    the index is to know the pages of every chunk, for a pass that follows this one.
    """

    digest: bytes | None = None
    index: PageIndex | None = None
    remember: bool = False


_NOTHING: Final = Earlier()


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
    earlier: Earlier = _NOTHING,
) -> Prepared:
    """Read one chunk into ``frame`` and make the CHUNK message there.

    Args:
        source: What is read.
        work: Which chunk.
        address: Goes into the message.
        level: zstd level, or None to send raw.
        frame: From a FramePool; its payload area is read into directly.
        earlier: What the receiver may have in its place.

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
    if digest == earlier.digest:
        _remember_held(work, data, earlier)
        taken = time.perf_counter() - read
        return Prepared(None, None, level, 0, 0, read - started, taken, 0.0, earlier.digest)
    segments, pages = _changed_segments(work, data, earlier)
    literal, kept = gather(data, segments)
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
        kept=kept,
        pages=pages,
    )


def _remember_held(work: ReadChunk, data: memoryview, earlier: Earlier) -> None:
    """See to it that the index knows a chunk that is not sent, if it is to."""
    index, digest, number = earlier.index, earlier.digest, work.offset // CHUNK_SIZE
    if index is None or digest is None or not earlier.remember:
        return
    if index.recall(number, digest) is None:
        index.record(number, digest, index.fingerprints(data))


def _changed_segments(
    work: ReadChunk, data: memoryview, earlier: Earlier
) -> tuple[tuple[Segment, ...], bytes | None]:
    """The segments of a chunk that is sent, and fingerprints of its pages, if they were taken.

    They are taken only where they are of use: this chunk was sent before, or will be.
    """
    index, before = earlier.index, None
    if index is not None and earlier.digest is not None:
        before = index.recall(work.offset // CHUNK_SIZE, earlier.digest)
    if index is None or (before is None and not earlier.remember):
        return whole(data), None
    pages = index.fingerprints(data)
    if before is None:
        return whole(data), pages
    changed = changed_pages(before, pages)
    count = len(pages) // FINGERPRINT_SIZE
    # None: the digests differ, and yet no page does. Then the fingerprints are of no use.
    if not changed or count - len(changed) < count * WORTH_KEEPING:
        return whole(data), pages
    return patch(data, changed), pages


def _compressor() -> Compressor:
    compressor: Compressor | None = getattr(_thread, "compressor", None)
    if compressor is None:
        compressor = _thread.compressor = Compressor()
    return compressor
