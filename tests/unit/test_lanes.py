"""Lanes over connections that only keep what is sent: the receiver can decode all of it."""

import asyncio
import mmap
from collections.abc import Awaitable, Callable, Collection
from random import Random
from typing import Any

import pytest

from flatship_protocol.codec import Decompressor, HistoryDecoder
from flatship_protocol.connection import FRAME_SIZE, PAGE
from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.digest import chunk_digest
from flatship_protocol.messages import Chunk, Codec, decode
from flatship_sender.lanes import GROUP, Lane, Lanes
from flatship_sender.plan import ReadChunk
from flatship_sender.prepare import Address, Laid, Prepared
from flatship_sender.rungs import ALONE, Rung

MIB = CHUNK_SIZE
ADDRESS = Address(0, 1, 7)
WINDOW_LOG = 20
SIZE = 64 << 10  # bytes of the chunks here
HISTORY = Rung(1, 1e9, 2.0, history=True)


class Wire:
    """A connection that takes a message when it is let, and decodes what it took."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.free.set()
        self.closed = False
        self.seal_seconds = 0.0
        self.chunks: list[Chunk] = []
        self.arrived: list[bytes] = []
        self._decoder = HistoryDecoder(WINDOW_LOG)

    async def send(self, message: memoryview) -> int:
        await self.free.wait()
        _, chunk = decode(memoryview(bytes(message)))
        assert isinstance(chunk, Chunk)
        self.chunks.append(chunk)
        literals = bytearray(chunk.literal_length)
        if chunk.codec is Codec.RAW:
            literals[:] = chunk.payload
        elif chunk.codec is Codec.ZSTD:
            Decompressor().decompress_into(chunk.payload, memoryview(literals))
        else:
            self._decoder.decode_into(chunk.payload, memoryview(literals), begin=chunk.begin)
        assert chunk_digest(literals) == chunk.digest
        self.arrived.append(bytes(literals))
        return len(message)


class Connections:
    """Stands for ``Client``."""

    def __init__(self, *wires: Wire) -> None:
        self.wires = list(wires)
        self.kept = 0

    @property
    def live(self) -> int:
        return len(self.wires)

    def is_live(self, wire: Wire) -> bool:
        return wire in self.wires

    def pick(self, others: Collection[Wire]) -> Wire:
        return next((wire for wire in self.wires if wire not in others), self.wires[0])

    def keep(self, _: Wire) -> None:
        self.kept += 1

    def let_go(self, _: Wire) -> None:
        self.kept -= 1


class Threadless:
    """Stands for ``Workers``."""

    def __init__(self) -> None:
        self.calls = 0

    async def run(self, call: Callable[..., Any], /, *args: Any) -> Any:
        self.calls += 1
        await asyncio.sleep(0)
        return call(*args)


def lanes(client: Connections, streams: int = 1, workers: Threadless | None = None) -> Lanes:
    made: Any = client
    threads: Any = workers or Threadless()
    return Lanes(made, threads, WINDOW_LOG, streams)


def text(number: int) -> bytes:
    """Chunks that shrink, and that have much in common."""
    line = b"%d: GET /index.html HTTP/1.1\r\n" % number + Random(number % 3).randbytes(600)
    return (line * (SIZE // len(line) + 1))[:SIZE]


def laid(number: int, data: bytes) -> tuple[Laid, memoryview]:
    frame = memoryview(mmap.mmap(-1, FRAME_SIZE))
    frame[PAGE : PAGE + len(data)] = data
    chunk = ReadChunk(number * MIB, len(data))
    return Laid(chunk, chunk_digest(data), 0.0, 0.0, literal=len(data)), frame


async def ship(
    lane: Lane, number: int, data: bytes, rung: Rung = HISTORY, *, send: bool = True
) -> Prepared:
    chunk, frame = laid(number, data)
    async with lane.turn(chunk, ADDRESS, lambda: rung, frame) as turn:
        if send:
            await turn.send()
        return turn.prepared


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())


def test_chunks_go_in_the_order_in_which_they_were_coded_each_with_what_went_before() -> None:
    async def scenario() -> None:
        wire = Wire()
        client = Connections(wire)
        lane = lanes(client).lane(0, 0)
        await asyncio.gather(*(ship(lane, number, text(number)) for number in range(12)))
        assert wire.arrived == [text(number) for number in range(12)]
        assert {chunk.codec for chunk in wire.chunks} == {Codec.HISTORY}
        assert [chunk.begin for chunk in wire.chunks] == [True] + [False] * 11
        sizes = [len(chunk.payload) for chunk in wire.chunks]
        assert max(sizes[3:]) < min(sizes[:3]) / 2  # these have all been there before
        assert client.kept == lane.waiting == 0

    run(scenario)


def test_the_stream_begins_anew_after_a_chunk_that_was_coded_and_not_sent() -> None:
    async def scenario() -> None:
        wire = Wire()
        client = Connections(wire)
        lane = lanes(client).lane(0, 0)
        await ship(lane, 0, text(0))
        await ship(lane, 1, text(1), send=False)
        await ship(lane, 2, text(2))
        assert [chunk.begin for chunk in wire.chunks] == [True, True]
        assert wire.arrived == [text(0), text(2)]
        assert client.kept == lane.waiting == 0

    run(scenario)


def test_the_stream_begins_anew_after_a_turn_that_was_cancelled() -> None:
    async def scenario() -> None:
        wire = Wire()
        client = Connections(wire)
        lane = lanes(client).lane(0, 0)
        wire.free.clear()
        first = asyncio.create_task(ship(lane, 0, text(0)))
        second = asyncio.create_task(ship(lane, 1, text(1)))
        for _ in range(10):
            await asyncio.sleep(0)
        second.cancel()  # coded, and waiting for the first one
        await asyncio.wait({second})
        wire.free.set()
        await first
        await ship(lane, 2, text(2))
        assert wire.arrived == [text(0), text(2)]
        assert client.kept == lane.waiting == 0

    run(scenario)


def test_one_chunk_is_coded_while_one_is_sent_and_no_further() -> None:
    async def scenario() -> None:
        wire, workers = Wire(), Threadless()
        lane = lanes(Connections(wire), workers=workers).lane(0, 0)
        wire.free.clear()
        tasks = [asyncio.create_task(ship(lane, number, text(number))) for number in range(5)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert workers.calls == 2
        wire.free.set()
        await asyncio.gather(*tasks)
        assert wire.arrived == [text(number) for number in range(5)]

    run(scenario)


def test_no_stream_begins_on_another_connection_before_the_old_one_is_closed() -> None:
    async def scenario() -> None:
        old, new = Wire(), Wire()
        client = Connections(old)
        lane = lanes(client).lane(0, 0)
        await ship(lane, 0, text(0))
        client.wires = [new]
        await ship(lane, 1, text(1))
        assert [chunk.codec for chunk in new.chunks] == [Codec.ZSTD]
        old.closed = True
        await ship(lane, 2, text(2))
        await ship(lane, 3, text(3))
        assert [chunk.codec for chunk in new.chunks[1:]] == [Codec.HISTORY] * 2
        assert [chunk.begin for chunk in new.chunks[1:]] == [True, False]
        assert len(old.chunks) == 1

    run(scenario)


def test_a_connection_carries_one_stream_at_most() -> None:
    async def scenario() -> None:
        first, second = Wire(), Wire()
        client = Connections(first, second)
        both = lanes(client, streams=2)
        one = both.lane(0, 0)
        await ship(one, 0, text(0))
        client.wires = [first]
        other = next(lane for lane in both._lanes if lane is not one)
        await ship(other, 1, text(1))
        assert [chunk.codec for chunk in first.chunks] == [Codec.HISTORY, Codec.ZSTD]

    run(scenario)


def test_noise_goes_raw_and_the_stream_goes_on_without_it() -> None:
    async def scenario() -> None:
        wire = Wire()
        lane = lanes(Connections(wire)).lane(0, 0)
        noise = Random(1).randbytes(SIZE)
        await ship(lane, 0, text(0))
        prepared = await ship(lane, 1, noise)
        assert not prepared.coded
        await ship(lane, 2, text(0))
        assert [chunk.codec for chunk in wire.chunks] == [Codec.HISTORY, Codec.RAW, Codec.HISTORY]
        assert not wire.chunks[2].begin
        assert wire.arrived == [text(0), noise, text(0)]

    run(scenario)


def test_another_level_begins_a_frame_and_a_rung_without_history_none() -> None:
    async def scenario() -> None:
        wire = Wire()
        lane = lanes(Connections(wire)).lane(0, 0)
        await ship(lane, 0, text(0))
        await ship(lane, 1, text(1), Rung(3, 1e9, 2.0, history=True))
        await ship(lane, 2, text(2), ALONE[3])
        await ship(lane, 3, text(3), ALONE[0])
        codecs = [Codec.HISTORY, Codec.HISTORY, Codec.ZSTD, Codec.RAW]
        assert [chunk.codec for chunk in wire.chunks] == codecs
        assert [chunk.begin for chunk in wire.chunks] == [True, True, False, False]

    run(scenario)


def test_neighbours_go_to_one_lane_and_a_new_group_to_the_one_that_has_least() -> None:
    async def scenario() -> None:
        wires = Wire(), Wire()
        both = lanes(Connections(*wires), streams=2)
        first = both.lane(0, 0)
        assert both.lane(0, GROUP - MIB) is first
        for wire in wires:
            wire.free.clear()
        tasks = [asyncio.create_task(ship(first, number, text(number))) for number in range(2)]
        await asyncio.sleep(0)
        second = both.lane(0, GROUP)
        assert second is not first
        assert both.lane(1, 0) is second  # another disk
        for wire in wires:
            wire.free.set()
        await asyncio.gather(*tasks)

    run(scenario)


@pytest.mark.parametrize(("connections", "streams", "count"), [(4, 2, 2), (1, 2, 1), (3, 8, 3)])
def test_there_are_as_many_lanes_as_streams_or_connections(
    connections: int, streams: int, count: int
) -> None:
    async def scenario() -> None:
        client = Connections(*(Wire() for _ in range(connections)))
        assert lanes(client, streams).count == count

    run(scenario)
