"""How the benchmark of a changing link judges a transfer, and what its oracle would have needed."""

from collections.abc import Callable, Sequence

import pytest

from benchmarks.settling import (
    Fixed,
    Sample,
    Step,
    best_at,
    course,
    oracle_seconds,
    rates,
    settle,
)

MBIT = 1_000_000

FAST = Fixed("1", advance=200e6, ratio=3.0)
SMALL = Fixed("9", advance=50e6, ratio=4.0)
RAW = Fixed("off", advance=400e6, ratio=1.0)


def sampled(
    until: float,
    rate: Callable[[float], float],
    level: Callable[[float], int | None] = lambda _: 3,
    ratio: Callable[[float], float] = lambda _: 3.0,
) -> list[Sample]:
    """A transfer looked at ten times a second: ``rate`` in bits a second, by the time."""
    samples, wire, read = [], 0.0, 0.0
    for number in range(round(until * 10)):
        at = number / 10
        samples.append(Sample(at, round(wire), round(read), level(at), 0))
        read += rate(at) / 8 / 10 * ratio(at)
        wire += rate(at) / 8 / 10
    return samples


@pytest.mark.parametrize(
    ("rate", "best"), [(10 * MBIT, SMALL), (100 * MBIT, SMALL), (1000 * MBIT, FAST), (9e9, RAW)]
)
def test_the_oracle_takes_the_level_that_moves_most_at_the_rate(rate: float, best: Fixed) -> None:
    assert best_at((RAW, FAST, SMALL), rate) is best


def test_a_level_is_never_faster_than_the_link_or_than_itself() -> None:
    assert SMALL.at(10 * MBIT) == pytest.approx(5e6)
    assert SMALL.at(1000 * MBIT) == 50e6


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (25e6, 0.5),  # within the first step
        (500e6, 10.0),  # all of it
        (525e6, 15.0),  # half of the second
        (550e6 + 200e6, 21.0),
        (550e6 + 2000e6, 30.0),  # the last step lasts as long as it takes
    ],
)
def test_an_oracle_walks_through_the_steps(data: float, seconds: float) -> None:
    steps = (Step(100 * MBIT, 10), Step(10 * MBIT, 10), Step(1000 * MBIT, 1))
    assert oracle_seconds(data, steps, (RAW, FAST, SMALL)) == pytest.approx(seconds)


def test_an_oracle_is_held_to_the_bytes_that_are_due_in_a_step() -> None:
    # Of 100 MB that leave 80 come from the first half of the disk, which a slow level passes
    # in 2 s: then 20 MB are left for the slow link.
    uneven = Fixed("9", advance=100e6, ratio=4.0, course=((0, 0), (0.5, 0.8), (1, 1)))
    steps = (Step(1000 * MBIT, 2), Step(10 * MBIT, 1))
    assert oracle_seconds(400e6, steps, (uneven,)) == pytest.approx(2 + 16, rel=0.01)


def test_a_course_begins_and_ends_with_the_transfer() -> None:
    seen = ((5, 0), (10, 50), (20, 50), (90, 90), (100, 100))
    samples = [Sample(at / 10, wire, read, 3, 0) for at, (wire, read) in enumerate(seen, 1)]
    assert course(samples) == ((0, 0), (0.5, 0.1), (0.9, 0.9), (1, 1))


def test_a_transfer_that_fills_the_link_at_one_level_is_settled_at_once() -> None:
    (found,) = settle(sampled(20, lambda _: 100 * MBIT), [Step(100 * MBIT, 20)])
    assert found.settled_after == 0
    assert found.level == 3
    assert found.use == pytest.approx(1.0, abs=0.01)
    assert found.advance == pytest.approx(37.5e6, rel=0.01)


def test_a_level_that_changes_late_settles_late() -> None:
    samples = sampled(20, lambda _: 100 * MBIT, level=lambda at: 1 if at < 7 else 6)
    (found,) = settle(samples, [Step(100 * MBIT, 20)])
    assert found.settled_after == pytest.approx(6.9)
    assert found.level == 6


def test_a_link_that_is_left_idle_is_not_settled_until_it_is_used() -> None:
    samples = sampled(20, lambda at: (10 if at < 6 else 100) * MBIT)
    (found,) = settle(samples, [Step(100 * MBIT, 20)])
    assert 6 <= found.settled_after <= 7  # a rate is taken over one second
    assert found.use == pytest.approx(1.0, abs=0.05)


def test_a_steady_advance_is_settled_though_the_cpu_cannot_fill_the_link() -> None:
    (found,) = settle(sampled(20, lambda _: 300 * MBIT), [Step(1000 * MBIT, 20)])
    assert found.settled_after == 0
    assert found.use == pytest.approx(0.3, abs=0.01)


def test_data_that_compresses_now_well_and_now_badly_does_not_unsettle_a_full_link() -> None:
    samples = sampled(20, lambda _: 100 * MBIT, ratio=lambda at: (1.5, 6.0)[int(at / 3) % 2])
    (found,) = settle(samples, [Step(100 * MBIT, 20)])
    assert found.settled_after == 0


def test_a_level_that_never_rests_never_settles() -> None:
    samples = sampled(20, lambda _: 100 * MBIT, level=lambda at: (1, 6)[int(at) % 2])
    (found,) = settle(samples, [Step(100 * MBIT, 20)])
    assert found.settled_after > 18


def test_each_step_counts_from_its_own_beginning_and_the_end_of_reading_ends_the_last() -> None:
    steps = [Step(100 * MBIT, 10), Step(10 * MBIT, 10), Step(50 * MBIT, 60)]

    def rate(at: float) -> float:
        return (100 if at < 10 else 10 if at < 20 else 50 if at < 30 else 0) * MBIT

    def level(at: float) -> int:
        return 3 if at < 12 else 9

    found = settle(sampled(40, rate, level), steps)
    assert [one.level for one in found] == [3, 9, 9]
    assert [one.seconds for one in found] == pytest.approx([10, 10, 10])
    assert found[0].settled_after == 0
    assert found[1].settled_after == pytest.approx(1.9)
    assert found[2].settled_after == 0


@pytest.mark.parametrize("until", [10.5, 5.0])
def test_a_step_that_was_hardly_reached_is_not_judged(until: float) -> None:
    steps = [Step(100 * MBIT, 10), Step(10 * MBIT, 10)]
    assert len(settle(sampled(until, lambda _: 100 * MBIT), steps)) == 1


def test_rates_are_those_of_the_second_before() -> None:
    found = rates(sampled(5, lambda at: (8 if at < 2 else 80) * MBIT))
    by_time: dict[float, Sequence[float]] = {round(at, 1): rest for at, *rest in found}
    assert min(by_time) >= 0.9
    assert by_time[2.0] == pytest.approx([8 * MBIT, 3e6], rel=0.01)
    assert by_time[3.3] == pytest.approx([80 * MBIT, 30e6], rel=0.01)
