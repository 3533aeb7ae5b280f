"""An in-memory network, and both ends' real code on it, inside one event loop.

Nothing here reads a clock or draws a random number of its own: what a link does
follows from its ``Faults``, so that a seed names a run.
"""

import asyncio
import mmap
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from network import Faults, MemoryStream, link

from flatship_protocol.connection import (
    MAX_CIPHERTEXT_TO_SENDER,
    Connection,
    FramePool,
    Stream,
)
from flatship_protocol.constants import MAX_CIPHERTEXT, PAGE_SIZE
from flatship_protocol.endpoint import Endpoint
from flatship_protocol.errors import DatastoreError, ErrorCode, TransferError
from flatship_protocol.handshake import INITIATION_SIZE, Responder, public_key
from flatship_protocol.messages import (
    Adapter,
    DiskFormat,
    Hello,
    HelloOk,
    Message,
    OpenDisk,
    Provisioning,
    decode,
)
from flatship_receiver.authorized_senders import AuthorizedSenders
from flatship_receiver.conversation import Refused, say_and_close
from flatship_receiver.datastores.base import Datastore, Image, ImageRequest
from flatship_receiver.datastores.memory import MemoryDatastore, MemoryImage
from flatship_receiver.facilities import Facilities, Store
from flatship_receiver.journal import AsyncJournal
from flatship_receiver.metrics import ReceiverMetrics, SpaceSample
from flatship_receiver.peers import Peer
from flatship_receiver.reservations import Reservations
from flatship_receiver.session import Caller
from flatship_receiver.sessions import Sessions
from flatship_sender.client import Client
from flatship_sender.compression import CompressionController, Policy
from flatship_sender.connecting import Credentials, SessionName, connect
from flatship_sender.disk_memory import DiskMemory
from flatship_sender.job import FIRST_PASS, Job
from flatship_sender.observer import Unobserved
from flatship_sender.pipeline import Transfer
from flatship_sender.progress import DiskProgress, TransferProgress
from flatship_sender.receivers import Receiver
from flatship_sender.sources.base import BlockSource
from flatship_service.workers import Workers

SENDER_KEY = bytes([21]) * 32
RECEIVER_KEY = bytes([22]) * 32
PSK = bytes([23]) * 32
SESSION_ID = bytes(range(16))


class FaultyDatastore:
    """A ``MemoryDatastore`` whose images log what is done to them and fail when told to.

    ``fail_flush``, ``fail_write``, ``fail_read`` and ``fail_commit`` count down: the n-th
    call fails. ``rot`` is the offset of a byte that reads other than it was written. With
    ``volatile`` an image that is let go loses what was written and not flushed, as by a
    power loss.
    """

    def __init__(self, size: int) -> None:
        self.memory = MemoryDatastore("ssd", size)
        self.name = "ssd"
        self.log: list[tuple[str, int, int]] = []
        self.fail_flush = 0
        self.fail_write = 0
        self.fail_read = 0
        self.fail_commit = 0
        self.rot: int | None = None
        self.volatile = False
        self.space = self.memory.space
        self.check = self.memory.check
        self.finish = self.memory.finish
        self.recover = self.memory.recover
        self.descriptor = self.memory.descriptor
        self.view = self.memory.view
        self.close = self.memory.close

    def create(self, request: ImageRequest) -> Image:
        """See ``Datastore.create``."""
        return FaultyImage(self, self.memory.create(request))

    def resume(self, request: ImageRequest) -> Image | None:
        """See ``Datastore.resume``."""
        image = self.memory.resume(request)
        return None if image is None else FaultyImage(self, image)


