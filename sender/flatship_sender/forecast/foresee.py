"""How a transfer will go: the compression controller itself, shown a link that is not there yet.

The controller that will choose the rungs is run in virtual time, on a model of the link, of this
machine's processors and of the disk as they were measured. So what is foreseen is what it will do:
which rung it settles on, how long that takes, and what has gone over the wire by then. Once it has
stayed on a rung for long, the rest of the disk is taken to go the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import exp, inf, log
from statistics import fmean
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE
from flatship_sender.compression import CPU_PER_BYTE, CompressionController, Policy
from flatship_sender.forecast.sample import Sample
from flatship_sender.looks import Window
from flatship_sender.rungs import ALONE, Rung

TICK: Final = 0.25  # seconds of virtual time from one window to the next
SETTLED: Final = 90.0  # seconds without a change of rung, after which the rest is extrapolated
LONGEST: Final = 600.0  # seconds that are gone through tick by tick
CHUNK_OVERHEAD: Final = 130  # bytes of a record beside the payload: headers, tag, digest, segments
MOST_NOTED: Final = 8  # chunks of a tick; more of the same teach the controller nothing
LEAST_RATE: Final = 1.0  # bytes a second


class Bound(StrEnum):
    """What keeps a transfer from being faster."""

    LINK = "link"
    LIMIT = "limit"
    PROCESSORS = "processors"
    SOURCE = "source"


@dataclass(frozen=True, slots=True)
class Machine:
    """What sends. ``cores`` are those that this host has left; ``streams`` may have history."""

    workers: int
    cores: float
    streams: int
    policy: Policy = "auto"


@dataclass(frozen=True, slots=True)
class Course:
    """How it will go: seconds, bytes in records, and the rung and the bound at its end."""

    seconds: float
    wire: float
    rung: Rung
    bound: Bound


class _Model:
    """What a byte of literals costs and yields on each rung, as measured."""

    def __init__(self, disk: Sample) -> None:
        self._disk = disk
        alone = {rung.level: rung for rung in ALONE if rung.level is not None}
        off = [
            log(disk.seconds[level] * rung.speed)
            for level, rung in alone.items()
            if disk.seconds.get(level)
        ]
        self._machine = exp(fmean(off)) if off else 1.0  # slower than the table by
        self._alone = alone

    def share(self, rung: Rung) -> float:
        """Bytes of payload for one of literals.

        Of a rung that was not sampled: as the nearest one that was, but for what the table says
        of the two.
        """
        if rung.level is None:
            return 1.0
        near = self._nearest(rung)
        measured = self._disk.shares[near.level] if near.level is not None else 1.0
        saved = (1 - 1 / rung.ratio) / (1 - 1 / near.ratio) if near.ratio > 1 else 1.0
        if measured > 0.97:  # what does not shrink does not with a history, either
            return measured
        # By the ratio's growth or by that of what is saved: on the table's own disk they agree.
        return max(0.002, min(measured * near.ratio / rung.ratio, 1 - (1 - measured) * saved))

    def cost(self, rung: Rung) -> float:
        """Seconds of a core for one byte of literals."""
        if rung.level is None:
            return 0.0
        near = self._nearest(rung)
        sampled = self._disk.seconds.get(near.level or 0)
        if sampled and near.level == rung.level:
            return sampled * near.speed / rung.speed
        return self._machine / rung.speed

    def _nearest(self, rung: Rung) -> Rung:
        level = rung.level or 0
        return min(self._alone.values(), key=lambda each: abs((each.level or 0) - level))


def foresee(disk: Sample, link: float, machine: Machine) -> Course:
    """Send a disk in virtual time.

    Args:
        disk: What was seen of it.
        link: Bytes of records a second that it carries; infinite for one that holds up nothing.
        machine: What sends.
    """
    model = _Model(disk)
    controller = CompressionController(machine.policy, machine.workers)
    controller.grant(machine.streams)
    density = disk.literal / disk.to_read if disk.to_read else 0.0
    if not disk.literal:
        return Course(disk.to_read * disk.reading, 0.0, controller.rung, Bound.SOURCE)
    overhead = CHUNK_OVERHEAD * disk.chunks / disk.literal
    # What is read besides, zeros, takes its time as well.
    source = density / disk.reading if disk.reading else inf
    now = done = wire = changed_at = carry = 0.0
    rung, last = controller.next_rung(), None
    bound = Bound.LINK
    while done < disk.literal:
        share, cost = model.share(rung) + overhead, model.cost(rung)
        rates = _rates(rung, share, cost, link, source, machine)
        bound = min(rates, key=lambda each: rates[each])
        rate = max(LEAST_RATE, rates[bound])
        left = disk.literal - done
        if controller.rung != last:
            last, changed_at = controller.rung, now
        if now - changed_at >= SETTLED or now >= LONGEST:
            return Course(now + left / rate, wire + left * share, rung, bound)
        seconds = min(TICK, left / rate)
        sent = seconds * rate
        now, done, wire = now + seconds, done + sent, wire + sent * share
        carry += sent
        following = rung
        whole, carry = divmod(carry, CHUNK_SIZE)
        for _ in range(int(min(whole, MOST_NOTED))):
            payload = max(1, round(CHUNK_SIZE * (share - overhead)))
            controller.note_chunk(rung, CHUNK_SIZE, payload, CHUNK_SIZE * cost)
            following = controller.next_rung()
        used = sent * (cost + CPU_PER_BYTE)
        stretch = machine.workers / min(machine.cores, machine.workers)  # of workers' time
        controller.note_window(
            Window(
                seconds,
                round(sent * share),
                round(sent),
                seconds * min(1.0, rate / rates[Bound.LINK]),
                sent * cost * stretch,
                used * stretch,
                used,
                machine.cores,
            )
        )
        # A probe ends with its chunk; a change of the controller's holds from the next one on.
        rung = following if following is not rung else controller.rung
    return Course(now, wire, rung, bound)


def _rates(
    rung: Rung, share: float, cost: float, link: float, source: float, machine: Machine
) -> dict[Bound, float]:
    """Bytes of literals a second that each could do alone."""
    processors = min(machine.cores, machine.workers) / (cost + CPU_PER_BYTE)
    if rung.history:
        processors = min(processors, machine.streams / cost)
    return {Bound.LINK: link / share, Bound.PROCESSORS: processors, Bound.SOURCE: source}


def at_levels(disk: Sample, link: float, machine: Machine) -> Sequence[tuple[Rung, float]]:
    """What it would take on each rung alone, in seconds: the trade of link against processors."""
    model = _Model(disk)
    density = disk.literal / disk.to_read if disk.to_read else 0.0
    source = density / disk.reading if disk.reading else inf
    return [
        (
            rung,
            disk.literal
            / min(
                _rates(rung, model.share(rung), model.cost(rung), link, source, machine).values()
            ),
        )
        for rung in ALONE
    ]
