"""A session's part in sending disks: credit, compression, stalls, what the receiver says.

What is done for each disk is in ``disk_transfer``. Frames bound memory, and credit
bounds what the receiver has not yet acknowledged.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from flatship_protocol.connection import Connection, FramePool
from flatship_protocol.errors import (
    ConnectionLost,
    TransferError,
    UnexpectedMessage,
)
from flatship_protocol.messages import (
    Capability,
    Credit,
    Message,
    Proving,
    Stored,
)
from flatship_protocol.session import SenderSession, ToSender
from flatship_sender.client import Client
from flatship_sender.compression import CompressionController
from flatship_sender.disk_limit import DiskLimit
from flatship_sender.disk_transfer import DiskTransfer
from flatship_sender.job import Cancelled, Job
from flatship_sender.lanes import Lanes
from flatship_sender.looks import Window
from flatship_sender.observer import Observer
from flatship_sender.occupied import Occupied
from flatship_sender.plan import ReadChunk
from flatship_sender.processor import ProcessorWatch, Share
from flatship_sender.progress import (
    FINAL_STATES,
    DiskProgress,
    TransferProgress,
    TransferState,
)
from flatship_sender.references import References
from flatship_sender.sharing import Precedence, Sharing
from flatship_sender.stalls import Stall, Stalls, is_lost
from flatship_sender.turns import Turns
from flatship_service.units import format_duration
from flatship_service.workers import Workers

FRAMES: Final = 16
WINDOW: Final = 0.25  # seconds between two looks of the compression controller
WORK: Final = ("read", "digest", "compress")  # stages that workers are in
MANY_CONNECTIONS: Final = 4
SPARE_CONNECTIONS: Final = 2  # of many: for one that replaces another, and one not yet closed


class Transfer:
    """Sends disks in one session.

    Args:
        jobs: The disks; their handles are distinct.
        progress: Where counts go.
        controller: Chooses compression levels.
        observer: Told about acknowledgements and errors.
        workers: Threads to read and compress in.
        epoch: The session's.
        disk_limit: Bytes a second on the wire for each disk; None for no limit.
        precedence: How the disks share credit, frames and connections.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        progress: TransferProgress,
        controller: CompressionController,
        observer: Observer,
        workers: Workers,
        epoch: int,
        *,
        disk_limit: float | None = None,
        precedence: Precedence = Precedence.FAIR,
    ) -> None:
        self.progress = progress
        self.session = SenderSession(epoch, credit=0)
        self.controller = controller
        self.observer = observer
        self.workers = workers
        self.frames = FramePool(FRAMES)
        self.resumes = False  # the receiver says what it holds
        self.deltas = False  # and can keep pages of it
        self.knows = False  # or copy pages from elsewhere
        self.references = References()
        self.lanes: Lanes | None = None  # where chunks are coded as streams, if that was agreed on
        self.link = Occupied()  # while it holds a chunk up
        self._link_seconds_before = progress.link_seconds
        self._sharing = Sharing(precedence)
        handles = {job.opening.disk for job in jobs}
        self._turns = Turns(self.session, self._sharing, FRAMES, handles)
        self._disks = {job.opening.disk: DiskTransfer(job, self) for job in jobs}
        self._disk_limits = {
            handle: DiskLimit(
                disk_limit, disk.progress.wire, _done(disk.progress), time.monotonic()
            )
            for handle, disk in self._disks.items()
            if disk_limit is not None
        }
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
                self.knows = Capability.KNOWN in hello.capabilities
                await client.widen(min(connections, usable(hello.connections)))
                if Capability.HISTORY in hello.capabilities:
                    self.lanes = Lanes(
                        client, self.workers, hello.history_window, hello.history_streams
                    )
                self.controller.grant(0 if self.lanes is None else self.lanes.count)
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
            self._count_link()
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
            self.wake()
            return
        if not isinstance(message, ToSender):
            raise UnexpectedMessage(f"{type(message).__name__} from a receiver")
        released = self.session.receive(epoch, message)
        self._disks[message.disk].take(message)
        self.wake()
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
        """Wait for a disk's limit, for credit and a frame; False if it is not ``wanted`` any more.

        ``carried`` is to follow.
        """
        while delay := self._disk_delay(disk):
            if not wanted():
                return False
            self._credit_freed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._credit_freed.wait()
        if disk in self._disk_limits:
            self._disk_limits[disk].begin(work.length)
        return await self._turns.begin(disk, work, wanted)

    def carried(self, disk: int) -> None:
        """A chunk has been sent, or is not to be, and its frame is free."""
        self._turns.end(disk)

    def finished(self, disk: int) -> None:
        """A disk has no more chunks to carry."""
        self._turns.finished(disk)

    def rank(self, disk: int, size: int) -> float:
        """The place of so many bytes of a disk among those that wait for the link."""
        return self._sharing.rank(disk, size)

    def has_turn(self, rank: float) -> None:
        """What had that place waits no more."""
        self._sharing.sending(rank)

    async def borrow(self, disk: int, size: int) -> Connection:
        """Wait for a connection for so many bytes of a disk; to be given back to the client."""
        rank = self.rank(disk, size)
        connection = await self.client.borrow(rank)
        self.has_turn(rank)
        return connection

    def _disk_delay(self, disk: int) -> float:
        """Seconds until another chunk of the disk may be begun, as far as its own limit goes."""
        if disk not in self._disk_limits:
            return 0.0
        progress = self._disks[disk].progress
        return self._disk_limits[disk].wait(progress.wire, _done(progress), time.monotonic())

    async def zeros_stored(self, disk: int, wanted: Callable[[], bool]) -> None:
        """Wait until no zeros of a disk are unacknowledged, or it is not ``wanted`` any more."""
        while wanted() and self.session.disks[disk].zeros.total:
            self._credit_freed.clear()
            await self._credit_freed.wait()

    def wake(self) -> None:
        """Let those who wait for credit, or for an acknowledgement, look again."""
        self._turns.serve()
        self._credit_freed.set()

    async def _watch(self) -> None:
        """Feed the compression controller, notice stalls."""
        loop = asyncio.get_running_loop()
        processor = ProcessorWatch()
        before = self._totals()  # of sessions before this one, too
        stalls = Stalls(time.monotonic())
        while True:
            await asyncio.sleep(WINDOW)
            now, share = self._totals(), processor.look()
            window = _between(before, now, share)
            self.controller.note_window(window)
            before = now
            self._count_link()
            self.progress.connections = self.client.live
            silent_for = loop.time() - self.client.heard_at
            stall = stalls.look(
                time.monotonic(), self._mark(), due=self._due(), silent_for=silent_for
            )
            self._tell_stall(stall)

    def _totals(self) -> "_Totals":
        disks = self.progress.disks
        stages = Counter[str]()
        for disk in disks:
            stages.update(disk.stage_seconds)
        return _Totals(
            time.monotonic(),
            sum(disk.wire for disk in disks),
            sum(disk.literal for disk in disks),
            self.link.seconds,
            stages["compress"],
            sum(stages[stage] for stage in WORK),
        )

    def _count_link(self) -> None:
        self.progress.link_seconds = self._link_seconds_before + self.link.seconds
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


def _done(progress: DiskProgress) -> int:
    """Bytes of chunks for which credit was reserved, and that are sent or need not be."""
    return progress.sent + progress.held + progress.skipped_zero


@dataclass(frozen=True, slots=True)
class _Totals:
    """What the controller is told the growth of; see Window."""

    at: float
    wire: int
    sent: int
    held_up: float
    compressing: float
    working: float


def _between(then: _Totals, now: _Totals, share: Share) -> Window:
    return Window(
        now.at - then.at,
        now.wire - then.wire,
        now.sent - then.sent,
        now.held_up - then.held_up,
        now.compressing - then.compressing,
        now.working - then.working,
        share.used,
        share.cores,
    )


def usable(allowed: int) -> int:
    """How many of the connections that a receiver allows to use for long."""
    return allowed - SPARE_CONNECTIONS if allowed > MANY_CONNECTIONS else allowed


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
