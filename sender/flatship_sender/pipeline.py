"""Read, classify, compress, seal, send: many disks over one session, bounded everywhere.

The event loop decides and moves finished buffers; worker threads read, digest
and compress (``prepare``). A frame from the pool travels with a chunk from
its read to the end of its send, so frames bound memory, and credit bounds what
the receiver has not yet acknowledged.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, Protocol

from flatship_protocol.connection import FramePool
from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.digest import Manifest
from flatship_protocol.errors import (
    ConnectionLost,
    ErrorCode,
    PeerError,
    TransferError,
    UnexpectedMessage,
)
from flatship_protocol.extents import ExtentSet
from flatship_protocol.messages import (
    Abandon,
    Capability,
    Chunk,
    Credit,
    DiskFailed,
    DiskOpened,
    DiskProven,
    EndPass,
    Held,
    Message,
    OpenDisk,
    Proving,
    Stored,
    Want,
    Zero,
)
from flatship_protocol.session import SenderSession, SenderState, ToSender
from flatship_sender.client import Client
from flatship_sender.compression import CompressionController
from flatship_sender.held import HeldChunks
from flatship_sender.page_index import PageIndex
from flatship_sender.plan import ReadChunk, SkipHole, plan
from flatship_sender.prepare import Address, Earlier, Prepared, prepare
from flatship_sender.processor import ProcessorWatch
from flatship_sender.progress import (
    FINAL_STATES,
    DiskProgress,
    TransferProgress,
    TransferState,
)
from flatship_sender.refusals import RefusedByReceiver
from flatship_sender.sources.base import BlockSource
from flatship_sender.stalls import Stall, Stalls, allowance, is_lost
from flatship_service.units import format_duration
from flatship_service.workers import Workers

FRAMES: Final = 16
PUMPS: Final = 8  # chunks of one disk under way at once
PLAN_BATCH: Final = 256  # works asked of a source at a time
ZERO_RUN_LIMIT: Final = 256 << 20  # bytes of read zeros held back to be sent as one message
WINDOW: Final = 0.25  # seconds between two looks of the compression controller
LANE_WAIT: Final = 0.001  # seconds; a chunk that waited longer found the link busy
FIRST_PASS: Final = 1
MANY_CONNECTIONS: Final = 4
SPARE_CONNECTIONS: Final = 2  # of many: for one that replaces another, and one not yet closed
IN_DOUBT: Final = (
    "all of the disk had been sent, and the receiver may still publish it;"
    " check there with flatship-receiver verify"
)


class Cancelled(TransferError):
    """The operator interrupted the transfer."""

    code = ErrorCode.CANCELLED
    exit_code = 130

    def __init__(self) -> None:
        super().__init__("interrupted; nothing was published, the same command goes on from here")


class RootDiffers(TransferError):
    """The receiver proved something else than was sent."""

    def __init__(self) -> None:
        super().__init__(
            "the receiver's root digest differs from the source's; nothing can be trusted"
        )


class Defect(TransferError):
    """Something happened to a disk that nobody has thought of.

    Args:
        error: What it was.
    """

    def __init__(self, error: Exception) -> None:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        super().__init__(f"internal error, please report it: {what}")
        self.__cause__ = error


_SESSION_ERRORS: Final = (ConnectionLost, PeerError)  # all others end one disk


@dataclass(frozen=True, slots=True)
class Job:
    """One disk to send: what is read, and what OPEN_DISK says of the target.

    ``index`` is what is known of its pages from an earlier pass, or will be for a later one.
    """

    source: BlockSource
    opening: OpenDisk
    progress: DiskProgress
    index: PageIndex | None = None

    def again(self) -> "Job":
        """The same for another session, after one was lost: it may have been all but over."""
        in_doubt = self.opening.in_doubt or self.progress.root is not None
        return replace(self, opening=replace(self.opening, in_doubt=in_doubt))


class Observer(Protocol):
    """Whoever counts what happens."""

    def observe_ack(self, seconds: float) -> None:
        """A chunk was acknowledged so long after it was sent."""

    def error(self, error: BaseException) -> None:
        """A disk failed."""


class Unobserved:
    """An Observer for transfers that nobody scrapes."""

    def observe_ack(self, seconds: float) -> None:
        """See Observer."""

    def error(self, error: BaseException) -> None:
        """See Observer."""


class Transfer:
    """Sends disks in one session.

    Args:
        jobs: The disks; their handles are distinct.
        progress: Where counts go.
        controller: Chooses compression levels.
        observer: Told about acknowledgements and errors.
        workers: Threads to read and compress in.
        epoch: The session's.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        progress: TransferProgress,
        controller: CompressionController,
        observer: Observer,
        workers: Workers,
        epoch: int,
    ) -> None:
        self.progress = progress
        self.session = SenderSession(epoch, credit=0)
        self.controller = controller
        self.observer = observer
        self.workers = workers
        self.frames = FramePool(FRAMES)
        self.resumes = False  # the receiver says what it holds
        self.deltas = False  # and can keep pages of it
        self.lane_waits = 0  # chunks that found no connection free, in this window
        self.lane_uses = 0
        self._disks = {job.opening.disk: DiskTransfer(job, self) for job in jobs}
        self._credit_freed = asyncio.Event()
        self._client: Client | None = None
        self._news = 0  # messages of the receiver that brought something further

    @property
    def client(self) -> Client:
        """The session's connections."""
        assert self._client is not None
        return self._client

    async def run(self, client: Client, connections: int) -> None:
        """Send all disks; one disk's failure is noted in its progress and stops no other.

        Args:
            client: Not yet open; ``dispatch`` of this object is its on_message.
            connections: How many to open.

        Raises:
            TransferError: The session as a whole failed. Disks that were not
                finished are marked failed.
        """
        self._client = client
        try:
            async with asyncio.TaskGroup() as tasks:
                hello = await client.open(tasks)
                self.session.credit = hello.credit
                self.resumes = Capability.RESUME in hello.capabilities
                self.deltas = Capability.DELTA in hello.capabilities
                await client.widen(min(connections, usable(hello.connections)))
                self.progress.connections = client.live
                watch = tasks.create_task(self._watch())
                await self._run_disks()
                watch.cancel()
                await client.finish()
        except BaseExceptionGroup as group:
            cause = first_cause(group)
            if not isinstance(cause, TransferError):
                raise cause from None
            if not all(disk.state in FINAL_STATES for disk in self.progress.disks):
                for disk in self._disks.values():
                    disk.fail(cause)
                raise cause from None
        finally:
            self._count_wire()
            client.close()

    async def _run_disks(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for disk in self._disks.values():
                tasks.create_task(disk.run())

    def stop(self) -> None:
        """Give up all disks in an orderly way; ``run`` ends soon after."""
        for disk in self._disks.values():
            disk.fail(Cancelled())

    def dispatch(self, epoch: int, message: Message) -> None:
        """Take a message from the receiver."""
        if isinstance(message, Credit):
            self.session.credit = message.credit
            self._credit_freed.set()
            return
        if not isinstance(message, ToSender):
            raise UnexpectedMessage(f"{type(message).__name__} from a receiver")
        released = self.session.receive(epoch, message)
        self._disks[message.disk].take(message)
        self._credit_freed.set()
        if released is None:
            self._news += not isinstance(message, Stored | Proving)
            return
        self._disks[message.disk].acknowledged(released.offsets)
        self._news += bool(released.chunk_bytes or released.zero_bytes)
        now = time.monotonic()
        disk = self._disks[message.disk].progress
        disk.acked += released.chunk_bytes
        disk.last_progress = now
        for sent_at in released.sent_at:
            self.observer.observe_ack(now - sent_at)

    async def reserve(self, disk: int, work: ReadChunk, wanted: Callable[[], bool]) -> bool:
        """Wait for credit for a chunk; False if it is not ``wanted`` any more."""
        while wanted():
            if self.session.has_credit(work.length):
                self.session.reserve(disk, work.offset, work.length)
                return True
            self._credit_freed.clear()
            await self._credit_freed.wait()
        return False

    async def zeros_stored(self, disk: int, wanted: Callable[[], bool]) -> None:
        """Wait until no zeros of a disk are unacknowledged, or it is not ``wanted`` any more."""
        while wanted() and self.session.disks[disk].zeros.total:
            self._credit_freed.clear()
            await self._credit_freed.wait()

    def wake(self) -> None:
        """Let those who wait for credit, or for an acknowledgement, look again."""
        self._credit_freed.set()

    async def _watch(self) -> None:
        """Feed the compression controller, notice stalls."""
        loop = asyncio.get_running_loop()
        wire = sum(disk.wire for disk in self.progress.disks)  # of sessions before this one
        sent, then = sum(disk.literal for disk in self.progress.disks), loop.time()
        processor = ProcessorWatch()
        stalls = Stalls(time.monotonic())
        while True:
            await asyncio.sleep(WINDOW)
            now, saturated = loop.time(), self.lane_waits * 2 > self.lane_uses
            disks = self.progress.disks
            total, done = sum(disk.wire for disk in disks), sum(disk.literal for disk in disks)
            self.controller.note_window(
                total - wire,
                done - sent,
                now - then,
                saturated=saturated,
                cores=processor.cores(),
            )
            wire, sent, then, self.lane_waits, self.lane_uses = total, done, now, 0, 0
            self._count_wire()
            self.progress.connections = self.client.live
            silent_for = loop.time() - self.client.heard_at
            stall = stalls.look(
                time.monotonic(), self._mark(), due=self._due(), silent_for=silent_for
            )
            self._tell_stall(stall)

    def _count_wire(self) -> None:
        chunks = sum(disk.wire for disk in self.progress.disks)
        self.progress.session_wire = chunks + self.client.control_bytes

    def _mark(self) -> object:
        """Another whenever something got on: see Stalls."""
        disks = self.progress.disks
        given = sum(disk.read + disk.skipped + disk.held for disk in disks)
        proved = sum(disk.proved for disk in disks)
        states = tuple(disk.state for disk in disks)
        return self._news, self.client.taken_at, given, proved, states

    def _due(self) -> bool:
        """Whether it is the receiver's turn."""
        waiting = (TransferState.OPENING, TransferState.PROVING)
        return (
            self.client.busy
            or self.session.awaits_stored
            or any(disk.state in waiting for disk in self.progress.disks)
        )

    def _tell_stall(self, stall: Stall | None) -> None:
        """Note what is waited for.

        Raises:
            ConnectionLost: It has been waited for long enough; a new session may do better.
        """
        self.progress.stall = stall
        allowed = max(disk.allowance for disk in self._disks.values())
        if stall is not None and is_lost(stall, now := time.monotonic(), allowed):
            raise ConnectionLost(
                f"nothing got on for {format_duration(now - stall.since)},"
                f" waiting for the {stall.waits_for}"
            )


class DiskTransfer:
    """One disk on its way."""

    def __init__(self, job: Job, transfer: Transfer) -> None:
        self.progress = job.progress
        self._job = job
        self._transfer = transfer
        self._manifest = Manifest(job.source.size)
        self._failure: TransferError | None = None
        self._opened: asyncio.Future[DiskOpened | None] = asyncio.Future()
        self._held = HeldChunks()
        self._told: asyncio.Future[None] = asyncio.Future()  # all that the receiver holds
        self._proven: asyncio.Future[DiskProven | None] = asyncio.Future()
        self._works: Iterator[ReadChunk | SkipHole] = iter(())
        self._batch: deque[ReadChunk | SkipHole] = deque()
        self._planning = asyncio.Lock()
        self._zeros = ExtentSet()
        self._chunks = 0
        self._index = job.index
        self._pages: dict[int, tuple[bytes, bytes]] = {}  # offset: digest, fingerprints; unanswered
        self._patches: dict[int, tuple[bytes, int]] = {}  # offset: digest, bytes kept; unanswered
        self._wanted: deque[ReadChunk] = deque()
        self._whole: set[int] = set()  # offsets of chunks of which the receiver can keep nothing
        self._answered = asyncio.Event()

    @property
    def handle(self) -> int:
        """The disk's number in the session."""
        return self._job.opening.disk

    @property
    def allowance(self) -> float:
        """Seconds that it may take to be opened, beyond what every disk may."""
        opening = self.progress.state is TransferState.OPENING
        return allowance(self._job.opening) if opening else 0.0

    async def run(self) -> None:
        """Send the disk and see it published; failures end in ``progress``."""
        self.progress.started = self.progress.started or time.monotonic()
        try:
            await self._send()
        except (*_SESSION_ERRORS, ExceptionGroup):  # a group: the pumps let nothing else pass
            raise
        except Exception as error:  # one disk's, whatever it is
            self._fail_by(error)
            await self._abandon()
        finally:
            self._held.close()
            self.progress.finished = time.monotonic()

    def fail(self, error: TransferError) -> None:
        """Note the first failure; whoever works on the disk ends as soon as it sees it."""
        if self._failure is not None or self.progress.state in FINAL_STATES:
            return
        self._failure = error
        cancelled = isinstance(error, Cancelled)
        self.progress.error = self._explain(error)
        self.progress.state = TransferState.CANCELLED if cancelled else TransferState.FAILED
        self.progress.error_code = error.code
        self.progress.exit_code = error.exit_code
        self._transfer.observer.error(error)
        for waiting in (self._opened, self._told, self._proven):
            if not waiting.done():
                waiting.set_result(None)
        self._answered.set()
        self._transfer.wake()

    def take(self, message: ToSender) -> None:
        """What the receiver says of this disk, after the session let it through."""
        if isinstance(message, DiskFailed):
            self.fail(RefusedByReceiver(message.code, message.numbers))
        elif isinstance(message, DiskOpened) and not self._opened.done():
            self.progress.capacity = message.capacity
            self._opened.set_result(message)
        elif isinstance(message, Held) and not self._told.done():
            self._held.take(message)
            if self._held.complete:
                self._told.set_result(None)
        elif isinstance(message, DiskProven) and not self._proven.done():
            self._proven.set_result(message)
        elif isinstance(message, Want):
            for offset, length in message.ranges:
                self._take_back(offset, length)
        elif isinstance(message, Proving):
            if message.reread > self.progress.proved:
                self.progress.last_progress = time.monotonic()
            self.progress.proved = message.reread
            self.progress.to_prove = message.total

    def acknowledged(self, offsets: Sequence[int]) -> None:
        """Chunks are on the receiver's stable storage, as they were sent."""
        for offset in offsets:
            number = offset // CHUNK_SIZE
            if offset in self._patches:
                self._manifest.set_chunk(number, self._patches.pop(offset)[0])
            if offset in self._pages and self._index is not None:
                self._index.note(number, *self._pages.pop(offset))
        self._answered.set()

    def _take_back(self, offset: int, length: int) -> None:
        """The receiver could not keep what it was to keep of some chunks: they go whole."""
        for start in [each for each in self._patches if offset <= each < offset + length]:
            _, kept = self._patches.pop(start)
            self._pages.pop(start, None)
            self._whole.add(start)
            self._wanted.append(ReadChunk(start, min(CHUNK_SIZE, self._job.source.size - start)))
            self._chunks -= 1
            self.progress.kept -= kept
            self.progress.wanted += 1
        self._answered.set()

    def _fail_by(self, error: Exception) -> None:
        self.fail(error if isinstance(error, TransferError) else Defect(error))

    def _explain(self, error: TransferError) -> str:
        """Why the disk failed; what became of it when nobody is left to tell."""
        if self.progress.state is TransferState.PROVING:
            if isinstance(error, Cancelled):
                return f"interrupted; {IN_DOUBT}"
            if isinstance(error, ConnectionLost):
                return f"{error}; {IN_DOUBT}"
        return str(error)

    async def _send(self) -> None:
        job, session = self._job, self._transfer.session
        self._raise_failure()
        self.progress.state = TransferState.OPENING
        session.open(job.opening)
        await self._transfer.client.send(job.opening)
        await self._opened
        self._raise_failure()
        if job.opening.dry_run:
            self.progress.state = TransferState.UNPUBLISHED
            return
        if self._transfer.resumes:
            await self._told
            self._raise_failure()
        self.progress.state = TransferState.SENDING
        self._works = plan(job.source.extents(0, job.source.size), job.source.size)
        if not self._transfer.deltas:
            self._index = None
        while True:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(PUMPS):
                    tasks.create_task(self._pump())
            if not await self._is_more_wanted():
                break
        await self._send_zeros()
        if not job.opening.live:
            await self._transfer.workers.run(job.source.still_quiet)
        await self._end_pass()

    async def _is_more_wanted(self) -> bool:
        """Wait until the receiver has answered all that it was to keep a part of.

        Until then the pass has no end: it may still want a chunk whole.
        """
        while self._patches and not self._wanted and self._failure is None:
            self._answered.clear()
            await self._answered.wait()
        self._raise_failure()
        return bool(self._wanted)

    async def _end_pass(self) -> None:
        root = self._manifest.root()
        self.progress.root = root
        if self._held.has_data:  # zeros in its place, if overtaken by END_PASS, would not be missed
            await self._transfer.zeros_stored(self.handle, lambda: self._failure is None)
        self._raise_failure()
        self.progress.state = TransferState.PROVING
        await self._say(EndPass(self.handle, FIRST_PASS, self._chunks, root))
        proven = await self._proven
        self._raise_failure()
        assert proven is not None
        if proven.root_digest != root:
            raise RootDiffers
        self.progress.proved = self.progress.to_prove = proven.reread
        published = proven.published
        self.progress.state = TransferState.PUBLISHED if published else TransferState.UNPUBLISHED
        if published and self._job.index is not None:  # nobody goes on with it
            await self._transfer.workers.run(self._job.index.remove)

    async def _pump(self) -> None:
        """Carry chunks, one at a time, from the plan to a connection, until none is left."""
        try:
            while self._failure is None and (work := await self._next_work()) is not None:
                if isinstance(work, SkipHole):
                    await self._skip(work)
                else:
                    await self._carry(work)
        except _SESSION_ERRORS:
            raise
        except Exception as error:  # one disk's, whatever it is
            self._fail_by(error)

    async def _next_work(self) -> ReadChunk | SkipHole | None:
        async with self._planning:
            if self._wanted:
                return self._wanted.popleft()
            if not self._batch:
                batch = await self._transfer.workers.run(_take, self._works, PLAN_BATCH)
                self._batch.extend(batch)
            return self._batch.popleft() if self._batch else None

    async def _skip(self, hole: SkipHole) -> None:
        self._mark_zeros(hole.offset, hole.length)
        self.progress.skipped_hole += hole.length
        self.progress.changed += self._held.data_within(hole.offset, hole.length)
        if self._held.are_zeros(hole.offset, hole.length):
            return
        await self._say(Zero(self.handle, FIRST_PASS, hole.offset, hole.length, hole=True))

    async def _carry(self, work: ReadChunk) -> None:
        transfer = self._transfer
        if not await transfer.reserve(self.handle, work, lambda: self._failure is None):
            return
        frame = await transfer.frames.acquire()
        try:
            prepared = await transfer.workers.run(
                prepare,
                self._job.source,
                work,
                Address(self.handle, FIRST_PASS, transfer.session.epoch),
                transfer.controller.next_level(),
                frame,
                self._earlier(work),
            )
            self._account(work, prepared)
            if self._failure is not None:
                return
            if prepared.chunk is None:
                transfer.session.unreserve(self.handle, work.offset)
                transfer.wake()
                if prepared.held is None:
                    await self._collect_zeros(work)
                else:
                    self._leave_out(work, prepared.held)
            else:
                await self._ship(prepared)
        finally:
            transfer.frames.release(frame)

    def _earlier(self, work: ReadChunk) -> Earlier:
        """What an earlier pass over a chunk has left at both ends."""
        remember = self._job.opening.live
        if work.offset in self._whole:
            return Earlier(None, self._index, remember)
        return Earlier(self._held.digest(work.offset // CHUNK_SIZE), self._index, remember)

    async def _ship(self, prepared: Prepared) -> None:
        """Send one prepared chunk on the next connection that is free.

        Cancelled half way it costs the connection, and is cancelled only when the session ends.
        """
        chunk, message, transfer = prepared.chunk, prepared.message, self._transfer
        assert chunk is not None
        assert message is not None
        asked = time.monotonic()
        connection = await transfer.client.borrow()
        try:
            borrowed = time.monotonic()
            if self._failure is not None:
                return
            transfer.lane_uses += 1
            transfer.lane_waits += borrowed - asked > LANE_WAIT
            self._expect(prepared, chunk)
            transfer.session.send(chunk, borrowed)
            self._chunks += 1
            sealed_before = connection.seal_seconds
            wire = await connection.send(message)
            seal = connection.seal_seconds - sealed_before
        finally:
            transfer.client.give_back(connection)
        progress = self.progress
        progress.wire += wire
        progress.sent += chunk.length
        progress.kept += prepared.kept
        progress.payload[chunk.codec.name.lower()] += prepared.payload
        progress.stage_seconds["wait"] += borrowed - asked
        progress.stage_seconds["seal"] += seal
        progress.stage_seconds["send"] += time.monotonic() - borrowed - seal

    def _expect(self, prepared: Prepared, chunk: Chunk) -> None:
        """Note what is to be done when the receiver has answered a chunk.

        One of which it keeps a part is not yet of the pass: it may be wanted whole, and then
        be another, of a source that is in use.
        """
        if prepared.pages is not None:
            self._pages[chunk.offset] = (chunk.digest, prepared.pages)
        if prepared.kept:
            self._patches[chunk.offset] = (chunk.digest, prepared.kept)
        else:
            self._manifest.set_chunk(chunk.offset // CHUNK_SIZE, chunk.digest)

    def _account(self, work: ReadChunk, prepared: Prepared) -> None:
        progress = self.progress
        progress.read += work.length
        if prepared.held is None and work.offset not in self._whole:
            progress.changed += self._changed(work, is_zero=prepared.chunk is None)
        progress.stage_seconds["read"] += prepared.read_seconds
        progress.stage_seconds["digest"] += prepared.digest_seconds
        progress.stage_seconds["compress"] += prepared.compress_seconds
        if prepared.level is not None and prepared.chunk is not None and not prepared.kept:
            self._transfer.controller.note_chunk(
                prepared.level, prepared.literal, prepared.payload, prepared.compress_seconds
            )
        progress.level = self._transfer.controller.level

    def _changed(self, work: ReadChunk, *, is_zero: bool) -> int:
        """Bytes of a chunk that the receiver holds otherwise than it was read now."""
        if is_zero:
            return self._held.data_within(work.offset, work.length)
        return work.length if self._held.overlaps(work.offset, work.length) else 0

    def _leave_out(self, work: ReadChunk, digest: bytes) -> None:
        """Count a chunk that was read and is what the receiver has."""
        self._manifest.set_chunk(work.offset // CHUNK_SIZE, digest)
        self.progress.held += work.length
        self.progress.last_progress = time.monotonic()

    async def _collect_zeros(self, work: ReadChunk) -> None:
        """Hold back what was read and is zero, so that a run costs one message."""
        self.progress.skipped_zero += work.length
        self._mark_zeros(work.offset, work.length)
        if self._held.are_zeros(work.offset, work.length):
            return
        self._zeros.add(work.offset, work.length)
        if self._zeros.total >= ZERO_RUN_LIMIT:
            await self._send_zeros()

    async def _send_zeros(self) -> None:
        zeros, self._zeros = self._zeros, ExtentSet()
        for offset, length in zeros:
            await self._say(Zero(self.handle, FIRST_PASS, offset, length, hole=False))

    def _mark_zeros(self, offset: int, length: int) -> None:
        self._manifest.set_zeros(offset // CHUNK_SIZE, -(-length // CHUNK_SIZE))
        self.progress.last_progress = time.monotonic()

    async def _say(self, message: Zero | EndPass | Abandon) -> None:
        if not isinstance(message, Abandon):
            self._raise_failure()
        self._transfer.session.send(message, time.monotonic())
        await self._transfer.client.send(message)

    async def _abandon(self) -> None:
        """Tell the receiver that the disk is given up, unless it was the receiver's own word."""
        account = self._transfer.session.disks.get(self.handle)
        if account is None or account.state not in (
            SenderState.OPENING,
            SenderState.STREAMING,
            SenderState.ENDING,
        ):
            return
        assert self._failure is not None
        await self._say(Abandon(self.handle, FIRST_PASS, self._failure.code))
        self._transfer.wake()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def usable(allowed: int) -> int:
    """How many of the connections that a receiver allows to use for long."""
    return allowed - SPARE_CONNECTIONS if allowed > MANY_CONNECTIONS else allowed


def _take(works: Iterator[ReadChunk | SkipHole], count: int) -> list[ReadChunk | SkipHole]:
    return list(islice(works, count))


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error in a group that is worth telling: what Flatship reports, before anything else."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, TransferError)), leaves[0])
