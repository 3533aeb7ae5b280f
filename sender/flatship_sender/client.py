"""A session with a receiver as the sender holds it: connections, keepalive, replacement.

What the messages mean is not known here; ``pipeline`` decides that.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from flatship_protocol.connection import (
    KEEPALIVE_INTERVAL,
    MAX_CIPHERTEXT_TO_SENDER,
    Connection,
    SocketStream,
)
from flatship_protocol.constants import (
    CONNECTION_MAX_AGE,
    CONNECTION_MAX_BYTES,
)
from flatship_protocol.errors import (
    ConnectionLost,
    PeerError,
    RecordNotAuthentic,
    TransferError,
)
from flatship_protocol.messages import (
    Error,
    Goodbye,
    HelloOk,
    Message,
    Ping,
    Pong,
    encode,
)
from flatship_sender.asides import Asides
from flatship_sender.connecting import Credentials, Dial, SessionName, connect, receive
from flatship_sender.lending import Lending
from flatship_sender.receivers import Receiver
from flatship_sender.refusals import RefusedByReceiver
from flatship_sender.throttle import Throttle

GOODBYE_TIMEOUT: Final = 2.0  # seconds
HANDSHAKES: Final = 3  # at once; a receiver bears four of an address
MAINTENANCE_INTERVAL: Final = 1.0  # seconds
REPLACE_BACKOFF: Final = 30.0  # seconds after a connection could not be replaced


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When a connection is replaced by a fresh one: after seconds, or bytes sealed."""

    seconds: float = CONNECTION_MAX_AGE
    bytes: int = CONNECTION_MAX_BYTES


