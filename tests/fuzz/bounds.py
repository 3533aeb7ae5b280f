"""What an input may cost: address space, processor time, and memory to the byte."""

import resource
import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

HEADROOM: Final = 128 << 20  # bytes of address space beyond what the process has already
PATIENCE: Final = 10.0  # seconds of processor time; a block of inputs takes some milliseconds


class Hang(BaseException):
    """Inputs took longer than PATIENCE. No decoder catches it."""


@contextmanager
def limited_memory(headroom: int = HEADROOM) -> Iterator[None]:
    """Make an allocation that no input justifies fail, whether or not it is ever touched."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + headroom, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def watched() -> Iterator[None]:
    """Have ``Hang`` raised where processor time runs out between two calls of ``restart``."""
    before = signal.signal(signal.SIGPROF, _give_up)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def restart() -> None:
    """Grant PATIENCE anew. Other processes' load does not count against it."""
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)


def _give_up(number: int, frame: FrameType | None) -> None:
    raise Hang(f"more than {PATIENCE:.0f} s of processor time")


@contextmanager
def traced() -> Iterator[None]:
    """Have Python's allocations counted, for ``begin`` and ``peak``. Slow."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def begin() -> int:
    """Bytes allocated now; the peak is counted from here."""
    tracemalloc.reset_peak()
    return tracemalloc.get_traced_memory()[0]


def peak(before: int) -> int:
    """Most bytes that were allocated at once since ``begin``, beyond its ``before``."""
    return tracemalloc.get_traced_memory()[1] - before
