"""CHUNK: bytes of a disk, or where the receiver finds them. See SPEC.md, "CHUNK"."""

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final, NoReturn, Self

from flatship_protocol.constants import (
    CHUNK_SIZE,
    MAX_REFERENCES,
    MAX_SEGMENTS,
    MESSAGE_HEADER_SIZE,
    PAGE_SIZE,
    SECTOR_SIZE,
)
from flatship_protocol.messages.body import DiskMessage, malformed
from flatship_protocol.messages.registry import Codec, MessageType, SegmentKind

# offset, length, payload length, literal length, codec, flags, segments, digest
_FIXED: Final = Struct(">QIIIBBH32s")
_BEGIN: Final = 1
_SEGMENT: Final = Struct(">BBHIQ")  # kind, 0, pages, image reference, source offset

# Calling an enumeration takes several times as long as looking into a dict.
_CODECS: Final = {int(codec): codec for codec in Codec}
_GUESSED: Final = frozenset({SegmentKind.KEEP, SegmentKind.COPY})
_KINDS: Final = {int(kind): kind for kind in SegmentKind}

CHUNK_PAYLOAD_OFFSET: Final = MESSAGE_HEADER_SIZE + _FIXED.size
"""Bytes from the start of a CHUNK message to its payload."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of pages of one kind inside a chunk.

    Attributes:
        pages: 1 to 256; the last page of a chunk may be short.
        image: Reference that IMAGE bound, 0 to 1023, for COPY only.
        source_offset: Bytes on that image, a multiple of 4096, for COPY only.
    """

    kind: SegmentKind
    pages: int
    image: int = 0
    source_offset: int = 0


@dataclass(frozen=True, slots=True)
class Chunk(DiskMessage):
    """CHUNK: one chunk of the disk.

    Attributes:
        offset: Bytes on the disk, a multiple of 1 MiB.
        length: Bytes of the chunk, 512 to 1 MiB.
        codec: How ``payload`` is coded.
        literal_length: Bytes of ``payload`` when decoded.
        digest: BLAKE3-256 of the chunk's bytes.
        segments: Cover the chunk's pages in order; empty: all of it is literal.
        payload: Decoded, a slice of the plaintext without a copy: whoever
            reuses the plaintext's buffer is done with the chunk first.
        begin: The payload begins a stream; with codec HISTORY only.
    """

    TYPE: ClassVar = MessageType.CHUNK

    offset: int
    length: int
    codec: Codec
    literal_length: int
    digest: bytes
    segments: tuple[Segment, ...]
    payload: memoryview
    begin: bool = False

    @property
    def guesses(self) -> bool:
        """Whether a part of it is only thought to be at the receiver, which may want it whole."""
        return any(segment.kind in _GUESSED for segment in self.segments)

    def _body(self) -> bytes:
        return b"".join((self._front(), self.payload, self._segment_table()))

    def _front(self) -> bytes:
        """The body's fields that stand before the payload."""
        return _FIXED.pack(
            self.offset,
            self.length,
            len(self.payload),
            self.literal_length,
            self.codec,
            _BEGIN if self.begin else 0,
            len(self.segments),
            self.digest,
        )

    def _segment_table(self) -> bytes:
        """What stands behind the payload."""
        return b"".join(
            _SEGMENT.pack(segment.kind, 0, segment.pages, segment.image, segment.source_offset)
            for segment in self.segments
        )

    @classmethod
    def _parse(cls, disk: int, pass_number: int, flags: int, body: memoryview) -> Self:
        if len(body) < _FIXED.size:
            _refuse(f"body of {len(body)} bytes; expected at least {_FIXED.size}")
        (
            offset,
            length,
            payload_length,
            literal_length,
            codec_number,
            coding_flags,
            count,
            digest,
        ) = _FIXED.unpack_from(body)
        codec = _CODECS.get(codec_number)
        if codec is None:
            _refuse(f"{codec_number} is no Codec")
        if coding_flags & ~(_BEGIN if codec is Codec.HISTORY else 0):
            _refuse(f"flags {coding_flags:#04x} of codec {codec.name}")
        if offset % CHUNK_SIZE:
            _refuse(f"offset {offset} is not a multiple of {CHUNK_SIZE}")
        if not 0 < length <= CHUNK_SIZE or length % SECTOR_SIZE:
            _refuse(f"length {length}; expected a multiple of {SECTOR_SIZE} up to {CHUNK_SIZE}")
        if count > MAX_SEGMENTS:
            _refuse(f"{count} segments; at most {MAX_SEGMENTS}")
        payload_end = _FIXED.size + payload_length
        body_end = payload_end + count * _SEGMENT.size
        if len(body) != body_end:
            _refuse(f"body of {len(body)} bytes; expected {body_end}")
        if codec is Codec.RAW and payload_length != literal_length:
            _refuse(f"raw payload of {payload_length} bytes for {literal_length}")
        if literal_length == 0 and codec is not Codec.RAW:
            _refuse(f"no literal bytes, and codec {codec.name}")
        segments: tuple[Segment, ...] = ()
        literal_expected = length
        if count:
            segments, literal_expected = _parse_segments(body[payload_end:], length)
        if literal_length != literal_expected:
            _refuse(f"literal length {literal_length}; its segments say {literal_expected}")
        return cls(
            disk,
            pass_number,
            offset,
            length,
            codec,
            literal_length,
            digest,
            segments,
            body[_FIXED.size : payload_end],
            bool(coding_flags),
        )


def _parse_segments(table: memoryview, length: int) -> tuple[tuple[Segment, ...], int]:
    """The segments of a chunk of ``length`` bytes, and how many bytes are literal."""
    segments = []
    position = literal = 0
    previous = None
    for kind_number, reserved, pages, image, source_offset in _SEGMENT.iter_unpack(table):
        kind = _KINDS.get(kind_number)
        if kind is None:
            _refuse(f"{kind_number} is no SegmentKind")
        if reserved:
            _refuse("a reserved byte of a segment is not zero")
        if kind is not SegmentKind.COPY and (image or source_offset):
            _refuse(f"a segment of kind {kind.name} names a source")
        if image >= MAX_REFERENCES:
            _refuse(f"image reference {image}; the last one is {MAX_REFERENCES - 1}")
        if source_offset % PAGE_SIZE:
            _refuse(f"source offset {source_offset} is not a multiple of {PAGE_SIZE}")
        if not pages:
            _refuse("a segment has no pages")
        if kind is previous and (kind is SegmentKind.LITERAL or kind is SegmentKind.ZERO):
            _refuse(f"two neighbouring segments of kind {kind.name}")
        end = position + pages * PAGE_SIZE
        if end >= length + PAGE_SIZE:
            _refuse(f"segments go past the chunk's {length} bytes")
        if kind is SegmentKind.COPY and end > length:
            _refuse("a copy takes whole pages, and the chunk's last one is short")
        if kind is SegmentKind.LITERAL:
            literal += min(end, length) - position
        position = end
        previous = kind
        segments.append(Segment(kind, pages, image, source_offset))
    if position < length:
        _refuse(f"segments cover {position} of the chunk's {length} bytes")
    return tuple(segments), literal


def _refuse(what: str) -> NoReturn:
    malformed(MessageType.CHUNK, what)
