"""Keeps the page up to date at whoever looks at it, by server-sent events.

A moment is encoded once for all viewers. One that does not read costs a buffer, skips to the
newest moment when it reads again, and is dropped after PATIENCE: it never holds anything up.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from flatship_service.page.view import PageSource, Sample, View

if TYPE_CHECKING:
    from aiohttp import web

INTERVAL: Final = 1.0  # seconds between two moments
MAX_VIEWERS: Final = 256
PATIENCE: Final = 30.0  # seconds that a viewer may take to read one moment
HISTORY: Final = 900  # samples: a quarter of an hour
SEND_BUFFER: Final = 64 << 10  # bytes that the kernel keeps for a viewer
BATCH: Final = 16  # viewers told in one go, so that none of them holds up a transfer
RETRY: Final = 3000  # milliseconds after which a browser that was cut off comes again

HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # a proxy that waits for the end would show nothing
}

log = logging.getLogger(__name__)


class Moment:
    """One view, encoded: for those who have seen the one before, and for those who have not."""

    def __init__(self, number: int, view: View, history: "deque[Sample]") -> None:
        self.number = number
        self.tick = _event(msgspec.structs.replace(view, history=list(history)[-1:]))
        self._view = view
        self._history = list(history)
        self._full: bytes | None = None

    @property
    def full(self) -> bytes:
        """With all of the history; encoded when the first one asks for it."""
        if self._full is None:
            view = msgspec.structs.replace(self._view, history=self._history, full=True)
            self._full = _event(view)
        return self._full


def _event(view: View) -> bytes:
    # JSON has no bare line breaks, so that one data line holds it.
    return b"data: " + msgspec.json.encode(view) + b"\n\n"


class Viewers:
    """Serves ``/events``.

    Args:
        source: What is shown.
        monotonic: Seconds.
    """

    def __init__(
        self, source: PageSource, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._monotonic = monotonic
        self._history: deque[Sample] = deque(maxlen=HISTORY)
        self._moment: Moment | None = None
        self._looks = 0
        self._taken = 0  # which look the moment is of
        self._waking: set[asyncio.Event] = set()
        self._leaving = False
        self._defect = ""

    @property
    def count(self) -> int:
        """Viewers at present."""
        return len(self._waking)

    @asynccontextmanager
    async def kept_up(self) -> AsyncIterator[None]:
        """In the block viewers are told; after it, they have been sent away."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self._leaving = True
            for waking in self._waking:
                waking.set()

    async def events(self, request: "web.Request") -> "web.StreamResponse":
        """Tell one viewer all moments from now on, until it leaves."""
        from aiohttp import web  # noqa: PLC0415

        if request.method == "HEAD":
            return web.Response(headers=HEADERS)
        if self.count >= MAX_VIEWERS:
            return web.Response(
                status=503,
                text=f"{MAX_VIEWERS} viewers look at this page already; try again later\n",
                headers={"Retry-After": "30"},
            )
        waking = asyncio.Event()
        self._waking.add(waking)
        try:
            return await self._tell(request, waking)
        finally:
            self._waking.discard(waking)

    async def _tell(self, request: "web.Request", waking: asyncio.Event) -> "web.StreamResponse":
        from aiohttp import ClientConnectionResetError, web  # noqa: PLC0415

        _keep_small(request)
        response = web.StreamResponse(headers=HEADERS)
        seen = None
        try:
            await response.prepare(request)
            await response.write(b"retry: %d\n\n" % RETRY)
            while not self._leaving:
                waking.clear()
                moment = self._now()
                if moment is not None and moment.number != seen:
                    follows = moment.number - 1 == seen
                    async with asyncio.timeout(PATIENCE):
                        await response.write(moment.tick if follows else moment.full)
                    seen = moment.number
                await waking.wait()
        except (ConnectionResetError, ClientConnectionResetError):
            pass  # it has left
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _run(self) -> None:
        due = self._monotonic()
        while True:
            self._look()
            if self._waking:
                self._take()
            for number, waking in enumerate(list(self._waking), 1):
                waking.set()
                if number % BATCH == 0:
                    await asyncio.sleep(0.002)
            due = max(due + INTERVAL, self._monotonic())
            await asyncio.sleep(due - self._monotonic())

    def _look(self) -> None:
        self._looks += 1
        try:
            self._history.append(self._source.look(self._monotonic()))
        except Exception as error:
            self._note(error)

    def _now(self) -> Moment | None:
        """The newest moment; a viewer that comes when nobody looked gets one made for it."""
        if self._moment is None or self._taken != self._looks:
            return self._take()
        return self._moment

    def _take(self) -> Moment | None:
        self._taken = self._looks
        number = 0 if self._moment is None else self._moment.number + 1
        try:
            view = self._source.view(self._monotonic())
            self._moment = Moment(number, view, self._history)
        except Exception as error:
            self._note(error)
        return self._moment

    def _note(self, error: Exception) -> None:
        """A defect of ours costs the page its newest moment, and no transfer anything."""
        if repr(error) != self._defect:  # once, not every second
            self._defect = repr(error)
            log.error("the page is not up to date: %s", self._defect)


def _keep_small(request: "web.Request") -> None:
    """Have neither the kernel nor us keep much for a viewer that does not read."""
    import socket  # noqa: PLC0415

    transport = request.transport
    if transport is None:
        return
    transport.set_write_buffer_limits(high=SEND_BUFFER)
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
