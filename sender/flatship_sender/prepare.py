"""What a worker thread does to one chunk: read, find zeros, digest, compare, compress, frame."""

import threading
import time
from dataclasses import dataclass
from typing import Final

from flatship_protocol.codec import Compressor, HistoryEncoder
from flatship_protocol.connection import MESSAGE_START, PAGE
from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.digest import chunk_digest
from flatship_protocol.messages import Chunk, Codec, Segment, SegmentKind, frame_chunk
from flatship_sender.copies import Copies, Copy
from flatship_sender.fingerprints import FINGERPRINT_SIZE, changed_pages
from flatship_sender.layout import anchors, gather, page_kinds, segments, whole
from flatship_sender.page_index import PageIndex
from flatship_sender.page_slots import Slot
from flatship_sender.plan import ReadChunk
from flatship_sender.sources.base import BlockSource
from flatship_sender.zeros import is_zero, zero_runs
from flatship_service.zeroing import fill_with_zeros

WORTH_KEEPING: Final = 0.25  # a smaller share of pages is not worth a read at the receiver
WORTH_REMEMBERING: Final = 16  # pages that are not zero; fewer are soon sent again
WORTH_COMPRESSING: Final = 0.95  # a larger payload than this share of the literals goes raw
SAMPLES: Final = 8  # of a chunk, to see whether it shrinks
SAMPLE_SIZE: Final = 4096  # bytes
SAMPLE_LEVEL: Final = 1

_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Laid:
    """A chunk that was read: its literal runs stand together at the start of the frame's payload.

    Attributes:
        work: Which chunk.
        digest: Of its bytes; None for one that is zero.
        held: The receiver has these very bytes, and it need not be sent.
        segments: As CHUNK has them.
        literal: Bytes of the literal runs.
        kept: Bytes that the receiver is to leave as they are.
        known: Bytes that it is to copy from elsewhere.
        copies: Where they are.
        slot: What the page index is to remember of the chunk, where one is kept.
        read_seconds: A worker's time for the read.
        digest_seconds: And for all that followed.
    """

    work: ReadChunk
    digest: bytes | None
    read_seconds: float
    digest_seconds: float
    held: bool = False
    segments: tuple[Segment, ...] = ()
    literal: int = 0
    kept: int = 0
    known: int = 0
    copies: tuple[Copy, ...] = ()
    slot: Slot | None = None

    @property
    def is_guess(self) -> bool:
        """Whether the receiver may find that it has not what it is to have."""
        return bool(self.kept or self.known)

    @property
    def sources(self) -> set[bytes]:
        """The images that it copies from."""
        return {copy.found.image for copy in self.copies}

    @property
    def travels(self) -> bool:
        """Whether it is to be sent as a CHUNK."""
        return self.digest is not None and not self.held


