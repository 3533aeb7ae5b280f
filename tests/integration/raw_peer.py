"""Both ends of the protocol by hand, over blocking sockets: what goes over the wire is the test's.

Built on the handshake, records and messages of ``flatship_protocol`` alone, so that a test can
stop, lie or go on at every byte. Every wait is bounded by ``TIMEOUT``.
"""

import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from processes import Receiver

from flatship_protocol.codec import Compressor
from flatship_protocol.constants import CHUNK_SIZE, KEY_SIZE, RECORD_HEADER_SIZE
from flatship_protocol.digest import Manifest, chunk_digest
from flatship_protocol.handshake import (
    INITIATION_SIZE,
    RESPONSE_SIZE,
    Initiator,
    Keys,
    Responder,
    public_key,
)
from flatship_protocol.messages import (
    Abandon,
    Adapter,
    Capability,
    Chunk,
    Codec,
    DiskFormat,
    DiskOpened,
    DiskProven,
    EndPass,
    Error,
    Goodbye,
    Hello,
    HelloOk,
    Message,
    OpenDisk,
    Ping,
    Pong,
    Proving,
    Provisioning,
    Segment,
    Stored,
    Zero,
    decode,
    encode,
)
from flatship_protocol.records import Opener, Sealer
from flatship_service.keys import format_key, load_or_create_identity

TIMEOUT: Final = 20.0  # seconds
PASS: Final = 1
CREDIT: Final = 64 << 20
NO_PSK: Final = bytes(KEY_SIZE)
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER: on, 0 seconds

M = TypeVar("M")


class Ended(Exception):
    """The other end closed or reset the connection."""


@dataclass(frozen=True)
class Identity:
    """A static key pair."""

    private: bytes = field(default_factory=lambda: secrets.token_bytes(KEY_SIZE))

    @property
    def public(self) -> bytes:
        """The half that is shown."""
        return public_key(self.private)


def dial(address: str, source: str = "127.0.0.1") -> socket.socket:
    """Connect to ``HOST:PORT`` from one of this machine's own addresses."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), TIMEOUT, (source, 0))


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """Exactly ``size`` bytes.

    Raises:
        Ended: The stream ended first.
    """
    data = bytearray()
    while len(data) < size:
        try:
            part = sock.recv(size - len(data))
        except ConnectionError as error:
            raise Ended(str(error)) from error
        if not part:
            raise Ended(f"after {len(data)} of {size} bytes")
        data += part
    return bytes(data)


def read_to_end(sock: socket.socket) -> bytes:
    """All that comes until the other end closes, which it must do within TIMEOUT."""
    data = bytearray()
    with suppress(ConnectionError):
        while part := sock.recv(1 << 16):
            data += part
    return bytes(data)


def reset(sock: socket.socket) -> None:
    """Close with a reset instead of an orderly end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    sock.close()


def shake_hands(
    sock: socket.socket,
    receiver: bytes,
    me: Identity,
    psk: bytes = NO_PSK,
    invitation: bytes | None = None,
) -> "Wire":
    """The sender's half of a handshake.

    Raises:
        Ended: The receiver closed.
    """
    initiator = Initiator(me.private, receiver, psk, secrets.token_bytes(KEY_SIZE), invitation)
    sock.sendall(initiator.initiation())
    return Wire(sock, initiator.read_response(read_exactly(sock, RESPONSE_SIZE)))


class Wire:
    """Records both ways after a handshake."""

    def __init__(self, sock: socket.socket, keys: Keys, epoch: int = 1) -> None:
        self.sock = sock
        self.epoch = epoch
        self.heard_epoch = 0  # of the message that came last
        self.sealer = Sealer(keys.send, keys.handshake_hash)
        self._opener = Opener(keys.receive, keys.handshake_hash)

    def send(self, *messages: Message, epoch: int | None = None) -> None:
        """Send each message in a record of its own."""
        for message in messages:
            self.send_plaintext(encode(message, self.epoch if epoch is None else epoch))

    def send_plaintext(self, plaintext: bytes) -> None:
        """Seal and send something that need not be a message."""
        self.send_raw(self.sealer.seal(plaintext))

    def send_raw(self, data: bytes) -> None:
        """Send bytes that need not be a record; that the other end has closed is not told here."""
        with suppress(ConnectionError):
            self.sock.sendall(data)

    def receive(self) -> Message:
        """The next message.

        Raises:
            Ended: The other end closed.
        """
        header = read_exactly(self.sock, RECORD_HEADER_SIZE)
        body = memoryview(read_exactly(self.sock, self._opener.body_length(header)))
        out = memoryview(bytearray(len(body)))
        size = self._opener.open_into(header, body, out)
        self.heard_epoch, message = decode(out[:size])
        return message

    def expect(self, kind: type[M]) -> M:
        """The next message of a kind; STORED, PROVING and PING before it are passed over."""
        while not isinstance(message := self.receive(), kind):
            assert isinstance(message, Stored | Proving | Ping), (
                f"{message} where {kind.__name__} was due"
            )
        return message

    def rest(self) -> list[Message]:
        """All messages until the other end closes."""
        messages = []
        with suppress(Ended):
            while True:
                messages.append(self.receive())
        return messages

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


