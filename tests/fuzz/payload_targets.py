"""Decoders of a chunk's payload: the gate before zstd, and what a worker makes of a whole CHUNK."""

import dataclasses
import io
import string
from typing import Final

import zstandard
from blake3 import blake3

from flatship_protocol import messages
from flatship_protocol.codec import Compressor, Decompressor
from flatship_protocol.errors import CodecError, DigestMismatch, MalformedMessage
from flatship_protocol.messages import Chunk, Codec, Segment, SegmentKind
from flatship_receiver.store import KeptDiffers, store
from fuzz.message_targets import DIGEST, EPOCH, HEADER_SIZE, with_body_length
from fuzz.target import Target

MAX_LITERAL: Final = 1 << 20  # bytes; SPEC.md, "CHUNK"
MAX_WINDOW: Final = 8 << 20  # bytes; SPEC.md, "CHUNK"
MAGIC: Final = b"\x28\xb5\x2f\xfd"
PAGE: Final = 4096  # bytes
TEXT: Final = string.printable.encode() * 40
NOISE: Final = blake3(b"noise").digest(length=5 * 4096)


def promised(frame: bytes) -> tuple[int, int]:
    """Window and content size, in bytes, of a zstd frame. RFC 8878, 3.1.1.1."""
    assert frame[:4] == MAGIC
    descriptor = frame[4]
    single, wide, dictionary = descriptor >> 5 & 1, descriptor >> 6, descriptor & 3
    assert not descriptor & 8, "a reserved bit"
    at = 5
    window = 0
    if not single:
        base = 1 << (10 + (frame[at] >> 3))
        window = base + base // 8 * (frame[at] & 7)
        at += 1
    identifier = frame[at : at + (0, 1, 2, 4)[dictionary]]
    assert not any(identifier), "a dictionary"
    at += len(identifier)
    size = (1 if single else 0, 2, 4, 8)[wide]
    assert size, "no content size"
    content = int.from_bytes(frame[at : at + size], "little") + (256 if size == 2 else 0)
    return (content if single else window), content


def inflated(frame: bytes) -> bytes:
    """What a frame that was accepted holds, by zstd's other interface; nothing follows it."""
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    content = decompressor.decompress(frame)
    assert decompressor.eof
    assert not decompressor.unused_data
    return content


_DECOMPRESSOR: Final = Decompressor()


def decompress(data: bytes) -> None:
    """Accepted are frames that promise, and hold, exactly so many bytes, in a bounded window.

    The first four bytes are the length that the message around the payload gives.
    """
    length = int.from_bytes(data[:4], "big")
    if length > MAX_LITERAL:
        raise MalformedMessage("the message around it is refused")
    frame = data[4:]
    out = bytearray(length)
    try:
        _DECOMPRESSOR.decompress_into(memoryview(frame), memoryview(out))
    except CodecError:
        assert out.count(0) == length
        raise
    window, content = promised(frame)
    assert window <= MAX_WINDOW
    assert content == length
    assert inflated(frame) == out


def with_content_size(data: bytes) -> bytes:
    """``data`` with the length that its frame promises, if it promises one."""
    try:
        _, content = promised(data[4:])
    except (AssertionError, IndexError):
        return data
    return (content % (1 << 32)).to_bytes(4, "big") + data[4:]


def _streamed(data: bytes, **options: int) -> bytes:
    """A frame with a window of its own, as the streaming interface makes it."""
    parameters = zstandard.ZstdCompressionParameters(**options)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=len(data))
    return compressor.compress(data) + compressor.flush()


def _unit(kind: int, size: int, content: bytes, *, last: bool = True) -> bytes:
    """A block of a frame: raw (0) or one byte repeated (1). RFC 8878, 3.1.1.2."""
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + content


