"""What the receiver's page says of disks and datastores."""

from typing import Any

import pytest

from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_protocol.messages import (
    Adapter,
    DiskFormat,
    OpenDisk,
    Provisioning,
)
from flatship_receiver.advice import ADVICE
from flatship_receiver.board import MAX_ENDED, MAX_TROUBLES, Board, DiskState, ShownDisk
from flatship_receiver.datastore_space import Space, SpaceSample
from flatship_receiver.page import ReceiverPage
from flatship_receiver.pipeline import Abandoned
from flatship_receiver.stalls import WaitsFor
from flatship_service.page.view import DiskView, Tone, View

MIB = 1 << 20
GIB = 1 << 30


def opening(vm: str = "web01", size: int = 4 * MIB, **changes: Any) -> OpenDisk:
    fields: dict[str, Any] = {
        "disk": 0,
        "pass_number": 1,
        "size": size,
        "reserve": 0,
        "source_id": bytes(32),
        "format": DiskFormat.VMFS,
        "provisioning": Provisioning.THIN,
        "adapter": Adapter.LSILOGIC,
        "hardware_version": 14,
        "datastore": "ds",
        "vm": vm,
        "name": vm,
        "replace": False,
        "live": False,
        "dry_run": False,
    }
    return OpenDisk(**(fields | changes))


class Scene:
    """A receiver's page, and a clock that is moved by hand."""

    def __init__(self, free: int = 100 * GIB) -> None:
        self.board = Board()
        self.received = 0
        self.free = free
        self.missing = False
        self.now = 1000.0
        self.spaces = {"ds": Space(self._space, lambda: self.now)}
        self.page = ReceiverPage(
            self.board,
            lambda: self.received,
            self.spaces,
            "1.0",
            "gateway",
            wall=lambda: 5e8 + self.now,
        )

    def mount(self, name: str) -> None:
        """A datastore comes, as by a configuration that is read again."""
        self.spaces[name] = Space(self._space, lambda: self.now)

    def _space(self) -> SpaceSample:
        if self.missing:
            raise DatastoreError("not mounted", ErrorCode.DATASTORE_MISSING)
        return SpaceSample(size=1000 * GIB, free=self.free, reserved=GIB)

    def begin(self, **changes: Any) -> ShownDisk:
        disk = self.board.begin(opening(**changes), "kvm1", "ds")
        disk.state = DiskState.RECEIVING
        disk.got_on_at = self.now
        return disk

    def second(self, received: int = 0) -> None:
        self.now += 1
        self.received += received
        self.page.look(self.now)

    def view(self) -> View:
        self.page.view(self.now)
        for question in self.page._spaces.values():
            if question._question is not None:
                question._question.join()
        return self.page.view(self.now)

    def disk(self) -> DiskView:
        return self.view().disks[0]


def test_disk_is_followed_from_its_first_chunk_to_its_proof() -> None:
    scene = Scene()
    disk = scene.begin()
    disk.came(0, MIB)
    disk.zeroed(2 * MIB, MIB, hole=False)
    disk.zeroed(3 * MIB, MIB, hole=True)
    assert (scene.disk().map, scene.disk().done) == ("suzh", 3 * MIB)

    disk.stored(0, MIB)
    disk.came(MIB, MIB)
    assert scene.disk().map == "dszh"

    disk.stored(MIB, MIB)
    disk.proven(0, MIB)
    assert scene.disk().map == "pdzh"

    disk.all_proven()
    assert scene.disk().map == "ppzh"


def test_a_datastore_that_comes_later_is_shown_with_the_others() -> None:
    scene = Scene()
    scene.view()
    scene.mount("second")
    shown = scene.view().datastores
    assert shown is not None
    assert [(each.name, each.free) for each in shown] == [
        ("ds", scene.free),
        ("second", scene.free),
    ]


def test_what_was_held_and_comes_anew_is_on_its_way() -> None:
    scene = Scene()
    disk = scene.begin()
    disk.held(0, 2 * MIB)
    disk.let_go(0, MIB)
    disk.came(0, MIB)

    assert scene.disk().map == "seuu"