@dataclass(frozen=True, slots=True)
class Prepared:
    """A chunk ready to be sealed.

    ``message`` is a view of the frame. ``payload`` is what the literal runs became at
    ``level``, in bytes, in ``compress_seconds`` of a worker's time and
    ``processor_seconds`` of a core's. Not ``coded``: it was seen not to shrink, and left alone.
    """

    laid: Laid
    chunk: Chunk
    message: memoryview
    level: int | None
    payload: int
    compress_seconds: float
    processor_seconds: float
    coded: bool


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known of an earlier pass over a chunk.

    ``digest`` is what the receiver says it holds in its place, if anything. With ``remember``
    the index is to know the pages of every chunk, for what follows: another pass, or another
    disk. ``copies`` finds what the receiver has elsewhere, where that is to be looked for.
    What travels beside copies is compressed at ``level_beside_copies``, if others go raw: it is
    little, and a link on which nothing waits any more owes that to the copies. That is so for a
    whole chunk, too, of a disk that is ``mostly_known``.
    """

    digest: bytes | None = None
    index: PageIndex | None = None
    remember: bool = False
    copies: Copies | None = None
    level_beside_copies: int | None = None
    mostly_known: bool = False


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
) -> tuple[Laid, Prepared | None]:
    """Lay out one chunk, and make a message of it if it travels: ``lay_out``, then ``encode``."""
    laid = lay_out(source, work, frame, earlier)
    if level is None and (laid.known or earlier.mostly_known):
        level = earlier.level_beside_copies
    return laid, encode(laid, address, level, frame) if laid.travels else None


def lay_out(
    source: BlockSource, work: ReadChunk, frame: memoryview, earlier: Earlier = _NOTHING
) -> Laid:
    """Read one chunk into ``frame`` and find what of it has to travel.

    Args:
        source: What is read.
        work: Which chunk.
        frame: From a FramePool; its payload area is read into directly.
        earlier: What the receiver may have in its place.

    Raises:
        SourceReadError: The frame's content is undefined.
    """
    started = time.perf_counter()
    data = frame[PAGE : PAGE + work.length]
    _read(source, work, data)
    read = time.perf_counter()
    if is_zero(data):
        return Laid(work, None, read - started, time.perf_counter() - read)
    digest = chunk_digest(data)
    if digest == earlier.digest:
        _remember_held(work, data, earlier)
        return Laid(work, digest, read - started, time.perf_counter() - read, held=True)
    made, copies, slot = _laid_segments(work, data, digest, earlier)
    sizes = gather(data, made)
    return Laid(
        work,
        digest,
        read - started,
        time.perf_counter() - read,
        segments=made,
        literal=sizes.get(SegmentKind.LITERAL, 0),
        kept=sizes.get(SegmentKind.KEEP, 0),
        known=sizes.get(SegmentKind.COPY, 0),
        copies=copies,
        slot=slot,
    )


def _read(source: BlockSource, work: ReadChunk, data: memoryview) -> None:
    """Fill ``data`` with a chunk. A read of its holes would have the page cache make them."""
    if work.data is None:
        source.read_into(data, work.offset)
        return
    position = 0
    for offset, length in work.data:
        start = offset - work.offset
        fill_with_zeros(data[position:start])
        source.read_into(data[start : start + length], offset)
        position = start + length
    fill_with_zeros(data[position:])


def encode(
    laid: Laid,
    address: Address,
    level: int | None,
    frame: memoryview,
    stream: HistoryEncoder | None = None,
) -> Prepared:
    """Compress what was laid out in ``frame`` and make the CHUNK message there.

    Args:
        laid: A chunk that travels.
        address: Goes into the message.
        level: zstd level, or None to send raw.
        frame: The one that it was laid out in.
        stream: At that level: code the chunk as the next of its stream, unless it does not
            shrink.
    """
    assert laid.digest is not None
    started, processor = time.perf_counter(), time.thread_time()
    data = frame[PAGE : PAGE + laid.literal]
    codec, payload, begin, coded = Codec.RAW, laid.literal, False, level is not None
    if stream is not None:
        coded = _shrinks(data)
        if coded:
            codec, payload, begin = _encode_next(data, stream)
    elif level is not None:
        compressed = _compressor().compress(data, level)
        if len(compressed) <= laid.literal * WORTH_COMPRESSING:
            codec, payload = Codec.ZSTD, len(compressed)
            data[:payload] = compressed
    chunk = Chunk(
        disk=address.disk,
        pass_number=address.pass_number,
        offset=laid.work.offset,
        length=laid.work.length,
        codec=codec,
        literal_length=laid.literal,
        digest=laid.digest,
        segments=laid.segments,
        payload=data[:payload],
        begin=begin,
    )
    message = frame[MESSAGE_START:]
    size = frame_chunk(message, chunk, address.epoch)
    return Prepared(
        laid,
        chunk,
        message[:size],
        level,
        payload,
        time.perf_counter() - started,
        time.thread_time() - processor,
        coded,
    )


def _encode_next(data: memoryview, stream: HistoryEncoder) -> tuple[Codec, int, bool]:
    """Code ``data`` in its own place as the next of a stream; returns codec, payload, *begin*."""
    begin = stream.begins
    payload = stream.encode(data)
    if len(payload) >= len(data):
        stream.restart()  # for this is not sent
        return Codec.RAW, len(data), False
    data[: len(payload)] = payload
    return Codec.HISTORY, len(payload), begin


def _shrinks(data: memoryview) -> bool:
    """Whether to code a chunk at all: what looks like noise here and there is tried as a whole."""
    if not data:
        return False
    step = max(SAMPLE_SIZE, len(data) // SAMPLES)
    samples = b"".join(data[at : at + SAMPLE_SIZE] for at in range(0, len(data), step))
    compressor = _compressor()
    if len(compressor.compress(samples, SAMPLE_LEVEL)) <= len(samples) * WORTH_COMPRESSING:
        return True
    return len(compressor.compress(data, SAMPLE_LEVEL)) <= len(data) * WORTH_COMPRESSING


def _remember_held(work: ReadChunk, data: memoryview, earlier: Earlier) -> None:
    """See to it that the index knows a chunk that is not sent, if it is to."""
    index, digest, number = earlier.index, earlier.digest, work.offset // CHUNK_SIZE
    if index is None or digest is None or not earlier.remember:
        return
    zeros = zero_runs(data)
    if _is_worth_remembering(data, zeros) and index.recall(number, digest) is None:
        pages = index.fingerprints(data)
        kinds = page_kinds(len(pages) // FINGERPRINT_SIZE, zeros, None)
        index.record(number, Slot(digest, pages, anchors(kinds, (), zeros, 0)))


def _laid_segments(
    work: ReadChunk, data: memoryview, digest: bytes, earlier: Earlier
) -> tuple[tuple[Segment, ...], tuple[Copy, ...], Slot | None]:
    """The segments of a chunk that is sent, its copies, and what is to be remembered of it.

    Fingerprints are taken only where they are of use: this chunk was sent before, or will be.
    """
    index, before = earlier.index, None
    chunk = work.offset // CHUNK_SIZE
    if index is not None and earlier.digest is not None:
        before = index.recall(chunk, earlier.digest)
    zeros = zero_runs(data)
    remember = earlier.remember and _is_worth_remembering(data, zeros)
    if index is None or (before is None and not remember):
        return whole(data), (), None
    pages = index.fingerprints(data)
    count = len(pages) // FINGERPRINT_SIZE
    changed = None if before is None else changed_pages(before.pages, pages)
    # None: the digests differ, and yet no page does. Then the fingerprints are of no use.
    if changed is not None and (not changed or count - len(changed) < count * WORTH_KEEPING):
        changed = None
    kinds = page_kinds(count, zeros, changed)
    copies: tuple[Copy, ...] = ()
    if earlier.copies is not None:
        free = [kind is SegmentKind.LITERAL for kind in kinds]
        free[-1] &= len(data) % PAGE_SIZE == 0  # a short page is never copied
        copies = earlier.copies.find(pages, free, chunk)
    anchored = anchors(kinds, copies, zeros, 0 if before is None else before.anchors)
    return segments(kinds, copies), copies, Slot(digest, pages, anchored)


def _is_worth_remembering(data: memoryview, zeros: list[tuple[int, int]]) -> bool:
    """Whether enough of a chunk is not zero for what its slot takes."""
    return -(-len(data) // PAGE_SIZE) - sum(count for _, count in zeros) >= WORTH_REMEMBERING


def _compressor() -> Compressor:
    compressor: Compressor | None = getattr(_thread, "compressor", None)
    if compressor is None:
        compressor = _thread.compressor = Compressor()
    return compressor
