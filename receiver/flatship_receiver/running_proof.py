"""Re-reads an image behind its writers, so that little is left to read when its pass is complete.

What was flushed comes first. Beside it goes what an earlier session left on record and this
one does not send again: as the sender reads its disk in order, that is what lies behind the chunks
that come. Of the latter a chunk may yet be written: ``let_go`` says so before it is, and
what was read of it until then says nothing.
"""

import asyncio
import mmap
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.digest import chunk_digest
from flatship_protocol.errors import TransferError
from flatship_protocol.extents import ExtentSet
from flatship_receiver.proof import READ_CHUNKS, ProofFailed, ReadableDisk
from flatship_service.workers import Workers

BEHIND: Final = 3  # reads under way behind the writers; fewer fall behind a fast link
BACKLOG: Final = 1024  # flushed chunks that may wait to be re-read
HELD_BACKLOG: Final = 64  # and held ones
LATE: Final = 64 * CHUNK_SIZE  # bytes by which a chunk may come after one that is behind it


@dataclass(slots=True, eq=False)
class _Due:
    """A chunk to be re-read; ``void`` once it is about to be written again."""

    offset: int
    digest: bytes
    void: bool = False


class RunningProof:
    """Re-reads chunks soon after they were flushed, BEHIND reads at a time.

    Args:
        image: Being written elsewhere.
        workers: Where the reads run.
        fail: Told when a chunk is not what was received, or cannot be read.
        proven: Told of each range that is.

    Whole chunks only: the disk's short last one is left to ``prove``, and so
    is what comes while BACKLOG chunks are waiting.
    """

    def __init__(
        self,
        image: ReadableDisk,
        workers: Workers,
        fail: Callable[[TransferError], None],
        proven: Callable[[int, int], None],
    ) -> None:
        self.proven = ExtentSet()
        self._tell = proven
        self._image = image
        self._workers = workers
        self._fail = fail
        self._flushed: deque[_Due] = deque()
        self._held: deque[_Due] = deque()
        self._reading: list[_Due] = []
        self._front = 0
        self._arrived = asyncio.Event()
        self._moved = asyncio.Event()  # the front, or the queue of held chunks
        self._tasks = {asyncio.create_task(self._run()) for _ in range(BEHIND)}

    def add(self, offset: int, length: int, digest: bytes) -> None:
        """Have a flushed chunk re-read; ``digest`` is what it must have."""
        if length == CHUNK_SIZE and len(self._flushed) < BACKLOG:
            self._flushed.append(_Due(offset, digest))
            self._arrived.set()

    def came(self, offset: int) -> None:
        """A chunk came; what lies well before it is not going to come, if the sender has order."""
        if offset > self._front:
            self._front = offset
            self._moved.set()

    def let_go(self, offset: int, length: int) -> None:
        """A range is about to be written: what was read of it is no proof any more."""
        end = offset + length
        self.proven.discard(offset, length)
        for due in (*self._held, *self._reading):
            due.void |= offset <= due.offset < end

    def follow(
        self, chunks: AsyncIterator[tuple[int, bytes]], is_held: Callable[[int], bool]
    ) -> None:
        """Have re-read what the image holds since an earlier session, behind what comes.

        Args:
            chunks: Offset and digest of each whole chunk on record, in order.
            is_held: Whether a chunk, by its offset, is on record still. It says no before
                ``let_go`` is called for that chunk.
        """
        self._tasks.add(asyncio.create_task(self._follow(chunks, is_held)))

    async def stop(self) -> None:
        """Let go of the image; what is waiting stays unproven. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _follow(
        self, chunks: AsyncIterator[tuple[int, bytes]], is_held: Callable[[int], bool]
    ) -> None:
        with suppress(TransferError):  # of the record; who proves the rest asks it again
            async for offset, digest in chunks:
                while self._front < offset + LATE or len(self._held) >= HELD_BACKLOG:
                    self._moved.clear()
                    await self._moved.wait()
                if is_held(offset):
                    self._held.append(_Due(offset, digest))
                    self._arrived.set()

    async def _run(self) -> None:
        buffer = memoryview(mmap.mmap(-1, READ_CHUNKS * CHUNK_SIZE))
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while run := self._next_run():
                    await self._prove(run, buffer)
        except TransferError as error:
            self._flushed.clear()
            self._held.clear()
            self._fail(error)

    async def _prove(self, run: list[_Due], buffer: memoryview) -> None:
        self._reading += run
        try:
            alike = await self._workers.run(_are_alike, self._image, buffer, run)
        finally:
            for due in run:
                self._reading.remove(due)
        for due, same in zip(run, alike, strict=True):
            if due.void:
                continue
            if not same:
                raise ProofFailed(due.offset, "the chunk there is not what was received")
            self.proven.add(due.offset, CHUNK_SIZE)
            self._tell(due.offset, CHUNK_SIZE)

    def _next_run(self) -> list[_Due]:
        """The next chunks that one read can fetch; none if none are due."""
        self._moved.set()
        return _run_of(self._flushed) or _run_of(self._held)


def _run_of(queue: deque[_Due]) -> list[_Due]:
    """Take the first of a queue, and what follows it on the disk."""
    run: list[_Due] = []
    while queue and len(run) < READ_CHUNKS:
        if run and queue[0].offset != run[-1].offset + CHUNK_SIZE:
            break
        due = queue.popleft()
        if not due.void:
            run.append(due)
    return run


def _are_alike(image: ReadableDisk, buffer: memoryview, run: Sequence[_Due]) -> list[bool]:
    """Read neighbouring chunks; returns for each whether it has its digest."""
    data = buffer[: len(run) * CHUNK_SIZE]
    image.read_into(data, run[0].offset)
    return [
        chunk_digest(data[place * CHUNK_SIZE : (place + 1) * CHUNK_SIZE]) == due.digest
        for place, due in enumerate(run)
    ]
