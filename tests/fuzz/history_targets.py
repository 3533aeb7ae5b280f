"""Streams with history: payloads one after the other, by themselves and as CHUNKs carry them."""

import string
from collections.abc import Iterator
from typing import Final

import zstandard
from blake3 import blake3

from flatship_protocol import messages
from flatship_protocol.codec import HistoryDecoder, HistoryEncoder
from flatship_protocol.errors import CodecError, MalformedMessage
from flatship_protocol.messages import CHUNK_PAYLOAD_OFFSET, Chunk, Codec, Segment, SegmentKind
from fuzz.message_targets import EPOCH
from fuzz.target import Target

WINDOW_LOG: Final = 17
MAX_LITERAL: Final = 1 << 20  # bytes; SPEC.md, "CHUNK"
MAX_BLOCKS: Final = 4096  # SPEC.md, "Streams with history"
MAX_PARTS: Final = 16
PAGE: Final = 4096  # bytes
HEADER_SIZE: Final = 6  # bytes
FRAME_START: Final = b"\x28\xb5\x2f\xfd\x00"
LAST_BLOCK: Final = b"\x01\x00\x00"
TEXT: Final = string.printable.encode() * 41
NOISE: Final = blake3(b"noise").digest(length=2 * PAGE)


class Stream:
    """A decoder, and all that it has accepted since its frame began."""

    def __init__(self) -> None:
        self._decoder = HistoryDecoder(WINDOW_LOG)
        self._frame = b""
        self._content = b""

    def take(self, payload: memoryview, out: memoryview, *, begin: bool) -> None:
        """Accepted are whole blocks that go on with the frame, to exactly so many bytes.

        Raises:
            CodecError: They are refused.
        """
        coded = bytes(payload)
        self._decoder.decode_into(payload, out, begin=begin)
        assert 0 < len(out) <= MAX_LITERAL
        if begin:
            assert coded.startswith(FRAME_START)
            assert window(coded[5]) <= 1 << WINDOW_LOG
            self._frame = self._content = b""
        assert self._frame or begin
        check_blocks(coded[HEADER_SIZE:] if begin else coded)
        self._frame += coded
        self._content += out
        whole = zstandard.ZstdDecompressor().decompressobj().decompress(self._frame + LAST_BLOCK)
        assert whole == self._content


def window(descriptor: int) -> int:
    """Bytes. RFC 8878, 3.1.1.1.2."""
    base = 1 << (10 + (descriptor >> 3))
    return base + base // 8 * (descriptor & 7)


def check_blocks(coded: bytes) -> None:
    """Whole ones to the end, and none the last. RFC 8878, 3.1.1.2."""
    count = 0
    while coded:
        head, coded = int.from_bytes(coded[:3], "little"), coded[3:]
        assert not head & 1
        size = 1 if head & 6 == 2 else head >> 3
        assert size <= len(coded)
        coded = coded[size:]
        count += 1
    assert count <= MAX_BLOCKS


def decode_payloads(data: bytes) -> None:
    """Parts of 4 bytes of lengths, and a payload; see ``part``."""
    stream = Stream()
    accepted = 0
    for begin, length, payload in parts(data):
        if length > MAX_LITERAL:
            raise MalformedMessage("the message around it is refused")
        stream.take(memoryview(payload), memoryview(bytearray(length)), begin=begin)
        accepted += 1
    if not accepted:
        raise MalformedMessage("no payload")


def part(payload: bytes, length: int, *, begin: bool) -> bytes:
    """A payload, and the length that the message around it would give."""
    return (begin << 23 | length).to_bytes(3, "big") + len(payload).to_bytes(2, "big") + payload


def parts(data: bytes) -> Iterator[tuple[bool, int, bytes]]:
    """What ``part`` made; the last one takes what there is."""
    for _ in range(MAX_PARTS):
        if len(data) < 5:
            return
        flags = int.from_bytes(data[:3], "big")
        end = 5 + int.from_bytes(data[3:5], "big")
        yield bool(flags >> 23), flags & 0x7FFFFF, data[5:end]
        data = data[end:]


def decode_chunks(data: bytes) -> None:
    """CHUNK messages, each behind 2 bytes of its length, in the frame they came in."""
    stream = Stream()
    frame = memoryview(bytearray(CHUNK_PAYLOAD_OFFSET + MAX_LITERAL))
    accepted = 0
    for _ in range(MAX_PARTS):
        if len(data) < 2:
            break
        end = 2 + int.from_bytes(data[:2], "big")
        plaintext, data = data[2:end], data[end:]
        frame[: len(plaintext)] = plaintext
        _, chunk = messages.decode(frame[: len(plaintext)])
        if not isinstance(chunk, Chunk) or chunk.codec is not Codec.HISTORY:
            raise MalformedMessage("not this target's")
        literals = frame[CHUNK_PAYLOAD_OFFSET : CHUNK_PAYLOAD_OFFSET + chunk.literal_length]
        stream.take(chunk.payload, literals, begin=chunk.begin)
        accepted += 1
    if not accepted:
        raise MalformedMessage("no chunk")


def _streams() -> Iterator[list[tuple[bool, bytes, bytes]]]:
    """Streams as encoders make them: whether a frame begins, payload, literals."""
    contents = (TEXT[:4096], NOISE, TEXT[:512], NOISE[512:], bytes(8192), NOISE[:4096])
    for level, window_log in ((1, 17), (3, 10), (9, 12), (-5, 17)):
        encoder = HistoryEncoder(level, window_log)
        stream = []
        for place, content in enumerate(contents):
            if place == 4:
                encoder.restart()
            begin = encoder.begins
            stream.append((begin, encoder.encode(content), content))
        yield stream


def _chunk(begin: bool, payload: bytes, literals: bytes) -> bytes:
    pages = -(-len(literals) // PAGE)
    zeros = Segment(SegmentKind.ZERO, 1)
    segments = () if len(literals) % PAGE else (Segment(SegmentKind.LITERAL, pages), zeros)
    length = len(literals) + (PAGE if segments else 0)
    sizes = (length, Codec.HISTORY, len(literals))
    chunk = Chunk(1, 1, 3 << 20, *sizes, bytes(32), segments, memoryview(payload), begin)
    encoded = messages.encode(chunk, EPOCH)
    return len(encoded).to_bytes(2, "big") + encoded


TARGETS: Final = (
    Target(
        "history",
        decode_payloads,
        (CodecError, MalformedMessage),
        tuple(
            b"".join(part(payload, len(literals), begin=begin) for begin, payload, literals in each)
            for each in _streams()
        ),
        tokens=(FRAME_START, LAST_BLOCK, b"\0\0\0", b"\x02\0\x10z", b"\x28\0\0five."),
        memory=4 * MAX_LITERAL,
    ),
    Target(
        "history-chunks",
        decode_chunks,
        (CodecError, MalformedMessage),
        tuple(b"".join(_chunk(*item) for item in each) for each in _streams()),
        tokens=(FRAME_START, LAST_BLOCK),
        memory=6 * MAX_LITERAL,
    ),
)
