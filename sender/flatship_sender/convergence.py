"""When to shut a guest down: what the final pass will take, and whether further passes help. Pure.

A pass reads all of the source, carries what changed, and is proven by a re-read of all of
the target. So will be the final one, with the source at rest. Reading and carrying overlap,
and the re-read follows them: a final pass takes ``opening + max(reading, wire / link) +
proving``. What it must carry is what changes between the beginning of the last pass and the
shutdown. That grows with the time, and ever slower where the same blocks are written again
and again: between not at all and in proportion. The geometric mean of both is expected.

Each of the last passes, taken for typical, gives one projection; their spread is the range.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise
from statistics import median
from typing import Final

import msgspec

RECENT: Final = 4  # passes that projections are made from; a guest changes its habits
MAX_PASSES: Final = 24  # of one command
ALIKE: Final = 2.0  # times as long an interval as another still counts for the same
IMPROVEMENT: Final = 0.1  # share by which a pass must shorten the projection to be worth it
IDLE_PASSES: Final = 2  # passes in a row that did not, after which no more are made
CLOSE: Final = 0.9  # of the link: so much change leaves too little of it to catch up
LINK_BOUND: Final = 0.5  # share of the time for which a link that is the bottleneck holds chunks up


class PassFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One pass that came to its end. Sizes in bytes, times in seconds.

    ``began`` counts from 1970. ``opening`` is the time until data could be sent, ``carrying``
    that until all was, ``proving`` the rest of ``seconds``. ``reading`` is what reading and
    digesting alone took of ``carrying``, ``sending`` for how much of it the link held chunks
    up. ``changed`` is what the receiver held otherwise, in pages where it held pages; of
    ``fresh`` it held nothing.
    """

    began: float
    seconds: float
    opening: float
    carrying: float
    proving: float
    reading: float
    sending: float
    read: int
    changed: int
    fresh: int
    wire: int

    @property
    def rate(self) -> float:
        """Bytes a second on the wire, while the pass was carried."""
        return self.wire / max(self.carrying, 1e-3)

    @property
    def is_link_bound(self) -> bool:
        """Whether the link was what the pass waited for, and so ``rate`` is the link's."""
        return self.wire > 0 and self.sending >= self.carrying * LINK_BOUND

    @property
    def is_difference(self) -> bool:
        """Whether most of what it carried was there before, and had changed."""
        return self.fresh <= self.changed


class Range(msgspec.Struct, frozen=True):
    """Seconds: about half of the time it is less than ``expected``, nine times of ten ``high``."""

    low: float
    expected: float
    high: float


class Projection(msgspec.Struct, frozen=True, kw_only=True):
    """What a final pass would take, in seconds, and what of it is whose.

    ``carrying`` is the time on the link alone, ``changing`` the bytes a second that change, as
    they are on the wire, and ``link`` what it carries.
    """

    downtime: Range
    opening: float
    reading: float
    carrying: float
    proving: float
    changing: float
    link: float

    @property
    def floor(self) -> float:
        """What a pass takes that has nothing to carry."""
        return self.opening + self.reading + self.proving


class Verdict(StrEnum):
    """What to do after a pass."""

    GO_ON = "go on"
    FITS = "fits"
    STUCK = "does not converge"


class Bound(StrEnum):
    """What keeps the downtime from getting shorter."""

    READ = "read"
    PROOF = "proof"
    CHANGE = "rate of change"
    LINK = "link"


class PassReport(msgspec.Struct, frozen=True, kw_only=True):
    """A pass as it is told: ``change_rate`` in bytes a second, null if nothing is known of it."""

    number: int
    figures: PassFigures
    change_rate: float | None
    projection: Projection | None
    verdict: Verdict
    bound: Bound | None


class Downtime(msgspec.Struct, frozen=True, kw_only=True):
    """A final pass, from the start of its command to publication, in seconds.

    ``exposed`` is how long the source may have changed before, since the last live pass
    began; null, as ``projected`` is, if none is on record.
    """

    seconds: float
    opening: float
    carrying: float
    proving: float
    wire: int
    exposed: float | None
    projected: Range | None


