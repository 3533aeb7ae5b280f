"""What one connection of a session brings: its records in their order, and how it ends.

A connection reads on while the chunks that it brought are stored; the peer's fault
in one of them ends it. What a message means is the session's to decide (``Decides``).
"""

import asyncio
from collections.abc import Collection, Coroutine
from dataclasses import replace
from typing import Any, Final, Protocol

from flatship_protocol.codec import HistoryDecoder
from flatship_protocol.connection import MESSAGE_START, Connection
from flatship_protocol.constants import CONNECTION_MAX_AGE, CONNECTION_MAX_BYTES
from flatship_protocol.errors import ConnectionLost, ErrorCode, PeerError
from flatship_protocol.messages import (
    CHUNK_PAYLOAD_OFFSET,
    Chunk,
    Codec,
    Error,
    ImageReference,
    Message,
    SegmentKind,
    decode,
    encode,
)
from flatship_receiver.facilities import Facilities
from flatship_receiver.pipeline import DiskIntake
from flatship_receiver.windows import Streams

STORES_PER_CONNECTION: Final = 8  # chunks of one connection under way at once, with their frames
SMALL_PAYLOAD: Final = 8 << 10  # bytes; with no more a chunk gives its frame back first
SMALL_STORES: Final = 128  # of those under way at once; all of them take as much as one frame
ERROR_TIMEOUT: Final = 1.0  # seconds a connection gets to take ERROR
DRAIN_TIMEOUT: Final = 1.0  # seconds a peer gets to read why it is refused


class Refused(PeerError):
    """The peer asked for more than it gets; ``code`` says of what."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Aborted(Exception):
    """The session is ended from this side; ``code`` tells the sender why."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code.name)
        self.code = code


class Decides(Protocol):
    """The session, as its connections see it. A PeerError ends the connection."""

    @property
    def aborted(self) -> "asyncio.Future[ErrorCode]":
        """Done when the session is ended from this side."""

    @property
    def streams(self) -> Streams | None:
        """The streams with history that it may have, if that was agreed on."""

    @property
    def may_copy(self) -> bool:
        """Whether copies were agreed on."""

    def accept(self, epoch: int, chunk: Chunk, bound: Collection[int]) -> DiskIntake | None:
        """The disk that is to store a chunk, or None where there is nothing to store.

        Args:
            epoch: That of its message.
            chunk: What came.
            bound: The image references of its connection.
        """

    async def act(self, connection: Connection, epoch: int, message: Message) -> bool:
        """Do what a message other than CHUNK asks for; True after GOODBYE."""