@dataclass
class RawSender:
    """A sender that is authorised, or not, at the receiver with this address and key."""

    address: str
    receiver: bytes
    identity: Identity = field(default_factory=Identity)
    psk: bytes = NO_PSK

    @contextmanager
    def handshake(self, epoch: int = 1, source: str = "127.0.0.1") -> Iterator[Wire]:
        """A connection that has not said HELLO."""
        with dial(self.address, source) as sock:
            wire = shake_hands(sock, self.receiver, self.identity, self.psk)
            wire.epoch = epoch
            yield wire

    @contextmanager
    def session(
        self, session_id: bytes | None = None, epoch: int = 1, index: int = 0
    ) -> Iterator[Wire]:
        """A connection whose HELLO was answered; closed without GOODBYE after the block."""
        with self.handshake(epoch) as wire:
            wire.send(hello(session_id or secrets.token_bytes(16), index))
            wire.expect(HelloOk)
            yield wire


def authorise(receiver: Receiver, options: str = "") -> RawSender:
    """A new sender that ``receiver`` knows; ``options`` stand before the key on its line."""
    me = Identity()
    with (receiver.state / "authorized_senders").open("a") as file:
        file.write(f"{options} {format_key(me.public)} raw\n".lstrip())
    return RawSender(receiver.address, load_or_create_identity(receiver.state).public, me)


def hello(session_id: bytes, index: int = 0, capabilities: Capability = Capability.NONE) -> Hello:
    """A HELLO."""
    return Hello(session_id, index, capabilities, "raw")


def opening(vm: str, size: int, disk: int = 0, /, **fields: Any) -> OpenDisk:
    """An OPEN_DISK for a thin disk of the machine's name."""
    asked: dict[str, Any] = {
        "disk": disk,
        "pass_number": PASS,
        "size": size,
        "reserve": 0,
        "source_id": bytes(32),
        "format": DiskFormat.VMFS,
        "provisioning": Provisioning.THIN,
        "adapter": Adapter.LSILOGIC,
        "hardware_version": 14,
        "datastore": "",
        "vm": vm,
        "name": vm,
    }
    return OpenDisk(**(asked | fields))


def chunk(data: bytes, offset: int = 0, disk: int = 0, **fields: Any) -> Chunk:
    """A CHUNK that carries ``data`` as it is; ``fields`` say otherwise."""
    asked: dict[str, Any] = {
        "disk": disk,
        "pass_number": PASS,
        "offset": offset,
        "length": len(data),
        "codec": Codec.RAW,
        "literal_length": len(data),
        "digest": chunk_digest(data),
        "segments": (),
        "payload": memoryview(data),
    }
    return Chunk(**(asked | fields))


def compressed(payload: bytes, data: bytes, offset: int = 0, **fields: Any) -> Chunk:
    """A CHUNK whose payload claims to be ``data`` under zstd."""
    return chunk(data, offset, codec=Codec.ZSTD, payload=memoryview(payload), **fields)


def segmented(*segments: Segment, length: int = CHUNK_SIZE, literals: bytes = b"") -> Chunk:
    """A CHUNK with a segment table, whatever its digest."""
    return chunk(literals or b"", length=length, segments=segments, literal_length=len(literals))


def zstd(data: bytes) -> bytes:
    """One honest frame."""
    return Compressor().compress(data, 1)


def zero(offset: int, length: int, disk: int = 0) -> Zero:
    """A ZERO that was read."""
    return Zero(disk, PASS, offset, length, hole=False)


