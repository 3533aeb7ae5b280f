"""What is waited for when nothing gets on, and when it has been waited for long enough."""

import pytest

from flatship_protocol.connection import STALL_TIMEOUT
from flatship_protocol.messages import Adapter, DiskFormat, OpenDisk, Provisioning
from flatship_sender.stalls import (
    SILENCE,
    STALL_AFTER,
    Stall,
    Stalls,
    WaitsFor,
    allowance,
    is_lost,
)

T = 1000.0  # some reading of the clock
STORAGE = WaitsFor.STORAGE
TIB = 1 << 40


def looked(stalls, seconds, *, mark=0, due=True, silent_for=0.0):
    return stalls.look(T + seconds, mark, due=due, silent_for=silent_for)


def opening(provisioning, size, **flags):
    fields = (0, 1, size, 0, bytes(32), DiskFormat.VMFS, provisioning, Adapter.LSILOGIC, 14)
    return OpenDisk(*fields, "", "web", "web", **flags)


@pytest.mark.parametrize("due", [True, False])
def test_nothing_is_said_before_its_time(due):
    stalls = Stalls(T)
    looked(stalls, 0)
    assert looked(stalls, STALL_AFTER - 0.1, due=due) is None
    assert looked(stalls, STALL_AFTER, due=due) is not None


@pytest.mark.parametrize(
    ("due", "silent_for", "cause"),
    [
        (True, 20.0, WaitsFor.LINK),
        (True, SILENCE, WaitsFor.LINK),
        (True, 3.0, WaitsFor.STORAGE),
        (False, 0.0, WaitsFor.SOURCE),
        (False, 300.0, WaitsFor.SOURCE),
    ],
)
def test_what_is_waited_for_follows_from_who_is_heard_and_whose_turn_it_is(due, silent_for, cause):
    stalls = Stalls(T)
    looked(stalls, 0)
    assert looked(stalls, 20, due=due, silent_for=silent_for) == Stall(T, cause)


def test_a_receiver_that_was_last_heard_when_something_got_on_is_not_blamed_yet():
    stalls = Stalls(T)
    looked(stalls, 0)
    assert looked(stalls, 11, silent_for=10.8) == Stall(T, WaitsFor.RECEIVER)
    assert looked(stalls, 12, silent_for=0.5) == Stall(T, WaitsFor.STORAGE)
    assert looked(stalls, 30, silent_for=18.5) == Stall(T, WaitsFor.LINK)


def test_whatever_gets_on_ends_a_stall_and_the_next_one_counts_from_there():
    stalls = Stalls(T)
    looked(stalls, 0)
    assert looked(stalls, 15) is not None
    assert looked(stalls, 16, mark=1) is None
    assert looked(stalls, 25.9, mark=1) is None
    assert looked(stalls, 26, mark=1) == Stall(T + 16, STORAGE)


def test_a_session_is_given_up_after_ten_minutes_and_not_for_its_own_source():
    assert STALL_TIMEOUT == 600
    assert not is_lost(Stall(T, STORAGE), T + STALL_TIMEOUT - 0.1)
    for cause in WaitsFor:
        assert is_lost(Stall(T, cause), T + STALL_TIMEOUT) == (cause is not WaitsFor.SOURCE)


def test_a_disk_that_is_allocated_when_it_is_opened_may_take_longer():
    assert allowance(opening(Provisioning.THIN, TIB)) == 0
    assert allowance(opening(Provisioning.EAGER, TIB, dry_run=True)) == 0
    for provisioning in (Provisioning.THICK, Provisioning.EAGER):
        assert allowance(opening(provisioning, TIB)) == 65536
    assert not is_lost(Stall(T, STORAGE), T + 700, allowed=101.0)
    assert is_lost(Stall(T, STORAGE), T + 701, allowed=101.0)
