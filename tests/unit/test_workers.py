"""A cancelled waiter must not leave a thread behind that still uses its buffers."""

import asyncio
import gc
import threading

import pytest

from flatship_service.workers import Workers, finished


def test_run_returns_what_the_call_returns_and_raises_what_it_raises() -> None:
    async def scenario() -> None:
        workers = Workers(1, "test")
        assert await workers.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await workers.run(divmod, 7, 0)
        workers.close()

    asyncio.run(scenario())


def test_no_more_calls_run_at_once_than_there_are_threads() -> None:
    running, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2)

    def call() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(5)
        with lock:
            running -= 1

    async def scenario() -> None:
        workers = Workers(2, "test")
        await asyncio.gather(*(workers.run(call) for _ in range(6)))
        workers.close()

    asyncio.run(scenario())
    assert most == 2


@pytest.mark.parametrize("cancellations", [1, 3])
def test_however_often_it_is_cancelled_run_ends_after_the_call(cancellations: int) -> None:
    async def scenario() -> None:
        workers = Workers(1, "test")
        begun, go_on, over = threading.Event(), threading.Event(), threading.Event()

        def call() -> None:
            begun.set()
            go_on.wait(5)
            over.set()

        task = asyncio.create_task(workers.run(call))
        await asyncio.to_thread(begun.wait, 5)
        for _ in range(cancellations):
            task.cancel()
            for _ in range(3):
                await asyncio.sleep(0)
            assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert over.is_set()
        workers.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("cancellations", [1, 3])
def test_however_often_it_is_cancelled_finished_ends_after_what_it_awaits(
    cancellations: int,
) -> None:
    async def scenario() -> None:
        inner: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(finished(inner))
        await asyncio.sleep(0)
        for _ in range(cancellations):
            task.cancel()
            for _ in range(3):
                await asyncio.sleep(0)
            assert not task.done()
        inner.set_result(None)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_a_cancelled_waiter_is_not_told_of_the_error_and_nobody_complains() -> None:
    complaints: list[object] = []

    async def fail(gate: asyncio.Event) -> None:
        await gate.wait()
        raise ValueError

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
        gate = asyncio.Event()
        task = asyncio.create_task(finished(fail(gate)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert not complaints


def test_a_cancelled_awaitable_cancels_its_waiter() -> None:
    async def scenario() -> None:
        inner: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(finished(inner))
        await asyncio.sleep(0)
        inner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
