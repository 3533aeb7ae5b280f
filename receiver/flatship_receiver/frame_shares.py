"""How sessions share the receiver's frames, so that none that does not get on takes them all.

A session whose datastore hangs keeps the frames of the chunks that are being written, for as
long as it hangs, and it is known only afterwards which of them that was. So each may have as
many as are free at that moment: half of them alone, and what hangs leaves as many as it took
to whoever comes next. See Choudhury and Hahne, "Dynamic queue length thresholds for
shared-memory packet switches" (1998).
"""

import asyncio
from collections import deque
from typing import Protocol


class Frames(Protocol):
    """Where frames come from; ``FramePool`` is that, and a share of one."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    @property
    def in_use(self) -> int:
        """Frames that are not free."""
        ...

    async def acquire(self) -> memoryview:
        """Wait for a frame."""
        ...

    def release(self, frame: memoryview) -> None:
        """Give back a frame; no view of it may be used afterwards."""
        ...


class FrameShares:
    """Gives the frames of a pool to shares of it; nobody else takes from the pool.

    Args:
        pool: The frames.
    """

    def __init__(self, pool: Frames) -> None:
        self.count = pool.count
        self._pool = pool
        self._waiting: deque[tuple[FrameShare, asyncio.Future[None]]] = deque()
        self._promised = 0  # to those who wait, and who have not run since

    def share(self) -> "FrameShare":
        """A share for one more session."""
        return FrameShare(self)

    def may_take(self, share: "FrameShare") -> bool:
        """Whether a share may have one more."""
        return share.held < self._pool.count - self._pool.in_use - self._promised

    async def acquire(self, share: "FrameShare") -> memoryview:
        """Wait for a frame; the longest waiter is served first of those who may have one."""
        if not self.may_take(share):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((share, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._unpromise(share)
                    self._serve()
                raise
            self._unpromise(share)
        share.held += 1
        return await self._pool.acquire()  # at once: it is free

    def release(self, share: "FrameShare", frame: memoryview) -> None:
        """Take a frame back."""
        share.held -= 1
        self._pool.release(frame)
        self._serve()

    def _serve(self) -> None:
        for waiter in list(self._waiting):
            share, turn = waiter
            if turn.done():
                self._waiting.remove(waiter)
            elif self.may_take(share):
                self._waiting.remove(waiter)
                self._promised += 1
                share.held += 1
                turn.set_result(None)

    def _unpromise(self, share: "FrameShare") -> None:
        self._promised -= 1
        share.held -= 1


class FrameShare:
    """The frames of one session.

    Args:
        shares: Those of all.
    """

    def __init__(self, shares: FrameShares) -> None:
        self._shares = shares
        self.held = 0

    @property
    def count(self) -> int:
        """How many there are in all shares."""
        return self._shares.count

    @property
    def in_use(self) -> int:
        """Frames that the session has, or is about to have."""
        return self.held

    async def acquire(self) -> memoryview:
        """Wait for a frame."""
        return await self._shares.acquire(self)

    def release(self, frame: memoryview) -> None:
        """Give back a frame; no view of it may be used afterwards."""
        self._shares.release(self, frame)
