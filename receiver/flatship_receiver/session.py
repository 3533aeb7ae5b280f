"""One incarnation of an authenticated sender's session: its connections, disks, and end.

``Session.serve`` serves a connection: a ``Conversation`` reads its records, and the
session decides what they mean. A session ends with its last connection.

Long because what a message means, on which connection and in which state, is read in one place.
"""

import asyncio
import secrets
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from flatship_protocol.connection import (
    IDLE_TIMEOUT,
    KEEPALIVE_INTERVAL,
    Connection,
)
from flatship_protocol.errors import (
    CodecError,
    ConnectionLost,
    CreditExceeded,
    DiskError,
    ErrorCode,
    MalformedMessage,
    RecordNotAuthentic,
    StaleEpoch,
    TransferError,
    UnexpectedMessage,
)
from flatship_protocol.messages import (
    Abandon,
    Capability,
    Chunk,
    Credit,
    DiskFailed,
    EndPass,
    Error,
    Goodbye,
    Hello,
    HelloOk,
    Message,
    OpenDisk,
    Ping,
    Pong,
    Probe,
    SegmentKind,
    Zero,
    encode,
)
from flatship_protocol.session import ReceiverSession, Verdict
from flatship_receiver.admission import CONNECTIONS_PER_SESSION
from flatship_receiver.conversation import Aborted, Conversation, Refused, say_and_close
from flatship_receiver.copy_sources import CopySources
from flatship_receiver.credit import FIRST as CREDIT
from flatship_receiver.credit import CreditWindow
from flatship_receiver.facilities import Facilities, Store
from flatship_receiver.peers import Peer
from flatship_receiver.pipeline import Abandoned, DiskIntake
from flatship_receiver.probes import Probes
from flatship_receiver.windows import Streams
from flatship_service.errors import OperatorError

CAPABILITIES: Final = (
    Capability.RESUME | Capability.DELTA | Capability.KNOWN | Capability.HISTORY | Capability.PROBE
)
SOFTWARE: Final = "flatship-receiver"
UPKEEP_INTERVAL: Final = 2.0  # seconds
FIRST_PASS: Final = 1  # later ones need a capability that there is not yet
MAX_DISKS: Final = 256  # handles a session may use

log = structlog.get_logger()

