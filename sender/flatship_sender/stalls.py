"""Whether a session gets on, and what it waits for if it does not. Pure: time is an argument.

A receiver that answers every PING may still never say STORED, and a link that
carries no byte may be in order as far as TCP knows. So it is not life that is
watched here but progress: acknowledgements, bytes that the link takes, bytes that
the source gives.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from flatship_protocol.connection import KEEPALIVE_INTERVAL, STALL_TIMEOUT
from flatship_protocol.messages import OpenDisk, Provisioning

STALL_AFTER: Final = 10.0  # seconds without progress that are worth a word
SILENCE: Final = KEEPALIVE_INTERVAL + 5.0  # seconds that a receiver which lives is never silent for
ANSWER_MARGIN: Final = 1.0  # seconds; what comes so soon after the last progress belongs to it
ALLOCATION_RATE: Final = 16 << 20  # bytes a second at which the slowest storage allocates


class WaitsFor(StrEnum):
    """Whose turn it is, in the words exported as a label."""

    RECEIVER = "receiver"  # it cannot be told yet why it says nothing
    STORAGE = "storage"
    LINK = "link"
    SOURCE = "source"


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing has got on since the clock reading ``since``."""

    since: float
    waits_for: WaitsFor


class Stalls:
    """Watches one session.

    Args:
        now: Seconds of any steady clock; all other times are readings of it.
    """

    def __init__(self, now: float) -> None:
        self._mark: object = None
        self._got_on_at = now

    def look(self, now: float, mark: object, *, due: bool, silent_for: float) -> Stall | None:
        """Judge how things stand.

        Args:
            now: The time.
            mark: Anything that is another whenever something got on.
            due: Whether it is the receiver that has to do something.
            silent_for: Seconds since the receiver last said anything, be it PONG.
        """
        if mark != self._mark:
            self._mark = mark
            self._got_on_at = now
        still_for = now - self._got_on_at
        if still_for < STALL_AFTER:
            return None
        if not due:
            cause = WaitsFor.SOURCE
        elif silent_for >= SILENCE:
            cause = WaitsFor.LINK
        elif silent_for < still_for - ANSWER_MARGIN:
            cause = WaitsFor.STORAGE
        else:
            cause = WaitsFor.RECEIVER
        return Stall(self._got_on_at, cause)


def allowance(opening: OpenDisk) -> float:
    """Seconds without progress that a disk may take to be opened, because all of it is allocated.

    Of a session on which nothing else is due, and beside STALL_TIMEOUT.
    """
    if opening.provisioning is Provisioning.THIN or opening.dry_run:
        return 0.0
    return opening.size / ALLOCATION_RATE


def is_lost(stall: Stall, now: float, allowed: float = 0.0) -> bool:
    """Whether a session is to be given up, because its receiver will never get on."""
    waited = now - stall.since
    return stall.waits_for is not WaitsFor.SOURCE and waited >= STALL_TIMEOUT + allowed
