"""Times as people write them: a time of day, a date with one, or how long from now."""

from datetime import datetime, timedelta
from typing import Final

from flatship_service.units import parse_duration

EXPECTED: Final = (
    "a time of day such as 22:30, a date and time such as 2026-01-31T22:30, or how long from now,"
    " such as 2h"
)


def parse_moment(text: str, now: datetime) -> float:
    """Return the Unix time that ``text`` means; local time where it names no other.

    A time of day is the next one.

    Args:
        text: What somebody wrote.
        now: The present, with its zone.

    Raises:
        ValueError: It says what was expected.
    """
    try:
        return now.timestamp() + parse_duration(text)
    except ValueError:
        pass
    try:
        # Read as a date's, for a time alone has no day on which to be refused.
        of_day = datetime.fromisoformat(f"{now.date().isoformat()}T{text}")
    except ValueError:
        return _dated(text)
    if of_day.tzinfo is not None:
        raise ValueError(f"expected {EXPECTED}, got {text!r}")
    if of_day.astimezone() <= now:
        of_day += timedelta(days=1)
    return of_day.timestamp()


def _dated(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        return moment.timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"expected {EXPECTED}, got {text!r}") from None