class FaultyImage:
    """An image of a ``FaultyDatastore``."""

    def __init__(self, store: FaultyDatastore, image: MemoryImage) -> None:
        self._store = store
        self._image = image
        self._unflushed: list[tuple[int, bytes]] = []  # what was there before, oldest first
        self._turn = threading.Lock()
        self.capacity = image.capacity
        self.extents = image.extents

    def write(self, offset: int, data: memoryview) -> None:
        """See ``Image.write``."""
        self._store.fail_write -= 1
        if self._store.fail_write == 0:
            raise DatastoreError("the medium fails", ErrorCode.WRITE_FAILED)
        with self._turn:
            self._remember(offset, len(data))
            self._image.write(offset, data)
        self._store.log.append(("write", offset, len(data)))

    def zero(self, offset: int, length: int) -> None:
        """See ``Image.zero``."""
        with self._turn:
            self._remember(offset, length)
            self._image.zero(offset, length)
        self._store.log.append(("zero", offset, length))

    def flush(self) -> None:
        """See ``Image.flush``."""
        self._store.fail_flush -= 1
        if self._store.fail_flush == 0:
            raise DatastoreError("the flush failed", ErrorCode.WRITE_FAILED)
        with self._turn:
            self._image.flush()
            self._unflushed.clear()
        self._store.log.append(("flush", 0, 0))

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See ``Image.read_into``."""
        self._store.fail_read -= 1
        if self._store.fail_read == 0:
            raise DatastoreError("the medium cannot be read", ErrorCode.WRITE_FAILED)
        self._image.read_into(buffer, offset)
        rot = self._store.rot
        if rot is not None and offset <= rot < offset + len(buffer):
            buffer[rot - offset] ^= 1

    def read_latest(self, buffer: memoryview, offset: int) -> None:
        """See ``Image.read_latest``."""
        self._image.read_latest(buffer, offset)

    def commit(self, descriptor: bytes) -> None:
        """See ``Image.commit``."""
        self._store.fail_commit -= 1
        if self._store.fail_commit == 0:
            raise DatastoreError("the rename failed", ErrorCode.WRITE_FAILED)
        self._image.commit(descriptor)
        self._store.log.append(("commit", 0, 0))

    def close(self) -> None:
        """See ``Image.close``; with ``volatile``, a power loss before it."""
        while self._store.volatile and self._unflushed:
            offset, before = self._unflushed.pop()
            self._image.write(offset, memoryview(before))
        self._image.close()

    def _remember(self, offset: int, length: int) -> None:
        if self._store.volatile:
            before = memoryview(mmap.mmap(-1, -(-length // PAGE_SIZE) * PAGE_SIZE))
            start = offset // PAGE_SIZE * PAGE_SIZE
            self._image.read_into(before, start)
            self._unflushed.append((offset, bytes(before[offset - start :][:length])))

    def abort(self) -> None:
        """See ``Image.abort``."""
        self._image.abort()
        self._store.log.append(("abort", 0, 0))


class Receiving:
    """A receiver that takes connections from memory instead of a listening socket."""

    def __init__(self, datastore: Datastore, sessions: Sessions) -> None:
        self.datastore = datastore
        self.sessions = sessions
        self.peer = Peer(public_key(SENDER_KEY), "kvm1", PSK)
        self.trouble: list[BaseException] = []  # what must never come out of a connection
        self._tasks: set[asyncio.Task[None]] = set()
        self._ephemerals = 0

    def accept(self, stream: Stream) -> None:
        """Serve a connection, as the listener does for a caller it knows."""
        task = asyncio.create_task(self._serve(stream))
        self._tasks.add(task)

    async def wait(self) -> None:
        """Until every connection has been served."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, stream: Stream) -> None:
        try:
            await self._join(stream)
        except (TransferError, asyncio.CancelledError):
            pass
        except BaseException as error:
            self.trouble.append(error)
        finally:
            stream.close()

    async def _join(self, stream: Stream) -> None:
        self._ephemerals += 1
        responder = Responder(RECEIVER_KEY, self._ephemerals.to_bytes(32))
        initiation = bytearray(INITIATION_SIZE)
        await stream.read_exactly(memoryview(initiation))
        responder.read_initiation(bytes(initiation))
        response, keys = responder.respond(PSK)
        await stream.write_all(memoryview(response))
        connection = Connection(
            stream, keys, max_receive=MAX_CIPHERTEXT, max_send=MAX_CIPHERTEXT_TO_SENDER
        )
        buffer = memoryview(bytearray(MAX_CIPHERTEXT))
        size = await connection.receive_body(await connection.receive_header(), buffer)
        epoch, hello = decode(buffer[:size])
        assert isinstance(hello, Hello)
        try:
            await self.sessions.join(Caller(self.peer, "192.0.2.1"), hello, epoch, connection)
        except Refused as error:
            await say_and_close(connection, error.code, epoch)