class Conversation:
    """One connection of a session.

    Args:
        connection: Whose HELLO was answered.
        session: Decides.
        facilities: Shared by all sessions.
    """

    def __init__(self, connection: Connection, session: Decides, facilities: Facilities) -> None:
        self._connection = connection
        self._session = session
        self._shared = facilities
        self._stores = _Stores()
        self._history: HistoryDecoder | None = None
        self._references: dict[int, bytes] = {}  # at most MAX_REFERENCES; the uuids of images

    async def run(self) -> None:
        """Read until GOODBYE; chunks that were accepted are stored whatever comes after them.

        Raises:
            Aborted: The session was ended from this side.
            ConnectionLost: The connection ended without GOODBYE.
            PeerError: The peer broke a rule.
        """
        reader = asyncio.create_task(self._read())
        aborted, failed = self._session.aborted, self._stores.failed
        waiting: set[asyncio.Future[Any]] = {reader, failed, aborted}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if aborted.done():
                raise Aborted(aborted.result())
            if failed.done():
                raise failed.result()
            await reader
        finally:
            reader.cancel()
            await asyncio.wait({reader, *self._stores.running})
            self._end_stream()

    async def _read(self) -> None:
        connection = self._connection
        loop = asyncio.get_running_loop()
        started = loop.time()
        while True:
            header = await connection.receive_header()
            _check_age(connection, loop.time() - started)
            await connection.receive_ciphertext(header)
            await self._stores.room()
            frame = await self._shared.frames.acquire()  # not sooner: a peer may be slow, or stop
            keep = False
            try:
                message_frame = frame[MESSAGE_START:]
                size = connection.open(header, message_frame)
                epoch, message = decode(message_frame[:size])
                if isinstance(message, Chunk):
                    if message.codec is Codec.HISTORY:
                        message = await self._decoded(message, frame)
                    disk = self._session.accept(epoch, message, self._references.keys())
                    if disk is not None:
                        keep = len(message.payload) > SMALL_PAYLOAD
                        self._store(disk, message, frame if keep else None)
                elif isinstance(message, ImageReference):
                    self._bind(message)
                elif await self._session.act(connection, epoch, message):
                    return
            finally:
                if not keep:
                    self._shared.frames.release(frame)
            if not keep:
                await asyncio.sleep(0)  # a flood of small messages leaves others their turn

    def _store(self, disk: DiskIntake, chunk: Chunk, frame: memoryview | None) -> None:
        """Have a chunk stored; without a frame its payload is copied first.

        A pass that changes a page here and there brings chunks that are small, many, and each
        waiting for the record to forget what it changes: with frames there would be too few
        of them to wait together.
        """
        named = self._images_named_in(chunk)
        if frame is None:
            chunk = replace(chunk, payload=memoryview(bytes(chunk.payload)))
        self._stores.start(disk.store(chunk, frame, named), small=frame is None)

    def _bind(self, message: ImageReference) -> None:
        """Take an image reference, for the chunks that follow."""
        if not self._session.may_copy:
            raise Refused(ErrorCode.UNSUPPORTED, "copies were not agreed on")
        self._references[message.reference] = message.uuid

    def _images_named_in(self, chunk: Chunk) -> dict[int, bytes]:
        """What the references of a chunk's copies mean now; later ones may mean another."""
        return {
            segment.image: self._references[segment.image]
            for segment in chunk.segments
            if segment.kind is SegmentKind.COPY
        }

    async def _decoded(self, chunk: Chunk, frame: memoryview) -> Chunk:
        """A chunk of the connection's stream as one with a raw payload, in the same frame.

        Done before the next record is read, and whatever becomes of the chunk: those after it need
        it.

        Raises:
            CodecError: It does not go on with the stream; that is lost.
            Refused: Such a stream was not agreed on, or is one too many.
        """
        if self._history is None:
            self._history = self._begin_stream()
        start = MESSAGE_START + CHUNK_PAYLOAD_OFFSET
        literals = frame[start : start + chunk.literal_length]
        await self._shared.workers.run(
            self._history.decode_into, chunk.payload, literals, begin=chunk.begin
        )
        return replace(chunk, codec=Codec.RAW, payload=literals, begin=False)

    def _begin_stream(self) -> HistoryDecoder:
        streams = self._session.streams
        if streams is None:
            raise Refused(ErrorCode.UNSUPPORTED, "a stream with history was not agreed on")
        decoder = streams.open()
        if decoder is None:
            raise Refused(ErrorCode.UNSUPPORTED, f"more than {streams.count} streams with history")
        return decoder

    def _end_stream(self) -> None:
        """Give the window's memory back; not sooner than the reader, whose worker uses it, ends."""
        decoder, self._history = self._history, None
        if decoder is not None and self._session.streams is not None:
            self._session.streams.close()


class _Stores:
    """Chunks of one connection that are being stored."""

    def __init__(self) -> None:
        self.running: set[asyncio.Task[None]] = set()
        self._small: set[asyncio.Task[None]] = set()  # those of them that have no frame
        self.failed: asyncio.Future[PeerError] = asyncio.get_running_loop().create_future()

    async def room(self) -> None:
        """Wait until another one may be started."""
        while (
            len(self.running - self._small) >= STORES_PER_CONNECTION
            or len(self._small) >= SMALL_STORES
        ):
            await asyncio.wait(self.running, return_when=asyncio.FIRST_COMPLETED)

    def start(self, store: Coroutine[None, None, None], *, small: bool) -> None:
        """Begin to store a chunk; a peer's fault ends in ``failed``."""
        task = asyncio.create_task(self._watch(store))
        for tasks in (self.running, self._small) if small else (self.running,):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _watch(self, store: Coroutine[None, None, None]) -> None:
        try:
            await store
        except PeerError as error:
            if not self.failed.done():
                self.failed.set_result(error)


async def say_and_close(connection: Connection, code: ErrorCode, epoch: int) -> None:
    """Send ERROR, if the connection still takes it, and close in a way that lets it arrive."""
    try:
        async with asyncio.timeout(ERROR_TIMEOUT):  # it may be stuck behind what nobody reads
            await connection.send(encode(Error(code), epoch))
        await connection.stream.drain(DRAIN_TIMEOUT)
    except (ConnectionLost, TimeoutError):
        pass
    finally:
        connection.close()


def _check_age(connection: Connection, age: float) -> None:
    if age > 2 * CONNECTION_MAX_AGE or connection.opened_bytes > 2 * CONNECTION_MAX_BYTES:
        raise Refused(ErrorCode.CONNECTION_EXPIRED, "the connection was used for too long")
