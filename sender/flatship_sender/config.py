"""What can be set at a sender in a file: limits of rate, when they hold, congestion control."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Final

import msgspec

from flatship_sender.schedule import Schedule, period
from flatship_service.configfile import CongestionControl, Limit, load
from flatship_service.paths import default_config_file

MIN_LIMIT: Final = 8 << 10  # bytes per second; receivers tolerate half of it
TOO_LOW: Final = "expected at least 8KiB/s, or the receiver takes the link for dead"


class PeriodTable(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from", "end": "to"}
):
    """A rate for some hours of some days."""

    days: list[str]
    start: str
    end: str
    rate: Limit


class LimitTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A limit: a rate, and periods in which others hold."""

    rate: Limit | None = None
    schedule: list[PeriodTable] = []


class LimitsTable(LimitTable, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The limit of all receivers together, and those of single receivers."""

    receivers: dict[str, LimitTable] = {}

    def __post_init__(self) -> None:
        """Refuse what no limit can be made of."""
        self.schedules()

    def schedules(self) -> tuple[Schedule, dict[str, Schedule]]:
        """The limit of all receivers, and those of receivers by name.

        Raises:
            ValueError: Says of whom, what was expected and what was found.
        """
        receivers = {}
        for name, table in self.receivers.items():
            try:
                receivers[name] = _schedule(table)
            except ValueError as error:
                raise ValueError(f"receiver {name}: {error}") from None
        return _schedule(self), receivers


class ConfigFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file's keys."""

    congestion_control: CongestionControl | None = None
    limits: LimitsTable = msgspec.field(default_factory=LimitsTable)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits in force at a time, in bytes a second on the wire; infinite for none."""

    site: Schedule
    receivers: Mapping[str, Schedule]

    def for_site(self, moment: datetime) -> float:
        """What all receivers may take together, at a local time."""
        return self.site.rate_at(moment)

    def for_receiver(self, name: str, moment: datetime) -> float:
        """What one receiver may take, at a local time."""
        return self.receivers[name].rate_at(moment) if name in self.receivers else inf


@dataclass(frozen=True, slots=True)
class Config:
    """What a command runs with, checked."""

    limits: Limits
    congestion_control: str | None = None


def configure(path: Path | None) -> Config:
    """Read the configuration.

    Args:
        path: The file; None for that of the system, which need not be there.

    Raises:
        ConfigError: Names file, key, what was expected and what was found.
    """
    file = load(path or default_config_file("sender"), ConfigFile, must_exist=path is not None)
    return Config(Limits(*file.limits.schedules()), file.congestion_control)


def _schedule(table: LimitTable) -> Schedule:
    rate = inf if table.rate is None and not table.schedule else table.rate
    _check(rate)
    periods = []
    for each in table.schedule:
        read = period(each.days, each.start, each.end, each.rate)
        try:
            _check(each.rate)
        except ValueError as error:
            raise ValueError(f"period {read.name}: {error}") from None
        periods.append(read)
    return Schedule(rate, periods)


def _check(rate: float | None) -> None:
    if rate is not None and rate < MIN_LIMIT:
        raise ValueError(f"{TOO_LOW}; got {rate:.0f} bytes a second")
