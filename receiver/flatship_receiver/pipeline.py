"""One disk at the receiver: open, write, sync, acknowledge, prove, publish.

Connections hand over what the session accepted; worker threads decode and
write (``store``). One task a disk flushes behind the writers: what one flush
covers is put on record together, then acknowledged, and only then. When the
pass is complete the same task proves the image and publishes it.

What is on record is durable, and the other way round is kept up: before a chunk
that is on record is written again, the record forgets it (``Holdings.let_go``).

Long because the order of write, flush, record and acknowledgement is read in one place.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Final

import structlog

from flatship_protocol.constants import (
    CHUNK_SIZE,
    MAX_DISK_SIZE,
    MAX_RANGES,
)
from flatship_protocol.digest import Manifest
from flatship_protocol.errors import (
    CodecError,
    DatastoreError,
    DigestMismatch,
    DiskError,
    ErrorCode,
    TransferError,
)
from flatship_protocol.extents import ExtentSet
from flatship_protocol.messages import (
    Chunk,
    DiskFailed,
    DiskOpened,
    DiskProven,
    Message,
    OpenDisk,
    Stored,
    Want,
    Zero,
)
from flatship_protocol.session import ReceiverDisk, ReceiverSession, ReceiverState
from flatship_receiver.batches import Unflushed, Written, runs
from flatship_receiver.board import DiskState, ShownDisk
from flatship_receiver.completion import Completion
from flatship_receiver.copy_sources import CopySources
from flatship_receiver.datastores.base import Image
from flatship_receiver.facilities import Facilities, Store
from flatship_receiver.journal import Journal, JournalError
from flatship_receiver.running_proof import RunningProof
from flatship_receiver.stall_watch import StallWatch
from flatship_receiver.store import KeptDiffers, store
from flatship_receiver.target import Target

FLUSH_BYTES: Final = 64 << 20  # written and not flushed; more starts a flush at once
NO_REFERENCES: Final[Mapping[int, bytes]] = MappingProxyType({})
ZERO_SLICE: Final = 1 << 30  # bytes zeroed in one call of a worker

# A sender that goes through its disk in order leaves some hundred digest segments open: those of
# chunks under way, as far as credit allows, and of zeros that it holds back to send as one run.
MAX_OPEN_SEGMENTS: Final = 1024

log = structlog.get_logger()


class PassIncomplete(DiskError):
    """END_PASS came and its numbers do not fit what came before."""

    def __init__(self, message: str, code: ErrorCode = ErrorCode.PASS_INCOMPLETE) -> None:
        super().__init__(message, code)


class DiskIntake:
    """Takes one disk in.

    Args:
        opening: What the sender asked for; permitted already.
        peer: The sender's static key.
        store_: Where the disk goes.
        session: The session's account.
        send: Sends a message to the sender on whichever connection is left.
        facilities: Shared by all disks.
        resumes: The sender knows HELD: what was not finished is kept, and gone on with.
        copying: What its chunks may be copied from; its image is one of those.
        shown: Told what becomes of it.
    """

    def __init__(
        self,
        opening: OpenDisk,
        peer: bytes,
        store_: Store,
        session: ReceiverSession,
        send: Callable[[Message], Awaitable[None]],
        facilities: Facilities,
        *,
        resumes: bool,
        copying: CopySources,
        shown: ShownDisk,
    ) -> None:
        self.opening = opening
        self._target = Target(opening, peer, store_, facilities, resumes=resumes)
        self._store = store_
        self._session = session
        self._send = send
        self._shared = facilities
        self._resumes = resumes
        self._peer = peer
        self._copying = copying
        self._shown = shown
        self._failure: TransferError | None = None
        # What is larger is refused before it matters.
        self._manifest = Manifest(min(opening.size, MAX_DISK_SIZE))
        self._unflushed = Unflushed(min(FLUSH_BYTES, session.credit // 4))
        self._storing = 0
        self._changed = asyncio.Event()
        self._proof: RunningProof | None = None
        self._publishing = False
        self._doubted = False  # the target may hold other bytes than are on record
        self._letting_go = False
        self._stalls = StallWatch(opening.vm, opening.name, facilities.metrics)
        self._log = log.bind(vm=opening.vm, disk=opening.name)

    @property
    def account(self) -> ReceiverDisk:
        """What the session knows of this disk."""
        return self._session.disks[self.opening.disk]

    @property
    def _image(self) -> Image:
        image = self._target.image
        assert image is not None
        return image

    async def run(self) -> None:
        """See the disk through to its end; failures are told to the sender, not raised."""
        try:
            with self._stalls.at_storage("open"):
                await self._open()
            if self.opening.dry_run:
                return
            await self._receive()
            if self._target.standing is None:
                with self._stalls.at_storage("prove and publish"):
                    await self._finish()
            else:
                await self._say_proven(self._target.standing, 0, published=True)
        except TransferError as error:
            self.fail(error)
            await self._failed(error)
        except Exception as error:
            # A defect of ours costs this disk and not the sender's patience.
            self._log.error("internal error", reason=repr(error))
            await self._failed(TransferError(f"internal error: {error!r}"))
        finally:
            with self._stalls.at_storage("let go"):
                await self._release()
            self._stalls.end()
            self._shared.board.end(self._shown)

    def look_for_stall(self) -> None:
        """Say so in the log and the metrics if the disk does not get on, or does again."""
        self._stalls.look(storing=self._storing > 0)
        stalls = self._stalls.stalls
        self._shown.got_on_at, self._shown.waits_for = stalls.got_on_at, stalls.waits_for

    async def store(
        self,
        chunk: Chunk,
        frame: memoryview | None,
        references: Mapping[int, bytes] = NO_REFERENCES,
    ) -> None:
        """Write a chunk that the session accepted; the frame is given back.

        Args:
            chunk: What came.
            frame: Holds its payload, if that has not memory of its own.
            references: The image's uuid for each reference of its copies.

        Raises:
            CodecError: The peer broke the protocol.
        """
        self._storing += 1
        self._stalls.got_on()
        started = time.monotonic()
        try:
            self._require_not_standing()
            if self._failure is not None:
                return
            if self._proof is not None:
                self._proof.came(chunk.offset)
            await self._let_go(chunk.offset, chunk.length)
            async with self._copying.lend(self._peer, references) as sources:
                effect = await self._shared.workers.run(store, self._image, chunk, sources)
            self._store.metrics.written(effect.written)
            self._store.metrics.skipped(effect.zeroed)
            self._store.metrics.kept(effect.kept)
            self._store.metrics.copied(effect.copied)
            self._store.metrics.write_seconds(time.monotonic() - started)
            self._store.reservations.used(self._target.uuid, effect.written + effect.copied)
            self._shown.came(chunk.offset, chunk.length)
            guess = bool(effect.kept or effect.copied)
            self._note(Written(chunk.offset, chunk.length, chunk.digest), guess=guess)
        except (DatastoreError, JournalError) as error:
            self.fail(error)
        except KeptDiffers as error:
            await self._want(chunk, error)
        except DigestMismatch as error:
            self._shared.metrics.record_rejected("digest_mismatch")
            self.fail(error)
        except CodecError as error:
            self.fail(error)
            raise
        finally:
            if frame is not None:
                self._shared.frames.release(frame)
            self._stored_one()

    async def _let_go(self, offset: int, length: int) -> None:
        """Take a range off the record, before it is written; what is proven or shown follows."""
        if self._target.held.ranges.overlaps(offset, length):
            self._shown.let_go(offset, length)
        await self._target.held.let_go(offset, length)
        if self._proof is not None:
            self._proof.let_go(offset, length)

    async def _want(self, chunk: Chunk, error: KeptDiffers) -> None:
        """Have a chunk sent whole, of which nothing was written; it is off the record already."""
        self._shared.metrics.record_rejected("kept_differs")
        self._log.warning("a chunk is wanted whole", offset=chunk.offset, reason=str(error))
        if not self._session.wanted(chunk.disk, chunk.offset):
            self.fail(error)
            return
        range_ = (chunk.offset, chunk.length)
        await self._send(Want(chunk.disk, chunk.pass_number, (range_,)))

    async def zero(self, message: Zero) -> None:
        """Make a run of zeros that the session accepted."""
        self._storing += 1
        self._stalls.got_on()
        try:
            self._require_not_standing()
            await self._let_go(message.offset, message.length)
            end = message.offset + message.length
            for start in range(message.offset, end, ZERO_SLICE):
                if self._failure is not None:
                    return
                length = min(ZERO_SLICE, end - start)
                await self._shared.workers.run(self._image.zero, start, length)
                self._store.metrics.skipped(length)
                # A slice at a time: what takes hours is to be acknowledged meanwhile.
                self._shown.zeroed(start, length, hole=message.hole)
                self._note(Written(start, length, None))
                self._stalls.got_on()
        except (DatastoreError, JournalError) as error:
            self.fail(error)
        finally:
            self._stored_one()

    def acknowledge_again(self, offset: int, length: int) -> None:
        """Say STORED once more for what is stored, or being stored, already."""
        if not self.account.complete:
            self._note(Written(offset, length, None, again=True))

    def digest_of(self, offset: int) -> bytes | None:
        """Digest of a stored chunk, while it can be told without asking the journal."""
        return self._manifest.chunk(offset // CHUNK_SIZE)

    def ended(self) -> None:
        """END_PASS has come: flush without delay."""
        self._changed.set()

    def fail(self, error: TransferError) -> None:
        """Note the first failure; ``run`` ends soon after."""
        if self._failure is None:
            self._failure = error
        self._changed.set()

    def _proof_failed(self, error: TransferError) -> None:
        self._shared.metrics.verify_failed()
        self._doubted = True
        self.fail(error)

    def _note(self, written: Written, *, guess: bool = False) -> None:
        if self._unflushed.add(written, time.monotonic(), guess=guess):
            self._changed.set()
        if written.digest is not None:
            self._shared.metrics.inflight(written.length)

    def _stored_one(self) -> None:
        """Wake ``run`` where it waits for the last store; it need not look at each."""
        self._storing -= 1
        self._stalls.got_on()
        if self._failure is not None or self._letting_go or self.account.end is not None:
            self._changed.set()

    async def _open(self) -> None:
        opening, target = self.opening, self._target
        free = await target.open()
        if target.image is not None:
            self._begin(target.image)
        for offset, length in target.held.ranges:
            self._session.holds(opening.disk, offset, length)
            self._shown.held(offset, length)
        if self._session.opened(opening.disk):
            await self._send(
                DiskOpened(opening.disk, opening.pass_number, target.uuid, target.capacity, free)
            )
            if self._resumes and not opening.dry_run:
                await self._say_held()
        if opening.dry_run:
            self._session.close(opening.disk)

    def _require_not_standing(self) -> None:
        if self._target.standing is not None:
            raise DatastoreError(
                "the disk was published before, and its source is another now",
                ErrorCode.DISK_EXISTS,
            )

    async def _say_held(self) -> None:
        """Tell the sender what need not come again, and count on no more than that."""
        opening = self.opening
        async for message in self._target.held.messages(opening.disk, opening.pass_number):
            await self._send(message)

    def _begin(self, image: Image) -> None:
        if self._shared.prove:
            self._proof = RunningProof(
                image, self._shared.slow_workers, self._proof_failed, self._shown.proven
            )
            held = self._target.held
            if held.ranges.total:
                self._proof.follow(held.whole_chunks(), held.has)
        self._copying.begin(self._peer, self._target.uuid, image, self.opening.size)
        self._shared.metrics.disk_state(self.opening.vm, self.opening.name, "receiving")
        self._shown.state = DiskState.RECEIVING

    async def _receive(self) -> None:
        """Flush and acknowledge behind the writers until the pass is complete."""
        while True:
            self._changed.clear()
            self._check_going_on()
            if self._due():
                await self._flush()
            elif self.account.end is not None and self.account.complete:
                break
            else:
                await self._wait_for_change()
        await self._target.held.adopt(self._manifest, self.account.held)
        self._check_end()

    def _check_going_on(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self.account.state is ReceiverState.CLOSED:
            raise Abandoned(ErrorCode.CANCELLED)

    def _due(self) -> bool:
        at = self._unflushed.flush_at()
        ending = self.account.end is not None and not self._storing
        return at is not None and (ending or time.monotonic() >= at)

    async def _wait_for_change(self) -> None:
        try:
            at = self._unflushed.flush_at()
            async with asyncio.timeout(None if at is None else at - time.monotonic()):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _flush(self) -> None:
        flushed, batch = self._unflushed.size, self._unflushed.take()
        started = time.monotonic()
        try:
            with self._stalls.at_storage("flush"):
                await self._shared.slow_workers.run(self._image.flush)
        finally:
            self._shared.metrics.inflight(-flushed)
        self._store.metrics.fsync_seconds(time.monotonic() - started)
        await self._shared.journal.run(Journal.hold, self._target.uuid, list(runs(batch)))
        stored = ExtentSet()
        for item in batch:
            index = item.offset // CHUNK_SIZE
            if item.again:
                pass
            elif item.digest is None:
                self._manifest.set_zeros(index, -(-item.length // CHUNK_SIZE))
                self._session.zeroed(self.opening.disk, item.offset, item.length)
            else:
                self._manifest.set_chunk(index, item.digest)
                self._session.stored(self.opening.disk, item.offset)
                self._shown.stored(item.offset, item.length)
                if self._proof is not None:
                    self._proof.add(item.offset, item.length, item.digest)
            stored.add(item.offset, item.length)
            self._check_order()
        await self._say_stored(list(stored))

    def _check_order(self) -> None:
        open_segments = self._manifest.open_segments
        if open_segments > MAX_OPEN_SEGMENTS:
            raise DiskError(
                f"chunks come from all over the disk: {open_segments} digest segments are begun"
                f" and not complete, {MAX_OPEN_SEGMENTS} are allowed",
                ErrorCode.CREDIT_EXCEEDED,
                (open_segments, MAX_OPEN_SEGMENTS),
            )

    async def _say_stored(self, ranges: list[tuple[int, int]]) -> None:
        for first in range(0, len(ranges), MAX_RANGES):
            part = tuple(ranges[first : first + MAX_RANGES])
            await self._send(Stored(self.opening.disk, self.opening.pass_number, part))

    def _check_end(self) -> None:
        end = self.account.end
        assert end is not None
        if end.chunks != self.account.chunk_count:
            raise PassIncomplete(
                f"the sender counts {end.chunks} chunks, {self.account.chunk_count} came"
            )
        if end.root_digest != self._manifest.root():
            raise PassIncomplete(
                "the root digest of what came is not the sender's", ErrorCode.ROOT_MISMATCH
            )

    async def _finish(self) -> None:
        """Prove what stands on the datastore, then let it be seen."""
        opening, shared = self.opening, self._shared
        completion = Completion(
            opening,
            self._target.uuid,
            self._image,
            self._store.datastore,
            shared,
            self._send,
            self._check_going_on,
            self._stalls.got_on,
            self._shown.proof,
        )
        root, reread = self._manifest.root(), 0
        if self._proof is not None:
            await self._proof.stop()
            self._shown.state = DiskState.PROVING
            try:
                reread = await completion.prove(root, self._proof.proven)
            except DiskError:
                self._doubted = True
                raise
        self._check_going_on()
        published = not opening.live
        if published:
            self._publishing = True
            self._shown.state = DiskState.PUBLISHING
            await completion.publish(root, self._target.layout)
        self._session.proven(opening.disk)
        state = "complete" if published else "unpublished"
        shared.metrics.disk_state(opening.vm, opening.name, state)
        self._log.info("disk " + state, root=root.hex(), reread=reread)
        await self._say_proven(root, reread, published=published)

    async def _say_proven(self, root: bytes, reread: int, *, published: bool) -> None:
        disk, pass_number = self.opening.disk, self.opening.pass_number
        self._shown.all_proven()
        self._shown.state = DiskState.COMPLETE if published else DiskState.UNPUBLISHED
        await self._send(DiskProven(disk, pass_number, reread, root, published=published))

    async def _failed(self, error: TransferError) -> None:
        opening = self.opening
        self._session.close(opening.disk)
        self._log.warning("disk given up", reason=str(error), code=error.code.name)
        self._shared.metrics.disk_state(opening.vm, opening.name, "failed")
        self._shared.board.failed(self._shown, error, resumable=self._is_to_be_resumed())
        numbers = (0, 0)
        if isinstance(error, DiskError):
            numbers = error.numbers
        elif isinstance(error, DigestMismatch):
            numbers = (error.offset, 0)
        await self._send(DiskFailed(opening.disk, opening.pass_number, error.code, numbers))

    def _is_to_be_resumed(self) -> bool:
        """Whether what ended it leaves no doubt of what is on record, flushed before that."""
        harmless = isinstance(self._failure, Abandoned | DatastoreError | JournalError)
        return self._resumes and self._target.on_record and harmless and not self._doubted

    async def _release(self) -> None:
        """Let go of the image; its files stay if published, of a live pass, or to be resumed."""
        self._letting_go = True
        while self._storing:
            self._changed.clear()
            await self._changed.wait()
        if self._proof is not None:
            await self._proof.stop()
        self._shared.metrics.inflight(-self._unflushed.size)
        self._copying.end(self._peer, self._target.uuid)
        proven = self.account.state is ReceiverState.PROVEN
        resumable = not proven and self._is_to_be_resumed()
        await self._target.let_go(kept=proven or resumable, publishing=self._publishing)
        if resumable:
            self._log.info("incomplete files kept, to be resumed")


class Abandoned(TransferError):
    """The sender gave the disk up, or its session ended.

    Args:
        code: The sender's reason.
    """

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(f"the sender gave it up: {code.name}")
        self.code = code
