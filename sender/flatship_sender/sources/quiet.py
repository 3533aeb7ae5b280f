"""Whether somebody writes to what is read: looked at before, and again after."""

import os
import stat
from dataclasses import dataclass

from flatship_protocol.errors import SourceBusy, SourceReadError
from flatship_sender.holders import Survey, find_holders
from flatship_sender.sources.devices import bytes_written, size_of


@dataclass(frozen=True, slots=True)
class _Mark:
    """What moves when somebody writes; equal marks mean that nobody has."""

    size: int  # bytes
    modified: int  # ns since the epoch; of a file
    written: int | None  # bytes; of a device


def refuse_writers(subject: str, survey: Survey) -> None:
    """Raise ``SourceBusy``, its sentence beginning with ``subject``, if anybody may write."""
    for writer in survey.writers:
        raise SourceBusy(f"{subject} {writer.does}; {writer.remedy} or pass --live")


class QuietWatch:
    """A file or block device that nobody is to write to from now on.

    Args:
        subject: Begins every sentence about it, such as "source /dev/vg0/web".
        path: Where it is.
        fd: Open on it; stays the caller's, and open for as long as the watch is asked.
    """

    def __init__(self, subject: str, path: str, fd: int) -> None:
        self._subject = subject
        self._path = path
        self._fd = fd
        status = os.fstat(fd)
        self._rdev = status.st_rdev if stat.S_ISBLK(status.st_mode) else None
        if self._rdev is not None:
            os.fsync(fd)  # pages dirtied before this moment must not move the mark later
        self._mark = self._take_mark()

    def shrank_to(self) -> int | None:
        """Bytes that it has, if those are fewer than they were; None if it has them all."""
        size = size_of(self._fd)
        return size if size < self._mark.size else None

    def check(self) -> None:
        """Check that nobody has written, and nobody could.

        Beside looking for writers again, this compares the file's size and time of
        modification, or the device's count of written sectors, with those at
        the start: that shows a writer who came and went. A device whose kernel
        does not count shows none.

        Raises:
            SourceBusy: Somebody has, or could.
            SourceReadError: It cannot be looked at.
        """
        try:
            refuse_writers(self._subject, find_holders(self._path))
            mark = self._take_mark()
        except OSError as error:
            raise SourceReadError(
                f"{self._subject} cannot be looked at any more: {error.strerror};"
                " it may have been written to since it was renamed or removed, send it again"
            ) from error
        if mark != self._mark:
            raise SourceBusy(
                f"{self._subject} was written to while it was read; "
                "make sure that it is not in use and send it again, or pass --live"
            )

    def _take_mark(self) -> _Mark:
        if self._rdev is None:
            status = os.fstat(self._fd)
            return _Mark(status.st_size, status.st_mtime_ns, None)
        return _Mark(size_of(self._fd), 0, bytes_written(self._rdev))
