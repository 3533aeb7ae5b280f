"""How a program is asked to leave, or to read its configuration again."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def on_hangup(
    loop: asyncio.AbstractEventLoop, read_again: Callable[[], None], leave: Callable[[], None]
) -> Iterator[None]:
    """Call ``read_again`` at each SIGHUP, and ``leave`` if it says that the terminal is gone.

    A program that was started to survive its terminal, as by nohup(1), never leaves for it.
    Main thread only.
    """
    bound = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()

    def hangup() -> None:
        if bound and not _has_terminal():
            leave()
        else:
            read_again()

    loop.add_signal_handler(signal.SIGHUP, hangup)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
