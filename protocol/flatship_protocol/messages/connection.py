"""Messages about the connection and the session. See SPEC.md for their offset tables."""

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final, Self

from flatship_protocol.constants import (
    MAX_HISTORY_WINDOW_LOG,
    MAX_PROBE_FILLER,
    MAX_REFERENCES,
    MESSAGE_HEADER_SIZE,
    MIN_HISTORY_WINDOW_LOG,
    RECORD_HEADER_SIZE,
    TAG_SIZE,
)
from flatship_protocol.errors import ErrorCode
from flatship_protocol.messages.body import (
    ConnectionMessage,
    error_code,
    malformed,
    pack_text,
    unpack,
    unpack_front,
    unpack_text,
)
from flatship_protocol.messages.registry import Capability, MessageType

MAX_SOFTWARE: Final = 64  # bytes of UTF-8

_HELLO: Final = Struct(">16sH6xQ")  # session id, connection index, capabilities
# capabilities, credit, connections, history window, history streams, idle timeout
_HELLO_OK: Final = Struct(">QQHBBI")
_ERROR: Final = Struct(">H6xQQ")  # code, first number, second number
_CREDIT: Final = Struct(">Q")  # bytes
_IMAGE: Final = Struct(">I4x16s")  # reference, uuid
_TOKEN: Final = Struct(">Q")
_PROBE: Final = Struct(">I4x")  # length of the filler
_PROBED: Final = Struct(">QQ")  # bytes, microseconds


@dataclass(frozen=True, slots=True)
class Hello(ConnectionMessage):
    """HELLO: the sender names its session.

    Attributes:
        session_id: 16 random bytes.
        connection_index: 0 to 65535.
        capabilities: All that the sender has.
        software: At most 64 bytes of UTF-8, for logs only; escape before printing.
    """

    TYPE: ClassVar = MessageType.HELLO

    session_id: bytes
    connection_index: int
    capabilities: Capability
    software: str

    def _body(self) -> bytes:
        fields = (self.session_id, self.connection_index, self.capabilities)
        return _HELLO.pack(*fields) + pack_text(self.software)

    @classmethod
    def _parse(cls, flags: int, body: memoryview) -> Self:
        session_id, index, capabilities = unpack_front(cls.TYPE, _HELLO, body)
        software = _software(cls.TYPE, body[_HELLO.size :])
        return cls(session_id, index, Capability(capabilities), software)


@dataclass(frozen=True, slots=True)
class HelloOk(ConnectionMessage):
    """HELLO_OK: the receiver admits a connection.

    Attributes:
        capabilities: Those of HELLO that the receiver has too.
        credit: Bytes.
        connections: Allowed in the session.
        idle_timeout: Seconds.
        software: As in HELLO.
        history_window: Base-2 logarithm of a stream's largest window in bytes, 10 to 27; 0
            without the capability HISTORY.
        history_streams: Connections of the session that may carry a stream at once; 0 without it.
    """

    TYPE: ClassVar = MessageType.HELLO_OK

    capabilities: Capability
    credit: int
    connections: int
    idle_timeout: int
    software: str
    history_window: int = 0
    history_streams: int = 0

    def _body(self) -> bytes:
        history = (self.history_window, self.history_streams)
        fields = (self.capabilities, self.credit, self.connections, *history, self.idle_timeout)
        return _HELLO_OK.pack(*fields) + pack_text(self.software)

    @classmethod
    def _parse(cls, flags: int, body: memoryview) -> Self:
        number, credit, connections, window, streams, timeout = unpack_front(
            cls.TYPE, _HELLO_OK, body
        )
        capabilities = Capability(number)
        _check_history(capabilities, window, streams)
        software = _software(cls.TYPE, body[_HELLO_OK.size :])
        return cls(capabilities, credit, connections, timeout, software, window, streams)


@dataclass(frozen=True, slots=True)
class Goodbye(ConnectionMessage):
    """GOODBYE: the sender is done with the connection; with ``last``, with the session."""

    TYPE: ClassVar = MessageType.GOODBYE
    FLAGS: ClassVar = 1

    last: bool

    def _flags(self) -> int:
        return int(self.last)

    def _body(self) -> bytes:
        return b""

    @classmethod
    def _parse(cls, flags: int, body: memoryview) -> Self:
        if body:
            malformed(cls.TYPE, f"body of {len(body)} bytes; expected none")
        return cls(bool(flags))


@dataclass(frozen=True, slots=True)
class Error(ConnectionMessage):
    """ERROR: the connection ends here. ``numbers`` mean what the code defines."""

    TYPE: ClassVar = MessageType.ERROR

    code: ErrorCode
    numbers: tuple[int, int] = (0, 0)

    def _body(self) -> bytes:
        return _ERROR.pack(self.code, *self.numbers)

    @classmethod
    def _parse(cls, flags: int, body: memoryview) -> Self:
        code, first, second = unpack(cls.TYPE, _ERROR, body)
        return cls(error_code(code), (first, second))


