"""What ``plan`` answers: put together from what was sampled, asked and measured. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot, inf

import msgspec

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.messages import Provisioning
from flatship_sender.convergence import Range
from flatship_sender.forecast.foresee import Bound, Course, Machine, at_levels, foresee
from flatship_sender.forecast.record import Correction, quantiles
from flatship_sender.forecast.sample import Sample, together
from flatship_sender.forecast.truth import Quantiles
from flatship_sender.forecast.visit import Answer, Visit
from flatship_sender.rungs import Rung

SCHEMA_VERSION = 1
BEGIN = 0.9  # seconds from the start of a command until data flow
END = 0.6  # seconds from the last data to publication, where storage is no slower than the link
AT_LIMIT = 0.85  # of a limit; a link that was measured at more is held by the limit
WIRE_ERROR = 0.03  # deviation of what is on the wire, beside that of the sample


class LinkReport(msgspec.Struct, frozen=True, kw_only=True):
    """The link, in bytes of records a second; ``rate`` is null if it is not known.

    ``measured`` is false where ``rate`` is what the command line said. ``limit`` is in bytes a
    second on the wire, headers included, null for none.
    """

    measured: bool
    rate: float | None
    spread: float | None
    round_trip: float | None
    loss: float | None
    limit: float | None
    connections: int


class SpaceReport(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes at the datastore; null where the receiver did not say."""

    needed: int
    free: int | None
    fits: bool | None


