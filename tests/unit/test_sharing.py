"""Disks that share a link, played chunk by chunk."""

import asyncio
from collections import Counter
from collections.abc import Mapping

import pytest

from flatship_protocol.constants import CHUNK_SIZE as MIB
from flatship_protocol.messages import Adapter, DiskFormat, OpenDisk, Provisioning
from flatship_protocol.session import SenderSession
from flatship_sender.lending import Lending
from flatship_sender.plan import ReadChunk
from flatship_sender.sharing import Claim, Precedence, Sharing
from flatship_sender.turns import Turns

PUMPS = 8


def play(
    precedence: Precedence, sizes: Mapping[int, int], chunks: int, *, idle: int | None = None
) -> Counter[int]:
    """Bytes that each disk sends while so many chunks go over one connection.

    Args:
        precedence: How they share.
        sizes: Bytes on the wire of a chunk, by disk; each has PUMPS waiting at any time.
        chunks: How many are sent.
        idle: A disk that has something to send only at every tenth one.
    """
    sharing = Sharing(precedence)
    waiting = [
        (sharing.rank(disk, size), n, disk) for disk, size in sizes.items() for n in range(PUMPS)
    ]
    sent: Counter[int] = Counter()
    for turn in range(chunks):
        ready = [each for each in waiting if each[2] != idle or turn % 10 == 0]
        chosen = min(ready)
        sharing.sending(chosen[0])
        waiting.remove(chosen)
        disk = chosen[2]
        sent[disk] += sizes[disk]
        waiting.append((sharing.rank(disk, sizes[disk]), PUMPS + turn, disk))
    return sent


