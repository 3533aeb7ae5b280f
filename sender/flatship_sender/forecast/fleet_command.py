"""``plan --from``: a wave of machines, planned from what a Prometheus has recorded."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Final

from flatship_protocol.errors import UsageError
from flatship_sender.config import configure
from flatship_sender.forecast.fleet import Item, WaveReport, plan_fleet
from flatship_sender.forecast.prometheus import Prometheus
from flatship_service.printable import printable
from flatship_service.units import format_rate, format_size, parse_size

MAX_FILE: Final = 1 << 20  # bytes of a wave's file
MAX_ITEMS: Final = 10_000
_ITEM: Final = re.compile(r"(?P<name>[^=\s]+)=(?P<size>[^@\s]+)(@(?P<datastore>\S+))?")


@dataclass(frozen=True, slots=True)
class Answer:
    """For programs and for people."""

    report: WaveReport
    words: str


def plan_wave(
    url: str,
    words: Sequence[str],
    file: Path | None,
    receiver: str,
    limit: int | None,
    config: Path | None,
) -> Answer:
    """Answer when a wave would be there, and which datastore would run out.

    Args:
        url: Of the Prometheus.
        words: Machines, NAME=SIZE or NAME=SIZE@DATASTORE.
        file: More of them, one a line; ``#`` begins a comment.
        receiver: The receiver's name, as metrics have it.
        limit: The command's own, in bytes a second; None for that of the configuration alone.
        config: The configuration file, None for the system's.

    Raises:
        UsageError: No machine is named, or one is not written as expected.
        PrometheusError: It cannot be asked, or has recorded nothing.
        ConfigError: The configuration is wrong.
    """
    items = read_items(words if file is None else [*words, *_lines(file)])
    limits = configure(config).limits
    recorded = Prometheus(url).recorded(receiver)
    items = [_placed(item, recorded.free) for item in items]

    def allowed(moment: datetime) -> float:
        own = inf if limit is None else limit
        return min(own, limits.for_site(moment), limits.for_receiver(receiver, moment))

    now = datetime.now()  # schedules are in local time
    report = plan_fleet(receiver, items, recorded, allowed, now)
    return Answer(report, describe(report))


def read_items(words: Iterable[str]) -> list[Item]:
    """The machines that are named.

    Raises:
        UsageError: None is, or one is not written as expected.
    """
    items = []
    for word in words:
        found = _ITEM.fullmatch(word)
        try:
            if found is None:
                raise ValueError("expected NAME=SIZE or NAME=SIZE@DATASTORE")
            size = parse_size(found["size"])
        except ValueError as error:
            raise UsageError(f"{word!r} is no machine of a wave: {error}") from None
        items.append(Item(name=found["name"], size=size, datastore=found["datastore"] or ""))
    if not items:
        raise UsageError("the wave is empty: name machines, such as web01=40GiB@ssd1")
    if len(items) > MAX_ITEMS:
        raise UsageError(f"{len(items)} machines are more than a plan takes, {MAX_ITEMS}")
    return items


def _lines(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not readable: {error}") from error
    if len(data) > MAX_FILE:
        most = format_size(MAX_FILE)
        raise UsageError(f"{file} has more than {most}; a wave is a line a machine")
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def _placed(item: Item, free: dict[str, float]) -> Item:
    """Where only one datastore is known, that is meant where none is named."""
    if item.datastore or len(free) != 1:
        return item
    return Item(name=item.name, size=item.size, datastore=next(iter(free)))


def describe(report: WaveReport) -> str:
    """A wave for people."""
    lines = [
        f"{len(report.arrivals)} machines of {format_size(report.size)},"
        f" about {format_size(report.wire)} on the wire to {printable(report.receiver)}",
        f"link as recorded: {format_rate(report.rate)}, nine times of ten at least"
        f" {format_rate(report.slow_rate)}",
    ]
    lines += [
        f"{printable(one.name)}: there by {_when(one.p50)}, nine times of ten by {_when(one.p90)}"
        for one in report.arrivals
    ]
    lines.append(f"wave: there by {_when(report.p50)}, nine times of ten by {_when(report.p90)}")
    lines += [
        f"datastore {printable(one.datastore)} runs out at {_when(one.at)}, with"
        f" {printable(one.item)}, short of {format_size(one.short)}: make room, or send what comes"
        " from there on elsewhere"
        for one in report.full
    ]
    lines += [
        f"datastore {printable(name)}: nothing is recorded of it"
        if name
        else "some machines name no datastore, and there are several: whether they fit is unknown"
        for name in report.unknown
    ]
    return "\n".join(lines)


def _when(stamp: float | None) -> str:
    if stamp is None:
        return "no time in sight"
    return datetime.fromtimestamp(stamp).strftime("%Y-%m-%d %H:%M")  # as people do