class LevelReport(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that carrying all disks takes at one zstd level, null for raw."""

    level: int | None
    seconds: float


class DiskReport(msgspec.Struct, frozen=True, kw_only=True):
    """One disk; ``seconds`` are those of sending it alone. Sizes in bytes."""

    source: str
    target: str
    size: int
    to_read: int
    data: int
    sampled: int
    wire: Quantiles
    seconds: Quantiles | None
    exists: bool
    refusal: str | None


class PlanReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``plan --json`` prints. Sizes in bytes, times in seconds.

    ``wire``, ``seconds`` and ``downtime`` are of all disks in one command. ``downtime`` is that of
    a machine that is shut down before: all of it, unless live passes were made (``after_passes``).
    ``level`` and ``history`` are what compression settles on; ``bound`` is what limits it.
    ``correction`` is the factor that past forecasts for this receiver gave, from ``past`` of them.
    """

    schema_version: int = SCHEMA_VERSION
    receiver: str
    vm: str
    link: LinkReport
    space: SpaceReport
    disks: list[DiskReport]
    wire: Quantiles
    seconds: Quantiles | None
    downtime: Quantiles | None
    after_passes: bool
    level: int | None
    history: bool
    bound: Bound | None
    levels: list[LevelReport]
    advice: list[str]
    correction: float
    past: int
    raw_seconds: float | None
    raw_wire: float


@dataclass(frozen=True, slots=True)
class Looked:
    """One disk as it was looked at."""

    source: str
    target: str
    sample: Sample
    answer: Answer


@dataclass(frozen=True, slots=True)
class Findings:
    """All that an answer is made of.

    ``rate`` is what to take for the link if it was not measured: bytes a second on the wire.
    ``limit`` is the one in force, on the wire, too; infinite for none.
    """

    receiver: str
    vm: str
    disks: Sequence[Looked]
    visit: Visit
    machine: Machine
    rate: float | None
    limit: float
    provisioning: Provisioning
    time: Correction
    size: Correction
    projected: Range | None


def report(found: Findings) -> PlanReport:
    """Answer."""
    whole = together([each.sample for each in found.disks])
    rate = _rate(found)
    course = foresee(whole, inf if rate is None else rate, found.machine)
    seconds = None if rate is None else _seconds(found, whole, course)
    bound = None if rate is None else _bound(found, course, rate)
    space = _space(found, whole)
    link = found.visit.link
    downtime = seconds
    if found.projected is not None:
        downtime = Quantiles(found.projected.expected, found.projected.high)
    return PlanReport(
        receiver=found.receiver,
        vm=found.vm,
        link=LinkReport(
            measured=link is not None,
            rate=rate,
            spread=link.spread if link else None,
            round_trip=link.round_trip if link else None,
            loss=link.loss if link else None,
            limit=None if found.limit == inf else found.limit,
            connections=found.visit.connections,
        ),
        space=space,
        disks=[_disk(each, found, rate) for each in found.disks],
        wire=_wire(found, whole, course),
        seconds=seconds,
        downtime=downtime,
        after_passes=found.projected is not None,
        level=course.rung.level,
        history=course.rung.history,
        bound=bound,
        levels=[]
        if rate is None
        else [
            LevelReport(level=rung.level, seconds=seconds)
            for rung, seconds in at_levels(whole, rate, found.machine)
        ],
        advice=_advice(found, whole, rate, course, bound, space),
        correction=found.time.factor,
        past=found.time.of,
        raw_seconds=None if rate is None else _raw_seconds(course),
        raw_wire=course.wire,
    )


def _rate(found: Findings) -> float | None:
    """Bytes of records a second: as measured, or as said; never above a limit."""
    limit = found.limit / found.visit.cost
    if found.visit.link is not None:
        return min(found.visit.link.rate, limit)
    if found.rate is not None:
        return min(found.rate / found.visit.cost, limit)
    return None if limit == inf else limit


def _bound(found: Findings, course: Course, rate: float) -> Bound:
    at_limit = rate * found.visit.cost >= AT_LIMIT * found.limit
    return Bound.LIMIT if course.bound is Bound.LINK and at_limit else course.bound


def _raw_seconds(course: Course) -> float:
    return BEGIN + course.seconds + END


def _seconds(found: Findings, disk: Sample, course: Course) -> Quantiles:
    link = found.visit.link
    # A rate that swings about its mean comes to less over a whole transfer than over a slice.
    swing = link.spread / 2 if link else 0.0
    deviation = hypot(disk.error, swing, found.time.deviation)
    return quantiles(_raw_seconds(course) * found.time.factor, deviation)


def _wire(found: Findings, disk: Sample, course: Course) -> Quantiles:
    deviation = hypot(disk.error, min(found.size.deviation, WIRE_ERROR))
    return quantiles(course.wire * found.size.factor, deviation)


def _disk(looked: Looked, found: Findings, rate: float | None) -> DiskReport:
    disk, answer = looked.sample, looked.answer
    course = foresee(disk, inf if rate is None else rate, found.machine)
    return DiskReport(
        source=looked.source,
        target=looked.target,
        size=disk.size,
        to_read=disk.to_read,
        data=disk.literal,
        sampled=disk.looked_at,
        wire=_wire(found, disk, course),
        seconds=None if rate is None else _seconds(found, disk, course),
        exists=answer.exists,
        refusal=None if answer.refusal is None else str(answer.refusal),
    )


def _space(found: Findings, whole: Sample) -> SpaceReport:
    needed = whole.literal
    if found.provisioning is not Provisioning.THIN:
        needed = sum(-(-each.sample.size // CHUNK_SIZE) * CHUNK_SIZE for each in found.disks)
    free = [each.answer.free for each in found.disks if each.answer.free is not None]
    known = min(free) if free else None
    return SpaceReport(needed=needed, free=known, fits=None if known is None else needed <= known)


def _advice(
    found: Findings,
    whole: Sample,
    rate: float | None,
    course: Course,
    bound: Bound | None,
    space: SpaceReport,
) -> list[str]:
    advice = []
    if any(each.answer.silent for each in found.disks):
        advice.append("the datastore did not answer in time: look after its storage first")
    if space.fits is False:
        advice.append("the datastore has too little room: make some, or name another")
    if rate is None:
        how = "name its rate with --rate"
        advice.append(
            how if found.visit.can_probe else f"this receiver cannot measure the link: {how}"
        )
        return advice
    if bound is Bound.LIMIT:
        advice.append(f"a higher limit would help{_gain(found, whole, rate, course)}")
    elif bound is Bound.LINK:
        advice.append(f"a faster link would help{_gain(found, whole, rate, course)}")
    elif bound is Bound.PROCESSORS:
        more = replace(
            found.machine, cores=2 * found.machine.cores, workers=2 * found.machine.workers
        )
        faster = foresee(whole, rate, more).seconds
        advice.append(f"more processors here would help{_shorter(faster, course)}")
    else:
        advice.append("faster storage under the source would help")
    link = found.visit.link
    if link is not None and link.loss > 0.005 and bound is Bound.LINK:
        advice.append("packets are lost on the way: --congestion-control bbr may do better")
    return advice


def _gain(found: Findings, whole: Sample, rate: float, course: Course) -> str:
    return _shorter(foresee(whole, 2 * rate, found.machine).seconds, course, "; twice the rate")


def _shorter(seconds: float, course: Course, what: str = "; twice as many") -> str:
    share = seconds / course.seconds if course.seconds else 1.0
    return f"{what} would take {share:.0%} of the time"


def rung_name(rung: Rung) -> str:
    """A rung for people."""
    if rung.level is None:
        return "no compression"
    return f"zstd {rung.level}{' with history' if rung.history else ''}"
