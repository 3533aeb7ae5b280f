"""Follows a job of the daemon to its end, and shows it as if it were this process's own."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import Final

import msgspec

from flatship_sender.control.answers import Change, JobView
from flatship_sender.control.client import Daemon, DaemonLost, NoDaemon
from flatship_sender.display import Display
from flatship_sender.progress import TransferProgress
from flatship_sender.queue.model import Job, JobState
from flatship_sender.queue.states import FINAL
from flatship_sender.snapshot import Snapshot, restore
from flatship_service.errors import OperatorError

PATIENCE: Final = 60.0  # seconds for which a daemon that is gone may come back
PAUSE: Final = 0.5  # seconds between two looks for it


class NotFollowed(OperatorError):
    """The daemon is gone; its job is not.

    Args:
        job: Its number.
        reason: What is known.
    """

    exit_code = 3

    def __init__(self, job: int, reason: OperatorError) -> None:
        super().__init__(
            f"job {job} cannot be followed: {reason}. It goes on once a daemon runs; to see it,"
            f" run: flatship-sender show {job} --follow"
        )


class Follower:
    """Looks at a job until it has ended.

    Args:
        daemon: Whose job it is.
        number: The job's.
        display: Where its progress is shown; closed at the end.
        say: Told a line when the job waits for something else than before.
        clock: Seconds, monotonic; that of ``display``.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        daemon: Daemon,
        number: int,
        display: Display,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._daemon = daemon
        self._number = number
        self._display = display
        self._say = say
        self._clock = clock
        self._sleep = sleep
        self._progress: TransferProgress | None = None
        self._state: JobState | None = None
        self._said: str | None = None

    def run(self) -> Job:
        """Follow it; returns the job as it ended, with its result.

        Raises:
            Refused: There is no such job.
            NotFollowed: The daemon is gone, and did not come back in time.
        """
        lost_at: float | None = None
        while True:
            reason: OperatorError = DaemonLost("has left")
            try:
                for line in self._daemon.lines(f"/v1/jobs/{self._number}/changes"):
                    lost_at = None
                    change = msgspec.json.decode(line, type=Change)
                    if self._take(change):
                        return self._ended()
            except (NoDaemon, DaemonLost) as error:
                reason = error
            if lost_at is None:
                lost_at = self._clock()
                self._tell("the daemon is gone; waiting for it to come back")
            if self._clock() - lost_at >= PATIENCE:
                raise NotFollowed(self._number, reason)
            self._sleep(PAUSE)

    def close(self) -> None:
        """Leave the terminal as it was. Idempotent."""
        with suppress(OSError):  # a terminal that is gone
            self._display.close()

    def _take(self, change: Change) -> bool:
        """Show a change; whether it was the last one."""
        if change.job is not None:
            self._state = change.job.state
        if change.snapshot is not None:
            self._restore(change.snapshot)
        if self._state in FINAL:
            return True
        if self._state is JobState.RUNNING:
            self._said = None
            self._show()
        else:
            view = self._look()
            if view.waits_for is not None:
                self._tell(
                    f"job {self._number} is {view.job.state.value}: waits for {view.waits_for}"
                )
        return False

    def _ended(self) -> Job:
        self._show()
        self.close()
        return self._look().job

    def _look(self) -> JobView:
        return msgspec.json.decode(
            self._daemon.ask("GET", f"/v1/jobs/{self._number}"), type=JobView
        )

    def _restore(self, snapshot: Snapshot) -> None:
        """Take a snapshot over into the one object that a display looks at."""
        restored = restore(snapshot, self._clock())
        if self._progress is None:
            self._progress = restored
            return
        for each in fields(restored):
            setattr(self._progress, each.name, getattr(restored, each.name))

    def _show(self) -> None:
        if self._progress is None:
            return
        with suppress(OSError):  # a terminal that is gone ends the display alone
            self._display.show(self._progress, self._clock())

    def _tell(self, line: str) -> None:
        if line != self._said:
            self._said = line
            self.close()
            self._say(line)
