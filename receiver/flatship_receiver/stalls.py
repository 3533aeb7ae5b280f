"""Whether a disk gets on at the receiver, and what it waits for if not. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

STORAGE_AFTER: Final = 10.0  # seconds that one step of the storage may take without a word
SENDER_AFTER: Final = 60.0  # seconds; a sender that finds all held is silent for longer, and well


class WaitsFor(StrEnum):
    """Whose turn it is, in the words exported as a label."""

    SENDER = "sender"
    STORAGE = "storage"


@dataclass(frozen=True, slots=True)
class Change:
    """A stall began, or has another cause; with None in the place of a cause it is over."""

    waits_for: WaitsFor | None
    seconds: float


class DiskStalls:
    """Watches one disk.

    Args:
        now: Seconds of any steady clock; all other times are readings of it.
    """

    def __init__(self, now: float) -> None:
        self.got_on_at = now
        self.waits_for: WaitsFor | None = None
        self._stalled_since = now

    def got_on(self, now: float) -> None:
        """Something of the disk came, was written, flushed or read again."""
        self.got_on_at = now

    def look(self, now: float, *, at_storage: bool) -> Change | None:
        """What has changed since the last look, if it is worth a word.

        Args:
            now: The time.
            at_storage: Whether something was asked of the storage and is not done.
        """
        still_for = now - self.got_on_at
        before, self.waits_for = self.waits_for, None
        if at_storage and still_for >= STORAGE_AFTER:
            self.waits_for = WaitsFor.STORAGE
        elif not at_storage and still_for >= SENDER_AFTER:
            self.waits_for = WaitsFor.SENDER
        if before is self.waits_for:
            return None
        if self.waits_for is None:
            return Change(None, self.got_on_at - self._stalled_since)
        self._stalled_since = self.got_on_at
        return Change(self.waits_for, still_for)
