import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from flatship_protocol.constants import CHUNK_SIZE, MAX_PADDING, NO_DISK
from flatship_protocol.errors import ErrorCode, MalformedMessage
from flatship_protocol.messages import (
    CHUNK_PAYLOAD_OFFSET,
    Abandon,
    Adapter,
    Capability,
    Chunk,
    Codec,
    Credit,
    DiskFailed,
    DiskFormat,
    DiskMessage,
    DiskOpened,
    DiskProven,
    EndPass,
    Error,
    Goodbye,
    Held,
    Hello,
    HelloOk,
    ImageReference,
    Message,
    MessageType,
    OpenDisk,
    Ping,
    Pong,
    Probe,
    Probed,
    Proving,
    Provisioning,
    Segment,
    SegmentKind,
    Stored,
    Want,
    Zero,
    decode,
    encode,
    frame_chunk,
)

SPEC = Path(__file__).parents[2] / "protocol" / "SPEC.md"
EPOCH = 0x0102030405060708
ID = bytes(range(16))
DIGEST = bytes(range(32))
LITERAL, ZERO, KEEP, COPY = SegmentKind


def u8(value: int) -> bytes:
    return value.to_bytes(1, "big")


def u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def plaintext(
    type_: int, body: bytes, *, flags: int = 0, disk: int = NO_DISK, pass_number: int = 0
) -> bytes:
    """A message assembled field by field from the header's table in SPEC.md."""
    front = u8(type_) + u8(flags) + u16(disk) + u32(pass_number)
    return front + u64(EPOCH) + u32(len(body)) + u32(0) + body


def about_disk(type_: int, body: bytes, flags: int = 0) -> bytes:
    return plaintext(type_, body, flags=flags, disk=3, pass_number=2)


def open_body(
    size: int = 1 << 40,
    reserve: int = 1 << 30,
    numbers: bytes = b"\0\1\2\x16",
    names: bytes = b"\4ssd1\5web01\5web\xc3\xb6",
) -> bytes:
    return u64(size) + u64(reserve) + DIGEST + numbers + bytes(4) + names


def open_disk(**flags: bool) -> OpenDisk:
    return OpenDisk(
        disk=3,
        pass_number=2,
        size=1 << 40,
        reserve=1 << 30,
        source_id=DIGEST,
        format=DiskFormat.VMFS,
        provisioning=Provisioning.THICK,
        adapter=Adapter.IDE,
        hardware_version=22,
        datastore="ssd1",
        vm="web01",
        name="webö",
        **flags,
    )