_REASONS: Final[Mapping[type[TransferError], str]] = {
    RecordNotAuthentic: "not_authentic",
    MalformedMessage: "malformed",
    UnexpectedMessage: "unexpected",
    StaleEpoch: "stale_epoch",
    CreditExceeded: "credit_exceeded",
    CodecError: "codec",
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end of a connection, and from where."""

    peer: Peer
    address: str


class Session:
    """One incarnation of one sender's session.

    Args:
        caller: Who opened it.
        hello: The HELLO that opened it.
        epoch: The incarnation.
        stores: Datastores by name; the first is the default.
        facilities: Shared by all sessions.
        copying: What chunks may be copied from; shared by all sessions.
    """

    def __init__(
        self,
        caller: Caller,
        hello: Hello,
        epoch: int,
        stores: Mapping[str, Store],
        facilities: Facilities,
        copying: CopySources,
    ) -> None:
        self.caller = caller
        self.session_id = hello.session_id
        self.epoch = epoch
        self.ended = asyncio.Event()
        self._capabilities = hello.capabilities & CAPABILITIES
        self.streams: Streams | None = None
        """What the session may have of streams with history; None: none."""
        if Capability.HISTORY in self._capabilities:
            self.streams = facilities.windows.grant()
            if self.streams is None:
                self._capabilities &= ~Capability.HISTORY
        self._segments = {SegmentKind.LITERAL, SegmentKind.ZERO}
        if Capability.DELTA in self._capabilities:
            self._segments.add(SegmentKind.KEEP)
        if Capability.KNOWN in self._capabilities:
            self._segments.add(SegmentKind.COPY)
        self._copying = copying
        self._stores = stores
        self._shared = facilities
        self._account = ReceiverSession(epoch, CREDIT)
        self._window = CreditWindow(asyncio.get_running_loop().time())
        self._probes = Probes() if Capability.PROBE in self._capabilities else None
        self._connections: dict[int, Connection] = {}
        self._disks: dict[int, DiskIntake] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._pings: set[asyncio.Task[None]] = set()
        self._received = 0  # by connections that have ended
        self._over = False
        self._upkeep: asyncio.Task[None] | None = None
        self.aborted: asyncio.Future[ErrorCode] = asyncio.get_running_loop().create_future()
        self._log = log.bind(peer=caller.peer.name, address=caller.address)

    @property
    def may_copy(self) -> bool:
        """Whether copies were agreed on."""
        return SegmentKind.COPY in self._segments

    @property
    def received(self) -> int:
        """Bytes of records that came so far, on all connections."""
        live = sum(connection.opened_bytes for connection in self._connections.values())
        return self._received + live

    @property
    def is_open(self) -> bool:
        """Whether further connections may join."""
        return bool(self._connections) and not self._over

    def add(self, index: int, connection: Connection) -> None:
        """Take a further connection in.

        Raises:
            Refused: There are too many, or its index is taken.
        """
        if len(self._connections) >= CONNECTIONS_PER_SESSION or index in self._connections:
            raise Refused(
                ErrorCode.TOO_MANY_CONNECTIONS, f"connection {index} is one too many or taken"
            )
        self._connections[index] = connection

    def _hello_ok(self) -> bytes:
        """The answer to a HELLO of this session, encoded; the first settled what was agreed."""
        answer = HelloOk(
            self._capabilities,
            self._account.credit,
            CONNECTIONS_PER_SESSION,
            int(IDLE_TIMEOUT),
            SOFTWARE,
            self.streams.window_log if self.streams else 0,
            self.streams.count if self.streams else 0,
        )
        return encode(answer, self.epoch)

    async def serve(self, hello: Hello) -> None:
        """Answer HELLO and serve its connection until that ends; the session ends with the last."""
        index = hello.connection_index
        connection = self._connections[index]
        self._shared.metrics.connections(1)
        if self._upkeep is None:
            self._upkeep = asyncio.create_task(self._maintain())
        try:
            await connection.send(self._hello_ok())
            await Conversation(connection, self, self._shared).run()
        except ConnectionLost as error:
            self._log.info("connection ended", connection=index, reason=str(error))
        except Aborted as error:
            self._drop(index)
            await say_and_close(connection, error.code, self.epoch)
        except TransferError as error:
            self._log.warning("connection refused", connection=index, reason=str(error))
            self._drop(index)
            self._shared.metrics.record_rejected(_REASONS.get(type(error), "other"))
            if isinstance(error, RecordNotAuthentic):
                return  # whoever sent that is not told a thing; SPEC.md, "Records"
            await say_and_close(connection, error.code, self.epoch)
        finally:
            self._shared.metrics.connections(-1)
            connection.close()
            self._drop(index)
            if not self._connections:
                await self._end()

    def _drop(self, index: int) -> None:
        connection = self._connections.pop(index, None)
        if connection is not None:
            self._received += connection.opened_bytes
            if self._probes is not None:
                self._probes.forget(connection)

    async def abort(self, code: ErrorCode) -> None:
        """Tell the sender why, close all connections, and wait for the disks to be let go."""
        if not self.aborted.done():
            self.aborted.set_result(code)
        await self.ended.wait()

    async def send(self, message: Message) -> None:
        """Send on the first connection that takes it; without any, the message is dropped."""
        encoded = encode(message, self.epoch)
        for connection in list(self._connections.values()):
            try:
                await connection.send(encoded)
            except ConnectionLost:
                continue
            return

    def accept(self, epoch: int, chunk: Chunk, bound: Collection[int]) -> DiskIntake | None:
        """See ``Decides.accept``."""
        disk = self._disk(chunk.disk)
        if any(segment.kind not in self._segments for segment in chunk.segments):
            raise Refused(ErrorCode.UNSUPPORTED, "a segment of a kind that was not agreed on")
        for segment in chunk.segments:
            if segment.kind is SegmentKind.COPY and segment.image not in bound:
                raise UnexpectedMessage(f"a copy from image {segment.image}, which is not bound")
        try:
            verdict = self._account.receive(epoch, chunk, disk.digest_of)
        except DiskError as error:
            self._shared.metrics.record_rejected("duplicate_differs")
            disk.fail(error)
            return None
        if verdict is Verdict.ACKNOWLEDGE_AGAIN:
            disk.acknowledge_again(chunk.offset, chunk.length)
        self._window.came(chunk.length)
        return disk if verdict is Verdict.ACT else None

    async def act(self, connection: Connection, epoch: int, message: Message) -> bool:
        """Do what a message other than CHUNK asks for; True after GOODBYE."""
        if isinstance(message, Ping):
            await connection.send(encode(Pong(message.token), self.epoch))
        elif isinstance(message, Goodbye):
            if message.last:
                self._over = True
                for other in list(self._connections.values()):
                    if other is not connection:
                        other.close()
            return True
        elif isinstance(message, OpenDisk):
            await self._open_disk(epoch, message)
        elif isinstance(message, Zero | EndPass | Abandon):
            await self._about_disk(epoch, message)
        elif isinstance(message, Error):
            raise ConnectionLost(f"the sender reports {message.code.name}")
        elif isinstance(message, Probe):
            await self._probe(connection, message)
        elif isinstance(message, Pong):
            self._window.answered(message.token, asyncio.get_running_loop().time())
        else:
            raise UnexpectedMessage(f"{type(message).__name__} from a sender")
        return False

    async def _probe(self, connection: Connection, probe: Probe) -> None:
        if self._probes is None:
            raise Refused(ErrorCode.UNSUPPORTED, "probes were not agreed on")
        report = self._probes.take(connection, probe, asyncio.get_running_loop().time())
        if report is not None:
            await connection.send(encode(report, self.epoch))

    async def _about_disk(self, epoch: int, message: Zero | EndPass | Abandon) -> None:
        disk = self._disks.get(message.disk)
        if disk is None:  # refused, which the sender may not know yet, or never named
            self._account.receive(epoch, message, lambda _: None)
            return
        try:
            verdict = self._account.receive(epoch, message, disk.digest_of)
        except DiskError as error:
            self._shared.metrics.record_rejected("duplicate_differs")
            disk.fail(error)
            return
        if isinstance(message, Abandon):
            disk.fail(Abandoned(message.code))
        elif isinstance(message, EndPass):
            disk.ended()
        elif verdict is Verdict.ACT:
            await disk.zero(message)
        elif verdict is Verdict.ACKNOWLEDGE_AGAIN:
            disk.acknowledge_again(message.offset, message.length)

    async def _open_disk(self, epoch: int, opening: OpenDisk) -> None:
        if len(self._account.disks) >= MAX_DISKS:
            raise Refused(ErrorCode.UNEXPECTED_MESSAGE, f"more than {MAX_DISKS} disks")
        self._account.open(epoch, opening)
        if opening.pass_number != FIRST_PASS:
            raise Refused(ErrorCode.UNSUPPORTED, f"pass {opening.pass_number} was not agreed on")
        name = opening.datastore or next(iter(self._stores))
        store = self._stores.get(name)
        peer = self._peer_now() or self.caller.peer  # a revoked key's session is about to end
        denial = peer.permits(opening.vm, opening.name, name, opening.size, self.caller.address)
        code = denial.code if denial else ErrorCode.DATASTORE_UNKNOWN
        if denial or store is None:
            reason = denial.reason if denial else f"no datastore {name}"
            self._log.warning("disk refused", vm=opening.vm, disk=opening.name, reason=reason)
            subject = f"{opening.vm}/{opening.name}"
            self._shared.board.refused(subject, f"{self.caller.peer.name}: {reason}", code)
            self._account.close(opening.disk)
            numbers = (opening.size, peer.max_bytes or 0)
            await self.send(DiskFailed(opening.disk, opening.pass_number, code, numbers))
            return
        disk = DiskIntake(
            opening,
            peer.public,
            store,
            self._account,
            self.send,
            self._shared.at(store),
            resumes=Capability.RESUME in self._capabilities,
            copying=self._copying,
            shown=self._shared.board.begin(opening, self.caller.peer.name, name),
        )
        self._disks[opening.disk] = disk
        task = asyncio.create_task(disk.run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _disk(self, handle: int) -> DiskIntake:
        disk = self._disks.get(handle)
        if disk is None:
            raise UnexpectedMessage(f"a message about disk {handle}, which is not open")
        return disk

    async def _maintain(self) -> None:
        """Say that we live where nothing was said for long; end the session of a revoked key.

        Also have each disk look whether it gets on, and let credit grow with the distance.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(UPKEEP_INTERVAL)
            if self._peer_now() is None and not self.aborted.done():
                self.aborted.set_result(ErrorCode.NOT_PERMITTED)
            self._copying.tidy()
            for disk in self._disks.values():
                disk.look_for_stall()
            self._widen_credit(loop.time())
            for connection in list(self._connections.values()):
                if loop.time() - connection.sent_at >= KEEPALIVE_INTERVAL and not connection.busy:
                    self._ping(connection)

    def _widen_credit(self, now: float) -> None:
        """Measure the round trip while much comes, and give the credit that it takes."""
        free = next((each for each in self._connections.values() if not each.busy), None)
        if free is not None and self._window.wants_round_trip:
            token = secrets.randbits(64)
            self._window.asked(token, now)
            self._ping(free, token)
        credit = None if free is None else self._window.look(self._account.outstanding, now)
        if free is not None and credit is not None:
            self._account.credit = credit  # before it is said: chunks may come at once
            self._say_aside(free, Credit(credit))

    def _ping(self, connection: Connection, token: int = 0) -> None:
        """Send PING in a task: one connection that does not take it must not silence the others."""
        self._say_aside(connection, Ping(token))

    def _say_aside(self, connection: Connection, message: Ping | Credit) -> None:
        async def send() -> None:
            with suppress(ConnectionLost):
                await connection.send(encode(message, self.epoch))

        task = asyncio.create_task(send())
        self._pings.add(task)
        task.add_done_callback(self._pings.discard)

    def _peer_now(self) -> Peer | None:
        """What the sender's line says now; None if the key was revoked."""
        try:
            return self._shared.senders.find(self.caller.peer.public)
        except OperatorError as error:
            self._log.warning("cannot look the sender up", reason=str(error))
            return self.caller.peer

    async def _end(self) -> None:
        for disk in self._disks.values():
            disk.fail(Abandoned(ErrorCode.CANCELLED))
        if self._running:
            await asyncio.wait(self._running)
        if self._upkeep is not None:  # not sooner: it says which storage is waited for
            self._upkeep.cancel()
        self._copying.leave(self.caller.peer.public)
        if self.streams is not None:
            self.streams.release()
        self._log.info("session ended", orderly=self._over)
        self.ended.set()
