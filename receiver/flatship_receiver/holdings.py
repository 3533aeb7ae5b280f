"""What an incomplete image holds since an earlier session, and what may be believed of it.

The journal says which chunks are on stable storage, and with which digests. The
sender reads its source again and compares, so nothing is skipped on the strength
of a name or a date; the proof at the end reads all of it at the target.
"""

import asyncio
import mmap
import random
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final, TypeAlias

from flatship_protocol.constants import CHUNK_SIZE, DIGEST_SIZE, MAX_HELD
from flatship_protocol.digest import Manifest, chunk_digest
from flatship_protocol.extents import ExtentSet
from flatship_protocol.messages import Held
from flatship_receiver.datastores.base import Image
from flatship_receiver.journal import AsyncJournal, Journal

SAMPLE: Final = 16  # chunks drawn at random, and as many of the last ones

Run: TypeAlias = tuple[int, int, bytes | None]  # first chunk, how many, digests or None for zeros

_random: Final = random.SystemRandom()


class Holdings:
    """The chunks of one image that are on record.

    Args:
        journal: Where they are on record.
        uuid: The image's.
        size: Bytes of the disk.
    """

    def __init__(self, journal: AsyncJournal, uuid: bytes, size: int) -> None:
        self._leaving: list[tuple[int, int]] = []  # chunks asked to be let go of: first, count
        self._turn = asyncio.Lock()
        self.ranges = ExtentSet()
        """Bytes of the disk that are on record, as far as ``load`` and ``let_go`` know."""
        self._journal = journal
        self._uuid = uuid
        self._size = size

    async def load(self) -> None:
        """Fill ``ranges`` from the journal."""
        async for first, count, _ in self._runs():
            end = min((first + count) * CHUNK_SIZE, self._size)
            self.ranges.add(first * CHUNK_SIZE, end - first * CHUNK_SIZE)

    async def sample(self) -> list[tuple[int, bytes]]:
        """Some whole chunks that are not zeros, with their digests: the last ones, and any.

        The last ones are those that a crash is likeliest to have cost.
        """
        numbers = await self._journal.run(Journal.held_segments, self._uuid)
        drawn = [_random.choice(numbers) for _ in range(SAMPLE)] if numbers else []
        chosen: list[tuple[int, bytes]] = []
        for number in drawn:
            chunks = await self._chunks_of(number)
            chosen += [_random.choice(chunks)] if chunks else []
        for number in reversed(numbers):
            chunks = await self._chunks_of(number)
            if chunks:
                return chosen + chunks[-SAMPLE:]
        return chosen

    async def let_go(self, offset: int, length: int) -> None:
        """Take what is about to be written off the record, durably, before it is written.

        Without it a crash could leave new bytes under a digest of the old ones. What is asked
        for while the record is at it goes off together: a pass that changes a page here and
        there must not wait for the record at each.

        Raises:
            JournalError: It may still be on record, and must not be written.
        """
        if not self.ranges.overlaps(offset, length):
            return
        self._leaving.append((offset, length))
        async with self._turn:
            if leaving := self._leaving.copy():
                await self._journal.run(Journal.let_go, self._uuid, list(_in_chunks(leaving)))
                for start, size in leaving:
                    self.ranges.discard(start, size)
                # Not sooner: what could not be taken off fails for all who asked for it.
                del self._leaving[: len(leaving)]

    def has(self, offset: int) -> bool:
        """Whether the chunk at ``offset`` is on record, and was since before this session."""
        return self.ranges.covers(offset, min(CHUNK_SIZE, self._size - offset))

    async def whole_chunks(self) -> AsyncIterator[tuple[int, bytes]]:
        """Offset and digest of each whole chunk on record that is not zeros, in order."""
        async for first, count, digests in self._runs():
            for place in range(count if digests is not None else 0):
                offset = (first + place) * CHUNK_SIZE
                if digests is not None and offset + CHUNK_SIZE <= self._size:
                    yield offset, digests[place * DIGEST_SIZE : (place + 1) * DIGEST_SIZE]

    async def messages(self, disk: int, pass_number: int) -> AsyncIterator[Held]:
        """The HELD messages that tell a sender; the last one is marked, and may be all."""
        async for first, count, digests in self._runs():
            if digests is None:
                yield Held(disk, pass_number, first, count, b"")
                continue
            for start in range(0, count, MAX_HELD):
                part = digests[start * DIGEST_SIZE : (start + MAX_HELD) * DIGEST_SIZE]
                yield Held(disk, pass_number, first + start, len(part) // DIGEST_SIZE, part)
        yield Held(disk, pass_number, 0, 0, b"", last=True)

    async def adopt(self, manifest: Manifest, kept: ExtentSet) -> None:
        """Set the digests of ``kept``, a part of ``ranges`` in bytes of whole chunks."""
        if not kept.total:
            return
        async for first, count, digests in self._runs():
            for index, several in _common(kept, first, count):
                if digests is None:
                    manifest.set_zeros(index, several)
                    continue
                for chunk in range(index, index + several):
                    at = (chunk - first) * DIGEST_SIZE
                    manifest.set_chunk(chunk, digests[at : at + DIGEST_SIZE])

    async def _runs(self) -> AsyncIterator[Run]:
        """What is on record, in order; a segment's worth in memory at a time."""
        zeros = (0, 0)
        for number in await self._journal.run(Journal.held_segments, self._uuid):
            for first, count, digests in await self._journal.run(
                Journal.held_in, self._uuid, number
            ):
                if digests is None and first == sum(zeros):
                    zeros = (zeros[0], zeros[1] + count)
                    continue
                if zeros[1]:
                    yield *zeros, None
                zeros = (first, count) if digests is None else (0, 0)
                if digests is not None:
                    yield first, count, digests
        if zeros[1]:
            yield *zeros, None

    async def _chunks_of(self, number: int) -> list[tuple[int, bytes]]:
        runs = await self._journal.run(Journal.held_in, self._uuid, number)
        return [
            (first + place, digests[place * DIGEST_SIZE : (place + 1) * DIGEST_SIZE])
            for first, count, digests in runs
            if digests is not None
            for place in range(count)
            if (first + place + 1) * CHUNK_SIZE <= self._size
        ]


def are_on_medium(image: Image, chunks: Iterable[tuple[int, bytes]]) -> bool:
    """Whether whole chunks have these digests past the page cache. Blocks."""
    buffer = memoryview(mmap.mmap(-1, CHUNK_SIZE))
    for index, digest in chunks:
        image.read_into(buffer, index * CHUNK_SIZE)
        if chunk_digest(buffer) != digest:
            return False
    return True


def _in_chunks(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ranges of whole chunks, in bytes, as (first chunk, how many); merged, in order."""
    merged = ExtentSet()
    for offset, length in ranges:
        merged.add(offset // CHUNK_SIZE, -(-length // CHUNK_SIZE))
    yield from merged


def _common(kept: ExtentSet, first: int, count: int) -> Iterator[tuple[int, int]]:
    """The parts of a run of chunks that ``kept`` has too, as (first chunk, how many)."""
    missing = ExtentSet()
    missing.add(first * CHUNK_SIZE, count * CHUNK_SIZE)
    for offset, length in list(kept.gaps(first * CHUNK_SIZE, count * CHUNK_SIZE)):
        missing.discard(offset, -(-length // CHUNK_SIZE) * CHUNK_SIZE)
    for offset, length in missing:
        yield offset // CHUNK_SIZE, -(-length // CHUNK_SIZE)
