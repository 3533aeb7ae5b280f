"""What the receiver's page shows: the board, the datastores and their room. Never blocks."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from flatship_receiver.advice import ADVICE
from flatship_receiver.board import Board, DiskState, ShownDisk, Trouble
from flatship_receiver.datastore_space import Space, SpaceSample
from flatship_receiver.stalls import WaitsFor
from flatship_service.disk_map import MapState
from flatship_service.meter import ETA_SPAN, Meter, seconds_left
from flatship_service.page.view import (
    MAX_DISKS,
    MAX_PROBLEMS,
    DatastoreView,
    DiskView,
    Problem,
    Sample,
    Tone,
    View,
    shown,
)
from flatship_service.units import format_duration

SPACE_PATIENCE: Final = 0.02  # seconds; a datastore that answers does so in less
CAME: Final = (MapState.SENT, MapState.STORED, MapState.PROVEN, MapState.ZERO)

_TONES: Final[Mapping[DiskState, Tone]] = {
    DiskState.COMPLETE: Tone.GOOD,
    DiskState.UNPUBLISHED: Tone.GOOD,
    DiskState.INTERRUPTED: Tone.WARN,
    DiskState.FAILED: Tone.BAD,
}
_STALLS: Final[Mapping[WaitsFor, tuple[str, str]]] = {
    WaitsFor.SENDER: (
        "nothing has come from the sender",
        "Look at the sender: it may be paused, wait for its source, or be cut off.",
    ),
    WaitsFor.STORAGE: (
        "the storage under the datastore does not get on",
        "Check that the datastore answers. The transfer goes on by itself when it does.",
    ),
}


class _DiskMeters:
    """How fast a disk comes, and how fast it is read again."""

    def __init__(self) -> None:
        self.came = Meter()
        self.proof = Meter()

    def look(self, disk: ShownDisk, now: float) -> None:
        if disk.state is DiskState.PROVING:
            self.proof.add(now, disk.proof.done)
        else:
            self.came.add(now, disk.map.total(*CAME))


class ReceiverPage:
    """See ``PageSource``.

    Args:
        board: The disks.
        received: Bytes on the wire so far, of all sessions.
        spaces: The room of each datastore, by name; asked anew for each view.
        version: Of the software.
        host: The machine's name.
        wall: Seconds since 1970.
    """

    def __init__(
        self,
        board: Board,
        received: Callable[[], int],
        spaces: Mapping[str, Space],
        version: str,
        host: str,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._board = board
        self._received = received
        self._spaces = spaces
        self._version = version
        self._host = host
        self._wall = wall
        self._wire = Meter()
        self._last = (0.0, 0)
        self._meters: dict[ShownDisk, _DiskMeters] = {}
        self._filling: defaultdict[str, Meter] = defaultdict(Meter)  # datastores come by reloading

    def look(self, now: float) -> Sample:
        """See ``PageSource.look``."""
        received = self._received()
        self._wire.add(now, received)
        before, at = self._last[1], self._last[0]
        self._last = (now, received)
        running = self._board.running
        self._meters = {disk: self._meters.get(disk) or _DiskMeters() for disk in running}
        for disk, meters in self._meters.items():
            meters.look(disk, now)
        rate = max(0, received - before) / (now - at) if at and now > at else 0.0
        return Sample(round(self._wall(), 1), round(rate))

    def view(self, now: float) -> View:
        """See ``PageSource.view``."""
        board = self._board
        disks = [*board.running, *reversed(board.ended)]
        views = [self._disk(disk, now) for disk in disks[:MAX_DISKS]]
        rates = [
            self._meters[disk].came.rate(ETA_SPAN) for disk in board.running if disk in self._meters
        ]
        left = seconds_left(
            sum(disk.map.total(MapState.UNREAD) for disk in board.running),
            sum(rate for rate in rates if rate),
        )
        state, tone = self._state(views[: len(board.running)])
        return View(
            program="receiver",
            version=self._version,
            host=shown(self._host),
            at=round(self._wall(), 1),
            state=state,
            tone=tone,
            rate_of="received, all overhead",
            rate=self._wire.rate(),
            left=left if board.running else None,
            disks=views,
            more_disks=len(disks) - len(views),
            datastores=[self._datastore(name, now) for name in self._spaces],
            problems=[_problem(each) for each in list(board.troubles)[::-1][:MAX_PROBLEMS]],
        )

    def _state(self, running: Sequence[DiskView]) -> tuple[str, Tone]:
        if not running:
            return "idle", Tone.IDLE
        count = f"{len(running)} disk" + ("s" if len(running) > 1 else "")
        if all(disk.tone is Tone.WARN for disk in running):
            return f"{count} not getting on", Tone.WARN
        return f"receiving {count}", Tone.BUSY

    def _disk(self, disk: ShownDisk, now: float) -> DiskView:
        opening, drawn, meters = disk.opening, disk.map, self._meters.get(disk)
        done = drawn.size - drawn.total(MapState.UNREAD)
        tone = _TONES.get(disk.state, Tone.BUSY)
        note = advice = rate = left = proof = None
        if disk.trouble is not None:
            note, advice = shown(disk.trouble.message), ADVICE[disk.trouble.code]
        elif not disk.ended and disk.waits_for is not None:
            words, advice = _STALLS[disk.waits_for]
            note, tone = f"{words} for {format_duration(now - disk.got_on_at)}", Tone.WARN
        elif disk.state is DiskState.PROVING and disk.proof.total:
            proof = disk.proof.done / disk.proof.total
            if meters is not None:
                rate = meters.proof.rate()
                left = seconds_left(disk.proof.total - disk.proof.done, meters.proof.rate(ETA_SPAN))
        elif meters is not None:
            rate = meters.came.rate()
            left = seconds_left(drawn.total(MapState.UNREAD), meters.came.rate(ETA_SPAN))
        return DiskView(
            id=f"{id(disk):x}",
            vm=shown(opening.vm),
            disk=shown(opening.name),
            peer=shown(disk.sender),
            place=shown(disk.datastore),
            state=disk.state.value,
            tone=tone,
            size=opening.size,
            done=done,
            proof=proof,
            rate=rate,
            left=left,
            map=drawn.text(),
            cell=drawn.cell,
            note=note,
            advice=advice,
        )

    def _datastore(self, name: str, now: float) -> DatastoreView:
        expected = sum(
            disk.map.total(MapState.UNREAD)
            for disk in self._board.running
            if disk.datastore == name
        )
        space = self._spaces[name].sample(patience=SPACE_PATIENCE)
        if space is None:
            return DatastoreView(
                name=shown(name),
                size=None,
                free=None,
                reserved=None,
                expected=expected,
                full_in=None,
            )
        return DatastoreView(
            name=shown(name),
            size=space.size,
            free=space.free,
            reserved=space.reserved,
            expected=expected,
            full_in=self._full_in(name, space, now),
        )

    def _full_in(self, name: str, space: SpaceSample, now: float) -> float | None:
        filling = self._filling[name]
        filling.add(now, space.size - space.free)
        return seconds_left(space.free, filling.rate(ETA_SPAN))


def _problem(trouble: Trouble) -> Problem:
    return Problem(
        at=round(trouble.at, 1),
        subject=shown(trouble.subject),
        message=shown(trouble.message),
        advice=ADVICE[trouble.code],
    )
