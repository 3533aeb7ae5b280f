"""What an image holds since an earlier session, from the record to HELD and back."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from flatship_protocol.constants import CHUNK_SIZE, DIGEST_SIZE
from flatship_protocol.digest import Manifest, zero_digest
from flatship_protocol.extents import ExtentSet
from flatship_protocol.messages import Held
from flatship_receiver.holdings import SAMPLE, Holdings
from flatship_receiver.journal import AsyncJournal, ImageRecord, Journal, JournalError

UUID = b"U" * 16
SIZE = 3 * 1024 * CHUNK_SIZE + 512
RECORD = ImageRecord(UUID, b"P" * 32, "ssd", "web", "web", SIZE, SIZE, b"S" * 32, 1.0)


def digests(first: int, count: int) -> bytes:
    return b"".join((index + 1).to_bytes(DIGEST_SIZE) for index in range(first, first + count))


def with_holdings(
    tmp_path: Path,
    runs: list[tuple[int, int, bytes | None]],
    body: Callable[[Holdings, AsyncJournal], Awaitable[None]],
    size: int = SIZE,
) -> None:
    async def main() -> None:
        journal = await AsyncJournal.open(tmp_path)
        try:
            await journal.run(Journal.begin_image, replace(RECORD, size=size))
            await journal.run(Journal.hold, UUID, runs)
            holdings = Holdings(journal, UUID, size)
            await holdings.load()
            await body(holdings, journal)
        finally:
            await journal.close()

    asyncio.run(main())


def test_the_last_chunk_of_a_disk_may_be_short(tmp_path):
    async def body(holdings, _):
        assert list(holdings.ranges) == [(0, SIZE)]
        assert all((index + 1) * CHUNK_SIZE <= SIZE for index, _ in await holdings.sample())

    with_holdings(tmp_path, [(0, 3072, None), (3072, 1, digests(3072, 1))], body)


def test_messages_cover_what_is_held_in_order_and_the_last_is_marked(tmp_path):
    async def body(holdings, _):
        said = [message async for message in holdings.messages(4, 1)]
        assert said == [
            Held(4, 1, 0, 512, digests(0, 512)),
            Held(4, 1, 512, 88, digests(512, 88)),
            Held(4, 1, 1000, 1048, b""),  # over the border of two digest segments
            Held(4, 1, 2048, 1, digests(2048, 1)),
            Held(4, 1, 0, 0, b"", last=True),
        ]

    runs = [(0, 600, digests(0, 600)), (1000, 1048, None), (2048, 1, digests(2048, 1))]
    with_holdings(tmp_path, runs, body)


def test_a_sample_has_the_last_chunks_and_no_zeros(tmp_path):
    async def body(holdings, _):
        sample = await holdings.sample()
        assert sample[-SAMPLE:] == [
            (index, digests(index, 1)) for index in range(1100 - SAMPLE, 1100)
        ]
        assert all(digest == digests(index, 1) for index, digest in sample)
        assert len(sample) > SAMPLE

    with_holdings(tmp_path, [(0, 1100, digests(0, 1100)), (2048, 1024, None)], body)


def test_what_is_let_go_is_off_the_record_at_once(tmp_path):
    async def body(holdings, journal):
        await holdings.let_go(3 * CHUNK_SIZE, 2 * CHUNK_SIZE)
        assert await journal.run(Journal.held_in, UUID, 0) == [
            (0, 3, digests(0, 3)),
            (5, 5, digests(5, 5)),
        ]
        assert list(holdings.ranges) == [(0, 3 * CHUNK_SIZE), (5 * CHUNK_SIZE, 5 * CHUNK_SIZE)]

    with_holdings(tmp_path, [(0, 10, digests(0, 10))], body)


def test_what_is_asked_for_meanwhile_goes_off_the_record_together_and_fails_together(tmp_path):
    async def body(holdings, journal):
        calls = []
        real = journal.run

        async def run(operation, *arguments):
            calls.append(arguments)
            await asyncio.sleep(0)
            if len(calls) == 3:
                raise JournalError("the disk is full")
            return await real(operation, *arguments)

        journal.run = run
        chunks = [0, 3, 4, 7]
        await asyncio.gather(*(holdings.let_go(n * CHUNK_SIZE, CHUNK_SIZE) for n in chunks))
        assert [runs for _, runs in calls] == [[(0, 1)], [(3, 2), (7, 1)]]
        outcomes = await asyncio.gather(
            *(holdings.let_go(n * CHUNK_SIZE, CHUNK_SIZE) for n in (1, 2)), return_exceptions=True
        )
        assert isinstance(outcomes[0], JournalError)
        assert outcomes[1] is None  # tried once more, with all that were waiting
        assert calls[3][1] == [(1, 2)]
        journal.run = real
        kept = [(5, 2, digests(5, 2)), (8, 2, digests(8, 2))]
        assert await journal.run(Journal.held_in, UUID, 0) == kept

    with_holdings(tmp_path, [(0, 10, digests(0, 10))], body)


def test_adopted_are_the_digests_of_what_was_kept_and_no_others(tmp_path):
    async def body(holdings, _):
        size = 6 * CHUNK_SIZE + 512
        manifest, kept = Manifest(size), ExtentSet()
        kept.add(CHUNK_SIZE, 2 * CHUNK_SIZE)
        kept.add(5 * CHUNK_SIZE, CHUNK_SIZE + 512)
        await holdings.adopt(manifest, kept)
        assert [manifest.chunk(index) for index in range(7)] == [
            None,
            digests(1, 1),
            digests(2, 1),
            None,
            None,
            zero_digest(CHUNK_SIZE),
            zero_digest(512),
        ]

    runs = [(0, 4, digests(0, 4)), (4, 3, None)]
    with_holdings(tmp_path, runs, body, size=6 * CHUNK_SIZE + 512)
