"""Deadlines of a connection. SPEC.md, "Liveness"."""

import asyncio
from collections.abc import Awaitable
from typing import Final

from flatship_protocol.connection.deadlines import IDLE_TIMEOUT, MIN_PROGRESS, PROGRESS_WINDOW
from flatship_protocol.connection.stream import Stream
from flatship_protocol.errors import ConnectionLost

WATCH_INTERVAL: Final = 1.0  # seconds between two looks at a connection's deadlines


class Watchdog:
    """Notices that a connection is dead, or that its peer sends too slowly; one timer for both.

    Dead is a stream on which nothing comes although somebody waits: whoever
    lives says at least PING. A slow link is not dead, nor is a receiver whose
    storage hangs. A timeout of asyncio for each operation would cost two
    timers and a context a record.

    Args:
        stream: Closed when a deadline has passed; what waits on it then fails.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._waiting = 0
        self._waiting_since = 0.0
        self._body_due: float | None = None
        self._verdict: str | None = None
        self._timer = self._loop.call_later(WATCH_INTERVAL, self._look)

    async def during(self, moving: Awaitable[None]) -> None:
        """Await ``moving`` as long as the stream lives.

        Raises:
            ConnectionLost: It does not, or ``moving`` failed by itself.
        """
        if not self._waiting:  # while nobody waited there was nothing to be late
            self._waiting_since = self._loop.time()
        self._waiting += 1
        try:
            await moving
        except ConnectionLost as error:
            if self._verdict is None:
                raise
            raise ConnectionLost(f"{self._stream.peer} {self._verdict}") from error
        finally:
            self._waiting -= 1

    async def during_body(self, size: int, moving: Awaitable[None]) -> None:
        """Await ``moving``, which receives ``size`` bytes and must not take for ever."""
        self._body_due = self._loop.time() + max(PROGRESS_WINDOW, size / MIN_PROGRESS)
        try:
            await self.during(moving)
        finally:
            self._body_due = None

    def end(self) -> None:
        """Watch no longer."""
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        silent_since = max(self._stream.heard_at, self._waiting_since)
        if self._waiting and now - silent_since >= IDLE_TIMEOUT:
            self._verdict = f"has been silent for {IDLE_TIMEOUT:.0f} s"
        elif self._body_due is not None and now >= self._body_due:
            self._verdict = f"sends less than {MIN_PROGRESS} bytes a second"
        if self._verdict is None:
            self._timer = self._loop.call_later(WATCH_INTERVAL, self._look)
        else:
            self._stream.close()
