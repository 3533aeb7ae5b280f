"""Messages of SPEC.md and their encoding.

A package, for all of them in one module would be too long to read: numbers in
``registry``, the messages in ``connection``, ``disk`` and ``chunk`` with what
their bodies share in ``body``, headers and padding in ``envelope``.
"""

from flatship_protocol.messages.body import ConnectionMessage, DiskMessage
from flatship_protocol.messages.chunk import CHUNK_PAYLOAD_OFFSET, Chunk, Segment
from flatship_protocol.messages.connection import (
    Credit,
    Error,
    Goodbye,
    Hello,
    HelloOk,
    ImageReference,
    Ping,
    Pong,
    Probe,
    Probed,
)
from flatship_protocol.messages.disk import (
    Abandon,
    DiskFailed,
    DiskOpened,
    DiskProven,
    EndPass,
    Held,
    OpenDisk,
    Proving,
    Stored,
    Want,
    Zero,
)
from flatship_protocol.messages.envelope import Message, decode, encode, frame_chunk
from flatship_protocol.messages.registry import (
    Adapter,
    Capability,
    Codec,
    DiskFormat,
    MessageType,
    Provisioning,
    SegmentKind,
)

__all__ = [
    "CHUNK_PAYLOAD_OFFSET",
    "Abandon",
    "Adapter",
    "Capability",
    "Chunk",
    "Codec",
    "ConnectionMessage",
    "Credit",
    "DiskFailed",
    "DiskFormat",
    "DiskMessage",
    "DiskOpened",
    "DiskProven",
    "EndPass",
    "Error",
    "Goodbye",
    "Held",
    "Hello",
    "HelloOk",
    "ImageReference",
    "Message",
    "MessageType",
    "OpenDisk",
    "Ping",
    "Pong",
    "Probe",
    "Probed",
    "Proving",
    "Provisioning",
    "Segment",
    "SegmentKind",
    "Stored",
    "Want",
    "Zero",
    "decode",
    "encode",
    "frame_chunk",
]
