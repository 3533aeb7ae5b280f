"""How a daemon is asked to leave."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def stop_on_signal(loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.Event]:
    """Yield an event that the first SIGTERM or SIGINT sets; the second one kills.

    The first gives the signals back to the kernel, so that the second one
    works even when the loop itself hangs. Main thread only.
    """
    stop = asyncio.Event()

    def first() -> None:
        stop.set()
        release()
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def release() -> None:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, first)
    try:
        yield stop
    finally:
        release()
