"""From messages to plaintexts and back: header, body, padding. See SPEC.md, "Messages"."""

from struct import Struct
from typing import Final, TypeAlias, get_args

from flatship_protocol.constants import MAX_PADDING, MESSAGE_HEADER_SIZE, NO_DISK
from flatship_protocol.errors import MalformedMessage
from flatship_protocol.messages.body import DiskMessage, malformed
from flatship_protocol.messages.chunk import CHUNK_PAYLOAD_OFFSET, Chunk
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

AboutDisk: TypeAlias = (
    OpenDisk
    | DiskOpened
    | Held
    | Chunk
    | Stored
    | Want
    | Zero
    | EndPass
    | Proving
    | Abandon
    | DiskProven
    | DiskFailed
)
AboutConnection: TypeAlias = (
    Hello | HelloOk | Goodbye | Error | Credit | ImageReference | Ping | Pong | Probe | Probed
)
Message: TypeAlias = AboutDisk | AboutConnection

# type, flags, disk, pass, epoch, length of the body, 0
_HEADER: Final = Struct(">BBHIQII")

_KINDS: Final[dict[int, type[AboutDisk] | type[AboutConnection]]] = {
    kind.TYPE: kind for kind in get_args(Message)
}


def encode(message: Message, epoch: int, padding: int = 0) -> bytes:
    """The plaintext of the record that carries ``message``.

    Args:
        message: Its fields are taken to be within SPEC.md's limits.
        epoch: The session's.
        padding: Zero bytes to add behind the body, 0 to 4095.

    Raises:
        ValueError: A padding or a string is too long.
        struct.error: A number does not fit its field.
    """
    _check_padding(padding)
    body = message._body()
    return b"".join((_header(message, epoch, len(body)), body, bytes(padding)))


def frame_chunk(frame: memoryview, chunk: Chunk, epoch: int, padding: int = 0) -> int:
    """Complete a CHUNK message around a payload that already stands in its frame.

    Args:
        frame: Writable, contiguous, format "B". The message will start at its
            first byte; the payload stands at ``CHUNK_PAYLOAD_OFFSET``.
        chunk: Only the length of its ``payload`` is used: pass that slice of
            ``frame``.
        epoch: The session's.
        padding: Zero bytes to add behind the segment table, 0 to 4095.

    Returns:
        Length of the message, padding included: ``frame[:length]`` equals
        ``encode(chunk, epoch, padding)``.

    Raises:
        ValueError: The frame is too short for the message, or the padding too
            long. Nothing was written.
        struct.error: A number does not fit its field. Nothing was written.
    """
    _check_padding(padding)
    table = chunk._segment_table()
    payload_end = CHUNK_PAYLOAD_OFFSET + len(chunk.payload)
    body_end = payload_end + len(table)
    end = body_end + padding
    if end > len(frame):
        raise ValueError(f"frame of {len(frame)} bytes; the message takes {end}")
    front = _header(chunk, epoch, body_end - MESSAGE_HEADER_SIZE) + chunk._front()
    frame[:CHUNK_PAYLOAD_OFFSET] = front
    frame[payload_end:body_end] = table
    frame[body_end:end] = bytes(padding)
    return end


def decode(plaintext: memoryview) -> tuple[int, Message]:
    """Epoch and message of a record's plaintext.

    Args:
        plaintext: Contiguous, format "B". A Chunk's payload is a slice of it;
            everything else is copied.

    Raises:
        MalformedMessage: A rule of SPEC.md, "Messages", is broken. Rules that
            need the disk or the session (does a chunk end within the disk, was
            a capability agreed on) are the session's to check.
    """
    if len(plaintext) < MESSAGE_HEADER_SIZE:
        raise MalformedMessage(
            f"message of {len(plaintext)} bytes; a header has {MESSAGE_HEADER_SIZE}"
        )
    type_number, flags, disk, pass_number, epoch, length, reserved = _HEADER.unpack_from(plaintext)
    kind = _KINDS.get(type_number)
    if kind is None:
        raise MalformedMessage(f"no message has type {type_number:#04x}")
    if flags & ~kind.FLAGS:
        malformed(kind.TYPE, f"flags {flags:#04x}; defined are {kind.FLAGS:#04x}")
    if reserved:
        malformed(kind.TYPE, "the header's reserved bytes are not zero")
    end = MESSAGE_HEADER_SIZE + length
    if end > len(plaintext):
        malformed(kind.TYPE, f"body of {length} bytes in a message of {len(plaintext)}")
    padding = bytes(plaintext[end : end + MAX_PADDING + 1])
    if len(padding) > MAX_PADDING:
        malformed(kind.TYPE, f"{len(plaintext) - end} bytes of padding; at most {MAX_PADDING}")
    if padding.strip(b"\0"):
        malformed(kind.TYPE, "padding that is not zero")
    body = plaintext[MESSAGE_HEADER_SIZE:end]
    if issubclass(kind, DiskMessage):
        if disk == NO_DISK or pass_number == 0:
            malformed(kind.TYPE, f"disk {disk:#06x}, pass {pass_number}; it must name both")
        return epoch, kind._parse(disk, pass_number, flags, body)
    if disk != NO_DISK or pass_number != 0:
        malformed(kind.TYPE, f"disk {disk:#06x}, pass {pass_number}; it concerns no disk")
    return epoch, kind._parse(flags, body)


def _header(message: Message, epoch: int, body_length: int) -> bytes:
    if isinstance(message, DiskMessage):
        disk, pass_number = message.disk, message.pass_number
    else:
        disk, pass_number = NO_DISK, 0
    return _HEADER.pack(message.TYPE, message._flags(), disk, pass_number, epoch, body_length, 0)


def _check_padding(padding: int) -> None:
    if not 0 <= padding <= MAX_PADDING:
        raise ValueError(f"padding of {padding} bytes; at most {MAX_PADDING}")