def chunk_body(
    *,
    offset: int = 5 << 20,
    length: int = CHUNK_SIZE,
    payload: bytes = b"zstd frame",
    literal: int | None = None,
    codec: int = 1,
    flags: int = 0,
    count: int | None = None,
    table: bytes = b"",
) -> bytes:
    return b"".join(
        (
            u64(offset),
            u32(length),
            u32(len(payload)),
            u32(length if literal is None else literal),
            u8(codec),
            u8(flags),
            u16(len(table) // 16 if count is None else count),
            DIGEST,
            payload,
            table,
        )
    )


def hello_ok(capabilities: int, window: int, streams: int) -> bytes:
    front = u64(capabilities) + u64(64 << 20) + u16(16)
    return front + u8(window) + u8(streams) + u32(90) + b"\0"


def entry(kind: int, pages: int, image: int = 0, source: int = 0, reserved: int = 0) -> bytes:
    return u8(kind) + u8(reserved) + u16(pages) + u32(image) + u64(source)


def chunk(payload: bytes = b"zstd frame", *segments: Segment, literal: int = CHUNK_SIZE) -> Chunk:
    return Chunk(
        disk=3,
        pass_number=2,
        offset=5 << 20,
        length=CHUNK_SIZE,
        codec=Codec.ZSTD if literal else Codec.RAW,
        literal_length=literal,
        digest=DIGEST,
        segments=segments,
        payload=memoryview(payload),
    )


SEGMENTS = (Segment(ZERO, 6), Segment(LITERAL, 200), Segment(KEEP, 1), Segment(COPY, 49, 9, 8192))
TABLE = entry(1, 6) + entry(0, 200) + entry(2, 1) + entry(3, 49, 9, 8192)

ENCODINGS: dict[str, tuple[Message, bytes]] = {
    "HELLO": (
        Hello(ID, 513, Capability.DELTA | Capability.KNOWN, "flatship 0.1"),
        plaintext(0x01, ID + u16(513) + bytes(6) + u64(3) + b"\x0cflatship 0.1"),
    ),
    "HELLO_OK": (
        HelloOk(Capability.NONE, 64 << 20, 16, 90, "x" * 64),
        plaintext(
            0x02, u64(0) + u64(64 << 20) + u16(16) + bytes(2) + u32(90) + b"\x40" + b"x" * 64
        ),
    ),
    "HELLO_OK with history": (
        HelloOk(Capability.HISTORY, 64 << 20, 16, 90, "", 25, 2),
        plaintext(0x02, u64(8) + u64(64 << 20) + u16(16) + b"\x19\x02" + u32(90) + b"\0"),
    ),
    "OPEN_DISK": (open_disk(), about_disk(0x03, open_body())),
    "OPEN_DISK replace": (open_disk(replace=True), about_disk(0x03, open_body(), flags=1)),
    "OPEN_DISK live": (open_disk(live=True), about_disk(0x03, open_body(), flags=2)),
    "OPEN_DISK dry run": (open_disk(dry_run=True), about_disk(0x03, open_body(), flags=4)),
    "OPEN_DISK in doubt": (open_disk(in_doubt=True), about_disk(0x03, open_body(), flags=8)),
    "DISK_OPENED": (
        DiskOpened(3, 2, ID, 7 << 20, 9),
        about_disk(0x04, ID + u64(7 << 20) + u64(9)),
    ),
    "CHUNK": (chunk(), about_disk(0x05, chunk_body())),
    "CHUNK with segments": (
        chunk(b"zstd frame", *SEGMENTS, literal=200 * 4096),
        about_disk(0x05, chunk_body(literal=200 * 4096, table=TABLE)),
    ),
    "CHUNK without literal": (
        chunk(b"", Segment(ZERO, 1), Segment(KEEP, 255), literal=0),
        about_disk(
            0x05, chunk_body(payload=b"", literal=0, codec=0, table=entry(1, 1) + entry(2, 255))
        ),
    ),
    "CHUNK of a stream": (
        replace(chunk(), codec=Codec.HISTORY),
        about_disk(0x05, chunk_body(codec=2)),
    ),
    "CHUNK that begins a stream": (
        replace(chunk(), codec=Codec.HISTORY, begin=True),
        about_disk(0x05, chunk_body(codec=2, flags=1)),
    ),
    "STORED": (
        Stored(3, 2, ((0, 1 << 20), (5 << 20, 512))),
        about_disk(0x06, u16(2) + bytes(6) + u64(0) + u64(1 << 20) + u64(5 << 20) + u64(512)),
    ),
    "WANT": (
        Want(3, 2, ((1 << 20, 1 << 20),)),
        about_disk(0x08, u16(1) + bytes(6) + u64(1 << 20) + u64(1 << 20)),
    ),
    "ZERO": (Zero(3, 2, 1 << 20, 512, False), about_disk(0x07, u64(1 << 20) + u64(512))),
    "ZERO hole": (Zero(3, 2, 0, 1 << 40, True), about_disk(0x07, u64(0) + u64(1 << 40), flags=1)),
    "END_PASS": (EndPass(3, 2, 77, DIGEST), about_disk(0x09, u64(77) + DIGEST)),
    "PROVING": (Proving(3, 2, 5, 6), about_disk(0x0A, u64(5) + u64(6))),
    "ABANDON": (Abandon(3, 2, ErrorCode.CANCELLED), about_disk(0x0B, u16(51) + bytes(6))),
    "DISK_PROVEN": (
        DiskProven(3, 2, 6, DIGEST, False),
        about_disk(0x0C, u64(6) + DIGEST),
    ),
    "DISK_PROVEN published": (
        DiskProven(3, 2, 6, DIGEST, True),
        about_disk(0x0C, u64(6) + DIGEST, flags=1),
    ),
    "GOODBYE": (Goodbye(False), plaintext(0x0D, b"")),
    "GOODBYE last": (Goodbye(True), plaintext(0x0D, b"", flags=1)),
    "DISK_FAILED": (
        DiskFailed(3, 2, ErrorCode.DATASTORE_FULL, (10, 20)),
        about_disk(0x0E, u16(36) + bytes(6) + u64(10) + u64(20)),
    ),
    "ERROR": (Error(ErrorCode.IDLE), plaintext(0x14, u16(9) + bytes(22))),
    "HELD": (Held(3, 2, 7, 2, DIGEST * 2), about_disk(0x40, u64(7) + u64(2) + DIGEST * 2)),
    "HELD zeros": (Held(3, 2, 9, 1 << 40, b""), about_disk(0x40, u64(9) + u64(1 << 40), flags=2)),
    "HELD last": (
        Held(3, 2, 0, 0, b"", last=True),
        about_disk(0x40, u64(0) + u64(0), flags=1),
    ),
    "IMAGE": (ImageReference(1023, ID), plaintext(0x42, u32(1023) + bytes(4) + ID)),
    "CREDIT": (Credit(64 << 20), plaintext(0x10, u64(64 << 20))),
    "PING": (Ping(2**64 - 1), plaintext(0x11, b"\xff" * 8)),
    "PONG": (Pong(1), plaintext(0x12, u64(1))),
    "PROBE": (Probe(3), plaintext(0x43, u32(3) + bytes(4) + bytes(3))),
    "PROBE report": (Probe(0, report=True), plaintext(0x43, u32(0) + bytes(4), flags=1)),
    "PROBED": (Probed(59, 7), plaintext(0x44, u64(59) + u64(7))),
}
PLAINTEXTS = {name: encoded for name, (_, encoded) in ENCODINGS.items()}


def refuses(encoded: bytes, reason: str = ".") -> None:
    with pytest.raises(MalformedMessage, match=reason):
        decode(memoryview(encoded))


def test_every_message_has_an_encoding_here() -> None:
    assert {type(message) for message, _ in ENCODINGS.values()} == set(get_args(Message))


def test_types_are_those_of_spec() -> None:
    headings = [line for line in SPEC.read_text().splitlines() if line.startswith("### ")]
    found = re.findall(r"([A-Z_]+) \((0x[0-9A-F]{2})\)", "\n".join(headings))
    assert {name: int(number, 16) for name, number in found} == {
        member.name: member.value for member in MessageType
    }


@pytest.mark.parametrize(("message", "encoded"), ENCODINGS.values(), ids=ENCODINGS)
def test_message_is_encoded_as_spec_says(message: Message, encoded: bytes) -> None:
    assert encode(message, EPOCH) == encoded


@pytest.mark.parametrize(("message", "encoded"), ENCODINGS.values(), ids=ENCODINGS)
def test_message_is_decoded_as_spec_says(message: Message, encoded: bytes) -> None:
    assert decode(memoryview(encoded)) == (EPOCH, message)


@pytest.mark.parametrize(("message", "encoded"), ENCODINGS.values(), ids=ENCODINGS)
def test_padding_of_zeros_says_nothing(message: Message, encoded: bytes) -> None:
    for padding in (1, MAX_PADDING):
        padded = encode(message, EPOCH, padding)
        assert padded == encoded + bytes(padding)
        assert decode(memoryview(padded)) == (EPOCH, message)


@pytest.mark.parametrize("encoded", PLAINTEXTS.values(), ids=PLAINTEXTS)
def test_padding_beyond_the_limit_or_not_of_zeros_is_refused(encoded: bytes) -> None:
    refuses(encoded + bytes(MAX_PADDING + 1), "4096 bytes of padding")
    refuses(encoded + b"\0\1", "padding that is not zero")


@pytest.mark.parametrize("encoded", PLAINTEXTS.values(), ids=PLAINTEXTS)
def test_message_cut_anywhere_is_refused(encoded: bytes) -> None:
    for length in range(len(encoded)):
        refuses(encoded[:length])


@pytest.mark.parametrize("encoded", PLAINTEXTS.values(), ids=PLAINTEXTS)
@pytest.mark.parametrize("change", [-1, 1])
def test_body_of_another_size_is_refused(encoded: bytes, change: int) -> None:
    body = encoded[24:] + b"\0" if change > 0 else encoded[24:-1]
    if len(encoded) + change >= 24:
        refuses(encoded[:16] + u32(len(body)) + encoded[20:24] + body)


@pytest.mark.parametrize("encoded", PLAINTEXTS.values(), ids=PLAINTEXTS)
def test_body_that_its_header_calls_longer_than_the_message_is_refused(encoded: bytes) -> None:
    refuses(encoded[:16] + u32(len(encoded) - 23) + encoded[20:], "in a message of")


@pytest.mark.parametrize("encoded", PLAINTEXTS.values(), ids=PLAINTEXTS)
def test_undefined_flag_is_refused(encoded: bytes) -> None:
    defined = {0x03: 15, 0x07: 1, 0x0C: 1, 0x0D: 1, 0x40: 3, 0x43: 1}.get(encoded[0], 0)
    for bit in range(8):
        if not defined >> bit & 1:
            refuses(encoded[:1] + u8(encoded[1] | 1 << bit) + encoded[2:], "flags")


@pytest.mark.parametrize("encoded", PLAINTEXTS.values(), ids=PLAINTEXTS)
def test_reserved_bytes_of_the_header_are_zero(encoded: bytes) -> None:
    for at in range(20, 24):
        refuses(encoded[:at] + b"\1" + encoded[at + 1 :], "header's reserved bytes")


@pytest.mark.parametrize(
    ("name", "reserved"),
    [
        ("HELLO", range(18, 24)),
        ("OPEN_DISK", range(52, 56)),
        ("CHUNK with segments", range(67, 68)),
        ("IMAGE", range(4, 8)),
        ("PROBE", range(4, 8)),
        ("STORED", range(2, 8)),
        ("ABANDON", range(2, 8)),
        ("DISK_FAILED", range(2, 8)),
        ("ERROR", range(2, 8)),
    ],
)
def test_reserved_bytes_of_a_body_are_zero(name: str, reserved: range) -> None:
    encoded = PLAINTEXTS[name]
    for offset in reserved:
        at = 24 + offset
        refuses(encoded[:at] + b"\1" + encoded[at + 1 :], "reserved byte")


@pytest.mark.parametrize(("message", "encoded"), ENCODINGS.values(), ids=ENCODINGS)
def test_disk_and_pass_are_named_where_a_disk_is_meant_and_only_there(
    message: Message, encoded: bytes
) -> None:
    if isinstance(message, DiskMessage):
        refuses(encoded[:2] + u16(NO_DISK) + encoded[4:], "must name both")
        refuses(encoded[:4] + u32(0) + encoded[8:], "must name both")
    else:
        refuses(encoded[:2] + u16(3) + encoded[4:], "concerns no disk")
        refuses(encoded[:4] + u32(1) + encoded[8:], "concerns no disk")


@pytest.mark.parametrize("type_", [0x00, 0x0F, 0x13, 0x15, 0xFF])
def test_unknown_type_is_refused(type_: int) -> None:
    refuses(plaintext(type_, b""), "no message has type")


def test_capabilities_this_version_does_not_know_are_kept() -> None:
    hello = Hello(ID, 0, Capability(1 << 63 | 1), "")
    assert decode(memoryview(encode(hello, EPOCH))) == (EPOCH, hello)


BODIES_REFUSED: dict[str, tuple[int, bytes, str]] = {
    "size of no sectors": (0x03, open_body(size=513, reserve=0), "size 513"),
    "reserve above size": (0x03, open_body(size=512, reserve=513), "reserve 513"),
    "unknown format": (0x03, open_body(numbers=b"\3\0\0\x13"), "3 is no DiskFormat"),
    "unknown provisioning": (0x03, open_body(numbers=b"\0\3\0\x13"), "3 is no Provisioning"),
    "unknown adapter": (0x03, open_body(numbers=b"\0\0\3\x13"), "3 is no Adapter"),
    "hardware too old": (0x03, open_body(numbers=b"\0\0\0\3"), "hardware version 3"),
    "hardware too new": (0x03, open_body(numbers=b"\0\0\0\x17"), "hardware version 23"),
    "two names": (0x03, open_body(names=b"\1a\1b"), "before its last string"),
    "name past the end": (0x03, open_body(names=b"\0\1a\2b"), "past the body's end"),
    "four names": (0x03, open_body(names=b"\0\0\0\0"), "after the last string"),
    "name not UTF-8": (0x03, open_body(names=b"\0\0\1\xff"), "not UTF-8"),
    "capacity of no chunks": (0x04, ID + u64(512) + u64(0), "capacity 512"),
    "no range": (0x06, u16(0) + bytes(6), "0 ranges"),
    "too many ranges": (0x06, u16(1025) + bytes(6) + (u64(0) + u64(1)) * 1025, "1025 ranges"),
    "empty range": (0x06, u16(1) + bytes(6) + u64(0) + u64(0), "range is empty"),
    "fewer ranges than counted": (0x06, u16(2) + bytes(6) + bytes(16), "bytes of ranges"),
    "zeros off a chunk": (0x07, u64(512) + u64(512), "offset 512"),
    "no zeros": (0x07, u64(0) + u64(0), "length 0"),
    "zeros of no sectors": (0x07, u64(0) + u64(100), "length 100"),
    "chunk off its place": (0x05, chunk_body(offset=4096), "offset 4096"),
    "empty chunk": (0x05, chunk_body(length=0), "length 0"),
    "chunk too long": (0x05, chunk_body(length=CHUNK_SIZE + 512), "length 1049088"),
    "chunk of no sectors": (0x05, chunk_body(length=100), "length 100"),
    "unknown codec": (0x05, chunk_body(codec=3), "3 is no Codec"),
    "frame of its own that begins a stream": (
        0x05,
        chunk_body(flags=1),
        "flags 0x01 of codec ZSTD",
    ),
    "raw that begins a stream": (0x05, chunk_body(codec=0, flags=1), "flags 0x01 of codec RAW"),
    "undefined flag of a stream": (0x05, chunk_body(codec=2, flags=3), "flags 0x03"),
    "no literal, but a stream": (
        0x05,
        chunk_body(payload=b"", literal=0, codec=2, table=entry(1, 256)),
        "codec HISTORY",
    ),
    "filler too long": (0x43, u32(65537) + bytes(4) + bytes(65537), "filler of 65537"),
    "filler not of zeros": (0x43, u32(2) + bytes(4) + b"\0\1", "not all of them zero"),
    "window without its capability": (0x02, hello_ok(0, 25, 0), "without their capability"),
    "streams without their capability": (0x02, hello_ok(0, 0, 2), "without their capability"),
    "no streams": (0x02, hello_ok(8, 25, 0), "0 streams"),
    "no window": (0x02, hello_ok(8, 0, 2), "window of 2\\^0"),
    "window too small": (0x02, hello_ok(8, 9, 2), "window of 2\\^9"),
    "window too large": (0x02, hello_ok(8, 28, 2), "window of 2\\^28"),
    "raw of another length": (0x05, chunk_body(codec=0), "raw payload of 10 bytes"),
    "literal not the chunk": (0x05, chunk_body(literal=512), "literal length 512"),
    "no literal, no segments": (
        0x05,
        chunk_body(payload=b"", literal=0, codec=0),
        "literal length 0",
    ),
    "no literal, but a codec": (
        0x05,
        chunk_body(payload=b"", literal=0, table=entry(1, 256)),
        "codec ZSTD",
    ),
    "no literal, but a payload": (
        0x05,
        chunk_body(literal=0, codec=0, table=entry(1, 256)),
        "raw payload of 10 bytes for 0",
    ),
    "literal runs of another length": (
        0x05,
        chunk_body(literal=4096, table=entry(0, 2) + entry(1, 254)),
        "literal length 4096; its segments say 8192",
    ),
    "more segments than counted": (0x05, chunk_body(table=entry(0, 256), count=0), "expected 66"),
    "fewer segments than counted": (0x05, chunk_body(table=entry(0, 256), count=2), "body of"),
    "too many segments": (0x05, chunk_body(table=entry(2, 1) * 257), "257 segments"),
    "unknown kind": (0x05, chunk_body(table=entry(4, 256)), "4 is no SegmentKind"),
    "segment without pages": (
        0x05,
        chunk_body(table=entry(0, 256) + entry(1, 0)),
        "has no pages",
    ),
    "segments too short": (
        0x05,
        chunk_body(table=entry(0, 255)),
        "cover 1044480 of the chunk's 1048576",
    ),
    "segments too long": (0x05, chunk_body(table=entry(0, 255) + entry(1, 2)), "go past"),
    "one segment too many": (0x05, chunk_body(table=entry(0, 256) + entry(1, 1)), "go past"),
    "two literal neighbours": (0x05, chunk_body(table=entry(0, 128) * 2), "kind LITERAL"),
    "two zero neighbours": (
        0x05,
        chunk_body(literal=4096, table=entry(0, 1) + entry(1, 100) + entry(1, 155)),
        "kind ZERO",
    ),
    "keep with a source": (
        0x05,
        chunk_body(literal=4096, table=entry(0, 1) + entry(2, 255, 1)),
        "kind KEEP names a source",
    ),
    "copy from a reference that cannot be": (
        0x05,
        chunk_body(payload=b"", literal=0, codec=0, table=entry(3, 256, 1024)),
        "reference 1024",
    ),
    "copy of a short page": (
        0x05,
        chunk_body(length=512, payload=b"", literal=0, codec=0, table=entry(3, 1)),
        "last one is short",
    ),
    "reference that cannot be": (0x42, u32(1024) + bytes(4) + ID, "reference 1024"),
    "literal with an offset": (
        0x05,
        chunk_body(table=entry(0, 256, 0, 4096)),
        "kind LITERAL names a source",
    ),
    "copy off a page": (
        0x05,
        chunk_body(literal=4096, table=entry(0, 1) + entry(3, 255, 1, 512)),
        "source offset 512",
    ),
}


@pytest.mark.parametrize(("type_", "body", "reason"), BODIES_REFUSED.values(), ids=BODIES_REFUSED)
def test_body_that_breaks_a_rule_is_refused(type_: int, body: bytes, reason: str) -> None:
    about = plaintext if type_ in (0x02, 0x42, 0x43) else about_disk
    refuses(about(type_, body), reason)


def test_software_takes_at_most_64_bytes() -> None:
    for front, type_ in ((ID + bytes(16), 0x01), (bytes(24), 0x02)):
        refuses(plaintext(type_, front + u8(65) + b"x" * 65), "software of 65 bytes")


def test_copies_and_keeps_may_be_neighbours() -> None:
    segments = (Segment(KEEP, 1), Segment(KEEP, 1), Segment(COPY, 1, 7, 0), Segment(COPY, 253, 8))
    message = chunk(b"", *segments, literal=0)
    assert decode(memoryview(encode(message, 1))) == (1, message)


@pytest.mark.parametrize("tail", [512, 4096, 4608])
def test_last_page_of_a_short_chunk_may_be_short(tail: int) -> None:
    length = 8192 + tail
    table = entry(1, 2) + entry(0, -(-tail // 4096))
    encoded = about_disk(0x05, chunk_body(length=length, literal=tail, table=table))
    _, message = decode(memoryview(encoded))
    assert isinstance(message, Chunk)
    assert message.literal_length == tail


def test_payload_of_a_decoded_chunk_is_a_slice_of_the_plaintext() -> None:
    received = bytearray(PLAINTEXTS["CHUNK"])
    _, message = decode(memoryview(received))
    assert isinstance(message, Chunk)
    received[CHUNK_PAYLOAD_OFFSET] = 0xEE
    assert message.payload[0] == 0xEE


@pytest.mark.parametrize("padding", [0, 4095])
@pytest.mark.parametrize("segments", [(), SEGMENTS])
def test_chunk_framed_around_its_payload_equals_the_encoded_one(
    segments: tuple[Segment, ...], padding: int
) -> None:
    payload = b"zstd frame"
    frame = memoryview(bytearray(b"\xaa" * 8192))
    frame[CHUNK_PAYLOAD_OFFSET : CHUNK_PAYLOAD_OFFSET + len(payload)] = payload
    slice_ = frame[CHUNK_PAYLOAD_OFFSET : CHUNK_PAYLOAD_OFFSET + len(payload)]
    message = chunk(b"", *segments, literal=200 * 4096 if segments else CHUNK_SIZE)
    framed = Chunk(
        message.disk,
        message.pass_number,
        message.offset,
        message.length,
        message.codec,
        message.literal_length,
        message.digest,
        message.segments,
        slice_,
    )
    length = frame_chunk(frame, framed, EPOCH, padding)
    assert frame[:length] == encode(framed, EPOCH, padding)
    assert set(frame[length:]) == {0xAA}


def test_frame_too_short_for_its_message_is_left_alone() -> None:
    frame = memoryview(bytearray(len(PLAINTEXTS["CHUNK"]) - 1))
    with pytest.raises(ValueError, match="the message takes 90"):
        frame_chunk(frame, chunk(), EPOCH)
    assert not any(frame)


@pytest.mark.parametrize("padding", [-1, MAX_PADDING + 1])
def test_padding_that_spec_does_not_allow_is_not_encoded(padding: int) -> None:
    with pytest.raises(ValueError, match="padding"):
        encode(Ping(1), EPOCH, padding)
    with pytest.raises(ValueError, match="padding"):
        frame_chunk(memoryview(bytearray(8192)), chunk(), EPOCH, padding)


def test_name_too_long_for_its_field_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="256"):
        encode(Hello(ID, 0, Capability.NONE, "x" * 256), EPOCH)


@pytest.mark.parametrize(
    ("body", "flags", "reason"),
    [
        (u64(0) + u64(513) + DIGEST * 513, 0, "513 digests; at most 512"),
        (u64(0) + u64(2) + DIGEST, 0, "32 bytes of digests; expected 64"),
        (u64(0) + u64(1) + DIGEST, 2, "32 bytes of digests; expected 0"),
        (u64(0) + u64(0), 2, "a run of zeros that is empty"),
        (u64(0), 0, "expected"),
    ],
)
def test_held_says_a_digest_a_chunk_or_zeros(body: bytes, flags: int, reason: str) -> None:
    refuses(about_disk(0x40, body, flags=flags), reason)
