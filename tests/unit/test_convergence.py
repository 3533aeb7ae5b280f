"""Guests that are modelled: how much of a disk changes in a time, and what passes make of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from flatship_sender.convergence import (
    IDLE_PASSES,
    MAX_PASSES,
    Bound,
    Convergence,
    PassFigures,
    PassReport,
    Verdict,
    project,
)

MB = 1_000_000
GB = 1000 * MB
OPENING = 2.0  # seconds


@dataclass
class World:
    """A disk, its guest, a link and two storages.

    Args:
        changes: Bytes on the wire that change from one moment to another, in seconds.
        size: Bytes of the disk, all of it data.
        link: Bytes a second.
        read: Bytes a second that the source gives.
        proof: Bytes a second that the target gives back.
    """

    changes: Callable[[float, float], float]
    size: int = 100 * GB
    link: float = 10 * MB
    read: float = 500 * MB
    proof: float = 500 * MB
    now: float = 1000.0
    last: float | None = None

    def make_pass(self) -> PassFigures:
        began, before = self.now, self.last
        wire = self.size if before is None else int(self.changes(before, began))
        reading = self.size / self.read
        sending = wire / self.link
        carrying = max(reading, sending)
        proving = self.size / self.proof
        seconds = OPENING + carrying + proving
        self.last, self.now = began, began + seconds
        return PassFigures(
            began=began,
            seconds=seconds,
            opening=OPENING,
            carrying=carrying,
            proving=proving,
            reading=reading,
            sending=sending,
            read=self.size,
            changed=0 if before is None else wire,
            fresh=wire if before is None else 0,
            wire=wire,
        )

    def downtime(self) -> float:
        """What the final pass takes that begins now."""
        assert self.last is not None
        wire = self.changes(self.last, self.now)
        return OPENING + max(self.size / self.read, wire / self.link) + self.size / self.proof


def steady(rate: float) -> Callable[[float, float], float]:
    return lambda begin, end: rate * (end - begin)


def rewriting(rate: float, working_set: float) -> Callable[[float, float], float]:
    """The same blocks are written again and again."""
    return lambda begin, end: min(working_set, rate * (end - begin))


def bursty(quiet: float, burst: float, begin: float, end: float) -> Callable[[float, float], float]:
    """Writes at another rate from one moment to another."""

    def changes(start: float, stop: float) -> float:
        within = max(0.0, min(stop, end) - max(start, begin))
        return quiet * (stop - start - within) + burst * within

    return changes


def run(world: World, budget: float, earlier: Sequence[PassFigures] = ()) -> list[PassReport]:
    convergence = Convergence(budget, earlier)
    reports = []
    while True:
        reports.append(convergence.add(world.make_pass()))
        if reports[-1].verdict is not Verdict.GO_ON:
            return reports


def test_the_first_pass_tells_nothing_of_the_rate_of_change() -> None:
    report = Convergence(600.0).add(World(steady(0.0)).make_pass())
    assert (report.verdict, report.projection) == (Verdict.GO_ON, None)
    assert report.change_rate is None


def test_an_idle_guest_fits_after_the_second_pass() -> None:
    world = World(steady(0.0))
    _, second = run(world, 660.0)
    assert second.verdict is Verdict.FITS
    assert second.change_rate == 0
    assert second.projection is not None
    assert second.projection.downtime.expected == pytest.approx(world.downtime())
    assert second.projection.floor == pytest.approx(OPENING + 200 + 200)


@pytest.mark.parametrize("rate", [0.5 * MB, 2 * MB, 5 * MB])
def test_a_guest_that_writes_less_than_the_link_carries_fits_after_some_passes(
    rate: float,
) -> None:
    world = World(steady(rate))
    reports = run(world, 660.0)
    assert reports[-1].verdict is Verdict.FITS
    assert 2 <= len(reports) <= 10
    assert world.downtime() <= 660


def test_the_rate_of_change_is_told_for_each_pass() -> None:
    world = World(steady(2 * MB))
    reports = run(world, 660.0)
    assert [report.number for report in reports] == list(range(1, len(reports) + 1))
    for report in reports[1:]:
        assert report.change_rate == pytest.approx(2 * MB, rel=1e-6)


@pytest.mark.parametrize("rate", [10 * MB, 12 * MB])
def test_a_guest_that_writes_more_than_the_link_carries_does_not_converge(rate: float) -> None:
    reports = run(World(steady(rate)), 3600.0)
    assert (reports[-1].verdict, reports[-1].bound) == (Verdict.STUCK, Bound.CHANGE)
    assert len(reports) <= 6


def test_a_guest_whose_changes_need_most_of_the_link_converges_above_the_budget() -> None:
    world = World(steady(8 * MB))
    reports = run(world, 900.0)
    assert (reports[-1].verdict, reports[-1].bound) == (Verdict.STUCK, Bound.LINK)
    assert world.downtime() > 900


def test_a_working_set_that_takes_too_long_on_the_link_does_not_converge() -> None:
    world = World(rewriting(50 * MB, 20 * GB))
    reports = run(world, 900.0)
    assert (reports[-1].verdict, reports[-1].bound) == (Verdict.STUCK, Bound.CHANGE)
    assert reports[-1].projection is not None
    downtime = reports[-1].projection.downtime
    assert downtime.low <= world.downtime() <= downtime.high


def test_a_working_set_that_fits_is_found_to_fit() -> None:
    world = World(rewriting(50 * MB, 2 * GB))
    reports = run(world, 900.0)
    assert reports[-1].verdict is Verdict.FITS
    assert world.downtime() <= 900


@pytest.mark.parametrize(
    ("world", "bound"),
    [
        (World(steady(0.0), read=50 * MB), Bound.READ),
        (World(steady(0.0), proof=50 * MB), Bound.PROOF),
    ],
)
def test_what_a_pass_takes_that_carries_nothing_is_found_out_at_once(
    world: World, bound: Bound
) -> None:
    reports = run(world, 300.0)
    assert (reports[-1].verdict, reports[-1].bound) == (Verdict.STUCK, bound)
    assert len(reports) == 2


def test_a_burst_of_writes_ends_nothing() -> None:
    """A pass that the projection gets worse by is followed by one that it gets better by."""
    world = World(bursty(0.5 * MB, 30 * MB, begin=11_300.0, end=11_600.0))
    reports = run(world, 660.0)
    expected = [
        report.projection.downtime.expected for report in reports if report.projection is not None
    ]
    assert expected != sorted(expected, reverse=True)
    assert reports[-1].verdict is Verdict.FITS


def test_what_an_earlier_command_has_seen_spares_a_pass() -> None:
    world = World(steady(0.5 * MB))
    earlier = [world.make_pass(), world.make_pass()]
    reports = run(world, 660.0, earlier)
    assert [report.verdict for report in reports] == [Verdict.FITS]


def test_a_long_time_between_passes_says_little_of_a_short_one() -> None:
    """The same blocks change in a minute as in a day: what fits in proportion may not fit."""
    world = World(rewriting(50 * MB, 20 * GB))
    earlier = [world.make_pass()]
    world.now += 86400.0
    convergence = Convergence(900.0, earlier)
    report = convergence.add(world.make_pass())
    assert report.verdict is Verdict.GO_ON
    assert report.projection is not None
    assert report.projection.downtime.high >= world.downtime() > 900


def test_a_range_gets_narrower_with_passes() -> None:
    world = World(steady(1 * MB))
    passes = [world.make_pass() for _ in range(5)]
    widths = []
    for count in (2, 5):
        projection = project(passes[:count], passes[count - 1].seconds)
        assert projection is not None
        downtime = projection.downtime
        assert downtime.low <= downtime.expected <= downtime.high
        widths.append((downtime.high - downtime.low) / downtime.expected)
    assert widths[1] < widths[0]


def test_more_time_until_the_shutdown_means_more_to_carry() -> None:
    world = World(steady(5 * MB))
    passes = [world.make_pass() for _ in range(4)]
    soon, late = (project(passes, exposed) for exposed in (600.0, 7200.0))
    assert soon is not None
    assert late is not None
    assert late.downtime.high >= OPENING + 7200 * 5 / 10 + 200
    assert soon.downtime.expected < late.downtime.expected


def test_a_clock_that_was_put_back_spoils_no_projection() -> None:
    world = World(steady(1 * MB))
    passes = [world.make_pass(), world.make_pass()]
    world.now -= 1e6
    assert project([*passes, world.make_pass()], -5.0) is not None
    assert project([passes[1], passes[0]], 60.0) is None


def test_passes_are_bounded_in_number() -> None:
    """Each is a little better than the one before, for ever."""
    shrinking = [0.0]

    def changes(begin: float, end: float) -> float:
        shrinking[0] += 1
        return 1e15 * 0.7 ** shrinking[0]

    reports = run(World(changes), 660.0)
    assert len(reports) <= MAX_PASSES
    assert reports[-1].verdict is Verdict.STUCK


def test_as_many_passes_as_it_takes_to_be_sure_that_they_do_not_help() -> None:
    reports = run(World(rewriting(50 * MB, 20 * GB)), 900.0)
    assert len(reports) == 2 + IDLE_PASSES


def test_a_single_pass_is_not_judged() -> None:
    world = World(steady(0.0))
    convergence = Convergence(None)
    reports = [convergence.add(world.make_pass()) for _ in range(6)]
    assert {report.verdict for report in reports} == {Verdict.GO_ON}
    assert reports[-1].projection is not None
