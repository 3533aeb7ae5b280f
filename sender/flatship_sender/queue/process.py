"""A worker as the daemon has it: a child process, a lock that lives as long, its reports.

The lock is a descriptor that the child inherits. The kernel lets go of it when the last of its
holders is gone: a daemon that finds a job's lock taken knows that a worker of its predecessor
still lives, whatever has become of the rest.
"""

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Container
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from flatship_sender.queue.model import Task
from flatship_sender.worker_reports import Report
from flatship_service import files

FOLDER: Final = "workers"
MAX_LINE: Final = 8 << 20  # bytes of a report: 256 disks with all that is said of them
MAX_SAID: Final = 64 << 10  # bytes of a line on standard error

# The daemon's own way to modules, which need not be the one that the interpreter finds by itself.
_COMMAND: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1));"
    " from flatship_sender.worker import main; main()"
)

log = structlog.get_logger()


class Worker(Protocol):
    """A worker that was started."""

    def reports(self) -> AsyncIterator[Report]:
        """What it reports, to its end; at once the end if it broke the rules."""
        ...

    def leave(self) -> None:
        """Have it say goodbye and leave. Idempotent."""
        ...

    def read_again(self) -> None:
        """Have it read its configuration again."""
        ...

    def kill(self) -> None:
        """End it at once. Idempotent."""
        ...

    async def wait(self) -> str | None:
        """Wait until it has left; says what ended it, if that was not itself."""
        ...


class Locks:
    """The locks of jobs' workers. For the one daemon of a state folder.

    Args:
        folder: Of the queue.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER

    def take(self, job: int) -> int | None:
        """A descriptor that holds a job's lock; None if a worker of before still lives.

        Raises:
            OSError: The folder cannot be written.
        """
        files.make_private_folder(self._folder)
        descriptor = os.open(self._path(job), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def is_held(self, job: int) -> bool:
        """Whether a job's worker of before still lives, as far as that can be told."""
        try:
            descriptor = self.take(job)
        except OSError:
            return False  # whoever takes it is told why that cannot be done
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None

    def forget(self, job: int) -> None:
        """Remove what stands for a job whose last worker has left."""
        with suppress(OSError):
            self._path(job).unlink()

    def tidy(self, live: Container[int]) -> None:
        """Remove what stands for jobs that have ended."""
        with suppress(OSError):
            for path in self._folder.glob("*.lock"):
                if not path.stem.isdigit() or int(path.stem) not in live:
                    path.unlink()

    def _path(self, job: int) -> Path:
        return self._folder / f"{job}.lock"


async def start(task: Task, lock: int) -> "WorkerProcess":
    """Start a worker.

    Args:
        task: Its job.
        lock: A descriptor that it is to inherit.

    Raises:
        OSError: The system has no room for another process.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        # Neither the caller's environment nor the machine's other Python packages matter.
        *("-IS", "-c", _COMMAND, json.dumps(sys.path)),
        *("flatship-job", str(task.job), task.state),  # for people who look at processes
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(lock,),
        limit=MAX_LINE,
        start_new_session=True,  # a Ctrl-C at the daemon's terminal is the daemon's
    )
    return WorkerProcess(task, process)


class WorkerProcess:
    """See ``Worker``."""

    def __init__(self, task: Task, process: asyncio.subprocess.Process) -> None:
        self._job = task.job
        self._process = process
        self._log = asyncio.create_task(self._pass_on())
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(task) + b"\n")

    async def reports(self) -> AsyncIterator[Report]:
        """See ``Worker``."""
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
                if not line.endswith(b"\n"):
                    return
                yield msgspec.json.decode(line, type=Report)
            except (ValueError, msgspec.MsgspecError) as error:
                log.error("worker broke the rules", job=self._job, reason=str(error))  # noqa: TRY400
                self.kill()
                return

    def leave(self) -> None:
        """See ``Worker``."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def read_again(self) -> None:
        """See ``Worker``."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """See ``Worker``."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> str | None:
        """See ``Worker``."""
        code = await self._process.wait()
        self.leave()
        await asyncio.wait({self._log})
        return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else None

    async def _pass_on(self) -> None:
        """Log what it says."""
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # longer than anybody wants to read
                continue
            if not line:
                return
            said = line[:MAX_SAID].decode(errors="replace").rstrip()
            log.info("worker", job=self._job, said=said)