class Client:
    """The connections of one session.

    Args:
        receiver: The receiver.
        credentials: Whom it will see.
        session: Which session, and which incarnation.
        on_message: Called with (epoch, message) for all that is not about the
            connection itself. What it raises ends the session.
        lifetime: When connections are replaced.
        throttle: Limits all connections together, and those of other sessions with them.
        dial: Makes the streams.
        on_open: Called when the first connection stands.
    """

    def __init__(
        self,
        receiver: Receiver,
        credentials: Credentials,
        session: SessionName,
        on_message: Callable[[int, Message], None],
        *,
        lifetime: Lifetime | None = None,
        throttle: Throttle | None = None,
        dial: Dial | None = None,
        on_open: Callable[[], None] | None = None,
    ) -> None:
        self._receiver = receiver
        self._credentials = credentials
        self._session = session
        self._on_message = on_message
        self._lifetime = lifetime or Lifetime()
        self._throttle = throttle
        self._dial = dial
        self._on_open = on_open
        self._idle: Lending[Connection] = Lending()
        self._born: dict[Connection, float] = {}
        self._retired: set[Connection] = set()
        self._next_index = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._asides: Asides | None = None
        self._ping_after = KEEPALIVE_INTERVAL
        self._upkeep: asyncio.Task[None] | None = None
        self._replacement: asyncio.Task[None] | None = None
        self._widened = False
        self._readers: set[asyncio.Task[None]] = set()
        self._kept: Counter[Connection] = Counter()  # that something is about to be sent on
        self._let_go = asyncio.Event()
        self._replace_from = 0.0  # on the loop's clock
        self.shortfall: TransferError | None = None
        """Why ``widen`` made fewer connections than it was asked for, if it did."""
        self.heard_at = 0.0
        """When the receiver last said anything; the loop's clock."""
        self._control_bytes = 0

    @property
    def live(self) -> int:
        """Connections that are open and not being replaced."""
        return len(self._born)

    @property
    def busy(self) -> bool:
        """Whether something is being sent on any connection right now."""
        return any(connection.busy for connection in self._born)

    @property
    def taken_at(self) -> float:
        """When the receiver last took something and more was waiting; the loop's clock."""
        return max((each.stream.taken_at for each in self._born), default=0.0)

    @property
    def control_bytes(self) -> int:
        """Bytes of records that carried no chunk."""
        return self._control_bytes + (self._asides.sent_bytes if self._asides else 0)

    async def open(self, tasks: asyncio.TaskGroup) -> HelloOk:
        """Make the session's first connection.

        Args:
            tasks: Where readers and upkeep run; a failure of theirs ends it.
        """
        self._tasks = tasks
        self._asides = Asides(tasks)
        hello = await self._add()
        self._ping_after = min(KEEPALIVE_INTERVAL, hello.idle_timeout / 3)
        self._upkeep = tasks.create_task(self._maintain())
        if self._on_open is not None:
            self._on_open()
        return hello

    async def widen(self, connections: int) -> None:
        """Bring the session to ``connections`` connections, or as many as can be made.

        Several are made at once: each takes round trips in which nothing is sent yet.
        """
        turn = asyncio.Semaphore(HANDSHAKES)

        async def add() -> None:
            async with turn:
                if self.shortfall is None:  # or else the next ones would fail, too
                    try:
                        await self._add()
                    except TransferError as error:
                        self.shortfall = error

        async with asyncio.TaskGroup() as adding:
            for _ in range(connections - self.live):
                adding.create_task(add())
        self._widened = True

    async def borrow(self, rank: float) -> Connection:
        """Wait for a connection that nobody else sends chunks on; to be given back.

        Args:
            rank: The lowest of those who wait is served first.
        """
        return await self._idle.borrow(rank)

    def give_back(self, connection: Connection) -> None:
        """Let others borrow the connection."""
        if connection in self._born:
            self._idle.add(connection)

    def is_live(self, connection: Connection) -> bool:
        """Whether to send chunks on a connection: it is open, and not being replaced."""
        return connection in self._born and not connection.closed

    def pick(self, others: Collection[Connection]) -> Connection:
        """A live connection, one beside ``others`` if there is any.

        Raises:
            ConnectionLost: There is none.
        """
        live = [each for each in self._born if not each.closed]
        if not live:
            raise ConnectionLost(f"no connection to {self._receiver} is left")
        return next((each for each in live if each not in others), live[0])

    def keep(self, connection: Connection) -> None:
        """Have no goodbye said on a connection before it is let go: what goes there is made."""
        self._kept[connection] += 1

    def let_go(self, connection: Connection) -> None:
        """See ``keep``."""
        self._kept[connection] -= 1
        if not self._kept[connection]:
            del self._kept[connection]
        self._let_go.set()

    async def send(self, message: Message) -> None:
        """Send a small message on any connection that is still open."""
        connection = next((each for each in self._born if not each.closed), None)
        if connection is None:
            raise ConnectionLost(f"no connection to {self._receiver} is left")
        self._control_bytes += await connection.send(encode(message, self._session.epoch))

    async def send_on(self, connection: Connection, message: Message) -> None:
        """Send a small message on a connection that was borrowed."""
        self._control_bytes += await connection.send(encode(message, self._session.epoch))

    async def finish(self) -> None:
        """Say goodbye and wait a little for the receiver to close the connections.

        All that mattered has been said: a connection that is lost now is no failure.
        """
        self._retired.update(self._born)
        upkeep = {task for task in (self._upkeep, self._replacement) if task is not None}
        for task in upkeep:
            task.cancel()
        if upkeep:
            await asyncio.wait(upkeep)
        if self._asides is not None:
            self._asides.stop()
        with suppress(ConnectionLost, TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT):
                await self.send(Goodbye(last=True))
        if self._readers:
            await asyncio.wait(self._readers, timeout=GOODBYE_TIMEOUT)
        for reader in self._readers:
            reader.cancel()

    def close(self) -> None:
        """Drop all connections at once; who sends on one or waits for one gets ConnectionLost."""
        if self._asides is not None:
            self._asides.stop()
        self._retired.update(self._born)  # so that their readers see their end coming
        for connection in self._retired:
            connection.close()

    async def _add(self) -> HelloOk:
        assert self._tasks is not None
        index, self._next_index = self._next_index, self._next_index + 1
        connection, hello = await connect(
            self._receiver, self._credentials, self._session, index, self._dial
        )
        if self._throttle is not None and isinstance(connection.stream, SocketStream):
            self._throttle.add(connection.stream)
        self._born[connection] = asyncio.get_running_loop().time()
        reader = self._tasks.create_task(self._read(connection))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        self._idle.add(connection)
        return hello

    async def _read(self, connection: Connection) -> None:
        buffer = bytearray(MAX_CIPHERTEXT_TO_SENDER)
        while True:
            try:
                epoch, message = await receive(connection, buffer)
            except ConnectionLost:
                if connection.closed:
                    return  # by a send that failed or was cancelled, and says so itself
                if connection in self._retired:
                    self._retired.discard(connection)
                    connection.close()
                    return
                raise
            except PeerError as error:
                await self._protest(connection, error)
                raise
            self.heard_at = asyncio.get_running_loop().time()
            if isinstance(message, Ping):
                await self._say_aside(connection, Pong(message.token))
            elif isinstance(message, Error):
                raise RefusedByReceiver(message.code, message.numbers)
            elif not isinstance(message, Pong):
                try:
                    self._on_message(epoch, message)
                except PeerError as error:
                    await self._protest(connection, error)
                    raise

    async def _say_aside(self, connection: Connection, message: Ping | Pong | Goodbye) -> None:
        assert self._asides is not None
        await self._asides.say(connection, encode(message, self._session.epoch))

    async def _protest(self, connection: Connection, error: PeerError) -> None:
        """Tell the receiver what it did wrong, unless it cannot be the receiver that did it."""
        if isinstance(error, RecordNotAuthentic) or connection.busy:
            return
        with suppress(ConnectionLost):
            await connection.send(encode(Error(error.code), self._session.epoch))

    async def _maintain(self) -> None:
        """Keep quiet connections alive and replace old ones, until cancelled."""
        assert self._tasks is not None
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(MAINTENANCE_INTERVAL)
            for connection, born in list(self._born.items()):
                if self._is_due(connection, born):
                    # In a task: a dial that takes long must not silence the others.
                    self._replacement = self._tasks.create_task(self._replace(connection))
                elif loop.time() - connection.sent_at >= self._ping_after and not connection.busy:
                    await self._say_aside(connection, Ping(secrets.randbits(64)))

    def _is_due(self, connection: Connection, born: float) -> bool:
        """Whether to replace a connection now; one at a time, for each takes a place of its own."""
        now = asyncio.get_running_loop().time()
        replacing = self._replacement is not None and not self._replacement.done()
        if replacing or self._retired or not self._widened or now < self._replace_from:
            return False
        return (
            now - born >= self._lifetime.seconds or connection.sealed_bytes >= self._lifetime.bytes
        )

    async def _replace(self, old: Connection) -> None:
        """Make before break: only when the new connection stands is the old one retired.

        If none can be made the old one, which is as good as before, goes on for a while.
        """
        try:
            await self._add()
        except TransferError:
            self._replace_from = asyncio.get_running_loop().time() + REPLACE_BACKOFF
            return
        del self._born[old]
        self._retired.add(old)
        self._idle.discard(old)
        while self._kept[old]:
            self._let_go.clear()
            await self._let_go.wait()
        await self._say_aside(old, Goodbye(last=False))