class Convergence:
    """Follows the passes of one command.

    Args:
        budget: Seconds that the final pass may take; None for a single pass.
        earlier: Passes of earlier commands over the same disks, the oldest first.
    """

    def __init__(self, budget: float | None, earlier: Sequence[PassFigures] = ()) -> None:
        self._budget = budget
        self._passes = list(earlier)
        self._count = 0
        self._previous = math.inf
        self._idle = 0

    @property
    def passes(self) -> list[PassFigures]:
        """All that is known, the oldest first; as many as a projection needs."""
        return self._passes[-RECENT - 1 :]

    def add(self, figures: PassFigures) -> PassReport:
        """Judge a pass that has just ended."""
        self._passes.append(figures)
        self._count += 1
        known = self.passes
        projection = project(known, figures.seconds)
        verdict = self._judge(projection)
        interval = figures.began - known[-2].began if len(known) > 1 else 0.0
        told = figures.is_difference and interval > 0
        return PassReport(
            number=self._count,
            figures=figures,
            change_rate=figures.changed / interval if told else None,
            projection=projection,
            verdict=verdict,
            bound=_bound(projection, self._budget) if verdict is Verdict.STUCK else None,
        )

    def _judge(self, projection: Projection | None) -> Verdict:
        if self._budget is None:
            return Verdict.GO_ON
        if projection is not None:
            downtime = projection.downtime
            if downtime.high <= self._budget:
                return Verdict.FITS
            improved = downtime.expected <= self._previous * (1 - IMPROVEMENT)
            self._previous, self._idle = downtime.expected, 0 if improved else self._idle + 1
            hopeless = min(projection.floor, downtime.low) > self._budget
            if hopeless or self._idle >= IDLE_PASSES:
                return Verdict.STUCK
        return Verdict.STUCK if self._count >= MAX_PASSES else Verdict.GO_ON


def project(passes: Sequence[PassFigures], exposed: float) -> Projection | None:
    """What a final pass takes that begins ``exposed`` seconds after the last one began.

    Args:
        passes: Consecutive ones, the oldest first.
        exposed: Seconds in which the source changes meanwhile.

    Returns:
        None while no pass has shown how fast the source changes.
    """
    samples = _samples(passes, exposed)
    if not samples:
        return None
    # Where no pass was held up by the link, it carries at least what it was seen to carry.
    rates = [each.rate for each in passes if each.is_link_bound] or [
        max(1.0, *(each.rate for each in passes))
    ]
    link, slowest, fastest = median(rates), min(rates), max(rates)
    totals, lows, highs, readings, carryings = [], [], [], [], []
    for each, interval in samples:
        growth = max(0.0, exposed) / interval
        reading = min(each.reading, each.carrying) if each.is_link_bound else each.carrying
        rest = each.opening + each.proving
        carrying = each.wire * math.sqrt(growth) / link
        totals.append(rest + max(reading, carrying))
        lows.append(rest + max(reading, each.wire * min(1.0, growth) / fastest))
        highs.append(rest + max(reading, each.wire * max(1.0, growth) / slowest))
        readings.append(reading)
        carryings.append(carrying)
    unsure = 0.5 / len(samples)  # few passes tell little
    expected = median(totals)
    last, interval = samples[-1]
    return Projection(
        downtime=Range(
            min(*lows, expected * (1 - unsure)), expected, max(*highs, expected * (1 + unsure))
        ),
        opening=median(each.opening for each, _ in samples),
        reading=median(readings),
        carrying=median(carryings),
        proving=median(each.proving for each, _ in samples),
        changing=last.wire / interval,
        link=link,
    )


def _samples(passes: Sequence[PassFigures], exposed: float) -> list[tuple[PassFigures, float]]:
    """The last passes that tell what changes in about so many seconds, and in how many it did.

    What changes in a day says little of a minute; once there are passes that are closer to
    what is asked for, it says nothing.
    """
    found = [
        (each, interval)
        for before, each in pairwise(passes)
        if each.is_difference and (interval := each.began - before.began) > 0
    ][-RECENT:]
    apart = [abs(math.log(max(exposed, 1e-3) / interval)) for _, interval in found]
    nearest = min(apart, default=0.0)
    return [
        sample
        for sample, distance in zip(found, apart, strict=True)
        if distance <= nearest + math.log(ALIKE)
    ]


def _bound(projection: Projection | None, budget: float | None) -> Bound | None:
    """What most of all would have to be otherwise."""
    if projection is None or budget is None:
        return None
    if projection.floor > budget or projection.carrying <= projection.reading:
        return Bound.READ if projection.reading >= projection.proving else Bound.PROOF
    return Bound.CHANGE if projection.changing >= projection.link * CLOSE else Bound.LINK
