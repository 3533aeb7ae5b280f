"""Calls that may never return, such as those that ask a file server which is gone."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def in_time(call: Callable[[], T], seconds: float) -> T:
    """Return what ``call`` returns, in a thread of its own.

    Raises:
        TimeoutError: It takes longer than ``seconds``. It goes on, nobody hears what comes of
            it, and the process can end without it.
        Whatever ``call`` raises.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # a T, where there is no error

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as raised:  # whatever it is belongs to the caller
            error = raised
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=work, daemon=True, name="flatship-abandonable").start()
    async with asyncio.timeout(seconds):
        return await future
