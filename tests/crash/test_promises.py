"""What must be found after a power cut, from events made by hand."""

from crash.events import Begun, Event, Proven, Stored
from crash.promises import promise_at
from crash.steps import Step
from flatship_protocol.constants import CHUNK_SIZE

A, B, C = (letter * CHUNK_SIZE for letter in (b"a", b"b", b"c"))
STEPS = (
    Step("cut short", A + A, cut_short=True),
    Step("published", A + B),
    Step("copied ahead", C + B, ("--live",)),
)
BOTH = ((0, 2 * CHUNK_SIZE),)
EVENTS: tuple[Event, ...] = (
    Begun(10, 0),
    Stored(20, BOTH),
    Begun(30, 1),
    Stored(40, ((CHUNK_SIZE, CHUNK_SIZE),)),
    Proven(50, published=True),
    Begun(60, 2),
    Stored(70, BOTH),
    Proven(80, published=False),
)


def test_nothing_is_promised_before_it_was_said() -> None:
    promise = promise_at(9, EVENTS, STEPS)
    assert promise.step == -1
    assert promise.standing == {None}
    assert promise_at(19, EVENTS, STEPS).acked == {}


def test_what_was_acknowledged_is_promised_from_there_on() -> None:
    assert promise_at(20, EVENTS, STEPS).acked == {0: 0, 1: 0}


def test_a_chunk_that_changed_is_promised_again_when_it_is_acknowledged_again() -> None:
    assert promise_at(30, EVENTS, STEPS).acked == {0: 0}
    assert promise_at(40, EVENTS, STEPS).acked == {0: 0, 1: 1}


def test_a_disk_may_stand_from_its_step_on_and_must_once_it_is_proven() -> None:
    assert promise_at(10, EVENTS, STEPS).standing == {None, 0}
    assert promise_at(49, EVENTS, STEPS).standing == {None, 0, 1}
    assert promise_at(50, EVENTS, STEPS).standing == {1}


def test_a_live_pass_changes_nothing_that_stands() -> None:
    promise = promise_at(80, EVENTS, STEPS)
    assert promise.standing == {1}
    assert promise.acked == {0: 2, 1: 2}
    assert promise.proven