def test_disks_get_the_same_of_the_link_whatever_their_chunks_compress_to() -> None:
    sent = play(Precedence.FAIR, {0: MIB, 1: MIB // 2, 2: MIB // 10}, 2000)
    assert max(sent.values()) / min(sent.values()) < 1.1


def test_earlier_disks_leave_later_ones_nothing_while_they_have_something() -> None:
    assert play(Precedence.GIVEN, {0: MIB, 1: MIB, 2: MIB}, 100) == {0: 100 * MIB}


@pytest.mark.parametrize("precedence", Precedence)
def test_what_one_disk_does_not_use_the_others_get(precedence: Precedence) -> None:
    sent = play(precedence, {0: MIB, 1: MIB}, 1000, idle=0)
    assert sent == {0: 100 * MIB, 1: 900 * MIB}


def test_a_disk_that_sent_nothing_for_long_does_not_make_up_for_it() -> None:
    sharing = Sharing(Precedence.FAIR)
    for _ in range(100):
        sharing.sending(sharing.rank(0, MIB))
    ranks = [(sharing.rank(disk, MIB), disk) for disk in (0, 0, 0, 0, 1, 1, 1, 1)]
    assert sum(disk for _, disk in sorted(ranks)[:4]) in (2, 3)


def claim(disk: int, *, in_hand: int = 0, outstanding: int = 0) -> Claim:
    return Claim(disk, MIB, in_hand, outstanding * MIB)


def next_of(sharing: Sharing, *claims: Claim, free: int, alone: bool = False) -> int | None:
    chosen = sharing.next(claims, free * MIB, alone=alone)
    return None if chosen is None else chosen.disk


def test_the_disk_with_the_fewest_chunks_in_hand_begins_the_next() -> None:
    sharing = Sharing(Precedence.FAIR)
    assert next_of(sharing, claim(0, in_hand=3), claim(1, in_hand=2), free=99) == 1


def test_of_those_with_as_many_it_is_the_one_that_began_none_for_longest() -> None:
    sharing = Sharing(Precedence.FAIR)
    three = [claim(0), claim(1), claim(2)]
    assert [next_of(sharing, *three, free=9) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_an_earlier_disk_begins_first() -> None:
    sharing = Sharing(Precedence.GIVEN)
    assert next_of(sharing, claim(1), claim(0, in_hand=7), free=99) == 0


@pytest.mark.parametrize("precedence", Precedence)
def test_a_disk_that_is_not_acknowledged_leaves_credit_to_the_others(
    precedence: Precedence,
) -> None:
    sharing = Sharing(precedence)
    stuck = claim(0, outstanding=5)
    assert next_of(sharing, stuck, free=5) is None
    assert next_of(sharing, stuck, claim(1), free=5) == 1
    assert next_of(sharing, stuck, free=5, alone=True) == 0


def test_without_credit_nobody_begins() -> None:
    assert next_of(Sharing(Precedence.FAIR), claim(0), free=0, alone=True) is None


# Turns


class World:
    """A session with some disks, whose chunks are begun as turns allow."""

    def __init__(
        self, disks: int, *, credit: int, frames: int, precedence: Precedence = Precedence.FAIR
    ) -> None:
        self.session = SenderSession(1, credit * MIB)
        kinds = (DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 14)
        for disk in range(disks):
            opening = OpenDisk(disk, 1, 1000 * MIB, 0, bytes(32), *kinds, "", "vm", f"vm_{disk}")
            self.session.open(opening)
        self.turns = Turns(self.session, Sharing(precedence), frames, set(range(disks)))
        self.begun: Counter[int] = Counter()
        self.refused = 0
        self.wanted = True
        self._tasks: list[asyncio.Task[None]] = []
        self._next = 0

    async def want(self, disk: int, chunks: int) -> None:
        for _ in range(chunks):
            self._next += 1
            work = ReadChunk(self._next * MIB, MIB)
            self._tasks.append(asyncio.create_task(self._begin(disk, work)))
        await self.settle()

    async def _begin(self, disk: int, work: ReadChunk) -> None:
        if await self.turns.begin(disk, work, lambda: self.wanted):
            self.begun[disk] += 1
        else:
            self.refused += 1

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


def test_frames_are_dealt_to_all_disks() -> None:
    async def scenario() -> None:
        world = World(4, credit=100, frames=8)
        for disk in range(4):
            await world.want(disk, PUMPS)
        assert world.begun == {0: 8}
        for _ in range(6):
            world.turns.end(0)
        await world.settle()
        assert world.begun == {0: 8, 1: 2, 2: 2, 3: 2}
        await world.stop()

    asyncio.run(scenario())


def test_a_disk_that_is_never_acknowledged_takes_half_of_the_credit() -> None:
    async def scenario() -> None:
        world = World(2, credit=20, frames=100)
        await world.want(0, 50)
        assert world.begun == {0: 10}
        await world.want(1, 5)
        assert world.begun[1] == 5
        world.turns.finished(1)
        await world.settle()
        assert world.begun[0] == 15  # what is left, once it is alone
        await world.stop()

    asyncio.run(scenario())


def test_whoever_is_not_wanted_any_more_goes_without() -> None:
    async def scenario() -> None:
        world = World(1, credit=1, frames=1)
        await world.want(0, 3)
        assert world.begun == {0: 1}
        world.wanted = False
        world.turns.serve()
        await world.settle()
        assert (world.begun[0], world.refused) == (1, 2)
        await world.stop()

    asyncio.run(scenario())


def test_a_wait_that_is_cancelled_takes_nothing() -> None:
    async def scenario() -> None:
        world = World(1, credit=5, frames=1)
        await world.want(0, 2)
        await world.stop()
        world.turns.end(0)
        await world.settle()
        assert world.session.outstanding == MIB
        await world.want(0, 1)
        assert world.begun == {0: 2}
        await world.stop()

    asyncio.run(scenario())


# Lending


def test_a_connection_goes_to_the_lowest_rank_and_then_to_the_longest_waiter() -> None:
    async def scenario() -> None:
        lending: Lending[str] = Lending()
        got: list[int] = []

        async def borrow(name: int, rank: float) -> None:
            await lending.borrow(rank)
            got.append(name)

        ranks = (2.0, 1.0, 1.0, 0.0)
        tasks = [asyncio.create_task(borrow(*each)) for each in enumerate(ranks)]
        await asyncio.sleep(0)
        for _ in tasks:
            lending.add("one")
            await asyncio.sleep(0)
        assert got == [3, 1, 2, 0]

    asyncio.run(scenario())


def test_a_borrower_that_is_cancelled_loses_no_connection() -> None:
    async def scenario() -> None:
        lending: Lending[str] = Lending()
        first = asyncio.create_task(lending.borrow(0.0))
        second = asyncio.create_task(lending.borrow(1.0))
        await asyncio.sleep(0)
        lending.add("one")
        first.cancel()
        await asyncio.wait({first, second})
        assert second.result() == "one"

    asyncio.run(scenario())


def test_what_is_discarded_is_lent_no_more() -> None:
    async def scenario() -> None:
        lending: Lending[str] = Lending()
        for name in ("one", "two"):
            lending.add(name)
        lending.discard("two")
        lending.discard("three")
        assert await lending.borrow(0.0) == "one"

    asyncio.run(scenario())
