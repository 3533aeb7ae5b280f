"""When what was written to a disk is flushed."""

from flatship_receiver.batches import FLUSH_DELAY, GUESS_DELAY, Unflushed, Written

MIB = 1 << 20


def chunk(number: int) -> Written:
    return Written(number * MIB, MIB, bytes(32))


def test_nothing_that_waits_is_never_due():
    assert Unflushed(8 * MIB).flush_at() is None


def test_a_chunk_waits_for_company_and_company_does_not_prolong_it():
    unflushed = Unflushed(8 * MIB)
    assert unflushed.add(chunk(0), 10.0)
    assert not unflushed.add(chunk(1), 10.4)
    assert unflushed.flush_at() == 10.0 + FLUSH_DELAY


def test_enough_is_due_at_once():
    unflushed = Unflushed(2 * MIB)
    unflushed.add(chunk(0), 10.0)
    assert unflushed.add(chunk(1), 10.1)
    assert unflushed.flush_at() == 10.0


def test_what_images_were_asked_for_is_flushed_when_no_more_of_it_comes():
    unflushed = Unflushed(8 * MIB)
    unflushed.add(chunk(0), 10.0)
    assert unflushed.add(chunk(1), 10.05, guess=True)
    assert unflushed.flush_at() == 10.05 + GUESS_DELAY
    assert not unflushed.add(chunk(2), 10.1, guess=True)
    assert unflushed.flush_at() == 10.1 + GUESS_DELAY
    for number in range(3, 7):
        unflushed.add(chunk(number), 10.0 + number / 10, guess=True)
    assert unflushed.flush_at() == 10.0 + FLUSH_DELAY


def test_what_is_said_again_is_due_at_once_where_nothing_else_waits():
    unflushed = Unflushed(8 * MIB)
    assert unflushed.add(Written(0, MIB, None, again=True), 10.0)
    at = unflushed.flush_at()
    assert at is not None
    assert at <= 10.0


def test_what_is_taken_is_in_the_order_of_the_disk_and_waits_no_more():
    unflushed = Unflushed(8 * MIB)
    for number in (2, 0, 1):
        unflushed.add(chunk(number), 10.0, guess=True)
    assert unflushed.size == 3 * MIB
    assert unflushed.take() == [chunk(0), chunk(1), chunk(2)]
    assert unflushed.size == 0
    assert unflushed.flush_at() is None
    unflushed.add(chunk(3), 20.0)
    assert unflushed.flush_at() == 20.0 + FLUSH_DELAY
