"""A daemon's page with made-up contents, served as a daemon serves it, for a browser to see."""

import asyncio
import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final

from flatship_service.http import HttpEndpoint
from flatship_service.page.routes import routes
from flatship_service.page.view import (
    DatastoreView,
    DiskView,
    JobView,
    Problem,
    Sample,
    Tone,
    View,
)
from flatship_service.page.viewers import Viewers

GIB: Final = 1 << 30
NOON: Final = 1_795_521_600.0  # some day at noon, UTC


def mapped(*runs: tuple[str, int]) -> str:
    """A map of so many cells of each letter."""
    return "".join(letter * count for letter, count in runs)


def woven(done: int) -> str:
    """A guest's disk of 1,024 cells: data, zeros and holes mixed, of which ``done`` cells came."""
    cells = []
    for cell in range(1024):
        wave = math.sin(cell / 9.0) + math.sin(cell / 31.0) + math.sin(cell * 1.7) / 3
        kind = "h" if cell > 700 and wave < 0.9 else "z" if wave < -0.9 else "d"
        if cell >= done + 24:
            kind = "u"
        elif cell >= done:
            kind = "s" if kind == "d" else kind
        elif kind == "d" and cell < done - 140:
            kind = "p"
        cells.append(kind)
    return "".join(cells)


def disk(number: int, **changes: object) -> DiskView:
    """A disk on its way, but for what is said of it."""
    fields: dict[str, object] = {
        "id": str(number),
        "vm": "web01",
        "disk": "web01",
        "peer": "kvm1",
        "place": "esx-ds1",
        "state": "receiving",
        "tone": Tone.BUSY,
        "size": 80 * GIB,
        "done": 49 * GIB,
        "rate": 11.4e6,
        "left": 2841.0,
        "map": woven(620),
        "cell": 80 << 20,
    }
    return DiskView(**(fields | changes))  # type: ignore[arg-type]


def receiver(**changes: object) -> View:
    """What a busy receiver's page is told."""
    disks = [
        disk(1),
        disk(
            2,
            vm="db02",
            disk="db02-2",
            size=400 * GIB,
            done=301 * GIB,
            tone=Tone.WARN,
            rate=None,
            left=None,
            map=mapped(("e", 420), ("d", 90), ("k", 60), ("z", 150), ("d", 50), ("u", 254)),
            note="nothing has come from the sender for 2m 10s",
            advice="Look at the sender: it may be paused, wait for its source, or be cut off.",
        ),
        disk(
            3,
            vm="mail",
            disk="mail",
            state="proving",
            size=32 * GIB,
            done=32 * GIB,
            proof=0.64,
            rate=212e6,
            left=31.0,
            map=mapped(("p", 500), ("h", 180), ("p", 96), ("d", 148), ("h", 100)),
        ),
        disk(
            4,
            vm="build",
            disk="build",
            state="complete",
            tone=Tone.GOOD,
            size=16 * GIB,
            done=16 * GIB,
            rate=None,
            left=None,
            map=mapped(("p", 300), ("h", 500), ("p", 24), ("z", 100), ("h", 100)),
        ),
        disk(
            5,
            vm="files",
            disk="files-3",
            state="failed",
            tone=Tone.BAD,
            size=2048 * GIB,
            done=212 * GIB,
            rate=None,
            left=None,
            map=mapped(("d", 100), ("z", 8), ("u", 916)),
            note="the datastore is full: 2.0 TiB needed, 812.4 GiB free",
            advice="Make room on the datastore; the sender then goes on where it was.",
        ),
    ]
    fields: dict[str, object] = {
        "program": "receiver",
        "version": "0.1.0",
        "host": "esx-gateway",
        "at": NOON,
        "state": "receiving 3 disks",
        "tone": Tone.BUSY,
        "rate_of": "received, all overhead",
        "rate": 11.8e6,
        "left": 2841.0,
        "disks": disks,
        "datastores": [
            DatastoreView(
                name="esx-ds1",
                size=4096 * GIB,
                free=812 * GIB,
                reserved=61 * GIB,
                expected=130 * GIB,
                full_in=75600.0,
            ),
            DatastoreView(
                name="archive",
                size=1024 * GIB,
                free=58 * GIB,
                reserved=20 * GIB,
                expected=99 * GIB,
                full_in=9000.0,
            ),
        ],
        "problems": [
            Problem(
                at=NOON - 1290,
                subject="files/files-3",
                message="the datastore is full: 2.0 TiB needed, 812.4 GiB free",
                advice="Make room on the datastore; the sender then goes on where it was.",
            )
        ],
    }
    return View(**(fields | changes))  # type: ignore[arg-type]


