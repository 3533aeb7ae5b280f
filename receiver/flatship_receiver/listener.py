"""From accept to HELLO: who may come in. Strangers get little memory, little time and no answer."""

import asyncio
import secrets
import socket
import time
from collections.abc import Callable
from typing import Final

import structlog

from flatship_protocol.connection import (
    MAX_CIPHERTEXT_TO_SENDER,
    Connection,
    SocketStream,
)
from flatship_protocol.constants import MAX_CIPHERTEXT, PREFACE_SIZE
from flatship_protocol.errors import (
    ConnectionClosed,
    ConnectionLost,
    ErrorCode,
    HandshakeFailed,
    PeerError,
    ProtocolVersionMismatch,
    RecordNotAuthentic,
    TransferError,
)
from flatship_protocol.handshake import (
    INITIATION_SIZE,
    Responder,
    pair_psk,
    parse_preface,
    version_notice,
)
from flatship_protocol.messages import Hello, decode
from flatship_receiver.admission import HANDSHAKE_DEADLINE, Admission
from flatship_receiver.authorized_senders import AuthorizedSenders
from flatship_receiver.conversation import Refused, say_and_close
from flatship_receiver.invitations import Invitations
from flatship_receiver.metrics import ReceiverMetrics
from flatship_receiver.peers import Peer
from flatship_receiver.session import Caller
from flatship_receiver.sessions import Sessions
from flatship_service.errors import OperatorError
from flatship_service.keys import Identity, fingerprint

BACKLOG: Final = 128
MAX_HELLO: Final = 4232  # bytes of ciphertext: the longest HELLO with the longest padding

log = structlog.get_logger()