def end_pass(data: bytes, chunks: int, disk: int = 0) -> EndPass:
    """The END_PASS of a disk that holds ``data``."""
    return EndPass(disk, PASS, chunks, root_of(data))


def root_of(data: bytes) -> bytes:
    """Root digest of a disk."""
    manifest = Manifest(len(data))
    for index in range(manifest.chunks):
        part = data[index * CHUNK_SIZE : (index + 1) * CHUNK_SIZE]
        manifest.set_chunk(index, chunk_digest(part))
    return manifest.root()


def send_disk(wire: Wire, vm: str, data: bytes, disk: int = 0, **fields: Any) -> DiskProven:
    """Send a small disk as an honest sender does and see it proven."""
    wire.send(opening(vm, len(data), disk, **fields))
    wire.expect(DiskOpened)
    offsets = range(0, len(data), CHUNK_SIZE)
    wire.send(*(chunk(data[at : at + CHUNK_SIZE], at, disk) for at in offsets))
    wire.send(end_pass(data, len(offsets), disk))
    return wire.expect(DiskProven)


Answer = Callable[[Wire, Any], None]


class ScriptedReceiver:
    """A receiver that behaves, but for what the test tells it to do otherwise.

    Accepts every key. Each connection is served in a thread of its own until it ends.

    Args:
        answers: What to do with a message of a type instead of the right thing.
        greet: What to do with a connection, given its socket, instead of the handshake.
        psk: 32 bytes; another than the sender's makes the handshake fail.
    """

    def __init__(
        self,
        answers: dict[type[Any], Answer] | None = None,
        greet: Callable[[socket.socket], None] | None = None,
        psk: bytes = NO_PSK,
    ) -> None:
        self.identity = Identity()
        self.received: list[Message] = []
        self._answers = {**_HONEST, **(answers or {})}
        self._greet = greet
        self._psk = psk
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._accepted: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.failures: list[Exception] = []

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        number: int = self._listening.getsockname()[1]
        return number

    def __enter__(self) -> "ScriptedReceiver":
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listening, *self._accepted):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(TIMEOUT)
        assert not self.failures, self.failures

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self._accepted.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock:
                if self._greet is not None:
                    self._greet(sock)
                else:
                    self._converse(sock)
        except (Ended, OSError):
            pass
        except Exception as error:
            self.failures.append(error)

    def _converse(self, sock: socket.socket) -> None:
        responder = Responder(self.identity.private, secrets.token_bytes(KEY_SIZE))
        responder.read_initiation(read_exactly(sock, INITIATION_SIZE))
        response, keys = responder.respond(self._psk)
        sock.sendall(response)
        wire = Wire(sock, keys)
        while True:
            message = wire.receive()
            self.received.append(message)
            wire.epoch = wire.heard_epoch
            self._answers[type(message)](wire, message)
            if isinstance(message, Goodbye | Error):
                return


def _welcome(wire: Wire, message: Hello) -> None:
    wire.send(HelloOk(Capability(0), CREDIT, 16, 30, "scripted"))


def _open(wire: Wire, message: OpenDisk) -> None:
    capacity = -(-message.size // CHUNK_SIZE) * CHUNK_SIZE
    wire.send(DiskOpened(message.disk, message.pass_number, bytes(16), capacity, 1 << 40))


def _acknowledge(wire: Wire, message: Chunk | Zero) -> None:
    wire.send(Stored(message.disk, message.pass_number, ((message.offset, message.length),)))


def _prove(wire: Wire, message: EndPass) -> None:
    digest = message.root_digest
    wire.send(DiskProven(message.disk, message.pass_number, 0, digest, published=True))


def _pong(wire: Wire, message: Ping) -> None:
    wire.send(Pong(message.token))


def nothing(wire: Wire, message: Message) -> None:
    """Do not answer."""


def hang_up(wire: Wire, message: Message) -> None:
    """Close the connection."""
    raise Ended


_HONEST: Final[dict[type[Any], Answer]] = {
    Hello: _welcome,
    OpenDisk: _open,
    Chunk: _acknowledge,
    Zero: _acknowledge,
    EndPass: _prove,
    Abandon: nothing,
    Goodbye: nothing,
    Error: nothing,
    Ping: _pong,
}
