"""Which limit holds when: times of day on days of the week, on the wall clock. Pure.

A week is a ring of minutes. Each period covers some of them, none is covered twice, and what
no period covers has the rate beside the schedule; if there is none, nothing may be left over.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY: Final = 24 * 60  # minutes
WEEK: Final = len(DAYS) * DAY
DAYS_EXPECTED: Final = "days such as mon, sat or mon-fri"
TIME_EXPECTED: Final = "a time from 00:00 to 24:00"

_TIME: Final = re.compile(r"([01][0-9]|2[0-4]):([0-5][0-9])", re.ASCII)


@dataclass(frozen=True, slots=True)
class Period:
    """A rate for some hours of some days.

    Args:
        name: What it says, for errors.
        days: Days on which it begins, 0 for Monday.
        start: Minutes since midnight.
        end: Likewise; not after ``start`` if it is on the next day.
        rate: Bytes a second; infinite for no limit.
    """

    name: str
    days: frozenset[int]
    start: int
    end: int
    rate: float

    def minutes(self) -> Iterator[tuple[int, int]]:
        """The stretches of the week that it covers, from and to, which may be past its end."""
        length = self.end - self.start if self.end > self.start else self.end - self.start + DAY
        for day in sorted(self.days):
            yield day * DAY + self.start, day * DAY + self.start + length


def period(days: Sequence[str], start: str, end: str, rate: float) -> Period:
    """Read a period as people write it.

    Args:
        days: Such as ``sat`` and ``mon-fri``; a range may go past Sunday.
        start: ``HH:MM``.
        end: ``HH:MM``, up to 24:00; one before ``start`` is on the next day.
        rate: Bytes a second.

    Raises:
        ValueError: Names the period, what was expected and what was found.
    """
    name = f"{','.join(days)} {start} to {end}"
    if not days:
        raise ValueError(f"period {start} to {end}: expected {DAYS_EXPECTED}, got none")
    try:
        numbers = frozenset(number for text in days for number in _days(text))
        first, last = _minute(start), _minute(end)
    except ValueError as error:
        raise ValueError(f"period {name}: {error}") from None
    if first in (last, DAY):
        raise ValueError(
            f"period {name}: expected an end that differs from its start; for all of a day write"
            " 00:00 to 24:00"
        )
    return Period(name, numbers, first, last, rate)


class Schedule:
    """The rate for every minute of the week.

    Args:
        rate: What holds outside all periods; None if the periods cover the week.
        periods: The others.

    Raises:
        ValueError: Two periods cover the same minute, or none covers one and there is no
            ``rate``. Names them, and the minute.
    """

    def __init__(self, rate: float | None, periods: Sequence[Period]) -> None:
        self._rates: list[float | None] = [rate] * WEEK
        covered: list[Period | None] = [None] * WEEK
        for each in periods:
            for start, end in each.minutes():
                for minute in (minute % WEEK for minute in range(start, end)):
                    other = covered[minute]
                    if other is not None:
                        raise ValueError(
                            f"periods {other.name} and {each.name} overlap at {_named(minute)};"
                            " expected at most one for each moment"
                        )
                    covered[minute] = each
                    self._rates[minute] = each.rate
        if None in self._rates:
            gap = self._rates.index(None)
            raise ValueError(
                f"no period covers {_named(gap)}; expected a rate beside the schedule for the"
                ' times outside its periods: rate = "20MB", or rate = "unlimited"'
            )

    def rate_at(self, moment: datetime) -> float:
        """Bytes a second at a local time; infinite for no limit."""
        minute = moment.weekday() * DAY + moment.hour * 60 + moment.minute
        rate = self._rates[minute]
        assert rate is not None
        return rate


def _days(text: str) -> Iterator[int]:
    first, dash, last = text.partition("-")
    if first not in DAYS or (dash and last not in DAYS):
        raise ValueError(f"expected {DAYS_EXPECTED}, got {text!r}")
    start = DAYS.index(first)
    count = (DAYS.index(last) - start) % len(DAYS) if dash else 0
    for step in range(count + 1):
        yield (start + step) % len(DAYS)


def _minute(text: str) -> int:
    match = _TIME.fullmatch(text)
    minute = int(match[1]) * 60 + int(match[2]) if match else DAY + 1
    if minute > DAY:
        raise ValueError(f"expected {TIME_EXPECTED}, got {text!r}")
    return minute


def _named(minute: int) -> str:
    return f"{DAYS[minute // DAY]} {minute % DAY // 60:02d}:{minute % 60:02d}"