def test_rate_and_time_left_follow_what_comes() -> None:
    scene = Scene()
    disk = scene.begin(size=1000 * MIB)
    for second in range(20):
        scene.second(10_000_000)
        disk.came(second * 10 * MIB, 10 * MIB)
    view = scene.view()

    assert view.rate == pytest.approx(10_000_000)
    assert view.disks[0].rate == pytest.approx(10 * MIB)
    assert view.disks[0].left == pytest.approx(80)
    assert view.left == pytest.approx(80)


def test_holes_raise_no_rate() -> None:
    scene = Scene()
    disk = scene.begin(size=1000 * MIB)
    for second in range(10):
        scene.second()
        disk.zeroed(second * 50 * MIB, 50 * MIB, hole=True)

    assert scene.disk().rate == 0
    assert scene.disk().left is None


@pytest.mark.parametrize("cause", WaitsFor)
def test_stalled_disk_says_what_it_waits_for_and_what_to_do(cause: WaitsFor) -> None:
    scene = Scene()
    disk = scene.begin()
    disk.waits_for, scene.now = cause, scene.now + 130
    shown = scene.disk()

    assert shown.tone is Tone.WARN
    assert shown.note is not None
    assert cause.value in shown.note
    assert "2m 10s" in shown.note
    assert shown.advice
    assert scene.view().tone is Tone.WARN


def test_failed_disk_stays_with_its_reason_and_what_to_do() -> None:
    scene = Scene()
    disk = scene.begin()
    error = DatastoreError("the datastore is full", ErrorCode.DATASTORE_FULL)
    scene.board.failed(disk, error, resumable=False)
    scene.board.end(disk)
    view = scene.view()

    assert (view.disks[0].state, view.disks[0].tone) == ("failed", Tone.BAD)
    assert view.problems[0].message == "the datastore is full"
    assert view.problems[0].advice == ADVICE[ErrorCode.DATASTORE_FULL]
    assert view.state == "idle"


def test_interrupted_disk_is_no_failure_and_gives_way_to_its_next_session() -> None:
    scene = Scene()
    disk = scene.begin()
    scene.board.failed(disk, Abandoned(ErrorCode.CANCELLED), resumable=True)
    scene.board.end(disk)
    assert (scene.disk().state, scene.disk().tone) == ("interrupted", Tone.WARN)

    scene.begin()
    assert [shown.state for shown in scene.view().disks] == ["receiving"]


def test_dry_run_is_not_shown() -> None:
    scene = Scene()
    scene.begin(dry_run=True)

    assert scene.view().disks == []


def test_datastore_says_what_may_still_come_and_when_it_is_full() -> None:
    scene = Scene(free=100 * GIB)
    disk = scene.begin(size=200 * GIB)
    disk.zeroed(0, 50 * GIB, hole=True)
    for _ in range(20):
        scene.second()
        scene.free -= GIB
        scene.view()
    (store,) = scene.view().datastores or []

    assert store.expected == 150 * GIB
    assert store.free == 80 * GIB
    assert store.full_in == pytest.approx(80, rel=0.1)


def test_datastore_that_does_not_answer_is_shown_without_figures() -> None:
    scene = Scene()
    scene.missing = True
    (store,) = scene.view().datastores or []

    assert (store.size, store.free, store.full_in) == (None, None, None)


def test_hostile_names_are_shown_as_text_on_one_line() -> None:
    scene = Scene()
    scene.board.begin(opening(vm="a\u202eb\n<img>"), "k\x1b[2J", "ds")

    assert scene.disk().vm == r"a\u202eb\n<img>"
    assert scene.disk().peer == r"k\x1b[2J"


def test_there_is_advice_for_every_error() -> None:
    assert set(ADVICE) == set(ErrorCode)


def test_what_is_remembered_is_bounded() -> None:
    board = Board()
    for number in range(3 * MAX_ENDED):
        disk = board.begin(opening(vm=f"vm{number}"), "kvm1", "ds")
        board.failed(disk, DatastoreError("x", ErrorCode.WRITE_FAILED), resumable=False)
        board.end(disk)

    assert len(board.ended) == MAX_ENDED
    assert len(board.troubles) == MAX_TROUBLES
    assert board.running == []
