"""When a wave of machines would be there, from rates that were recorded. Pure.

Nothing is sampled and no link is measured: what transfers were seen to do is taken for what they
will do. Each byte of a disk's size has cost so many bytes on the wire, the link has carried so many
of those a second while it was busy, and limits hold at the hours that the configuration says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf

import msgspec

STEP = timedelta(minutes=5)  # in which a limit is taken not to change
HORIZON = timedelta(days=400)  # what would take longer is no plan


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A machine of the wave: the bytes that its disks hold, and where they go."""

    name: str
    size: int
    datastore: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a Prometheus has seen.

    Attributes:
        usual: Bytes a second on the wire that a busy link carried, as often more as less.
        slow: What it carried at least, nine times of ten.
        wire_share: Bytes on the wire for one of a disk's size.
        written_share: Bytes written at the datastore for one of a disk's size.
        free: Bytes that each datastore has beyond what is promised.
        filling: Bytes a second by which each fills besides, for whatever reason; not below 0.
        left: Bytes on the wire that running transfers still have to carry.
    """

    usual: float
    slow: float
    wire_share: float
    written_share: float
    free: dict[str, float]
    filling: dict[str, float]
    left: float


class Full(msgspec.Struct, frozen=True, kw_only=True):
    """A datastore that runs out: when, in seconds since 1970, and with which machine."""

    datastore: str
    at: float
    item: str
    short: int


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """When a machine of the wave is there: seconds since 1970; null: never, within the horizon."""

    name: str
    p50: float | None
    p90: float | None


class WaveReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``plan --from`` answers. Sizes in bytes, rates in bytes a second, times since 1970."""

    schema_version: int = 1
    receiver: str
    size: int
    wire: int
    rate: float
    slow_rate: float
    begins: float
    arrivals: list[Arrival]
    p50: float | None
    p90: float | None
    full: list[Full]
    unknown: list[str]


def plan_fleet(
    receiver: str,
    items: Sequence[Item],
    recorded: Recorded,
    limit: Callable[[datetime], float],
    begins: datetime,
) -> WaveReport:
    """Send the machines of a wave one after the other, as the link and the limits let them.

    Args:
        receiver: Where to; for the answer.
        items: In order.
        recorded: What was seen.
        limit: Bytes a second on the wire that may be used at a local time.
        begins: When the first one begins, local time.
    """
    before = recorded.left
    amounts = [item.size * recorded.wire_share for item in items]
    ends: list[list[datetime | None]] = []
    for rate in (recorded.usual, recorded.slow):
        ends.append(_ends(before, amounts, rate, limit, begins))
    arrivals = [
        Arrival(name=item.name, p50=_stamp(usual), p90=_stamp(slow))
        for item, usual, slow in zip(items, *ends, strict=True)
    ]
    full, unknown = _full(items, recorded, ends[0], begins)
    return WaveReport(
        receiver=receiver,
        size=sum(item.size for item in items),
        wire=round(sum(amounts)),
        rate=recorded.usual,
        slow_rate=recorded.slow,
        begins=begins.timestamp(),
        arrivals=arrivals,
        p50=arrivals[-1].p50,
        p90=arrivals[-1].p90,
        full=full,
        unknown=unknown,
    )


def _ends(
    before: float,
    amounts: Sequence[float],
    rate: float,
    limit: Callable[[datetime], float],
    begins: datetime,
) -> list[datetime | None]:
    """When each amount has been carried, all of them in turn; None for what is past the horizon."""
    ends: list[datetime | None] = []
    now, left_of_step = begins, 0.0
    allowed = 0.0
    for amount in (before, *amounts):
        left = amount
        while left > 0:
            if left_of_step <= 0:
                allowed, left_of_step = min(rate, limit(now)), STEP.total_seconds()
            if now - begins > HORIZON:
                return [*ends[1:], *([None] * (len(amounts) + 1 - max(1, len(ends))))]
            needed = left / allowed if allowed > 0 else inf
            spent = min(needed, left_of_step)
            left = 0.0 if needed <= left_of_step else left - spent * allowed
            left_of_step -= spent
            now += timedelta(seconds=spent)
        ends.append(now)
    return ends[1:]


def _full(
    items: Sequence[Item],
    recorded: Recorded,
    ends: Sequence[datetime | None],
    begins: datetime,
) -> tuple[list[Full], list[str]]:
    """The datastores that run out, each once, and those of which nothing is recorded."""
    free = dict(recorded.free)
    full: dict[str, Full] = {}
    unknown = []
    for item, end in zip(items, ends, strict=True):
        if item.datastore not in free:
            unknown.append(item.datastore)
            continue
        free[item.datastore] -= item.size * recorded.written_share
        if end is None or item.datastore in full:
            continue
        since = (end - begins).total_seconds()
        left = free[item.datastore] - recorded.filling.get(item.datastore, 0.0) * since
        if left < 0:
            full[item.datastore] = Full(
                datastore=item.datastore, at=end.timestamp(), item=item.name, short=round(-left)
            )
    return list(full.values()), sorted(set(unknown))


def _stamp(when: datetime | None) -> float | None:
    return None if when is None else when.timestamp()
