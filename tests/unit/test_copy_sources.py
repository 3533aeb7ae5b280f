"""Who may copy from what, and what is held open for it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_receiver import copy_sources
from flatship_receiver.copy_sources import MAX_AGE, MAX_VIEWS, CopySources
from flatship_receiver.facilities import Facilities
from flatship_receiver.journal import AsyncJournal, ImageRecord, ImageState, Journal
from flatship_service.workers import Workers

ME, OTHER = b"M" * 32, b"O" * 32
SIZE = 5 << 20


def uuid(number: int) -> bytes:
    return number.to_bytes(16, "big")


@dataclass
class FakeView:
    """A disk whose first byte is the last of its uuid."""

    first: int
    closed: bool = False

    def read(self, buffer: memoryview, offset: int) -> None:
        assert not self.closed
        buffer[0] = self.first

    def close(self) -> None:
        self.closed = True


@dataclass
class Place:
    """A datastore that has every disk, and says what was opened."""

    views: list[FakeView] = field(default_factory=list)
    error: DatastoreError | None = None

    def view(self, vm: str, disk: str, capacity: int, uuid: bytes) -> FakeView:
        if self.error is not None:
            raise self.error
        self.views.append(FakeView(uuid[-1]))
        return self.views[-1]

    @property
    def open(self) -> int:
        return sum(not view.closed for view in self.views)


@dataclass
class World:
    """A receiver with 100 images of mine on record, the second of which was discarded."""

    sources: CopySources
    place: Place
    journal: AsyncJournal
    now: float = 0.0

    async def first_byte(self, peer: bytes, number: int) -> int | None:
        """What copying from an image gives, if anything."""
        async with self.sources.lend(peer, {3: uuid(number)}) as lent:
            if 3 not in lent:
                return None
            assert lent[3].size == SIZE
            buffer = bytearray(1)
            lent[3].read(memoryview(buffer), 0)
            return buffer[0]


def run(tmp_path: Path, body: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        journal = await AsyncJournal.open(tmp_path)
        workers = Workers(2, "test")
        try:
            for number in range(1, 101):
                record = ImageRecord(
                    uuid(number), ME, "ssd", "web", str(number), SIZE, SIZE, bytes(32), 1.0
                )
                await journal.run(Journal.begin_image, record)
            gone = ImageState.DISCARDED
            await journal.run(Journal.set_state, uuid(2), gone, when=2.0)
            elsewhere = ImageRecord(uuid(200), ME, "nfs", "web", "x", SIZE, SIZE, bytes(32), 1.0)
            await journal.run(Journal.begin_image, elsewhere)
            place = Place()
            facilities = cast(Facilities, _Shared(journal, workers))
            stores: Any = {"ssd": _Store(place)}
            world = World(CopySources(stores, facilities, lambda: world.now), place, journal)
            await body(world)
        finally:
            workers.close()
            await journal.close()

    asyncio.run(main())


@dataclass
class _Shared:
    journal: AsyncJournal
    slow_workers: Workers


@dataclass
class _Store:
    datastore: Place


def test_a_sender_copies_from_its_own_images_and_from_no_others(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        assert await world.first_byte(ME, 1) == 1
        assert await world.first_byte(OTHER, 1) is None
        assert await world.first_byte(ME, 2) is None  # discarded
        assert await world.first_byte(ME, 200) is None  # of a datastore that is no more
        assert await world.first_byte(ME, 201) is None  # never heard of
        assert len(world.place.views) == 1

    run(tmp_path, body)


def test_an_image_that_is_being_written_is_its_senders(tmp_path: Path) -> None:
    class Writing:
        def read_latest(self, buffer: memoryview, offset: int) -> None:
            buffer[0] = 77

    async def body(world: World) -> None:
        world.sources.begin(ME, uuid(1), cast(Any, Writing()), SIZE)
        assert await world.first_byte(ME, 1) == 77
        assert await world.first_byte(OTHER, 1) is None
        world.sources.end(ME, uuid(1))
        assert await world.first_byte(ME, 1) == 1

    run(tmp_path, body)


def test_what_cannot_be_opened_cannot_be_had(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        world.place.error = DatastoreError("a host has it", ErrorCode.DISK_LOCKED)
        assert await world.first_byte(ME, 1) is None
        world.place.error = None
        assert await world.first_byte(ME, 1) == 1

    run(tmp_path, body)


def test_a_view_is_used_again_and_not_for_long(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        for _ in range(3):
            assert await world.first_byte(ME, 1) == 1
        assert len(world.place.views) == world.place.open == 1
        world.now = MAX_AGE + 1
        world.sources.tidy()
        assert world.place.open == 0
        assert await world.first_byte(ME, 1) == 1
        assert len(world.place.views) == 2

    run(tmp_path, body)


def test_a_view_in_use_stays_open_and_is_lent_no_more_once_it_is_old(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        async with world.sources.lend(ME, {0: uuid(1)}) as lent:
            world.now = MAX_AGE + 1
            world.sources.tidy()
            assert await world.first_byte(ME, 1) == 1
            assert world.place.open == len(world.place.views) == 2
            lent[0].read(memoryview(bytearray(1)), 0)
        assert [view.closed for view in world.place.views] == [True, False]

    run(tmp_path, body)


def test_views_are_bounded_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        for number in range(3, 3 + MAX_VIEWS):
            assert await world.first_byte(ME, number) == number
        assert await world.first_byte(ME, 3) == 3  # so the next one is the oldest
        assert await world.first_byte(ME, 90) == 90
        assert world.place.open == MAX_VIEWS
        assert [view.first for view in world.place.views if view.closed] == [4]

    run(tmp_path, body)


def test_where_all_views_are_in_use_there_is_no_further_one(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        references = {number: uuid(number) for number in range(3, 90)}
        async with world.sources.lend(ME, references) as lent:
            assert len(lent) == MAX_VIEWS
            assert await world.first_byte(ME, 95) is None
            assert world.place.open == MAX_VIEWS
        assert await world.first_byte(ME, 95) == 95

    run(tmp_path, body)


def test_a_session_that_ends_leaves_nothing_open(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        await world.first_byte(ME, 1)
        world.sources.leave(OTHER)
        assert world.place.open == 1
        world.sources.leave(ME)
        assert world.place.open == 0

    run(tmp_path, body)


def test_two_chunks_that_open_the_same_image_share_it(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        found = await asyncio.gather(*(world.first_byte(ME, 1) for _ in range(8)))
        assert found == [1] * 8
        assert world.place.open == 1

    run(tmp_path, body)


def test_a_size_is_the_disks_and_not_the_capacity(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        record = await world.journal.run(Journal.image, uuid(1))
        assert record is not None
        short = replace(record, uuid=uuid(150), size=SIZE - 512)
        await world.journal.run(Journal.begin_image, short)
        async with world.sources.lend(ME, {0: uuid(150)}) as lent:
            assert lent[0].size == SIZE - 512

    run(tmp_path, body)


def test_what_may_be_open_is_within_what_a_process_may_open() -> None:
    assert copy_sources.MAX_VIEWS * 8 <= 256