def _zstd_seeds() -> tuple[bytes, ...]:
    frames = (
        *((Compressor().compress(TEXT, level), len(TEXT)) for level in (-5, 1, 19)),
        (Compressor().compress(NOISE, 1), len(NOISE)),
        (Compressor().compress(b"a", 1), 1),
        (_streamed(TEXT, window_log=10, write_content_size=1), len(TEXT)),
        (_streamed(TEXT, window_log=23, write_content_size=1, write_checksum=1), len(TEXT)),
        (MAGIC + b"\x80\x68" + (9).to_bytes(4, "little") + _unit(0, 9, b"123456789"), 9),
        (MAGIC + b"\xa0" + (4096).to_bytes(4, "little") + _unit(1, 4096, b"z"), 4096),
    )
    return tuple(length.to_bytes(4, "big") + frame for frame, length in frames)


class _Source:
    """An image to copy from: every page of it is another, and none is one of ``present``."""

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, buffer: memoryview, offset: int) -> None:
        assert offset % PAGE == 0
        assert len(buffer) % PAGE == 0
        assert offset + len(buffer) <= self.size
        buffer[:] = elsewhere(offset, len(buffer))


KEEP: Final = SegmentKind.KEEP
COPY: Final = SegmentKind.COPY
SOURCES: Final = {0: _Source(64 * PAGE), 1023: _Source(5 * PAGE - 512)}


