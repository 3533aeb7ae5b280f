"""All connections share one limit, by what they put on the wire."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from flatship_protocol.connection import UNPACED, SocketStream, Wire
from flatship_protocol.errors import ConnectionLost
from flatship_sender.pacing import DEPTH
from flatship_sender.throttle import Throttle

MEGABYTE = 1_000_000
SEGMENT, HEADER = 1448, 66


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    async def until(self, when: float) -> None:
        while self.now < when:  # noqa: ASYNC110  # it passes while others sleep
            await asyncio.sleep(0)


class FakeStream:
    """A stream whose link takes everything at once, in full packets, and some of it twice."""

    peer = "192.0.2.1:7071"

    def __init__(self, *, resent: float = 0.0) -> None:
        self.written = 0
        self.resent = resent  # share of what is written
        self.paces: list[int] = []
        self.throttle: Throttle | None = None
        self.closed = False

    def throttle_by(self, throttle: Throttle) -> None:
        self.throttle = throttle

    def pace(self, rate: int, unsent: int) -> None:
        self.wire()
        self.paces.append(rate)

    @property
    def carried(self) -> int:
        packets = -(-self.written // SEGMENT)
        return int((self.written + packets * HEADER) * (1 + self.resent))

    def wire(self) -> Wire:
        if self.closed:
            raise ConnectionLost("closed")
        return Wire(self.carried, self.written, SEGMENT, HEADER)

    async def write(self, size: int) -> None:
        while size:
            assert self.throttle is not None
            count = await self.throttle.admit(cast(SocketStream, self), size)
            assert 1 <= count <= size
            self.written += count
            size -= count


def throttled(
    scenario: Callable[[Throttle, Clock], Awaitable[None]], rate: float | None = MEGABYTE
) -> None:
    async def run() -> None:
        clock = Clock()
        await scenario(Throttle(rate, clock, clock.sleep), clock)

    asyncio.run(run())


def add(throttle: Throttle, stream: FakeStream) -> FakeStream:
    throttle.add(cast(SocketStream, stream))
    return stream


def test_one_busy_connection_of_four_gets_all_of_the_limit() -> None:
    async def scenario(throttle: Throttle, clock: Clock) -> None:
        busy, *_ = (add(throttle, FakeStream()) for _ in range(4))
        await busy.write(10 * MEGABYTE)
        assert busy.carried / clock.now == pytest.approx(MEGABYTE, rel=0.02)

    throttled(scenario)


def test_busy_connections_share_the_limit_fairly() -> None:
    async def scenario(throttle: Throttle, clock: Clock) -> None:
        streams = [add(throttle, FakeStream()) for _ in range(4)]
        async with asyncio.TaskGroup() as tasks:
            writes = [tasks.create_task(each.write(5 * MEGABYTE)) for each in streams]
            await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)
            assert sum(each.carried for each in streams) / clock.now == pytest.approx(
                MEGABYTE, rel=0.02
            )
            least, most = (choose(each.written for each in streams) for choose in (min, max))
            assert most - least <= MEGABYTE / 10

    throttled(scenario)


@pytest.mark.parametrize("size", [40, 1448, 64 << 10])
def test_headers_and_what_is_sent_twice_count(size: int) -> None:
    async def scenario(throttle: Throttle, clock: Clock) -> None:
        stream = add(throttle, FakeStream(resent=0.25))
        while clock.now < 20:
            await stream.write(size)
        assert stream.carried / clock.now == pytest.approx(MEGABYTE, rel=0.02)

    throttled(scenario)


def test_what_a_connection_sent_before_it_was_added_counts() -> None:
    async def scenario(throttle: Throttle, clock: Clock) -> None:
        stream = FakeStream()
        stream.written = MEGABYTE
        add(throttle, stream)
        await stream.write(SEGMENT)
        assert clock.now == pytest.approx(1.05, rel=0.05)

    throttled(scenario)


def test_a_small_message_waits_for_a_slice_of_each_other_connection_and_not_for_their_chunks() -> (
    None
):
    async def scenario(throttle: Throttle, clock: Clock) -> None:
        streams = [add(throttle, FakeStream()) for _ in range(4)]
        aside = add(throttle, FakeStream())
        async with asyncio.TaskGroup() as tasks:
            writes = [tasks.create_task(each.write(MEGABYTE)) for each in streams]
            await clock.until(1)
            asked = clock.now
            await aside.write(40)
            assert clock.now - asked < 0.1
            for each in writes:
                each.cancel()

    throttled(scenario)


def test_a_changed_limit_counts_at_once_in_both_directions() -> None:
    async def scenario(throttle: Throttle, clock: Clock) -> None:
        stream = add(throttle, FakeStream())
        for rate in (MEGABYTE, 10 * MEGABYTE, MEGABYTE / 10):
            throttle.set_rate(rate)
            since, carried = clock.now, stream.carried
            await stream.write(int(10 * rate))
            took = clock.now - since
            assert stream.carried - carried == pytest.approx(rate * took, rel=0.02)

    throttled(scenario)


def test_a_connection_that_waits_is_let_go_when_the_limit_goes() -> None:
    async def scenario(throttle: Throttle, clock: Clock) -> None:
        stream = add(throttle, FakeStream())
        writing = asyncio.create_task(stream.write(100 * MEGABYTE))
        await clock.until(1)
        throttle.set_rate(None)
        await writing
        assert clock.now < 1.5
        assert stream.paces[-1] == UNPACED
        assert throttle.rate is None

    throttled(scenario)


def test_a_limit_that_comes_back_charges_nothing_for_the_time_without_one() -> None:
    async def scenario(throttle: Throttle, clock: Clock) -> None:
        stream = add(throttle, FakeStream(resent=0.25))
        await stream.write(100 * MEGABYTE)
        throttle.set_rate(MEGABYTE)
        await stream.write(int(MEGABYTE * DEPTH))
        assert clock.now < 0.3

    throttled(scenario, rate=None)


def test_without_a_limit_everything_goes_in_one_piece() -> None:
    async def scenario(throttle: Throttle, clock: Clock) -> None:
        stream = add(throttle, FakeStream())
        assert await throttle.admit(cast(SocketStream, stream), 5 * MEGABYTE) == 5 * MEGABYTE
        assert not throttle.waited
        assert clock.now == 0

    throttled(scenario, rate=None)


def test_a_closed_connection_is_forgotten_and_who_waits_on_it_hears_of_it() -> None:
    async def scenario(throttle: Throttle, clock: Clock) -> None:
        gone, other = add(throttle, FakeStream()), add(throttle, FakeStream())
        gone.closed = True
        await other.write(MEGABYTE)
        with pytest.raises(ConnectionLost, match=r"192\.0\.2\.1:7071 is closed"):
            await gone.write(1)
        throttle.set_rate(2 * MEGABYTE)

    throttled(scenario)