@dataclass(slots=True)
class World:
    """A receiver, the links to it, and threads for both ends."""

    receiving: Receiving
    workers: Workers
    frames: FramePool
    journal: AsyncJournal
    to_receiver: Callable[[int], Faults]
    to_sender: Callable[[int], Faults]
    streams: list[MemoryStream] = field(default_factory=list)

    async def dial(self, _: Receiver) -> Stream:
        """Connect to the receiver; the n-th link gets the n-th faults."""
        number = len(self.streams)
        ours, theirs = link(self.to_receiver(number), self.to_sender(number))
        self.streams.append(ours)
        self.receiving.accept(theirs)
        return ours

    async def connect(self, epoch: int = 1) -> tuple[Connection, HelloOk]:
        """A connection whose sender is the test itself."""
        receiver = Receiver("lab", Endpoint("192.0.2.2", 7071), public_key(RECEIVER_KEY), PSK)
        name = SessionName(SESSION_ID, epoch)
        return await connect(receiver, Credentials(SENDER_KEY, PSK), name, 0, self.dial)

    def sending(
        self,
        sources: Sequence[BlockSource],
        *,
        epoch: int = 1,
        compression: Policy = "off",
        provisioning: Provisioning = Provisioning.THIN,
        live: bool = False,
        dry_run: bool = False,
        replace: bool = False,
        in_doubt: bool = False,
        hear: Callable[[Message], Message] = lambda message: message,
        memories: Sequence[DiskMemory] = (),
        vm: str = "web",
    ) -> tuple[Transfer, Client]:
        """A sender with one disk a source: ``web``, ``web_1`` …

        ``hear`` sees, and may change, what the receiver says. ``memories`` are those of the first
        disks.
        """
        jobs = [
            Job(
                source,
                OpenDisk(
                    disk=number,
                    pass_number=FIRST_PASS,
                    size=source.size,
                    reserve=0,
                    source_id=source.identity,
                    format=DiskFormat.VMFS,
                    provisioning=provisioning,
                    adapter=Adapter.LSILOGIC,
                    hardware_version=21,
                    datastore="",
                    vm=vm,
                    name="web" if number == 0 else f"web_{number}",
                    replace=replace,
                    live=live,
                    dry_run=dry_run,
                    in_doubt=in_doubt,
                ),
                DiskProgress(source.name, f"web/{number}", source.size),
                memories[number] if number < len(memories) else None,
            )
            for number, source in enumerate(sources)
        ]
        progress = TransferProgress("lab", "web", [job.progress for job in jobs])
        controller = CompressionController(compression, self.workers.count)
        transfer = Transfer(jobs, progress, controller, Unobserved(), self.workers, epoch)
        client = Client(
            Receiver("lab", Endpoint("192.0.2.2", 7071), public_key(RECEIVER_KEY), PSK),
            Credentials(SENDER_KEY, PSK),
            SessionName(SESSION_ID, epoch),
            lambda epoch, message: transfer.dispatch(epoch, hear(message)),
            dial=self.dial,
        )
        return transfer, client


def _sound(_: int) -> Faults:
    return Faults()


@asynccontextmanager
async def world(
    folder: Path,
    datastore: Datastore,
    *,
    to_receiver: Callable[[int], Faults] = _sound,
    to_sender: Callable[[int], Faults] = _sound,
    workers: int = 2,
    frames: int = 32,
) -> AsyncIterator[World]:
    """A receiver over ``datastore``, its journal in ``folder``.

    On the way out every connection has ended, every frame is back, and nothing but
    what Flatship itself reports has come out of a connection or a task.
    """
    loop = asyncio.get_running_loop()
    unhandled: list[str] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(str(context)))
    async with AsyncExitStack() as cleanup:
        journal = await AsyncJournal.open(folder)
        cleanup.push_async_callback(journal.close)
        threads = Workers(workers, "simulation")
        cleanup.callback(threads.close)
        metrics = ReceiverMetrics("test")
        reservations = Reservations("ssd")

        def sample() -> SpaceSample:
            space = datastore.space()
            return SpaceSample(space.size, space.free, reservations.total)

        store = Store(datastore, reservations, metrics.datastore("ssd", sample))
        senders = AuthorizedSenders(folder)
        senders.add(Peer(public_key(SENDER_KEY), "kvm1", PSK))
        pool = FramePool(frames)
        facilities = Facilities(journal, threads, threads, pool, metrics, senders, prove=True)
        receiving = Receiving(datastore, Sessions({"ssd": store}, facilities))
        made = World(receiving, threads, pool, journal, to_receiver, to_sender)
        try:
            yield made
        except BaseException:
            for stream in made.streams:  # so that what failed ends, and does not hang
                stream.close()
            raise
        await receiving.wait()
        assert pool.in_use == 0
        assert reservations.total == 0
        assert receiving.sessions.count == 0
        assert not receiving.trouble
    await asyncio.sleep(0)
    assert not unhandled, unhandled[0]
