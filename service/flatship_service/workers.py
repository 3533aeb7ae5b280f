"""Threads for what must not run on the event loop, with one rule about cancellation.

``concurrent.futures`` would do the same; a call's way to a thread and back
costs about 17 µs of CPU there and 6 µs here, and what the threads finish
together wakes the loop once. Every mebibyte at both ends goes this way.
"""

import asyncio
import functools
import queue
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """A fixed number of threads, for the event loop that first uses them.

    Args:
        count: Threads.
        name: Prefix of their names.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._made: deque[_Call] = deque()
        self._telling = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}") for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``call`` in a thread and return what it returns.

        A cancelled waiter waits all the same and is cancelled then: when this
        returns, in whatever way, no thread uses the call's buffers any more.
        """
        loop = asyncio.get_running_loop()
        queued = _Call(functools.partial(call, *args, **kwargs), loop.create_future())
        self._calls.put(queued)
        try:
            await queued.future
        except asyncio.CancelledError:
            await _until_made(queued)
            raise
        return queued.outcome()  # type: ignore[no-any-return]  # of a call that returns T

    def close(self) -> None:
        """Let the threads finish what is queued, and wait for them to end. Idempotent."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _work(self) -> None:
        while (queued := self._calls.get()) is not None:
            queued.make()
            self._made.append(queued)
            if not self._telling:
                self._telling = True
                queued.future.get_loop().call_soon_threadsafe(self._tell)
            del queued  # its buffers are not to be held while waiting for the next one

    def _tell(self) -> None:
        """Wake those whose calls were made. What is made from here on tells anew."""
        self._telling = False
        while self._made:
            self._made.popleft().tell()


class _Call:
    """A call on its way to a thread, and its outcome on the way back."""

    __slots__ = ("_call", "_error", "_result", "future", "told", "when_told")

    def __init__(self, call: Callable[[], Any], future: "asyncio.Future[None]") -> None:
        self._call = call
        self._result: Any = None
        self._error: BaseException | None = None
        self.future = future
        self.told = False
        self.when_told: asyncio.Future[None] | None = None  # for a waiter that was cancelled

    def make(self) -> None:
        """Call, in a worker thread."""
        try:
            self._result = self._call()
        except BaseException as error:  # whatever it is belongs to the waiter
            self._error = error

    def tell(self) -> None:
        """Wake the waiter, on the loop's thread."""
        self.told = True
        for waiting in (self.future, self.when_told):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def outcome(self) -> Any:
        """What the call returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._result


async def _until_made(queued: _Call) -> None:
    while not queued.told:
        queued.when_told = queued.future.get_loop().create_future()
        with suppress(asyncio.CancelledError):
            await queued.when_told


async def finished(awaitable: Awaitable[T]) -> T:
    """Await something that must not be abandoned half way; a cancellation takes effect after it.

    So do further ones. What ``awaitable`` returned or raised is lost then.
    """
    future = asyncio.ensure_future(awaitable)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # else asyncio complains that nobody looked
        raise