class Unwelcome(HandshakeFailed):
    """The caller is turned away without a word.

    Args:
        reason: A label of metrics.
        message: For the log.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Listener:
    """Accepts connections and hands those that proved themselves to their session.

    Args:
        identity: The receiver's static key.
        senders: Who is authorised.
        invitations: Who may become so.
        admission: Limits for those who have proved nothing yet.
        sessions: Where connections go.
        metrics: Where refusals are counted.
    """

    def __init__(
        self,
        identity: Identity,
        senders: AuthorizedSenders,
        invitations: Invitations,
        admission: Admission,
        sessions: Sessions,
        metrics: ReceiverMetrics,
    ) -> None:
        self._identity = identity
        self._senders = senders
        self._invitations = invitations
        self._admission = admission
        self._sessions = sessions
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, sock: socket.socket) -> None:
        """Accept on a listening socket until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, address = await loop.sock_accept(sock)
            except OSError as error:
                log.warning("cannot accept", reason=error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            self._admit(connected, address[0])

    async def close(self) -> None:
        """Wait for connections that are still being served."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _admit(self, connected: socket.socket, address: str) -> None:
        refusal = self._admission.admit(address, time.monotonic())
        if refusal is not None:
            self._metrics.auth_failure(refusal.value)
            connected.close()
            return
        task = asyncio.create_task(self._welcome(connected, address))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _welcome(self, connected: socket.socket, address: str) -> None:
        pending = _Once(lambda: self._admission.done(address))
        try:
            stream = SocketStream(connected)
        except OSError:
            connected.close()
            pending()
            return
        try:
            await self._introduce(stream, address, pending)
        except Unwelcome as error:
            self._turn_away(address, error.reason, error)
        except ProtocolVersionMismatch as error:
            self._turn_away(address, "version", error)
        except HandshakeFailed as error:
            self._turn_away(address, "handshake", error)
        except (TransferError, TimeoutError) as error:
            self._turn_away(address, "hello", error)
        except OperatorError as error:
            log.error("callers cannot be looked up", reason=str(error))  # noqa: TRY400
        except Exception as error:
            # One line: no stack trace reaches an operator who did not ask for it.
            log.error("connection failed", address=address, reason=repr(error))  # noqa: TRY400
        finally:
            pending()
            stream.close()

    def _turn_away(self, address: str, reason: str, error: Exception) -> None:
        self._metrics.auth_failure(reason)
        log.warning("caller turned away", address=address, kind=reason, reason=str(error) or "late")

    async def _introduce(
        self, stream: SocketStream, address: str, pending: Callable[[], None]
    ) -> None:
        async with asyncio.timeout(HANDSHAKE_DEADLINE):
            caller, connection, epoch, hello = await self._authenticate(stream, address)
        pending()
        try:
            await self._sessions.join(caller, hello, epoch, connection)
        except Refused as error:
            log.warning("session refused", peer=caller.peer.name, reason=str(error))
            await say_and_close(connection, error.code, epoch)
        except Exception:
            await say_and_close(connection, ErrorCode.INTERNAL, epoch)
            raise

    async def _authenticate(
        self, stream: SocketStream, address: str
    ) -> tuple[Caller, Connection, int, Hello]:
        responder = Responder(self._identity.private, secrets.token_bytes(32))
        initiation = responder.read_initiation(await _read_initiation(stream))
        identifier, public = initiation.invitation, initiation.sender_public
        if identifier is None:
            peer = self._known(public, address)
            psk = peer.psk
        else:
            invited = self._invitations.find(identifier, time.time())
            if invited is None:
                raise Unwelcome("invitation", "the invitation is unknown, used, or has expired")
            psk = pair_psk(invited.secret)
        response, keys = responder.respond(psk)
        await stream.write_all(memoryview(response))
        connection = Connection(
            stream, keys, max_receive=MAX_CIPHERTEXT, max_send=MAX_CIPHERTEXT_TO_SENDER
        )
        try:
            epoch, hello = await _read_hello(connection)
        except (ConnectionClosed, RecordNotAuthentic):
            # Whoever holds a wrong secret closes, or sends what does not open.
            connection.close()
            if identifier is not None:
                self._invitations.record_failure(identifier)
            raise
        except BaseException:
            connection.close()
            raise
        if identifier is not None:
            peer = self._pair(identifier, public)
        return Caller(peer, address), connection, epoch, hello

    def _known(self, public: bytes, address: str) -> Peer:
        peer = self._senders.find(public)
        if peer is None:
            raise Unwelcome("unknown_key", f"key {fingerprint(public)} is not authorised")
        if not peer.may_come_from(address):
            raise Unwelcome("not_permitted", f"{peer.name} may not come from {address}")
        return peer

    def _pair(self, identifier: bytes, public: bytes) -> Peer:
        self._senders.peers()  # raises if a peer could not be added, while nothing is lost
        peer = self._invitations.redeem(identifier, public, time.time())
        if peer is None:
            raise Unwelcome("invitation", "the invitation has just been used")
        self._senders.add(peer)
        log.info("paired", peer=peer.name, fingerprint=peer.fingerprint)
        return peer


class _Once:
    """Calls something the first time it is called itself."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def __call__(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


async def _read_initiation(stream: SocketStream) -> bytes:
    data = bytearray(INITIATION_SIZE)
    view = memoryview(data)
    try:
        await stream.read_exactly(view[:PREFACE_SIZE])
        parse_preface(bytes(view[:PREFACE_SIZE]))
        await stream.read_exactly(view[PREFACE_SIZE:])
    except ProtocolVersionMismatch:
        await stream.write_all(memoryview(version_notice()))
        raise
    except HandshakeFailed as error:
        raise Unwelcome("preface", f"no Flatship sender: {error}") from error
    except ConnectionLost as error:
        raise Unwelcome("preface", str(error)) from error
    return bytes(data)


async def _read_hello(connection: Connection) -> tuple[int, Hello]:
    header = await connection.receive_header()
    length = int.from_bytes(header[:4], "big")
    if length > MAX_HELLO:
        raise PeerError(f"a first record of {length} bytes; a HELLO takes {MAX_HELLO} at most")
    buffer = memoryview(bytearray(MAX_HELLO))
    size = await connection.receive_body(header, buffer)
    epoch, hello = decode(buffer[:size])
    if not isinstance(hello, Hello):
        raise PeerError(f"{type(hello).__name__} where HELLO was due")
    return epoch, hello


ACCEPT_PAUSE: Final = 0.1  # seconds; out of descriptors, say
