"""One disk at the receiver: open, write, sync, acknowledge, prove, publish.

Connections hand over what the session accepted; worker threads decode and
write (``store``). One task a disk flushes behind the writers: what one flush
covers is put on record together, then acknowledged, and only then. When the
pass is complete the same task proves the image and publishes it.

What is on record is durable, and the other way round is kept up: before a chunk
that is on record is written again, the record forgets it (``Holdings.let_go``).
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    Provisioning,
    Stored,
    Zero,
)
from flatship_protocol.names import check_name
from flatship_protocol.session import ReceiverDisk, ReceiverSession, ReceiverState
from flatship_receiver import vmdk
from flatship_receiver.completion import Completion
from flatship_receiver.datastores.base import Image, ImageRequest
from flatship_receiver.facilities import Facilities, Store
from flatship_receiver.holdings import Holdings, are_on_medium
from flatship_receiver.images import stands
from flatship_receiver.journal import ImageRecord, ImageState, Journal, JournalError
from flatship_receiver.proof import RunningProof
from flatship_receiver.stalls import DiskStalls, WaitsFor
from flatship_receiver.store import store

FLUSH_BYTES: Final = 64 << 20  # written and not flushed; more starts a flush at once
FLUSH_DELAY: Final = 0.5  # seconds that a written chunk waits for company
ZERO_SLICE: Final = 1 << 30  # bytes zeroed in one call of a worker

# A sender that goes through its disk in order leaves some hundred digest segments open: those of
# chunks under way, as far as credit allows, and of zeros that it holds back to send as one run.
MAX_OPEN_SEGMENTS: Final = 1024

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Written:
    """A range that was written and not flushed.

    ``digest`` is None for zeros, and for what came ``again`` and is known already.
    """

    offset: int
    length: int
    digest: bytes | None
    again: bool = False


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
    ) -> None:
        self.opening = opening
        self.uuid = vmdk.make_uuid(secrets.token_bytes(16))
        self._peer = peer
        self._store = store_
        self._session = session
        self._send = send
        self._shared = facilities
        self._resumes = resumes
        self._standing: bytes | None = None  # root of this very disk, if it was published before
        self._layout = vmdk.Layout(
            opening.format, opening.provisioning, opening.adapter, opening.hardware_version
        )
        self._image: Image | None = None
        self._failure: TransferError | None = None
        size = min(opening.size, MAX_DISK_SIZE)  # what is larger is refused before it matters
        self._manifest = Manifest(size)
        self._held = Holdings(facilities.journal, self.uuid, size)
        self._written: list[Written] = []
        self._unflushed = 0
        self._storing = 0
        self._changed = asyncio.Event()
        self._enough = min(FLUSH_BYTES, session.credit // 4)
        self._dirty_since = 0.0
        self._proof: RunningProof | None = None
        self._on_record = False
        self._publishing = False
        self._doubted = False  # the target may hold other bytes than are on record
        self._letting_go = False
        self._stalls = DiskStalls(time.monotonic())
        self._step: str | None = None  # what the storage is to do, beside storing chunks
        self._over = False
        self._log = log.bind(vm=opening.vm, disk=opening.name)

    @property
    def account(self) -> ReceiverDisk:
        """What the session knows of this disk."""
        return self._session.disks[self.opening.disk]

    async def run(self) -> None:
        """See the disk through to its end; failures are told to the sender, not raised."""
        try:
            with self._at_storage("open"):
                await self._open()
            if self.opening.dry_run:
                return
            await self._receive()
            if self._standing is None:
                with self._at_storage("prove and publish"):
                    await self._finish()
            else:
                await self._say_proven(self._standing, 0, published=True)
        except TransferError as error:
            self.fail(error)
            await self._failed(error)
        except Exception as error:
            # A defect of ours costs this disk and not the sender's patience.
            self._log.error("internal error", reason=repr(error))
            await self._failed(TransferError(f"internal error: {error!r}"))
        finally:
            with self._at_storage("let go"):
                await self._release()
            self._over = True

    def look_for_stall(self) -> None:
        """Say so in the log and the metrics if the disk does not get on, or does again."""
        if self._over:
            return
        now = time.monotonic()
        at_storage = self._step is not None or self._storing > 0
        change = self._stalls.look(now, at_storage=at_storage)
        waits_for = self._stalls.waits_for
        self._shared.metrics.disk_progress(
            self.opening.vm, self.opening.name, self._stalls.got_on_at, waits_for
        )
        if change is None:
            return
        seconds = round(change.seconds)
        if change.waits_for is WaitsFor.STORAGE:
            step = self._step or "write"
            self._log.warning("the storage does not get on", step=step, seconds=seconds)
        elif change.waits_for is WaitsFor.SENDER:
            self._log.info("nothing comes for this disk", seconds=seconds)
        else:
            self._log.info("the disk gets on again", after=seconds)

    @contextmanager
    def _at_storage(self, step: str) -> Iterator[None]:
        before, self._step = self._step, step
        self._got_on()
        try:
            yield
        finally:
            self._step = before
            self._got_on()

    def _got_on(self) -> None:
        self._stalls.got_on(time.monotonic())

    async def store(self, chunk: Chunk, frame: memoryview) -> None:
        """Write a chunk that the session accepted; the frame is given back.

        Raises:
            CodecError: The peer broke the protocol.
        """
        self._storing += 1
        self._got_on()
        started = time.monotonic()
        try:
            self._require_not_standing()
            if self._failure is not None:
                return
            assert self._image is not None
            await self._held.let_go(chunk.offset, chunk.length)
            written = await self._shared.workers.run(store, self._image, chunk)
            self._store.metrics.written(written)
            self._store.metrics.skipped(chunk.length - written)
            self._store.metrics.write_seconds(time.monotonic() - started)
            self._store.reservations.used(self.uuid, written)
            self._note(Written(chunk.offset, chunk.length, chunk.digest))
        except (DatastoreError, JournalError) as error:
            self.fail(error)
        except DigestMismatch as error:
            self._shared.metrics.record_rejected("digest_mismatch")
            self.fail(error)
        except CodecError as error:
            self.fail(error)
            raise
        finally:
            self._shared.frames.release(frame)
            self._stored_one()

    async def zero(self, message: Zero) -> None:
        """Make a run of zeros that the session accepted."""
        self._storing += 1
        self._got_on()
        try:
            self._require_not_standing()
            await self._held.let_go(message.offset, message.length)
            end = message.offset + message.length
            for start in range(message.offset, end, ZERO_SLICE):
                if self._failure is not None:
                    return
                assert self._image is not None
                length = min(ZERO_SLICE, end - start)
                await self._shared.workers.run(self._image.zero, start, length)
                self._store.metrics.skipped(length)
                # A slice at a time: what takes hours is to be acknowledged meanwhile.
                self._note(Written(start, length, None))
                self._got_on()
        except (DatastoreError, JournalError) as error:
            self.fail(error)
        finally:
            self._stored_one()

    def acknowledge_again(self, offset: int, length: int) -> None:
        """Say STORED once more for what is stored, or being stored, already."""
        if not self.account.complete:
            self._written.append(Written(offset, length, None, again=True))
            self._changed.set()

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

    def _note(self, written: Written) -> None:
        if not self._written:
            self._dirty_since = time.monotonic()
            self._changed.set()
        self._written.append(written)
        if written.digest is not None:
            self._unflushed += written.length
            self._shared.metrics.inflight(written.length)
        if self._unflushed >= self._enough:
            self._changed.set()

    def _stored_one(self) -> None:
        """Wake ``run`` where it waits for the last store; it need not look at each."""
        self._storing -= 1
        self._got_on()
        if self._failure is not None or self._letting_go or self.account.end is not None:
            self._changed.set()

    async def _open(self) -> None:
        opening, shared = self.opening, self._shared
        check_name(opening.vm)
        check_name(opening.name)
        capacity = vmdk.round_capacity(opening.size)
        vmdk.check_capacity(capacity, self._layout)
        if await self._stands(capacity):
            return
        thin = opening.provisioning is Provisioning.THIN
        resumed = not opening.dry_run and await self._resume(capacity)
        if not resumed:
            request = self._request(self.uuid, capacity)
            await shared.slow_workers.run(self._store.datastore.check, request)
        space = await shared.slow_workers.run(self._store.datastore.space)
        needed = opening.reserve if thin else 0 if resumed else capacity
        self._store.reservations.take(
            self.uuid, max(0, needed - self._held.ranges.total), space.free
        )
        if not opening.dry_run and not resumed:
            await self._create(request, capacity)
            if not thin:
                self._store.reservations.release(self.uuid)
        if not opening.dry_run:
            self._begin()
        free = self._store.reservations.available(
            (await shared.slow_workers.run(self._store.datastore.space)).free
        )
        if self._session.opened(opening.disk):
            await self._send(
                DiskOpened(opening.disk, opening.pass_number, self.uuid, capacity, free)
            )
            if self._resumes and not opening.dry_run:
                await self._say_held()
        if opening.dry_run:
            self._session.close(opening.disk)

    def _request(self, uuid: bytes, capacity: int) -> ImageRequest:
        opening = self.opening
        return ImageRequest(
            opening.vm, opening.name, capacity, self._layout, replace=opening.replace, uuid=uuid
        )

    async def _stands(self, capacity: int) -> bool:
        """Whether this very disk was published already and its sender has not heard of it.

        Then it is told so as by HELD, and the proof of that time is repeated to it if it
        reads the same again. What it sends anew cannot be taken.
        """
        opening, shared, datastore = self.opening, self._shared, self._store.datastore
        if not (self._resumes and opening.in_doubt):
            return False
        record = await shared.journal.run(
            Journal.image_at, datastore.name, opening.vm, opening.name
        )
        if record is None or record.state is not ImageState.COMPLETE:
            return False
        ours = self._new_record(capacity)
        if ours != replace(
            record,
            uuid=ours.uuid,
            created=ours.created,
            state=ours.state,
            root=None,
            completed=None,
        ):
            return False
        if not await shared.slow_workers.run(stands, datastore, record):
            return False
        self.uuid, self._standing = record.uuid, record.root
        self._held = Holdings(shared.journal, record.uuid, opening.size)
        await self._held.load()
        for offset, length in self._held.ranges:
            self._session.holds(opening.disk, offset, length)
        if self._session.opened(opening.disk):
            await self._send(DiskOpened(opening.disk, opening.pass_number, self.uuid, capacity, 0))
            await self._say_held()
        return True

    def _require_not_standing(self) -> None:
        if self._standing is not None:
            raise DatastoreError(
                "the disk was published before, and its source is another now",
                ErrorCode.DISK_EXISTS,
            )

    async def _resume(self, capacity: int) -> bool:
        """Go on with the incomplete image of this very disk, if it is to be trusted."""
        opening, shared = self.opening, self._shared
        record = await shared.journal.run(
            Journal.resumable, self._store.datastore.name, opening.vm, opening.name
        )
        if record is None:
            return False
        same = replace(
            self._new_record(capacity),
            uuid=record.uuid,
            created=record.created,
            state=record.state,
            root=record.root,
        )
        if self._resumes and same == record:
            image = await shared.slow_workers.run(
                self._store.datastore.resume, self._request(record.uuid, capacity)
            )
            if image is not None:
                fresh, self.uuid = self.uuid, record.uuid
                self._image, self._on_record = image, True
                held = Holdings(shared.journal, record.uuid, opening.size)
                sample = await held.sample()
                if await shared.slow_workers.run(are_on_medium, image, sample):
                    await held.load()
                    self._held = held
                    if record.state is not ImageState.RECEIVING:
                        await self._record(ImageState.RECEIVING)
                    for offset, length in held.ranges:
                        self._session.holds(opening.disk, offset, length)
                    self._log.info("disk resumed", held=held.ranges.total)
                    return True
                self._log.warning("the datastore lost what is on record; the disk starts over")
                await shared.slow_workers.run(image.abort)
                self.uuid, self._image, self._on_record = fresh, None, False
        return False

    async def _say_held(self) -> None:
        """Tell the sender what need not come again, and count on no more than that."""
        opening = self.opening
        async for message in self._held.messages(opening.disk, opening.pass_number):
            await self._send(message)

    def _new_record(self, capacity: int) -> ImageRecord:
        opening, layout = self.opening, self._layout
        words = (layout.format, layout.provisioning, layout.adapter, layout.hardware_version)
        return ImageRecord(
            uuid=self.uuid,
            peer=self._peer,
            datastore=self._store.datastore.name,
            vm=opening.vm,
            disk=opening.name,
            size=opening.size,
            capacity=capacity,
            source_id=opening.source_id,
            created=time.time(),
            layout=" ".join(str(int(word)) for word in words),
        )

    async def _create(self, request: ImageRequest, capacity: int) -> None:
        opening, shared = self.opening, self._shared
        record = self._new_record(capacity)
        image = await shared.slow_workers.run(self._store.datastore.create, request)
        self._image = image
        if capacity > opening.size:  # only eager disks have something to write for that
            await shared.slow_workers.run(image.zero, opening.size, capacity - opening.size)
        await self._forget_replaced()
        await shared.journal.run(Journal.begin_image, record)
        self._on_record = True
        self._log.info("disk opened", size=opening.size, datastore=record.datastore)

    async def _forget_replaced(self) -> None:
        """Take off the record what ``create`` has replaced; not sooner, it may be in use."""
        journal, datastore = self._shared.journal, self._store.datastore
        replaced = await journal.run(
            Journal.resumable, datastore.name, self.opening.vm, self.opening.name
        )
        if replaced is not None and not await self._shared.slow_workers.run(
            stands, datastore, replaced
        ):
            self._log.info("an incomplete image is replaced", image=replaced.uuid.hex())
            discarded = ImageState.DISCARDED
            await journal.run(Journal.set_state, replaced.uuid, discarded, when=time.time())

    def _begin(self) -> None:
        assert self._image is not None
        if self._shared.prove:
            self._proof = RunningProof(self._image, self._shared.slow_workers, self._proof_failed)
        self._shared.metrics.disk_state(self.opening.vm, self.opening.name, "receiving")

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
        await self._held.adopt(self._manifest, self.account.held)
        self._check_end()

    def _check_going_on(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self.account.state is ReceiverState.CLOSED:
            raise Abandoned(ErrorCode.CANCELLED)

    def _due(self) -> bool:
        if not self._written:
            return False
        ending = self.account.end is not None and not self._storing
        late = time.monotonic() - self._dirty_since >= FLUSH_DELAY
        return ending or late or self._unflushed >= self._enough

    async def _wait_for_change(self) -> None:
        try:
            due = self._dirty_since + FLUSH_DELAY - time.monotonic() if self._written else None
            async with asyncio.timeout(due):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _flush(self) -> None:
        assert self._image is not None
        batch, self._written = self._written, []
        flushed, self._unflushed = self._unflushed, 0
        started = time.monotonic()
        try:
            with self._at_storage("flush"):
                await self._shared.slow_workers.run(self._image.flush)
        finally:
            self._shared.metrics.inflight(-flushed)
        self._store.metrics.fsync_seconds(time.monotonic() - started)
        batch.sort(key=lambda item: item.offset)  # so that neighbours are re-read together
        await self._shared.journal.run(Journal.hold, self.uuid, list(_runs(batch)))
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
        assert self._image is not None
        completion = Completion(
            opening,
            self.uuid,
            self._image,
            self._store.datastore,
            shared,
            self._send,
            self._check_going_on,
            self._got_on,
        )
        root, reread = self._manifest.root(), 0
        if self._proof is not None:
            await self._proof.stop()
            try:
                reread = await completion.prove(root, self._proof.proven)
            except DiskError:
                self._doubted = True
                raise
        self._check_going_on()
        published = not opening.live
        if published:
            self._publishing = True
            await completion.publish(root, self._layout)
        self._session.proven(opening.disk)
        state = "complete" if published else "unpublished"
        shared.metrics.disk_state(opening.vm, opening.name, state)
        self._log.info("disk " + state, root=root.hex(), reread=reread)
        await self._say_proven(root, reread, published=published)

    async def _say_proven(self, root: bytes, reread: int, *, published: bool) -> None:
        disk, pass_number = self.opening.disk, self.opening.pass_number
        await self._send(DiskProven(disk, pass_number, reread, root, published=published))

    async def _record(self, state: ImageState, root: bytes | None = None) -> None:
        await self._shared.journal.run(
            Journal.set_state, self.uuid, state, when=time.time(), root=root
        )

    async def _failed(self, error: TransferError) -> None:
        opening = self.opening
        self._session.close(opening.disk)
        self._log.warning("disk given up", reason=str(error), code=error.code.name)
        self._shared.metrics.disk_state(opening.vm, opening.name, "failed")
        numbers = (0, 0)
        if isinstance(error, DiskError):
            numbers = error.numbers
        elif isinstance(error, DigestMismatch):
            numbers = (error.offset, 0)
        await self._send(DiskFailed(opening.disk, opening.pass_number, error.code, numbers))

    def _is_to_be_resumed(self) -> bool:
        """Whether what ended it leaves no doubt of what is on record, flushed before that."""
        harmless = isinstance(self._failure, Abandoned | DatastoreError | JournalError)
        return self._resumes and self._on_record and harmless and not self._doubted

    async def _release(self) -> None:
        """Let go of the image; its files stay if published, of a live pass, or to be resumed."""
        self._letting_go = True
        while self._storing:
            self._changed.clear()
            await self._changed.wait()
        if self._proof is not None:
            await self._proof.stop()
        self._shared.metrics.inflight(-self._unflushed)
        self._store.reservations.release(self.uuid)
        image, self._image = self._image, None
        try:
            if image is not None:
                kept = self.account.state is ReceiverState.PROVEN or self._is_to_be_resumed()
                await self._shared.slow_workers.run(image.close if kept else image.abort)
            if self._on_record and not self._publishing and image is not None and not kept:
                await self._record(ImageState.DISCARDED)
                self._log.info("incomplete files removed")
            elif self._is_to_be_resumed():
                self._log.info("incomplete files kept, to be resumed")
        except (TransferError, OSError) as error:
            self._log.warning("could not clean up", reason=str(error))


def _runs(batch: Iterable[Written]) -> Iterator[tuple[int, int, bytes | None]]:
    """What was written anew, in order, as runs of chunks for ``Journal.hold``."""
    start = count = 0
    digests: list[bytes] = []
    for item in batch:
        if item.again:
            continue
        index = item.offset // CHUNK_SIZE
        if item.digest is None:
            yield index, -(-item.length // CHUNK_SIZE), None
            continue
        if digests and index != start + count:
            yield start, count, b"".join(digests)
            digests = []
        if not digests:
            start, count = index, 0
        digests.append(item.digest)
        count += 1
    if digests:
        yield start, count, b"".join(digests)


class Abandoned(TransferError):
    """The sender gave the disk up, or its session ended.

    Args:
        code: The sender's reason.
    """

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(f"the sender gave it up: {code.name}")
        self.code = code
