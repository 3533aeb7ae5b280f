import asyncio

import pytest

from flatship_protocol.connection import FramePool
from flatship_receiver.frame_shares import FrameShare, FrameShares

COUNT = 32


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Session:
    """Takes frames for as long as it is let, and gives back those that it is told to."""

    def __init__(self, share: FrameShare) -> None:
        self.share = share
        self.frames: list[memoryview] = []
        self.task = asyncio.create_task(self._take())

    async def _take(self) -> None:
        while True:
            self.frames.append(await self.share.acquire())

    def give_back(self, count: int) -> None:
        for _ in range(count):
            self.share.release(self.frames.pop())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        self.give_back(len(self.frames))


def test_one_session_alone_gets_half_of_them() -> None:
    async def scenario() -> None:
        pool = FramePool(COUNT)
        session = Session(FrameShares(pool).share())
        await settle()
        assert len(session.frames) == session.share.in_use == COUNT // 2
        await session.stop()
        assert pool.in_use == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("hanging", [1, 2, 4])
def test_one_that_comes_when_others_hang_still_gets_some(hanging: int) -> None:
    async def scenario() -> None:
        shares = FrameShares(FramePool(COUNT))
        stuck = [Session(shares.share()) for _ in range(hanging)]
        await settle()
        late = Session(shares.share())
        await settle()
        assert late.frames
        for _ in range(100):
            late.give_back(1)
            await settle()
            assert late.frames
        for each in (*stuck, late):
            await each.stop()

    asyncio.run(scenario())


def test_frames_that_one_gives_back_go_to_whoever_waits_for_longest() -> None:
    async def scenario() -> None:
        pool = FramePool(3)
        shares = FrameShares(pool)
        first, second, third = (Session(shares.share()) for _ in range(3))
        await settle()
        assert [len(each.frames) for each in (first, second, third)] == [2, 1, 0]
        first.give_back(1)
        await settle()
        assert [len(each.frames) for each in (first, second, third)] == [1, 1, 1]
        assert pool.in_use == 3
        for each in (first, second, third):
            await each.stop()
        assert pool.in_use == 0

    asyncio.run(scenario())


def test_a_wait_that_is_cancelled_loses_no_frame() -> None:
    async def scenario() -> None:
        pool = FramePool(1)
        shares = FrameShares(pool)
        first, second, third = (shares.share() for _ in range(3))
        frame = await first.acquire()
        waits = [asyncio.create_task(each.acquire()) for each in (second, third)]
        await settle()
        first.release(frame)
        waits[0].cancel()  # when it has been promised the frame, and before it runs
        await settle()
        assert waits[0].cancelled()
        assert (second.in_use, third.in_use) == (0, 1)
        third.release(await waits[1])
        assert pool.in_use == 0

    asyncio.run(scenario())


def test_a_frame_that_was_promised_is_given_to_no_newcomer() -> None:
    async def scenario() -> None:
        shares = FrameShares(FramePool(1))
        first, second, third = (shares.share() for _ in range(3))
        frame = await first.acquire()
        waiting = asyncio.create_task(second.acquire())
        await settle()
        first.release(frame)
        newcomer = asyncio.create_task(third.acquire())
        await settle()
        assert waiting.done()
        assert not newcomer.done()
        second.release(waiting.result())
        await settle()
        third.release(await newcomer)

    asyncio.run(scenario())
