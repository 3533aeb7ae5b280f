"""One connection of a session, from the receiver's address to HELLO_OK."""

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from flatship_protocol.connection import (
    HANDSHAKE_TIMEOUT,
    MAX_CIPHERTEXT_TO_SENDER,
    STALL_TIMEOUT,
    Connection,
    SocketStream,
    Stream,
    initiate,
)
from flatship_protocol.constants import CHUNK_SIZE, MAX_CIPHERTEXT
from flatship_protocol.errors import (
    ConnectionClosed,
    ConnectionLost,
    HandshakeFailed,
    PeerError,
    ProtocolVersionMismatch,
    UnexpectedMessage,
)
from flatship_protocol.handshake import Initiator, Keys
from flatship_protocol.messages import (
    Capability,
    Error,
    Hello,
    HelloOk,
    Message,
    decode,
    encode,
)
from flatship_sender.receivers import Receiver
from flatship_sender.refusals import NotAuthorised, RefusedByReceiver
from flatship_service.congestion import use_congestion_control

CAPABILITIES: Final = (
    Capability.RESUME | Capability.DELTA | Capability.KNOWN | Capability.HISTORY | Capability.PROBE
)
SOFTWARE: Final = "flatship-sender"
CONNECT_TIMEOUT: Final = 10.0  # seconds
MIN_IDLE_TIMEOUT: Final = 6  # seconds; a receiver with less patience cannot be kept company
UNREAD: Final = 2 * STALL_TIMEOUT  # seconds; a receiver whose storage hangs reads nothing meanwhile


Dial: TypeAlias = Callable[[Receiver], Awaitable[Stream]]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the sender proves itself with. Its repr shows no secret.

    ``invitation`` is the id of the invitation that ``psk`` was derived from, while pairing.
    """

    private: bytes = field(repr=False)
    psk: bytes = field(repr=False)
    invitation: bytes | None = None


@dataclass(frozen=True, slots=True)
class SessionName:
    """Which session this is, and which incarnation of it."""

    session_id: bytes
    epoch: int


async def connect(
    receiver: Receiver,
    credentials: Credentials,
    session: SessionName,
    index: int,
    dial: Dial | None = None,
) -> tuple[Connection, HelloOk]:
    """Open one connection of a session: TCP, handshake, HELLO.

    Raises:
        ConnectionLost: Nobody listens there, it is overloaded, or the link failed.
        NotAuthorised: The receiver does not accept this sender, or is another one.
        ProtocolVersionMismatch: It speaks another version.
        RefusedByReceiver: It answered HELLO with an error.
    """
    stream = await (dial or dial_tcp)(receiver)
    try:
        keys = await _handshake(stream, receiver, credentials)
    except BaseException:
        stream.close()
        raise
    connection = Connection(
        stream, keys, max_receive=MAX_CIPHERTEXT_TO_SENDER, max_send=MAX_CIPHERTEXT
    )
    try:
        hello = Hello(session.session_id, index, CAPABILITIES, SOFTWARE)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await connection.send(encode(hello, session.epoch))
                epoch, answer = await receive(connection, bytearray(MAX_CIPHERTEXT_TO_SENDER))
        except (ConnectionLost, TimeoutError) as error:
            raise _broken_off(receiver) from error
        if isinstance(answer, Error):
            raise RefusedByReceiver(answer.code, answer.numbers)
        if not isinstance(answer, HelloOk) or epoch != session.epoch:
            raise UnexpectedMessage(f"{type(answer).__name__} in answer to HELLO")
        _check_hello_ok(answer)
    except BaseException:
        connection.close()
        raise
    return connection, answer


def _check_hello_ok(answer: HelloOk) -> None:
    if answer.capabilities & ~CAPABILITIES or answer.credit < CHUNK_SIZE or not answer.connections:
        raise UnexpectedMessage(
            f"HELLO_OK with capabilities {int(answer.capabilities)}, credit {answer.credit},"
            f" connections {answer.connections}"
        )
    if answer.idle_timeout < MIN_IDLE_TIMEOUT:
        raise UnexpectedMessage(f"HELLO_OK with an idle timeout of {answer.idle_timeout} s")


async def dial_tcp(receiver: Receiver, congestion_control: str | None = None) -> Stream:
    """Open a TCP connection to whichever of the receiver's addresses answers first.

    Raises:
        ConnectionLost: None does.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            found = await loop.getaddrinfo(
                receiver.endpoint.host, receiver.endpoint.port, type=socket.SOCK_STREAM
            )
            return SocketStream(await _first_that_answers(found, congestion_control), unread=UNREAD)
    except TimeoutError as error:
        raise ConnectionLost(
            f"{receiver} did not answer within"
            f" {CONNECT_TIMEOUT:.0f} s; is it running, and is the port open?"
        ) from error
    except OSError as error:
        raise ConnectionLost(
            f"{receiver} cannot be reached:"
            f" {error.strerror or error}; is flatship-receiver serve running there?"
        ) from error


async def _first_that_answers(
    found: Iterable[tuple[int, int, int, str, tuple[Any, ...]]], congestion_control: str | None
) -> socket.socket:
    failure: OSError = OSError("the name has no address")
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            use_congestion_control(sock, congestion_control)
            await asyncio.get_running_loop().sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def _handshake(stream: Stream, receiver: Receiver, credentials: Credentials) -> Keys:
    initiator = Initiator(
        credentials.private,
        receiver.public,
        credentials.psk,
        secrets.token_bytes(32),
        credentials.invitation,
    )
    try:
        return await initiate(stream, initiator)
    except ProtocolVersionMismatch:
        raise
    except (ConnectionClosed, HandshakeFailed) as error:
        pairing = credentials.invitation is not None
        raise NotAuthorised(str(receiver), pairing=pairing) from error
    except (ConnectionLost, TimeoutError) as error:
        raise _broken_off(receiver) from error


def _broken_off(receiver: Receiver) -> ConnectionLost:
    return ConnectionLost(
        f"{receiver} accepted the connection and did not complete it;"
        " it may be overloaded or restarting: try again later"
    )


async def receive(connection: Connection, buffer: bytearray) -> tuple[int, Message]:
    """Wait for a message; returns its epoch, too.

    Args:
        connection: Nobody else receives on it.
        buffer: MAX_CIPHERTEXT_TO_SENDER bytes; the message does not refer to them afterwards.

    Raises:
        ConnectionLost: The stream ended, or is dead.
        PeerError: What came is no message; the connection is closed.
    """
    header = await connection.receive_header()
    size = await connection.receive_body(header, memoryview(buffer))
    try:
        return decode(memoryview(buffer)[:size])
    except PeerError:
        connection.close()
        raise
