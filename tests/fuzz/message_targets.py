"""The decoder of messages, a target a type: authenticated peers are not trusted either."""

from typing import Final

from flatship_protocol import messages
from flatship_protocol.errors import ErrorCode, MalformedMessage
from flatship_protocol.messages import Codec, MessageType, Segment, SegmentKind
from fuzz.target import Target

HEADER_SIZE: Final = 24
LENGTH_AT: Final = 16  # where the header has the body's length, 4 bytes
CODE_AT: Final = HEADER_SIZE  # where a body's error code stands
MAX_PADDING: Final = 4095
EPOCH: Final = 5
CHUNK: Final = 1 << 20  # bytes

DIGEST: Final = bytes(range(32))
SEGMENTS: Final = (
    Segment(SegmentKind.ZERO, 1),
    Segment(SegmentKind.LITERAL, 1),
    Segment(SegmentKind.KEEP, 100),
    Segment(SegmentKind.COPY, 154, 7, 4096),
)
PAYLOAD: Final = memoryview(bytes(512))

COPIES: Final = (Segment(SegmentKind.COPY, 1, 1023, 1 << 40), Segment(SegmentKind.COPY, 1))
MESSAGES: Final[tuple[messages.Message, ...]] = (
    messages.Hello(DIGEST[:16], 1, messages.Capability.DELTA, "flatship"),
    messages.Hello(DIGEST[:16], 0, messages.Capability(1 << 63), "é" * 32),
    messages.HelloOk(messages.Capability.NONE, 1 << 26, 16, 90, "flatship"),
    messages.HelloOk(messages.Capability.HISTORY, 1 << 26, 16, 90, "flatship", 25, 2),
    messages.OpenDisk(
        1,
        1,
        size=1 << 30,
        reserve=1 << 20,
        source_id=DIGEST,
        format=messages.DiskFormat.VMFS,
        provisioning=messages.Provisioning.THIN,
        adapter=messages.Adapter.LSILOGIC,
        hardware_version=19,
        datastore="ssd1",
        vm="web01",
        name="web01",
        in_doubt=True,
    ),
    messages.DiskOpened(1, 1, DIGEST[:16], 1 << 30, 1 << 40),
    messages.Chunk(1, 1, 1 << 20, 512, Codec.RAW, 512, DIGEST, (), PAYLOAD),
    messages.Chunk(1, 1, 1 << 20, 1 << 20, Codec.ZSTD, 4096, DIGEST, SEGMENTS, PAYLOAD[:40]),
    messages.Chunk(1, 1, 0, 4096, Codec.RAW, 0, DIGEST, SEGMENTS[:1], PAYLOAD[:0]),
    messages.Chunk(1, 1, 0, 512, Codec.HISTORY, 512, DIGEST, (), PAYLOAD[:40], begin=True),
    messages.Chunk(1, 1, 0, 8192, Codec.RAW, 0, DIGEST, COPIES, PAYLOAD[:0]),
    messages.Stored(1, 1, ((0, 1 << 20), (1 << 21, 512))),
    messages.Want(1, 1, ((1 << 20, 1 << 20), (1 << 22, 512))),
    messages.Zero(1, 1, 1 << 20, 512, hole=True),
    messages.EndPass(1, 1, 2, DIGEST),
    messages.Proving(1, 1, 3, 4),
    messages.Abandon(1, 1, ErrorCode.CANCELLED),
    messages.DiskProven(1, 1, 4, DIGEST, published=True),
    messages.Held(1, 1, 7, 2, DIGEST * 2),
    messages.Held(1, 1, 9, 1 << 30, b"", last=True),
    messages.Held(1, 1, 0, 0, b"", last=True),
    messages.Goodbye(last=True),
    messages.Goodbye(last=False),
    messages.DiskFailed(1, 1, ErrorCode.DATASTORE_FULL, (1, 2)),
    messages.Error(ErrorCode.IDLE),
    messages.ImageReference(1023, bytes(range(16))),
    messages.Credit(1 << 26),
    messages.Ping(1),
    messages.Pong(1),
    messages.Probe(5, report=True),
    messages.Probe(0),
    messages.Probed(1 << 29, 1),
)


def _encoded(kind: MessageType) -> tuple[bytes, ...]:
    return tuple(
        messages.encode(message, EPOCH, padding)
        for message in MESSAGES
        for padding in ((0, 9, MAX_PADDING) if kind is MessageType.PING else (0, 9))
        if message.TYPE is kind
    )


SEEDS: Final = tuple(data for kind in MessageType for data in _encoded(kind))


def decode_message(data: bytes) -> None:
    """What is accepted has one encoding only: that which was decoded.

    Unknown error codes are the exception: they all mean INTERNAL.
    """
    epoch, message = messages.decode(memoryview(data))
    body_end = HEADER_SIZE + int.from_bytes(data[LENGTH_AT : LENGTH_AT + 4], "big")
    assert len(data) - body_end <= MAX_PADDING
    again = messages.encode(message, epoch, len(data) - body_end)
    if getattr(message, "code", None) is ErrorCode.INTERNAL:
        again = again[:CODE_AT] + data[CODE_AT : CODE_AT + 2] + again[CODE_AT + 2 :]
    assert again == data
    assert within_limits(message)
    assert data[0] == message.TYPE


def within_limits(message: messages.Message) -> bool:
    """Whether a message keeps the rules that SPEC.md has for its fields alone."""
    match message:
        case messages.Hello():
            return len(message.software.encode()) <= 64
        case messages.HelloOk():
            history = (message.history_window, message.history_streams)
            if messages.Capability.HISTORY not in message.capabilities:
                return history == (0, 0)
            return 10 <= history[0] <= 27 and history[1] > 0
        case messages.Probe():
            return message.filler <= 65536
        case messages.ImageReference():
            return message.reference < 1024
        case messages.OpenDisk():
            return (
                message.size % 512 == 0
                and message.reserve <= message.size
                and 4 <= message.hardware_version <= 22
            )
        case messages.DiskOpened():
            return message.capacity % CHUNK == 0
        case messages.Held():
            return message.zeros or len(message.digests) // 32 == message.count <= 512
        case messages.Stored() | messages.Want():
            return 1 <= len(message.ranges) <= 1024 and all(length for _, length in message.ranges)
        case messages.Zero():
            return message.offset % CHUNK == 0 and message.length > 0 == message.length % 512
        case messages.Chunk():
            pages = sum(segment.pages for segment in message.segments)
            return (
                message.offset % CHUNK == 0
                and message.length in range(512, CHUNK + 1, 512)
                and message.literal_length <= message.length
                and pages in (0, -(-message.length // 4096))
                and (message.codec is Codec.HISTORY or not message.begin)
                and all(segment.image < 1024 for segment in message.segments)
            )
    return True


def with_body_length(data: bytes) -> bytes:
    """``data`` with its header saying that all behind it is body."""
    length = max(len(data) - HEADER_SIZE, 0).to_bytes(4, "big")
    return data[:LENGTH_AT] + length + data[LENGTH_AT + 4 :]


TARGETS: Final = tuple(
    Target(
        f"message-{kind.name.lower().replace('_', '-')}",
        decode_message,
        (MalformedMessage,),
        _encoded(kind),
        repair=with_body_length,
    )
    for kind in MessageType
)
