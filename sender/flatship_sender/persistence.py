"""Whether a lost session is worth another try, how long to wait for it, when to give up. Pure."""

from collections.abc import Sequence
from typing import Final

from flatship_protocol.errors import ErrorCode, RecordNotAuthentic, TransferError
from flatship_sender.progress import DiskProgress
from flatship_sender.refusals import TRY_AGAIN, NotAuthorised
from flatship_service.units import format_duration, format_size

DEFAULT_PATIENCE: Final = 86400.0  # seconds
FIRST_DELAY: Final = 1.0  # seconds; the longest wait before the first new try, doubled for the next
MAX_DELAY: Final = 60.0  # seconds


class PatienceEnded(TransferError):
    """A session was lost and none took its place in time; the same command goes on with it.

    Args:
        reason: Why the last try failed.
        waited: Seconds since anything got on, or 0 if waiting was not wanted.
        missing: What is not done, as ``lacking`` words it.
        command: The command line as a shell takes it.
    """

    exit_code = 3

    def __init__(
        self, reason: TransferError, waited: float, missing: Sequence[str], command: str
    ) -> None:
        patience = f"; nothing got on for {format_duration(waited)}" if waited else ""
        super().__init__(
            f"{reason}{patience}; missing: {', '.join(missing)};"
            f" to go on where it stopped, run: {command}"
        )


def worth_another_try(error: TransferError) -> bool:
    """Whether a session that ended by ``error`` may do better as a new one.

    A record that is not authentic is the link's doing, or that of somebody on
    it, and both can as well cut the connection. A receiver that took this
    sender's key before and closes during the handshake has most likely
    crashed, or it is a tunnel that answers for one that is gone. DISK_BUSY ends
    a session only where the receiver has yet to let go of the one before, whose
    storage hangs.
    """
    return (
        error.exit_code == TRY_AGAIN
        or error.code is ErrorCode.DISK_BUSY
        or isinstance(error, RecordNotAuthentic | NotAuthorised)
    )


def lost_with(disk: DiskProgress, error: TransferError) -> bool:
    """Whether ``disk`` failed because the session did, by ``error``, and for no reason of its own.

    The codes of session errors and those of disk errors are different ones.
    """
    return disk.error_code is error.code and disk.exit_code == error.exit_code


def lacking(disk: DiskProgress) -> str:
    """Name a disk that is not done, and how much of it the receiver does not have."""
    if not disk.remaining:
        return f"the proof of {disk.target}"
    return f"{format_size(disk.remaining)} of {format_size(disk.size)} of {disk.target}"


class Persistence:
    """The patience of one command.

    Args:
        patience: Seconds without progress after which it ends.
        now: A clock reading; all others are of the same clock, in seconds.
    """

    def __init__(self, patience: float, now: float) -> None:
        self._patience = patience
        self._progress_at = now
        self._longest = FIRST_DELAY

    @property
    def gives_up_at(self) -> float:
        """When patience ends, unless something gets on before."""
        return self._progress_at + self._patience

    def progressed(self, at: float) -> None:
        """Something got on at ``at``: patience begins anew, and so do short waits."""
        if at > self._progress_at:
            self._progress_at = at
            self._longest = FIRST_DELAY

    def waited(self, now: float) -> float:
        """Seconds since anything got on; 0 if there is no patience at all."""
        return max(0.0, now - self._progress_at) if self._patience else 0.0

    def next_delay(self, now: float, chance: float) -> float | None:
        """How long to wait before the next try.

        Waits grow from try to try and are drawn from all of their length, so
        that many senders do not return to one receiver at the same moment. The
        last try is made when patience ends.

        Args:
            now: The time at which the last try failed.
            chance: From 0 to 1, drawn at random.

        Returns:
            Seconds, or None if patience has ended.
        """
        left = self.gives_up_at - now
        if left <= 0:
            return None
        delay = self._longest * chance
        self._longest = min(MAX_DELAY, self._longest * 2)
        return min(delay, left)
