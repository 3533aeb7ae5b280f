"""How a transfer follows a link whose rate changes in steps. Pure.

An oracle that knew the steps would have used the best fixed level in each of
them. What a level does at a rate is taken from its transfer without a limit: the
link's rate times what the level made of these very bytes, unless the level is
slower than that. A disk compresses here well and there badly, and which part meets the
slow step is not the controller's choice. No fixed level can do better, so the bar is strict.
"""

import bisect
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_PIECES = 1000  # that an oracle takes the data in
_WINDOW = 1.0  # seconds over which a rate is taken
_BUSY = 0.9  # of the link's rate: the link is what limits
_STEADY = 0.3  # of its mean: how far the advance may stray where the CPU limits


@dataclass(frozen=True, slots=True)
class Step:
    """A rate of the link in bits a second, and for how many seconds; the last for good."""

    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a transfer."""

    at: float  # seconds since the transfer began
    wire: int  # bytes that have left the sender's end
    read: int  # bytes of the disks that the sender has read
    level: int | None  # of compression; None while raw
    waiting: float  # bytes in the link's queue
    queues: tuple[tuple[str, float], ...] = ()  # what the sender says of its own, by name


@dataclass(frozen=True, slots=True)
class Fixed:
    """What a fixed level does without a limit.

    ``course`` is which part of the disks had been read when which part of the bytes had left, in
    order, from (0, 0) to (1, 1): alike all along if it is not given.
    """

    name: str
    advance: float  # bytes of data a second
    ratio: float  # bytes of data per byte on the wire
    course: tuple[tuple[float, float], ...] = ((0.0, 0.0), (1.0, 1.0))

    def at(self, rate: float) -> float:
        """Bytes of data a second over a link of ``rate`` bits a second, at best."""
        return min(self.advance, rate / 8 * self.ratio)

    def left(self, part: float) -> float:
        """Which part of its bytes has left when that part of the disks was read."""
        after = bisect.bisect_right(self.course, part, key=lambda point: point[0])
        if after == len(self.course):
            return 1.0
        (read, left), (next_read, next_left) = self.course[after - 1 : after + 1]
        return left + (next_left - left) * (part - read) / (next_read - read)


def course(samples: Sequence[Sample]) -> tuple[tuple[float, float], ...]:
    """The course of a transfer that was looked at, for ``Fixed``."""
    read, wire = samples[-1].read, samples[-1].wire
    points = [(0.0, 0.0)]
    for sample in samples:
        if sample.read / read > points[-1][0]:
            points.append((sample.read / read, sample.wire / wire))
    return (*points[:-1], (1.0, 1.0))


@dataclass(frozen=True, slots=True)
class Settled:
    """One step of a transfer, as it came out."""

    rate: float  # bits a second
    seconds: float  # that it lasted, or until there was nothing left to read
    settled_after: float  # seconds after which nothing changed any more
    level: int | None  # in the end
    use: float  # which part of the rate went over the link once it was settled, or at the end
    advance: float  # bytes of disk a second meanwhile


def best_at(fixed: Sequence[Fixed], rate: float) -> Fixed:
    """The fixed level that moves most over a link of ``rate`` bits a second."""
    return max(fixed, key=lambda one: one.at(rate))


def oracle_seconds(data: float, steps: Sequence[Step], fixed: Sequence[Fixed]) -> float:
    """How long ``data`` bytes take with the best fixed level in each step."""
    passed, done = 0.0, 0.0
    for step in steps[:-1]:
        reached = [_walk(one, data, done, step) for one in fixed]
        done = max(part for part, _ in reached)
        if done == 1:
            return passed + min(seconds for part, seconds in reached if part == 1)
        passed += step.seconds
    endless = Step(steps[-1].rate, float("inf"))
    return passed + min(_walk(one, data, done, endless)[1] for one in fixed)


def _walk(fixed: Fixed, data: float, done: float, step: Step) -> tuple[float, float]:
    """How far one level gets in a step: the part of the data, and after how many seconds."""
    spent = 0.0
    while done < 1:
        following = min(1.0, done + 1 / _PIECES)
        wire = (fixed.left(following) - fixed.left(done)) * data / fixed.ratio
        seconds = max((following - done) * data / fixed.advance, wire * 8 / step.rate)
        if spent + seconds > step.seconds:
            return done + (following - done) * (step.seconds - spent) / seconds, step.seconds
        done, spent = following, spent + seconds
    return done, spent


def settle(samples: Sequence[Sample], steps: Sequence[Step]) -> list[Settled]:
    """How each step came out that was reached; samples are in the order of their time."""
    finished = max(sample.read for sample in samples)
    last = next(sample.at for sample in samples if sample.read == finished)
    found, begin = [], 0.0
    for number, step in enumerate(steps):
        end = last if number == len(steps) - 1 else min(begin + step.seconds, last)
        within = [sample for sample in samples if begin <= sample.at <= end]
        if end - begin < 2 * _WINDOW or len(within) < 2:
            break
        found.append(_settled(within, begin, end, step.rate))
        begin += step.seconds
    return found


def rates(samples: Sequence[Sample]) -> list[tuple[float, float, float]]:
    """Time, bits a second on the wire, bytes of disk a second: over the second before each."""
    found = []
    first = 0
    for sample in samples:
        while samples[first].at < sample.at - _WINDOW:
            first += 1
        since = samples[max(0, first - 1)]
        passed = sample.at - since.at
        if passed >= _WINDOW * 0.9:
            wire, read = sample.wire - since.wire, sample.read - since.read
            found.append((sample.at, wire * 8 / passed, read / passed))
    return found


def _settled(within: Sequence[Sample], begin: float, end: float, rate: float) -> Settled:
    half = [sample for sample in within if sample.at >= (begin + end) / 2]
    level = statistics.mode(sample.level for sample in half)
    mean = _advance(half)
    restless = [sample.at for sample in within if sample.level != level]
    restless += [
        at
        for at, wire, advance in rates(within)
        if wire < _BUSY * rate and abs(advance - mean) > _STEADY * mean
    ]
    after = max(restless, default=begin) - begin
    rest = [sample for sample in within if sample.at >= begin + after]
    rest = rest if rest[-1].at - rest[0].at >= _WINDOW else half
    use = (rest[-1].wire - rest[0].wire) * 8 / rate / (rest[-1].at - rest[0].at)
    return Settled(rate, end - begin, after, level, use, _advance(rest))


def _advance(samples: Sequence[Sample]) -> float:
    return (samples[-1].read - samples[0].read) / (samples[-1].at - samples[0].at)
