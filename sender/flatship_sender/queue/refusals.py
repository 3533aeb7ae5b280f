"""What the queue says no to, each with the exit code of the command that asked."""

from pathlib import Path

from flatship_protocol.errors import TransferError
from flatship_sender.refusals import BUSY, NOT_FOUND, TRY_AGAIN


class QueueError(TransferError):
    """The queue did not do what was asked."""


class NoSuchJob(QueueError):
    """There is no job of that number.

    Args:
        job: The number.
    """

    exit_code = NOT_FOUND

    def __init__(self, job: int) -> None:
        super().__init__(
            f"there is no job {job}; see flatship-sender jobs --all, which forgets old ones"
        )


class KeyTaken(QueueError):
    """Another job has been submitted under the same key.

    Args:
        key: The key.
        job: The number of the job that has it.
    """

    exit_code = BUSY

    def __init__(self, key: str, job: int) -> None:
        super().__init__(f"key {key!r} is that of job {job}, which asks for something else")


class QueueInUse(QueueError):
    """Another daemon uses the state folder.

    Args:
        state: The folder.
        holder: The daemon's process id.
    """

    exit_code = BUSY

    def __init__(self, state: Path, holder: str) -> None:
        super().__init__(
            f"state folder {state} is in use by another flatship-sender serve (pid {holder});"
            " stop it, or give this one a folder of its own with --state"
        )


class QueueNotWritable(QueueError):
    """The record cannot be written, or read; nothing has changed."""

    exit_code = TRY_AGAIN


class QueueFull(QueueError):
    """There are as many jobs as the daemon has room for.

    Args:
        limit: How many that is.
    """

    exit_code = TRY_AGAIN

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} jobs have not ended, and the queue has room for no more; cancel some,"
            " or submit again when some have ended"
        )


class NotTaken(QueueError):
    """The daemon is leaving and takes no more jobs."""

    exit_code = TRY_AGAIN

    def __init__(self) -> None:
        super().__init__("the daemon is leaving and takes no more jobs; submit again later")


class QueueDamaged(QueueError):
    """The record is not what was written into it."""


class QueueVersionRefused(QueueError):
    """The record's format is not one that this program works with."""
