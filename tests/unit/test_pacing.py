"""A rate is kept, and whatever happened before is worth no more than one small burst."""

import random

import pytest

from flatship_sender.pacing import DEPTH, LEAST_DEPTH, MAX_DEBT, PACKET, TokenBucket

RATES = (8 << 10, 1_000_000, 125_000_000)


def send_all(bucket: TokenBucket, start: float, until: float, late: float = 0.0) -> float:
    """Send whatever may go, waking ``late`` seconds late; returns the bytes that went."""
    now, gone = start, 0.0
    while True:
        delay = bucket.wait(bucket.slice, now)
        if delay:
            now += delay + late
            if now > until:
                return gone
            continue
        bucket.take(bucket.slice)
        gone += bucket.slice


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("late", [0.0, 0.004, 0.03])
def test_the_rate_is_kept_although_timers_are_late(rate: int, late: float) -> None:
    bucket = TokenBucket(rate, 0.0)
    gone = send_all(bucket, 0.0, 10.0, late)
    assert gone == pytest.approx(10 * rate, rel=0.01, abs=2 * PACKET)


@pytest.mark.parametrize("rate", RATES)
def test_after_an_idle_hour_no_more_goes_at_once_than_a_tenth_of_a_second_is_worth(
    rate: int,
) -> None:
    bucket = TokenBucket(rate, 0.0)
    at_once = send_all(bucket, 3600.0, 3600.0)
    assert 0 < at_once <= max(0.1 * rate, LEAST_DEPTH)
    later = send_all(bucket, 3600.0, 3610.0)
    assert at_once + later <= 10 * rate + max(0.1 * rate, LEAST_DEPTH)


def test_what_was_saved_up_at_a_high_rate_is_not_spent_at_a_low_one() -> None:
    bucket = TokenBucket(125_000_000, 0.0)
    bucket.change(1_000_000, 3600.0)
    assert send_all(bucket, 3600.0, 3600.0) <= 1_000_000 * DEPTH


def test_a_higher_rate_begins_without_a_burst() -> None:
    bucket = TokenBucket(1_000_000, 0.0)
    bucket.change(100_000_000, 3600.0)
    assert send_all(bucket, 3600.0, 3600.0) <= 1_000_000 * DEPTH
    assert send_all(bucket, 3600.0, 3601.0) == pytest.approx(100_000_000, rel=0.02)


def test_what_was_sent_twice_is_made_up_for() -> None:
    bucket = TokenBucket(1_000_000, 0.0)
    send_all(bucket, 0.0, 1.0)
    bucket.take(500_000)
    assert send_all(bucket, 1.0, 2.0) == pytest.approx(500_000, rel=0.02)


def test_no_debt_silences_a_connection_until_it_counts_as_dead() -> None:
    bucket = TokenBucket(8 << 10, 0.0)
    bucket.take(1 << 30)
    assert bucket.wait(PACKET, 0.0) <= MAX_DEBT + 1 < 30 / 2


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    bucket = TokenBucket(1_000_000, 100.0)
    send_all(bucket, 100.0, 101.0)
    assert bucket.wait(bucket.slice, 50.0) > 0
    assert send_all(bucket, 50.0, 101.0) <= 1_000_000 * DEPTH


def test_over_any_stretch_of_time_no_more_goes_than_the_rate_and_a_tenth_of_a_second() -> None:
    chance = random.Random(1)
    bucket = TokenBucket(1_000_000, 0.0)
    now, gone, least, worst = 0.0, 0, 0.0, 0.0
    for _ in range(3000):
        size = chance.randrange(1, bucket.slice + 1)
        while delay := bucket.wait(size, now):
            now += delay
        least = min(least, gone - 1_000_000 * now)
        gone += size
        bucket.take(size)
        worst = max(worst, gone - 1_000_000 * now - least)
        now += chance.choice((0.0, 0.0, 0.002, 0.5))
    assert 0 < worst <= 0.1 * 1_000_000
