"""What is said of a stall on lines of its own: that it began, what it waits for, that it ended."""

from flatship_sender import figures
from flatship_sender.progress import TransferProgress
from flatship_sender.stalls import Stall, WaitsFor
from flatship_service.printable import printable
from flatship_service.units import format_duration


class StallTeller:
    """Says each thing once, and again after a while.

    Args:
        again: Seconds after which a stall that goes on is told again; None for never.
    """

    def __init__(self, again: float | None) -> None:
        self._again = again
        self._told: tuple[WaitsFor, float] | None = None  # what, when
        self._stall: Stall | None = None

    def lines(self, progress: TransferProgress, now: float) -> list[str]:
        """The lines that are due at ``now``; none, most of the time."""
        before, self._stall = self._stall, progress.stall
        if progress.stall is None:
            told, self._told = self._told, None
            if told is None or before is None or progress.waiting is not None:
                return []  # a lost session is told as such
            still_for = format_duration(max(0.0, now - before.since))
            return [f"{printable(progress.receiver)}: moving again after {still_for}"]
        cause = progress.stall.waits_for
        if self._told is not None and self._told[0] is cause and not self._is_due(now):
            return []
        self._told = (cause, now)
        return [f"{printable(progress.receiver)}: {figures.stall(progress, now)}"]

    def _is_due(self, now: float) -> bool:
        assert self._told is not None
        return self._again is not None and now - self._told[1] >= self._again
