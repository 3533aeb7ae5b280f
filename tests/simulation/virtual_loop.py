"""An event loop whose clock is not the machine's: it jumps to whatever is due next.

Hours of waiting cost nothing, the order of events follows from the program alone,
and a program that waits for what cannot come is found at once.
"""

import asyncio
import random
import secrets
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, TypeVar

from flatship_protocol.connection import Connection

T = TypeVar("T")

TICK = 1e-6  # seconds that a turn of the loop takes at least
BEGINNING = 1_000.0  # seconds of the virtual clock
WALL_BEGINNING = 1_700_000_000.0  # Unix time of the beginning


class Stuck(AssertionError):
    """Nothing is left to happen, and the program still waits; or it outlived its time."""


class Numbered:
    """Something that has the same place in a set in each run of a seed: not that of its address."""

    made = 0

    def __hash__(self) -> int:
        number: int = getattr(self, "_number", 0)
        if not number:
            Numbered.made += 1
            number = self._number = Numbered.made
        return number


class NumberedTask(Numbered, asyncio.Task[Any]):
    """A task with a number."""


class NumberedFuture(Numbered, asyncio.Future[Any]):
    """A future with a number."""


class _VirtualSelector(selectors.SelectSelector):
    """Instead of waiting it moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGINNING

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let ``timeout`` seconds pass."""
        if timeout is None:
            raise Stuck("everybody waits, and nothing is due")
        self.now += max(TICK, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time; for code that uses no sockets, threads or subprocesses."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)
        self.wall_offset = WALL_BEGINNING - BEGINNING

    def time(self) -> float:
        """The virtual clock."""
        return self._virtual.now

    def wall(self) -> float:
        """The virtual wall clock, which may be set."""
        return self._virtual.now + self.wall_offset

    def freeze(self, seconds: float) -> None:
        """Let time pass with nobody awake: all that was due meanwhile is late."""
        self._virtual.now += seconds

    def create_future(self) -> asyncio.Future[Any]:
        """A future with a number."""
        return NumberedFuture(loop=self)

    def _write_to_self(self) -> None:
        """Nothing sleeps in a selector, so nobody needs to be woken."""


@contextmanager
def virtual_time(loop: VirtualLoop, seed: int) -> Iterator[None]:
    """Have the whole program read this loop's clocks, and draw its entropy from ``seed``."""
    entropy = Random(seed)
    Numbered.made = 0
    replaced: list[tuple[Any, str, Any]] = [
        (time, "monotonic", loop.time),
        (time, "time", loop.wall),
        (Connection, "__hash__", Numbered.__hash__),
        (secrets, "token_bytes", lambda size=32: entropy.randbytes(size)),
        (secrets, "token_hex", lambda size=32: entropy.randbytes(size).hex()),
        (secrets, "randbits", entropy.getrandbits),
        (random.SystemRandom, "random", lambda _: entropy.random()),
        (random.SystemRandom, "getrandbits", lambda _, bits: entropy.getrandbits(bits)),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def run_virtually(
    scenario: Callable[[VirtualLoop], Coroutine[Any, Any, T]], seed: int, *, at_most: float
) -> T:
    """Run a scenario to its end on a loop of its own.

    Args:
        scenario: Called with the loop.
        seed: Of everything that the program draws.
        at_most: Virtual seconds.

    Raises:
        Stuck: It waits for what cannot come, or takes longer.
    """
    loop = VirtualLoop()
    asyncio.set_event_loop(None)

    async def bounded() -> T:
        try:
            async with asyncio.timeout(at_most):
                return await scenario(loop)
        except TimeoutError as error:
            raise Stuck(f"not over after {at_most:.0f} virtual seconds") from error

    try:
        with virtual_time(loop, seed):
            return loop.run_until_complete(bounded())
    finally:
        loop.close()
