"""What the page is told: one schema for both daemons.

Sizes are in bytes, rates in bytes a second, durations in seconds, times in seconds since
1970. Every text is fit to be shown as it is, and of bounded length: ``shown`` sees to it.
"""

from enum import StrEnum
from typing import Final, Protocol

import msgspec

from flatship_service.printable import printable

SCHEMA_VERSION: Final = 1
MAX_TEXT: Final = 400  # characters
MAX_DISKS: Final = 64  # on the page; of more than that the rest is only counted
MAX_JOBS: Final = 200
MAX_PROBLEMS: Final = 30


class Tone(StrEnum):
    """How a state is to be taken, whatever its word."""

    IDLE = "idle"
    BUSY = "busy"
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


class DiskView(msgspec.Struct, frozen=True, kw_only=True):
    """One disk. ``map`` has a letter of ``MapState`` for each ``cell`` bytes.

    ``done`` is what needs nothing more but the proof. ``peer`` is the other end, ``place``
    where the disk is at this one. ``left`` is the time until the present stage ends.
    ``note`` says what is wrong, or being waited for; ``advice`` what to do about it.
    """

    id: str
    vm: str
    disk: str
    peer: str
    place: str
    state: str
    tone: Tone
    size: int
    done: int
    proof: float | None = None  # the part of the final read that is done, 0 to 1
    rate: float | None = None
    left: float | None = None
    ratio: float | None = None
    map: str = ""
    cell: int = 0
    note: str | None = None
    advice: str | None = None


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """One job of a queue."""

    id: int
    vm: str
    receiver: str
    state: str
    tone: Tone
    disks: int
    priority: int
    attempts: int
    not_before: float | None = None
    note: str | None = None


class DatastoreView(msgspec.Struct, frozen=True, kw_only=True):
    """One datastore. ``size``, ``free`` and ``reserved`` are None while it does not answer.

    ``expected`` is what disks on their way may still need at most; ``full_in`` when there is
    no room left, if it goes on to fill as it did of late.
    """

    name: str
    size: int | None
    free: int | None
    reserved: int | None
    expected: int
    full_in: float | None


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that went wrong, and what to do."""

    at: float
    subject: str
    message: str
    advice: str


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One second of a daemon: its rate, and what held it back."""

    at: float
    rate: float
    limit: float | None = None
    level: int | None = None


class View(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page shows at one moment.

    ``history`` ends with the newest sample, and has all that is kept if ``full``. ``queue`` is
    None where there is none, ``datastores`` likewise. ``rate_of`` says what ``rate`` counts.
    """

    program: str
    version: str
    host: str
    at: float
    state: str
    tone: Tone
    rate_of: str
    disks: list[DiskView]
    schema_version: int = SCHEMA_VERSION
    full: bool = False
    history: list[Sample] = []
    rate: float | None = None
    left: float | None = None
    limit: float | None = None
    compression: str | None = None
    ratio: float | None = None
    more_disks: int = 0
    queue: list[JobView] | None = None
    more_jobs: int = 0
    datastores: list[DatastoreView] | None = None
    problems: list[Problem] = []


class PageSource(Protocol):
    """Who knows what a daemon is doing. Both calls must not block."""

    def look(self, now: float) -> Sample:
        """The last second; called once a second, whether anybody looks at the page or not.

        Args:
            now: A reading of the monotonic clock.
        """
        ...

    def view(self, now: float) -> View:
        """All but the history; called only while somebody looks."""
        ...


def shown(text: str) -> str:
    """Text from anywhere, as the page may show it: no control characters, of bounded length."""
    safe = printable(text)
    return safe if len(safe) <= MAX_TEXT else safe[: MAX_TEXT - 1] + "…"