def sender(**changes: object) -> View:
    """What the page of a sender's daemon is told."""
    fields: dict[str, object] = {
        "program": "sender",
        "host": "kvm1",
        "state": "sending 1 disk",
        "rate_of": "on the wire, all overhead",
        "limit": 12.5e6,
        "compression": "zstd level 9 with history",
        "ratio": 2.71,
        "datastores": None,
        "disks": [
            disk(1, state="sending", peer="esx", place="/dev/vg0/web01", ratio=2.71),
        ],
        "problems": [],
        "queue": [
            job(41, state="running", tone=Tone.BUSY),
            job(42, vm="db02", disks=3, priority=10),
            job(
                43,
                vm="mail",
                state="waiting",
                tone=Tone.WARN,
                attempts=3,
                not_before=NOON + 600,
                note="the datastore's path is missing at the receiver; is it mounted there?",
            ),
        ],
    }
    return receiver(**(fields | changes))


def job(number: int, **changes: object) -> JobView:
    """A job that waits for its turn, but for what is said of it."""
    fields: dict[str, object] = {
        "id": number,
        "vm": "web01",
        "receiver": "esx",
        "state": "queued",
        "tone": Tone.IDLE,
        "disks": 1,
        "priority": 0,
        "attempts": 1,
    }
    return JobView(**(fields | changes))  # type: ignore[arg-type]


class Scene:
    """A ``PageSource`` of which a test says what it shows."""

    def __init__(self, view: View) -> None:
        self.shown = view
        self.address = ""
        self.viewers: Viewers = Viewers(self)
        self._looks = 0

    def past(self, seconds: int = 600) -> None:
        """Have a past to draw, before anybody looks."""
        self.viewers._history.extend(self._sample(second) for second in range(-seconds, 0))

    def look(self, now: float) -> Sample:
        """See ``PageSource``."""
        self._looks += 1
        return self._sample(self._looks)

    def view(self, now: float) -> View:
        """See ``PageSource``."""
        return self.shown

    def _sample(self, second: int) -> Sample:
        limit = self.shown.limit
        top = 11.6e6 if second > -380 else 8.1e6
        swing = 0.05 * math.sin(second / 17) + 0.02 * math.sin(second / 3.1)
        dip = 0.25 if -262 < second < -246 else 1.0
        level = None if limit is None else 9 if second > -360 else 12
        if limit is not None:
            limit = 12.5e6 if second > -380 else 8.5e6
        return Sample(NOON + second, round(top * dip * (1 + swing)), limit, level)


@contextmanager
def served(scene: Scene) -> Iterator[Scene]:
    """Serve the page on loopback from a loop in a thread, which ends with the block."""
    ready: Future[str] = Future()
    leave = threading.Event()
    loop = asyncio.new_event_loop()
    left = asyncio.Event()

    async def serve() -> None:
        endpoint = HttpEndpoint(
            render=lambda: b"", health=lambda: (True, "ok"), routes=routes(scene.viewers)
        )
        host, port = await endpoint.start()
        try:
            async with scene.viewers.kept_up():
                ready.set_result(f"http://{host}:{port}/")
                await left.wait()
        finally:
            await endpoint.stop()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            loop.close()
            leave.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    scene.address = ready.result(timeout=10)
    try:
        yield scene
    finally:
        loop.call_soon_threadsafe(left.set)
        assert leave.wait(10), "the endpoint did not close"
        thread.join(10)
