"""How large the sources of jobs are, for sums: found out by a thread that may hang for ever.

A file server that is gone holds up whoever asks for the size of a file there. That must not be
the daemon, nor its end, so the thread is one that nobody waits for.
"""

import asyncio
import os
import queue
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from flatship_sender.queue.model import Job
from flatship_sender.queue.record import Record
from flatship_sender.queue.refusals import QueueError

SECTOR: Final = 512  # bytes, of which /sys counts a device's size
_DEVICES: Final = Path("/sys/dev/block")


class Sizes:
    """Sizes of sources, noted in the record as they come.

    Args:
        record: The jobs. Used on the event loop that is running.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._loop = asyncio.get_running_loop()
        self._asked: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        threading.Thread(target=self._work, name="sizes", daemon=True).start()

    def measure(self, job: Job) -> None:
        """Have a job's size noted, some time."""
        self._asked.put(job)

    def _work(self) -> None:
        while True:
            job = self._asked.get()
            size = total(job.spec.sources)
            if size is not None:
                with suppress(RuntimeError):  # the loop has ended
                    self._loop.call_soon_threadsafe(self._note, job.id, size)

    def _note(self, number: int, size: int) -> None:
        task = self._loop.create_task(self._put(number, size))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _put(self, number: int, size: int) -> None:
        with suppress(QueueError):  # a sum is less right, and that is all
            await self._record.note(number, size=size)


def total(sources: Sequence[str]) -> int | None:
    """Bytes of files and block devices together; None if any cannot be told. Opens none."""
    try:
        return sum(_size(source) for source in sources)
    except (OSError, ValueError):
        return None


def _size(source: str) -> int:
    status = os.stat(source)
    if not stat.S_ISBLK(status.st_mode):
        return status.st_size
    device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return int((_DEVICES / device / "size").read_text()) * SECTOR