@dataclass(frozen=True, slots=True)
class Credit(ConnectionMessage):
    """CREDIT: the session's credit from now on, in bytes."""

    TYPE: ClassVar = MessageType.CREDIT

    credit: int

    def _body(self) -> bytes:
        return _CREDIT.pack(self.credit)

    @classmethod
    def _parse(cls, flags: int, body: memoryview) -> Self:
        return cls(*unpack(cls.TYPE, _CREDIT, body))


@dataclass(frozen=True, slots=True)
class ImageReference(ConnectionMessage):
    """IMAGE: what the COPY segments of the connection's next chunks mean by a reference.

    Attributes:
        reference: 0 to 1023; one that is bound already is bound anew.
        uuid: The 16 bytes that a DISK_OPENED told this sender.
    """

    TYPE: ClassVar = MessageType.IMAGE

    reference: int
    uuid: bytes

    def _body(self) -> bytes:
        return _IMAGE.pack(self.reference, self.uuid)

    @classmethod
    def _parse(cls, flags: int, body: memoryview) -> Self:
        reference, uuid = unpack(cls.TYPE, _IMAGE, body)
        if reference >= MAX_REFERENCES:
            malformed(cls.TYPE, f"reference {reference}; the last one is {MAX_REFERENCES - 1}")
        return cls(reference, uuid)


@dataclass(frozen=True, slots=True)
class Ping(ConnectionMessage):
    """PING: answer with a PONG that has the same token."""

    TYPE: ClassVar = MessageType.PING

    token: int

    def _body(self) -> bytes:
        return _TOKEN.pack(self.token)

    @classmethod
    def _parse(cls, flags: int, body: memoryview) -> Self:
        return cls(*unpack(cls.TYPE, _TOKEN, body))


@dataclass(frozen=True, slots=True)
class Pong(ConnectionMessage):
    """PONG: the answer to a PING."""

    TYPE: ClassVar = MessageType.PONG

    token: int

    def _body(self) -> bytes:
        return _TOKEN.pack(self.token)

    @classmethod
    def _parse(cls, flags: int, body: memoryview) -> Self:
        return cls(*unpack(cls.TYPE, _TOKEN, body))


@dataclass(frozen=True, slots=True)
class Probe(ConnectionMessage):
    """PROBE: bytes to be counted and thrown away, so that the link can be measured.

    Attributes:
        filler: Zeros that follow the fields, 0 to 65,536.
        report: Answer with a PROBED.
    """

    TYPE: ClassVar = MessageType.PROBE
    FLAGS: ClassVar = 1

    filler: int
    report: bool = False

    @property
    def record_size(self) -> int:
        """Bytes of its record on the wire, without padding."""
        return RECORD_HEADER_SIZE + MESSAGE_HEADER_SIZE + _PROBE.size + self.filler + TAG_SIZE

    def _flags(self) -> int:
        return int(self.report)

    def _body(self) -> bytes:
        return _PROBE.pack(self.filler) + bytes(self.filler)

    @classmethod
    def _parse(cls, flags: int, body: memoryview) -> Self:
        (filler,) = unpack_front(cls.TYPE, _PROBE, body)
        zeros = body[_PROBE.size :]
        if filler > MAX_PROBE_FILLER:
            malformed(cls.TYPE, f"filler of {filler} bytes; at most {MAX_PROBE_FILLER}")
        if len(zeros) != filler or bytes(zeros).count(0) != filler:
            malformed(cls.TYPE, f"{len(zeros)} bytes, not all of them zero, for {filler} zeros")
        return cls(filler, bool(flags))


@dataclass(frozen=True, slots=True)
class Probed(ConnectionMessage):
    """PROBED: how much came by PROBE on this connection so far, and when.

    Attributes:
        came: Bytes of records of PROBE, without padding.
        clock: Microseconds on a steady clock of the receiver's, the same for a whole session.
    """

    TYPE: ClassVar = MessageType.PROBED

    came: int
    clock: int

    def _body(self) -> bytes:
        return _PROBED.pack(self.came, self.clock)

    @classmethod
    def _parse(cls, flags: int, body: memoryview) -> Self:
        return cls(*unpack(cls.TYPE, _PROBED, body))


def _check_history(capabilities: Capability, window_log: int, streams: int) -> None:
    if Capability.HISTORY not in capabilities:
        if window_log or streams:
            malformed(MessageType.HELLO_OK, "streams with history without their capability")
    elif not MIN_HISTORY_WINDOW_LOG <= window_log <= MAX_HISTORY_WINDOW_LOG or not streams:
        malformed(MessageType.HELLO_OK, f"{streams} streams with a window of 2^{window_log} bytes")


def _software(type_: MessageType, body: memoryview) -> str:
    (software,) = unpack_text(type_, body, 1)
    if len(body) - 1 > MAX_SOFTWARE:
        malformed(type_, f"software of {len(body) - 1} bytes; at most {MAX_SOFTWARE}")
    return software