def elsewhere(offset: int, length: int) -> bytes:
    """What a source holds there."""
    first = offset // PAGE
    pages = range(first, first + length // PAGE)
    return b"".join((page ^ 0xFFFF).to_bytes(2, "big") * (PAGE // 2) for page in pages)


def is_there(segment: Segment) -> bool:
    """Whether what it copies, if it does, is within a source."""
    if segment.kind is not COPY:
        return True
    source = SOURCES.get(segment.image)
    return source is not None and segment.source_offset + segment.pages * PAGE <= source.size


class _Record:
    """An Image that writes nothing, and knows what was asked of it."""

    capacity = 1 << 60

    def __init__(self, offset: int, length: int) -> None:
        self._offset = offset
        self.content = bytearray(present(length))
        self.calls = 0

    def read_latest(self, buffer: memoryview, offset: int) -> None:
        at = offset - self._offset
        assert 0 <= at <= at + len(buffer) <= len(self.content)
        buffer[:] = self.content[at : at + len(buffer)]

    def write(self, offset: int, data: memoryview) -> None:
        self._put(offset, bytes(data))

    def zero(self, offset: int, length: int) -> None:
        self._put(offset, bytes(length))

    def _put(self, offset: int, data: bytes) -> None:
        at = offset - self._offset
        assert 0 <= at <= at + len(data) <= len(self.content)
        self.content[at : at + len(data)] = data
        self.calls += 1


def store_chunk(data: bytes) -> None:
    """What is written is what the segments say, all of the chunk, after its digest was right."""
    _, chunk = messages.decode(memoryview(data))
    if not isinstance(chunk, Chunk):
        raise MalformedMessage("not this target's")
    if chunk.codec is Codec.HISTORY:
        raise MalformedMessage("decoded by its connection; see history_targets")
    image = _Record(chunk.offset, chunk.length)
    try:
        store(image, chunk, SOURCES)
    except (CodecError, DigestMismatch) as error:
        assert image.calls == 0
        assert image.content == present(chunk.length)
        guesses = any(segment.kind in (KEEP, COPY) for segment in chunk.segments)
        assert isinstance(error, CodecError | KeptDiffers) or not guesses
        if isinstance(error, CodecError):
            raise
        if any(not is_there(segment) for segment in chunk.segments):
            return
        chunk = dataclasses.replace(chunk, digest=blake3(assembled(chunk)).digest())
        store(image, chunk, SOURCES)
    assert blake3(image.content).digest() == chunk.digest
    assert image.content == assembled(chunk)


def present(length: int) -> bytes:
    """What an image holds before a chunk comes; every page of it is another."""
    return b"".join(page.to_bytes(2, "big") * (PAGE // 2) for page in range(-(-length // PAGE)))[
        :length
    ]


def assembled(chunk: Chunk) -> bytes:
    """The bytes that a chunk stands for."""
    kept = io.BytesIO(present(-(-chunk.length // PAGE) * PAGE))
    payload = bytes(chunk.payload)
    literals = io.BytesIO(inflated(payload) if chunk.codec is Codec.ZSTD else payload)
    segments = chunk.segments or (Segment(SegmentKind.LITERAL, -(-chunk.length // PAGE)),)
    pages = b""
    for segment in segments:
        before = kept.read(segment.pages * PAGE)
        if segment.kind is COPY:
            pages += elsewhere(segment.source_offset, segment.pages * PAGE)
        elif segment.kind is SegmentKind.LITERAL:
            pages += literals.read(segment.pages * PAGE)
        else:
            pages += before if segment.kind is SegmentKind.KEEP else bytes(len(before))
    return pages[: chunk.length]


def _chunk(length: int, segments: tuple[Segment, ...], literals: bytes, level: int | None) -> bytes:
    payload = literals if level is None else Compressor().compress(literals, level)
    codec = Codec.RAW if level is None else Codec.ZSTD
    fields = (1, 1, 3 << 20, length, codec, len(literals), DIGEST, segments, memoryview(payload))
    chunk = Chunk(*fields)
    chunk = dataclasses.replace(chunk, digest=blake3(assembled(chunk)).digest())
    return messages.encode(chunk, EPOCH)


def _chunk_seeds() -> tuple[bytes, ...]:
    zeros, literal = Segment(SegmentKind.ZERO, 2), Segment(SegmentKind.LITERAL, 1)
    mixed = (zeros, literal, zeros, literal)
    keep = Segment(SegmentKind.KEEP, 1)
    return (
        _chunk(512, (), NOISE[:512], None),
        _chunk(2 * PAGE, (), TEXT[:4000] + bytes(2 * PAGE - 4000), 1),
        _chunk(6 * PAGE, mixed, NOISE[: 2 * PAGE], None),
        _chunk(6 * PAGE - 512, mixed, TEXT[:4000] + bytes(2 * PAGE - 512 - 4000), 3),
        _chunk(64 * PAGE, (Segment(SegmentKind.ZERO, 64),), b"", None),
        _chunk(4 * PAGE, (keep, literal, keep, keep), NOISE[:PAGE], None),
        _chunk(5 * PAGE - 512, (literal, zeros, keep, keep), TEXT[:4000] + bytes(96), 3),
        _chunk(256 * PAGE, (Segment(SegmentKind.KEEP, 256),), b"", None),
        _chunk(64 * PAGE, (Segment(COPY, 64, 0, 0),), b"", None),
        _chunk(
            3 * PAGE - 512, (Segment(COPY, 2, 1023, 2 * PAGE), literal), NOISE[: PAGE - 512], None
        ),
        _chunk(4 * PAGE, (Segment(COPY, 1, 0, 8 * PAGE), keep, literal, keep), NOISE[:PAGE], None),
    )


PAYLOAD_LENGTH_AT: Final = HEADER_SIZE + 12  # 4 bytes
SEGMENT_COUNT_AT: Final = HEADER_SIZE + 22  # 2 bytes
PAYLOAD_AT: Final = HEADER_SIZE + 56
SEGMENT_SIZE: Final = 16  # bytes


def with_lengths(data: bytes) -> bytes:
    """``data`` with the lengths of its body and of its payload as they are."""
    data = with_body_length(data)
    count = int.from_bytes(data[SEGMENT_COUNT_AT : SEGMENT_COUNT_AT + 2], "big")
    length = max(len(data) - PAYLOAD_AT - SEGMENT_SIZE * count, 0).to_bytes(4, "big")
    return data[:PAYLOAD_LENGTH_AT] + length + data[PAYLOAD_LENGTH_AT + 4 :]


TARGETS: Final = (
    Target(
        "zstd",
        decompress,
        (CodecError, MalformedMessage),
        _zstd_seeds(),
        tokens=(
            MAGIC,
            b"\x50\x2a\x4d\x18",
            _unit(1, 128 << 10, b"z", last=False),
            _unit(0, 0, b""),
        ),
        repair=with_content_size,
        memory=3 * MAX_LITERAL,
    ),
    Target(
        "chunk-store",
        store_chunk,
        (CodecError, MalformedMessage),
        _chunk_seeds(),
        repair=with_lengths,
        memory=6 * MAX_LITERAL,
    ),
)
