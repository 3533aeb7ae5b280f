"""The sender's daemon as an operator runs it, and its queue as it lies on the disk."""

import os
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes import SENDER, STOP_TIMEOUT, Argument, CompletedRun, Running, wait_until

from flatship_sender.queue.model import JobSpec, Submission
from flatship_sender.queue.store import DATABASE_NAME, FOLDER, Store


@dataclass(frozen=True)
class OnRecord:
    """A job as it is on record."""

    id: int
    state: str
    attempts: int
    ended: float | None
    exit_code: int | None
    message: str | None
    results: int


class SendingDaemon:
    """``flatship-sender serve`` of a state folder. Made stopped.

    Args:
        state: The folder, of a sender that has paired as ``esx``.
        logs: Where to keep what it says.
    """

    def __init__(self, state: Path, logs: Path) -> None:
        self.state = state
        self._logs = logs
        self._starts = 0
        self._running: Running | None = None
        self.metrics_url = ""
        self.before: tuple[Argument, ...] = ()
        """What stands before the command."""

    @property
    def process(self) -> Running:
        """The one that runs."""
        assert self._running is not None
        return self._running

    def begin(self, *options: Argument) -> None:
        """Start it."""
        assert self._running is None
        self._starts += 1
        command = (
            *self.before,
            *SENDER,
            "serve",
            "--state",
            self.state,
            "--http",
            "127.0.0.1:0",
            *options,
        )
        self._running = Running(command, self._logs / f"daemon-{self._starts}")

    def start(self, *options: Argument) -> None:
        """Start it and wait until it listens."""
        self.begin(*options)
        running = self.process
        wait_until(lambda: running.ended or " listening" in running.stderr, "daemon listens")
        found = re.search(r"listening.*metrics on (\S+),", running.stderr)
        assert found, running.stderr
        self.metrics_url = found[1]

    def kill(self) -> None:
        """End it as a power cut would; its workers see it."""
        running, self._running = self.process, None
        running.kill()

    def stop(self) -> CompletedRun:
        """End it in good order, and assert that it ended well."""
        running, self._running = self.process, None
        running.signal(signal.SIGTERM)
        return running.wait(STOP_TIMEOUT + 5).expect(0)

    def close(self) -> None:
        """End it at once, if it runs."""
        if self._running is not None:
            self.kill()

    def put(self, *specs: JobSpec) -> list[int]:
        """Put jobs into the queue of a daemon that does not run."""
        store = Store.open(self.state)
        with closing(store):
            return [
                store.add(Submission(spec=spec), os.getuid(), float(number))[0].id
                for number, spec in enumerate(specs)
            ]

    def jobs(self) -> dict[int, OnRecord]:
        """All jobs on record, whether or not it runs."""
        path = self.state / FOLDER / DATABASE_NAME
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT id, state, attempts, ended, exit_code, message,"
                " (SELECT count(*) FROM result WHERE job = id) FROM job ORDER BY id"
            ).fetchall()
        return {row[0]: OnRecord(*row) for row in rows}

    def workers(self) -> dict[int, int]:
        """Process id -> job, of all workers of this state folder that live."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"flatship-job" in words and os.fsencode(self.state) in words:
                found[int(folder.name)] = int(words[words.index(b"flatship-job") + 1])
        return found

    @property
    def said(self) -> str:
        """What all of its processes have said."""
        logs = sorted(self._logs.glob("daemon-*.err"), key=lambda path: path.stat().st_mtime)
        return "\n".join(path.read_text(errors="replace") for path in logs)


@contextmanager
def sending_daemon(state: Path, logs: Path) -> Iterator[SendingDaemon]:
    """A daemon that has ended after the block, and its workers with it."""
    daemon = SendingDaemon(state, logs)
    try:
        yield daemon
    finally:
        daemon.close()
        wait_until(lambda: not daemon.workers(), "workers leave")
