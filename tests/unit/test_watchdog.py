"""When a connection is given up, to the second, on a clock that only moves when nobody runs."""

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Iterator

import pytest

from flatship_protocol.connection import (
    IDLE_TIMEOUT,
    KEEPALIVE_INTERVAL,
    MIN_PROGRESS,
)
from flatship_protocol.connection.watchdog import WATCH_INTERVAL, Watchdog
from flatship_protocol.constants import MAX_CIPHERTEXT
from flatship_protocol.errors import ConnectionLost

SLOW_LINK = 64_000 / 8  # bytes per second
MOST_CONNECTIONS = 14
HOUR = 3600.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Goes to the next timer at once when nothing is ready to run."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0]._when)
        super()._run_once()


class Link:
    """A stream on which only the time of arrival is real."""

    peer = "192.0.2.1:7071"

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.heard_at = now()

    def close(self) -> None:
        self.closed.set()

    async def carry(self, seconds: float, every: float) -> None:
        """Have something come now and then for so many seconds, then be done."""
        end = now() + seconds
        while not self.closed.is_set() and now() < end:
            try:
                async with asyncio.timeout(min(every, end - now())):
                    await self.closed.wait()
            except TimeoutError:
                self.heard_at = now()
        if self.closed.is_set():
            raise ConnectionLost("closed")


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
def run() -> Iterator[Callable[[Callable[[], Awaitable[None]]], None]]:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        yield lambda scenario: runner.run(scenario())


def test_a_connection_on_which_nothing_comes_is_given_up_after_the_idle_timeout(run):
    async def scenario():
        link, started = Link(), now()
        with pytest.raises(ConnectionLost, match="has been silent for 30 s"):
            await Watchdog(link).during(link.carry(HOUR, every=HOUR))
        assert IDLE_TIMEOUT <= now() - started <= IDLE_TIMEOUT + WATCH_INTERVAL

    run(scenario)


def test_half_open_connections_are_found_within_half_a_minute():
    assert IDLE_TIMEOUT <= 30
    assert IDLE_TIMEOUT >= 3 * KEEPALIVE_INTERVAL


def test_a_connection_on_which_anything_comes_within_the_idle_timeout_lives(run):
    async def scenario():
        link = Link()
        await Watchdog(link).during(link.carry(HOUR, every=IDLE_TIMEOUT - WATCH_INTERVAL))

    run(scenario)


def test_a_record_may_take_as_long_as_on_a_slow_link_with_all_connections_in_use(run):
    async def scenario():
        link = Link()
        seconds = MAX_CIPHERTEXT / (SLOW_LINK / MOST_CONNECTIONS)
        await Watchdog(link).during_body(MAX_CIPHERTEXT, link.carry(seconds, every=3.0))

    run(scenario)


def test_a_record_that_dribbles_is_given_up_though_it_moves(run):
    async def scenario():
        link, started = Link(), now()
        with pytest.raises(ConnectionLost, match="sends less than 512 bytes a second"):
            await Watchdog(link).during_body(MAX_CIPHERTEXT, link.carry(2 * HOUR, every=3.0))
        due = MAX_CIPHERTEXT / MIN_PROGRESS
        assert due <= now() - started <= due + WATCH_INTERVAL

    run(scenario)


def test_time_in_which_nobody_waited_does_not_count(run):
    """A receiver whose storage hung did not read; when it reads again, its sender has a chance."""

    async def scenario():
        link = Link()
        watchdog = Watchdog(link)
        await asyncio.sleep(HOUR)
        assert not link.closed.is_set()
        await watchdog.during(link.carry(IDLE_TIMEOUT - WATCH_INTERVAL, every=HOUR))

    run(scenario)
