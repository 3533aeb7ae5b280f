"""Read, classify, compress, seal, send: one disk over a session that it shares with others.

The event loop decides and moves finished buffers; worker threads read, digest
and compress (``prepare``). A frame from the pool travels with a chunk from
its read to the end of its send.

Long because a disk's way from its opening to its proof is read in one place.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.digest import Manifest
from flatship_protocol.errors import ConnectionLost, PeerError, TransferError
from flatship_protocol.extents import ExtentSet
from flatship_protocol.messages import (
    Abandon,
    DiskFailed,
    DiskOpened,
    DiskProven,
    EndPass,
    Held,
    Proving,
    Want,
    Zero,
)
from flatship_protocol.session import SenderState, ToSender
from flatship_sender.disk_memory import DiskMemory
from flatship_sender.held import HeldChunks
from flatship_sender.job import FIRST_PASS, Cancelled, Defect, Job, RootDiffers
from flatship_sender.page_index import PageIndex
from flatship_sender.plan import ReadChunk, SkipHole, plan
from flatship_sender.prepare import Earlier, Laid, Prepared, lay_out, prepare
from flatship_sender.progress import FINAL_STATES, TransferState
from flatship_sender.refusals import RefusedByReceiver
from flatship_sender.rungs import Rung
from flatship_sender.shared import Shared
from flatship_sender.shipping import Shipping
from flatship_sender.stalls import allowance
from flatship_sender.unanswered import Unanswered
from flatship_service.disk_map import MapState

PUMPS: Final = 8  # chunks of one disk under way at once
PLAN_BATCH: Final = 256  # works asked of a source at a time
ZERO_RUN_LIMIT: Final = 256 << 20  # bytes of read zeros held back to be sent as one message
IN_DOUBT: Final = (
    "all of the disk had been sent, and the receiver may still publish it;"
    " check there with flatship-receiver verify"
)

_SESSION_ERRORS: Final = (ConnectionLost, PeerError)  # all others end one disk


class DiskTransfer:
    """One disk on its way."""

    def __init__(self, job: Job, transfer: Shared) -> None:
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
        self._index: PageIndex | None = None
        self._may_search = False  # for pages that the receiver has elsewhere, and does not yet
        self._lost: list[bytes] = []  # images from which the receiver cannot copy
        self._unanswered = Unanswered(job.source.size, self._manifest)
        self._shipping = Shipping(
            self.handle, transfer, self.progress, self._unanswered, lambda: bool(self._failure)
        )
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
            self._transfer.finished(self.handle)
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
            self.progress.map.move(offset, CHUNK_SIZE, MapState.SENT, MapState.STORED)
        for laid in self._unanswered.stored(offsets):
            self._transfer.references.stored(laid.sources)
        if self._shipping.copies is not None:
            self._shipping.copies.settled(offsets)
        self._answered.set()

    def _take_back(self, offset: int, length: int) -> None:
        """The receiver does not have what it was to have of some chunks: they go whole."""
        for laid in self._unanswered.take_back(offset, length):
            self._shipping.chunks -= 1
            self.progress.kept -= laid.kept
            self.progress.known -= laid.known
            self._shipping.draw(laid, taken_back=True)
            self.progress.wanted += 1
            if self._shipping.copies is not None:
                self._lost += self._shipping.copies.wanted(laid.copies)
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
        opened = await self._opened
        self._raise_failure()
        assert opened is not None
        if job.opening.dry_run:
            self.progress.state = TransferState.UNPUBLISHED
            return
        if self._transfer.resumes:
            await self._told
            self._raise_failure()
        self.progress.state = TransferState.SENDING
        self.progress.sending = time.monotonic()
        self._works = plan(job.source.extents(0, job.source.size), job.source.size)
        await self._remember(opened.image_uuid)
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

    async def _remember(self, image: bytes) -> None:
        """Open what is known of the image's pages, as far as the receiver has a use for it."""
        transfer, memory = self._transfer, self._job.memory
        if memory is None or not (transfer.deltas or transfer.knows):
            return
        make = self._job.opening.live or transfer.knows
        self._index = await transfer.workers.run(memory.open, image, make=make)
        self._unanswered.index = self._index
        self._may_search = transfer.knows
        if transfer.knows and await transfer.workers.run(memory.is_any_known):
            await self._search(memory)

    async def _search(self, memory: DiskMemory) -> None:
        """Look for what the receiver has elsewhere, from the next chunk on."""
        self._may_search = False
        await self._transfer.workers.run(memory.search)
        self._shipping.search(memory.copies(self._transfer.references))

    async def _is_more_wanted(self) -> bool:
        """Wait until the receiver has answered all that it was to keep a part of.

        Until then the pass has no end: it may still want a chunk whole.
        """
        unanswered = self._unanswered
        while unanswered.uncertain and not unanswered.wanted and self._failure is None:
            self._answered.clear()
            await self._answered.wait()
        self._raise_failure()
        return unanswered.wanted

    async def _end_pass(self) -> None:
        self._transfer.finished(self.handle)
        root = self._manifest.root()
        self.progress.root = root
        if self._held.has_data:  # zeros in its place, if overtaken by END_PASS, would not be missed
            await self._transfer.zeros_stored(self.handle, lambda: self._failure is None)
        self._raise_failure()
        self.progress.state = TransferState.PROVING
        self.progress.proving = time.monotonic()
        await self._say(EndPass(self.handle, FIRST_PASS, self._shipping.chunks, root))
        proven = await self._proven
        self._raise_failure()
        assert proven is not None
        if proven.root_digest != root:
            raise RootDiffers
        self.progress.proved = self.progress.to_prove = proven.reread
        published = proven.published
        self.progress.state = TransferState.PUBLISHED if published else TransferState.UNPUBLISHED
        self.progress.map.prove()
        memory = self._job.memory
        if published and memory is not None:
            # Nobody goes on with it; others may copy from it, where the receiver can do that.
            settle = memory.published if self._transfer.knows else memory.forget
            await self._transfer.workers.run(settle)

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
            if self._lost and self._job.memory is not None:
                lost, self._lost = self._lost, []
                await self._transfer.workers.run(self._job.memory.give_up, lost)
            if self._may_search and self._transfer.controller.link_is_slow and self._job.memory:
                await self._search(self._job.memory)
            if self._unanswered.wanted:
                return self._unanswered.next_wanted()
            if not self._batch:
                batch = islice(self._works, PLAN_BATCH)
                self._batch.extend(await self._transfer.workers.run(list, batch))
            return self._batch.popleft() if self._batch else None

    async def _skip(self, hole: SkipHole) -> None:
        self._mark_zeros(hole.offset, hole.length)
        self.progress.skipped_hole += hole.length
        self.progress.map.move(hole.offset, hole.length, MapState.UNREAD, MapState.HOLE)
        self.progress.changed += self._held.data_within(hole.offset, hole.length)
        if self._held.are_zeros(hole.offset, hole.length):
            return
        await self._say(Zero(self.handle, FIRST_PASS, hole.offset, hole.length, hole=True))

    async def _carry(self, work: ReadChunk) -> None:
        transfer = self._transfer
        if not await transfer.reserve(self.handle, work, lambda: self._failure is None):
            return
        frame = await transfer.frames.acquire()  # at once: it is this chunk's turn
        try:
            rung = transfer.controller.next_rung()
            laid, prepared = await self._prepare(work, rung, frame)
            self._account(laid)
            if prepared is not None:
                self._shipping.account(rung, prepared)
            if self._failure is not None:
                return
            if not laid.travels:
                transfer.session.unreserve(self.handle, work.offset)
                transfer.wake()
                if laid.held:
                    self._leave_out(laid)
                else:
                    await self._collect_zeros(work)
            elif prepared is not None:
                await self._shipping.send(prepared)
            else:
                await self._shipping.send_by_lane(laid, frame)
        finally:
            transfer.frames.release(frame)
            transfer.carried(self.handle)

    async def _prepare(
        self, work: ReadChunk, rung: Rung, frame: memoryview
    ) -> tuple[Laid, Prepared | None]:
        """Read a chunk and code it, in one call of a worker; code it later if it has a lane."""
        run, source, earlier = self._transfer.workers.run, self._job.source, self._earlier(work)
        if rung.history:
            return await run(lay_out, source, work, frame, earlier), None
        return await run(prepare, source, work, self._shipping.address, rung.level, frame, earlier)

    def _earlier(self, work: ReadChunk) -> Earlier:
        """What an earlier pass over a chunk has left at both ends."""
        copies, controller = self._shipping.copies, self._transfer.controller
        # Where the link keeps up there is no gain in sending less, but that shows only later.
        if copies is not None and not controller.link_is_slow:
            copies = None if controller.link_is_known or not copies.known.any else copies
        remember = self._job.opening.live or copies is not None
        if self._unanswered.must_be_whole(work.offset):
            return Earlier(None, self._index, remember)
        digest = self._held.digest(work.offset // CHUNK_SIZE)
        level = controller.level_beside_copies
        mostly = self.progress.known * 2 > self.progress.sent
        return Earlier(digest, self._index, remember, copies, level, mostly)

    def _account(self, laid: Laid) -> None:
        progress, work = self.progress, laid.work
        progress.read += work.length
        if not laid.held and not self._unanswered.must_be_whole(work.offset):
            progress.changed += self._changed(work, is_zero=laid.digest is None)
        progress.stage_seconds["read"] += laid.read_seconds
        progress.stage_seconds["digest"] += laid.digest_seconds

    def _changed(self, work: ReadChunk, *, is_zero: bool) -> int:
        """Bytes of a chunk that the receiver holds otherwise than it was read now."""
        if is_zero:
            return self._held.data_within(work.offset, work.length)
        return work.length if self._held.overlaps(work.offset, work.length) else 0

    def _leave_out(self, laid: Laid) -> None:
        """Count a chunk that was read and is what the receiver has."""
        assert laid.digest is not None
        self._manifest.set_chunk(laid.work.offset // CHUNK_SIZE, laid.digest)
        self.progress.held += laid.work.length
        self.progress.map.move(laid.work.offset, laid.work.length, MapState.UNREAD, MapState.HELD)
        self.progress.last_progress = time.monotonic()

    async def _collect_zeros(self, work: ReadChunk) -> None:
        """Hold back what was read and is zero, so that a run costs one message."""
        self.progress.skipped_zero += work.length
        self.progress.map.move(work.offset, work.length, MapState.UNREAD, MapState.ZERO)
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
