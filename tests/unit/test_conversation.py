"""How many chunks of one connection are under way at once."""

import asyncio

from flatship_receiver.conversation import SMALL_STORES, STORES_PER_CONNECTION, _Stores


async def _has_room(stores: _Stores) -> bool:
    room = asyncio.create_task(stores.room())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    room.cancel()
    await asyncio.wait({room})
    return not room.cancelled()


def test_chunks_that_need_no_frame_do_not_keep_others_waiting() -> None:
    async def scenario() -> None:
        done = asyncio.Event()
        stores = _Stores()

        async def store() -> None:
            await done.wait()

        for _ in range(STORES_PER_CONNECTION - 1):
            stores.start(store(), small=False)
        for _ in range(SMALL_STORES - 1):
            stores.start(store(), small=True)
        assert await _has_room(stores)
        stores.start(store(), small=False)
        assert not await _has_room(stores)
        done.set()
        await asyncio.wait(stores.running)
        assert await _has_room(stores)

    asyncio.run(scenario())


def test_chunks_that_need_no_frame_are_bounded_too() -> None:
    async def scenario() -> None:
        done = asyncio.Event()
        stores = _Stores()

        async def store() -> None:
            await done.wait()

        for _ in range(SMALL_STORES):
            stores.start(store(), small=True)
        assert not await _has_room(stores)
        done.set()
        await asyncio.wait(stores.running)
        assert await _has_room(stores)

    asyncio.run(scenario())
