"""What a disk at the receiver waits for, and what is worth a line of the log."""

from flatship_receiver.stalls import (
    SENDER_AFTER,
    STORAGE_AFTER,
    Change,
    DiskStalls,
    WaitsFor,
)

T = 500.0  # some reading of the clock


def test_a_storage_that_does_not_get_on_is_told_once_and_when_it_does_again():
    stalls = DiskStalls(T)
    assert stalls.look(T + STORAGE_AFTER - 0.1, at_storage=True) is None
    begun = stalls.look(T + STORAGE_AFTER, at_storage=True)
    assert begun == Change(WaitsFor.STORAGE, STORAGE_AFTER)
    assert stalls.look(T + 100, at_storage=True) is None
    stalls.got_on(T + 130)
    assert stalls.look(T + 131, at_storage=True) == Change(None, 130)
    assert stalls.look(T + 132, at_storage=False) is None


def test_a_sender_is_given_more_time_than_a_storage():
    stalls = DiskStalls(T)
    assert stalls.look(T + SENDER_AFTER - 0.1, at_storage=False) is None
    assert stalls.look(T + SENDER_AFTER, at_storage=False) == Change(WaitsFor.SENDER, SENDER_AFTER)
    assert stalls.waits_for is WaitsFor.SENDER


def test_what_gets_on_all_the_time_is_never_told():
    stalls = DiskStalls(T)
    for second in range(1000):
        stalls.got_on(T + second)
        assert stalls.look(T + second + STORAGE_AFTER - 1, at_storage=True) is None
