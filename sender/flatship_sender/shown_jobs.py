"""The jobs of a queue as the page shows them: those that run, and those that ran last."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from flatship_sender.progress import TransferProgress
from flatship_sender.queue.model import Job, JobState

MAX_ENDED: Final = 8  # jobs whose disks are remembered after their worker has left

_ORDER: Final = (JobState.RUNNING, JobState.WAITING, JobState.QUEUED, JobState.PAUSED)


class ShownJobs:
    """Remembers what workers reported last.

    Args:
        live: The jobs that have not ended.
    """

    def __init__(self, live: Callable[[], Iterable[Job]]) -> None:
        self._live = live
        self._running: dict[int, TransferProgress] = {}
        self._ended: deque[tuple[int, TransferProgress]] = deque(maxlen=MAX_ENDED)

    def reported(self, job: int, progress: TransferProgress) -> None:
        """A worker has said how its job stands."""
        self._forget(job)
        self._running[job] = progress

    def left(self, job: int) -> None:
        """The worker of a job has left; what it said last stays for a while."""
        progress = self._running.pop(job, None)
        if progress is not None:
            self._forget(job)
            progress.stall = progress.waiting = None  # nobody waits for anything
            self._ended.appendleft((job, progress))

    def transfers(self) -> Iterator[tuple[str, TransferProgress]]:
        """Those that run, then the others, the last one first; each under its number."""
        for job, progress in (*self._running.items(), *self._ended):
            yield str(job), progress

    def jobs(self) -> tuple[Sequence[Job], int]:
        """The jobs that have not ended, in the order in which they matter, and how many."""
        live = sorted(self._live(), key=_rank)
        return live, len(live)

    def _forget(self, job: int) -> None:
        for earlier in [each for each in self._ended if each[0] == job]:
            self._ended.remove(earlier)


def _rank(job: Job) -> tuple[int, int, int]:
    place = _ORDER.index(job.state) if job.state in _ORDER else len(_ORDER)
    return place, -job.priority, job.id
