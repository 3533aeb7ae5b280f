"""One disk to send, and what may become of it that is not the receiver's word."""

from dataclasses import dataclass, replace
from typing import Final

from flatship_protocol.errors import ErrorCode, TransferError
from flatship_protocol.messages import OpenDisk
from flatship_sender.disk_memory import DiskMemory
from flatship_sender.progress import DiskProgress
from flatship_sender.sources.base import BlockSource

FIRST_PASS: Final = 1


class Cancelled(TransferError):
    """The operator interrupted the transfer."""

    code = ErrorCode.CANCELLED
    exit_code = 130

    def __init__(self) -> None:
        super().__init__("interrupted; nothing was published, the same command goes on from here")


class RootDiffers(TransferError):
    """The receiver proved something else than was sent."""

    def __init__(self) -> None:
        super().__init__(
            "the receiver's root digest differs from the source's; nothing can be trusted"
        )


class Defect(TransferError):
    """Something happened to a disk that nobody has thought of.

    Args:
        error: What it was.
    """

    def __init__(self, error: Exception) -> None:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        super().__init__(f"internal error, please report it: {what}")
        self.__cause__ = error


@dataclass(frozen=True, slots=True)
class Job:
    """One disk to send: what is read, and what OPEN_DISK says of the target.

    ``memory`` is what is known of its pages from an earlier pass, or will be for a later one.
    """

    source: BlockSource
    opening: OpenDisk
    progress: DiskProgress
    memory: DiskMemory | None = None

    def again(self) -> "Job":
        """The same for another session, after one was lost: it may have been all but over."""
        in_doubt = self.opening.in_doubt or self.progress.root is not None
        return replace(self, opening=replace(self.opening, in_doubt=in_doubt))
