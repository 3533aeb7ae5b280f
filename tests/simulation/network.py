"""An in-memory network: byte streams whose links delay, stall, break, and spoil what they carry."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from flatship_protocol.errors import ConnectionClosed, ConnectionLost

PIPE_CAPACITY = 256 * 1024  # bytes in flight in one direction; more makes the writer wait


@dataclass(slots=True)
class Faults:
    """What one direction of a link does to its bytes.

    ``cut_after`` bytes the link breaks in both directions; from ``stall_after`` bytes on
    it takes nothing any more and says nothing; at ``flip_at`` one bit is wrong; what is
    put on the way at ``repeat_at`` comes twice, and at ``swap_at`` its halves change places. With
    ``fragments`` every read and write is split where it says. ``latency`` is in
    seconds, ``rate`` in bytes a second; None is no limit.
    """

    cut_after: int | None = None
    stall_after: int | None = None
    flip_at: int | None = None
    repeat_at: int | None = None
    swap_at: int | None = None
    fragments: Random | None = None
    latency: float = 0.0
    rate: float | None = None
    carried: Callable[[int], None] | None = None  # told how many bytes were put on the way


class Pipe:
    """One direction: bytes on their way, in order."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.carried = 0
        self.twin: Pipe | None = None  # the link's other direction
        self._buffer = bytearray()
        self._under_way = 0
        self._free_at = 0.0  # when the link has sent all that it was given
        self._ended = False
        self._broken = False
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def write(
        self, view: memoryview, closed: Callable[[], bool], taken: Callable[[], None]
    ) -> None:
        """Put all of ``view`` on the way; waits while the pipe is full, and says when it is not."""
        while view:
            if closed() or self._broken or self._ended:
                raise ConnectionLost("the link broke")
            room = self._room(len(view))
            if not room:
                await self._change()
                if self._room(len(view)):
                    taken()
                continue
            self._put(bytes(view[:room]))
            view = view[room:]
            if self.faults.fragments is not None:
                await asyncio.sleep(0)

    async def read_some(self, view: memoryview, closed: Callable[[], bool]) -> int:
        """Move what is there to ``view``; 0 at the end."""
        while not self._buffer:
            if closed() or self._broken:
                raise ConnectionLost("the link broke")
            if self._ended and not self._under_way:
                return 0
            await self._change()
        count = min(len(view), len(self._buffer), self._fragment())
        view[:count] = self._buffer[:count]
        del self._buffer[:count]
        self.wake()
        return count

    def end(self) -> None:
        """Nothing follows what is on its way."""
        self._ended = True
        self.wake()

    def break_(self) -> None:
        """Lose what is on its way."""
        self._broken = True
        self._buffer.clear()
        self.wake()

    def stall(self) -> None:
        """Take nothing more, and say nothing."""
        self.faults.stall_after = self.carried

    def wake(self) -> None:
        """Let both ends look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        await self._changed.wait()

    def _fragment(self) -> int:
        fragments = self.faults.fragments
        return PIPE_CAPACITY if fragments is None else fragments.choice((1, 7, 8, 500, 70_000))

    def _room(self, wanted: int) -> int:
        taken = len(self._buffer) + self._under_way
        room = min(wanted, PIPE_CAPACITY - taken, self._fragment())
        for limit in (self.faults.stall_after, self.faults.cut_after):
            if limit is not None:
                room = min(room, limit - self.carried)
        return max(0, room)

    def _put(self, data: bytes) -> None:
        start, self.carried = self.carried, self.carried + len(data)
        data = self._spoiled(data, start)
        faults = self.faults
        if faults.carried is not None:
            faults.carried(len(data))
        if faults.rate is None and not faults.latency:
            self._arrive(data)
        else:
            now = self._loop.time()
            self._free_at = max(self._free_at, now) + len(data) / (faults.rate or float("inf"))
            self._under_way += len(data)
            self._loop.call_at(self._free_at + faults.latency, self._deliver, data)
        if self.carried == faults.cut_after:
            self.break_()
            if self.twin is not None:
                self.twin.break_()

    def _spoiled(self, data: bytes, start: int) -> bytes:
        def meets(place: int | None) -> bool:
            return place is not None and start <= place < self.carried

        faults = self.faults
        if meets(faults.flip_at):
            assert faults.flip_at is not None
            spoiled = bytearray(data)
            spoiled[faults.flip_at - start] ^= 1
            data = bytes(spoiled)
        if meets(faults.repeat_at):
            data += data
        if meets(faults.swap_at):
            data = data[len(data) // 2 :] + data[: len(data) // 2]
        return data

    def _deliver(self, data: bytes) -> None:
        self._under_way -= len(data)
        self._arrive(data)

    def _arrive(self, data: bytes) -> None:
        if not self._broken:
            self._buffer += data
        self.wake()


class MemoryStream:
    """One end of a link: a ``Stream``."""

    def __init__(self, peer: str, incoming: Pipe, outgoing: Pipe) -> None:
        self.peer = peer
        self.closed = False
        self.incoming = incoming
        self.outgoing = outgoing
        self._loop = asyncio.get_running_loop()
        self.heard_at = self.taken_at = self._loop.time()

    async def read_exactly(self, view: memoryview) -> None:
        """See Stream."""
        while view:
            count = await self.incoming.read_some(view, lambda: self.closed)
            if count == 0:
                raise ConnectionClosed(f"{self.peer} closed the connection")
            self.heard_at = self._loop.time()
            view = view[count:]

    async def write_all(self, view: memoryview) -> None:
        """See Stream."""
        await self.outgoing.write(view, lambda: self.closed, self._taken)

    def _taken(self) -> None:
        self.taken_at = self._loop.time()

    async def drain(self, seconds: float) -> None:
        """See Stream."""
        self.outgoing.end()
        rest = memoryview(bytearray(PIPE_CAPACITY))
        try:
            async with asyncio.timeout(seconds):
                while await self.incoming.read_some(rest, lambda: self.closed):
                    pass
        except (TimeoutError, ConnectionLost):
            return

    def close(self) -> None:
        """See Stream. What was written still arrives; what comes is lost."""
        self.closed = True
        self.outgoing.end()
        self.incoming.end()

    def break_(self) -> None:
        """Let both ends find the link broken."""
        self.outgoing.break_()
        self.incoming.break_()

    def stall(self) -> None:
        """Let neither end hear of the other any more."""
        self.outgoing.stall()
        self.incoming.stall()


def link(to_receiver: Faults, to_sender: Faults) -> tuple[MemoryStream, MemoryStream]:
    """The sender's and the receiver's end of a fresh link."""
    there, back = Pipe(to_receiver), Pipe(to_sender)
    there.twin, back.twin = back, there
    return MemoryStream("receiver", back, there), MemoryStream("sender", there, back)
