"""What can be set at a sender in a file: limits of rate and when they hold, and its daemon."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Annotated, Final

import msgspec

from flatship_protocol.endpoint import Endpoint, parse_endpoint
from flatship_sender.schedule import Period, Schedule, period
from flatship_service.configfile import Loaded, load
from flatship_service.configvalues import WrongValues
from flatship_service.http_access import HttpAccess
from flatship_service.logs import Level
from flatship_service.paths import default_config_file
from flatship_service.written import CongestionControl, Limit, Parsers

DEFAULT_HTTP: Final = Endpoint("127.0.0.1", 9472)
DEFAULT_JOBS: Final = 2  # at once: one reads ahead while the other is proven
MAX_JOBS: Final = 64  # at once, each a process with 100 MiB of memory and more
MIN_LIMIT: Final = 8 << 10  # bytes per second; receivers tolerate half of it
TOO_LOW: Final = "expected at least 8KiB/s, or the receiver takes the link for dead"
PARSERS: Final[Parsers] = {Endpoint: parse_endpoint}


class PeriodTable(msgspec.Struct, frozen=True, rename={"start": "from", "end": "to"}):
    """A rate for some hours of some days."""

    days: list[str]
    start: str
    end: str
    rate: Limit

    def __post_init__(self) -> None:
        """Refuse what is no period."""
        self.period()
        _check_rate(self.rate)

    def period(self) -> Period:
        """What the schedule makes of it; ValueError says what was expected."""
        return period(self.days, self.start, self.end, self.rate)


class LimitTable(msgspec.Struct, frozen=True, kw_only=True):
    """A limit: a rate, and periods in which others hold."""

    rate: Limit | None = None
    schedule: list[PeriodTable] = []

    def __post_init__(self) -> None:
        """Refuse what no limit can be made of."""
        if self.rate is not None:
            _check_rate(self.rate)
        try:
            self.limit()
        except ValueError as error:
            raise WrongValues([(("schedule",), str(error))]) from None

    def limit(self) -> Schedule:
        """What holds when; ValueError says of which periods what was expected."""
        rate = inf if self.rate is None and not self.schedule else self.rate
        return Schedule(rate, [each.period() for each in self.schedule])


class LimitsTable(LimitTable, frozen=True, kw_only=True):
    """The limit of all receivers together, and those of single receivers."""

    receivers: dict[str, LimitTable] = {}


class HttpTable(HttpAccess, frozen=True, kw_only=True):
    """Where the daemon serves metrics, and for whom."""

    listen: Endpoint = DEFAULT_HTTP


class ConfigFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file's keys."""

    congestion_control: CongestionControl | None = None
    jobs: Annotated[int, msgspec.Meta(ge=1, le=MAX_JOBS)] = DEFAULT_JOBS
    log_level: Level = "info"
    http: HttpTable = msgspec.field(default_factory=HttpTable)
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
    """What a command or the daemon runs with, checked.

    Args:
        limits: Of rate.
        congestion_control: TCP's; None for the system's.
        jobs: How many the daemon runs at once.
        http: Where the daemon serves metrics.
        http_access: Who may read them.
        log_level: The least that the daemon logs.
    """

    limits: Limits
    congestion_control: str | None = None
    jobs: int = DEFAULT_JOBS
    http: Endpoint = DEFAULT_HTTP
    http_access: HttpAccess = field(default_factory=HttpAccess)
    log_level: Level = "info"


def read(path: Path | None) -> Loaded[ConfigFile]:
    """Read the file, or that of the system, which need not be there.

    Raises:
        WrongConfiguration: Names file, line, key, what was expected and what was found.
    """
    file = path or default_config_file("sender")
    return load(file, ConfigFile, must_exist=path is not None, parsers=PARSERS)


def configure(path: Path | None) -> Config:
    """What the file says, or that of the system.

    Raises:
        WrongConfiguration: As for ``read``.
    """
    file = read(path).value
    receivers = {name: table.limit() for name, table in file.limits.receivers.items()}
    return Config(
        Limits(file.limits.limit(), receivers),
        file.congestion_control,
        file.jobs,
        file.http.listen,
        file.http,
        file.log_level,
    )


def _check_rate(rate: float) -> None:
    if rate < MIN_LIMIT:
        raise WrongValues([(("rate",), f"{TOO_LOW}; got {rate:.0f} bytes a second")])
