"""The queue's durable record: SQLite in the state folder.

What a method has written is on stable storage when it returns. ``Store`` is synchronous and
belongs to the thread that opened it; ``AsyncStore`` gives one a thread of its own. One process
has it open, held to that by a lock.

Long because the schema and every statement that relies on it are read together.
"""

import asyncio
import functools
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

import msgspec

from flatship_sender.queue.model import Job, JobState, Submission
from flatship_sender.queue.refusals import (
    KeyTaken,
    NoSuchJob,
    QueueDamaged,
    QueueInUse,
    QueueNotWritable,
    QueueVersionRefused,
)
from flatship_sender.queue.states import FINAL
from flatship_sender.results import SendResult
from flatship_service import files
from flatship_service.cli import INTERRUPTED
from flatship_service.database import Locked, primary_code, take_lock, transaction
from flatship_service.workers import finished

FOLDER: Final = "queue"
DATABASE_NAME: Final = "queue.db"
LOCK_NAME: Final = "queue.lock"
LISTED: Final = 1000  # jobs of one list, whose submissions are kept at hand

# Each script takes a queue from the version that is its index to the next.
MIGRATIONS: Final = (
    """
    CREATE TABLE job (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT UNIQUE,
        submission BLOB NOT NULL,
        priority INTEGER NOT NULL,
        not_before REAL,
        state TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        submitted REAL NOT NULL,
        started REAL,
        ended REAL,
        by_uid INTEGER NOT NULL,
        wanted TEXT,
        message TEXT,
        exit_code INTEGER,
        size INTEGER
    );
    CREATE INDEX job_state ON job (state, ended);
    CREATE TABLE result (
        job INTEGER PRIMARY KEY REFERENCES job (id) ON DELETE CASCADE,
        content BLOB NOT NULL
    );
    """,
)

_COLUMNS: Final = tuple(field for field in Job.__struct_fields__ if field not in ("spec", "result"))
_MUTABLE: Final = tuple(
    field for field in _COLUMNS if field not in ("id", "key", "submitted", "by_uid", "priority")
)
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)}, submission FROM job"  # noqa: S608 - constants
_ENDED: Final = ", ".join(f"'{state.value}'" for state in sorted(FINAL))

_DECODER: Final = msgspec.json.Decoder(Submission)

P = ParamSpec("P")
T = TypeVar("T")


class Store:
    """The record in one state folder. Belongs to the thread that opened it.

    Every method raises ``QueueNotWritable`` when the database fails, ``QueueDamaged`` when it
    holds what was never written. Nothing has changed then, as far as anybody can tell: after an
    input/output error the next call opens the database again, and goes on with what it finds.
    """

    def __init__(self, folder: Path, lock: int) -> None:
        self._path = folder / DATABASE_NAME
        self._lock = lock
        self._connection = self._connect()
        self._failed = False

    @classmethod
    def open(cls, state: Path) -> Self:
        """Open the queue of a state folder; make or migrate it as needed.

        Raises:
            QueueInUse: Another daemon has it.
            QueueVersionRefused: A newer program wrote it. It is untouched.
            QueueDamaged: The file is no database, or broken.
            QueueNotWritable: The folder or the database cannot be used.
        """
        folder = state / FOLDER
        try:
            files.make_private_folder(folder)
            lock = take_lock(folder / LOCK_NAME)
        except Locked as error:
            raise QueueInUse(state, error.holder) from error
        except OSError as error:
            raise QueueNotWritable(f"{folder}: {error.strerror or error}") from error
        try:
            store = cls(folder, lock)
        except BaseException:
            os.close(lock)
            raise
        try:
            store._prepare()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Let go of the database and of the lock. Idempotent."""
        with suppress(sqlite3.Error):
            self._connection.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def add(self, submission: Submission, uid: int, now: float) -> tuple[Job, bool]:
        """Put a job on record; returns it, and whether it is new.

        Raises:
            KeyTaken: Its key belongs to a job of other contents.
        """
        content = msgspec.json.encode(submission)
        with self._transaction() as database:
            known = self._known(submission)
            if known is not None:
                return known, False
            added = database.execute(
                "INSERT INTO job (key, submission, priority, not_before, state, submitted, by_uid)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    submission.key,
                    content,
                    submission.priority,
                    submission.not_before,
                    JobState.QUEUED,
                    now,
                    uid,
                ),
            )
            row = database.execute(f"{_SELECT} WHERE id = ?", (added.lastrowid,)).fetchone()
        return _job(row), True

    def known(self, submission: Submission) -> Job | None:
        """The job that an earlier submission of the same key and contents has made.

        Raises:
            KeyTaken: Its key belongs to a job of other contents.
        """
        with self._guarded():
            return self._known(submission)

    def put(self, job: Job, was: JobState) -> None:
        """Record what has become of a job, with its result if it has one.

        Raises:
            QueueDamaged: It is not on record in the state that it ``was`` in.
        """
        values = [getattr(job, name) for name in _MUTABLE]
        with self._transaction() as database:
            changed = database.execute(
                f"UPDATE job SET {', '.join(f'{name} = ?' for name in _MUTABLE)}"  # noqa: S608
                " WHERE id = ? AND state = ?",
                (*values, job.id, was),
            )
            if changed.rowcount != 1:
                raise QueueDamaged(f"{self._path}: job {job.id} is not {was.value} on record")
            if job.result is not None:
                database.execute(
                    "INSERT INTO result (job, content) VALUES (?, ?)",
                    (job.id, msgspec.json.encode(job.result)),
                )

    def recover(self, now: float) -> None:
        """Settle what an earlier daemon left running: it is queued again, or as was wanted."""
        with self._transaction() as database:
            database.execute(
                "UPDATE job SET state = ? WHERE state = ? AND wanted IS NULL",
                (JobState.QUEUED, JobState.RUNNING),
            )
            database.execute(
                "UPDATE job SET state = wanted, wanted = NULL,"
                " ended = CASE wanted WHEN ?1 THEN ?2 END,"
                " exit_code = CASE wanted WHEN ?1 THEN ?3 END WHERE state = ?4",
                (JobState.CANCELLED, now, INTERRUPTED, JobState.RUNNING),
            )

    def live(self) -> list[Job]:
        """All jobs that have not ended, the oldest first."""
        return self._jobs(f"WHERE state NOT IN ({_ENDED}) ORDER BY id")

    def jobs(self, states: Collection[JobState], after: int, limit: int) -> list[Job]:
        """At most ``limit`` jobs in any of ``states`` with numbers above ``after``, in order.

        Without their results.
        """
        marks = ", ".join("?" * len(states))
        clause = f"WHERE id > ? AND state IN ({marks}) ORDER BY id LIMIT ?"
        return self._jobs(clause, after, *states, limit)

    def job(self, number: int) -> Job:
        """One job, with its result.

        Raises:
            NoSuchJob: There is none of that number.
        """
        with self._guarded():
            row = self._connection.execute(f"{_SELECT} WHERE id = ?", (number,)).fetchone()
            if row is None:
                raise NoSuchJob(number)
            result = self._connection.execute(
                "SELECT content FROM result WHERE job = ?", (number,)
            ).fetchone()
            job = _job(row)
            if result is None:
                return job
            content = msgspec.json.decode(result["content"], type=SendResult)
            return msgspec.structs.replace(job, result=content)

    def ended(self) -> Mapping[JobState, tuple[int, int]]:
        """Of jobs that have ended and are kept: how many, and their bytes, by state."""
        with self._guarded():
            rows = self._connection.execute(
                "SELECT state, count(*), coalesce(sum(size), 0) FROM job"  # noqa: S608 - constants
                f" WHERE state IN ({_ENDED}) GROUP BY state"
            ).fetchall()
        return {JobState(state): (count, size) for state, count, size in rows}

    def prune(self, keep: int) -> None:
        """Forget all but the last ``keep`` jobs that ended."""
        with self._transaction() as database:
            database.execute(
                "DELETE FROM job WHERE id IN ("  # noqa: S608 - constants
                f"SELECT id FROM job WHERE state IN ({_ENDED})"
                " ORDER BY ended DESC, id DESC LIMIT -1 OFFSET ?)",
                (keep,),
            )

    def _jobs(self, clause: str, *values: object) -> list[Job]:
        with self._guarded():
            return [_job(row) for row in self._connection.execute(f"{_SELECT} {clause}", values)]

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self._path, isolation_level=None)
        except sqlite3.Error as error:
            raise self._explain(error) from error
        connection.row_factory = sqlite3.Row
        return connection

    def _configure(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")

    def _prepare(self) -> None:
        with self._guarded():
            self._configure()
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise QueueVersionRefused(
                f"{self._path}: format {version}, and this program knows {len(MIGRATIONS)};"
                " use the newer program that wrote it"
            )
        for number in range(version, len(MIGRATIONS)):
            with self._transaction() as database:
                for statement in MIGRATIONS[number].split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {number + 1}")

    def _known(self, submission: Submission) -> Job | None:
        if submission.key is None:
            return None
        found = self._connection.execute(f"{_SELECT} WHERE key = ?", (submission.key,))
        row = found.fetchone()
        if row is None:
            return None
        job = _job(row)
        if _submission(row["submission"]) != submission:
            raise KeyTaken(submission.key, job.id)
        return job

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit durably at the end, or leave everything as it was."""
        with self._guarded(), transaction(self._connection) as database:
            yield database

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn the database's exceptions into those of the queue."""
        try:
            if self._failed:
                self._open_again()
            yield
        except sqlite3.Error as error:
            self._failed |= primary_code(error) == sqlite3.SQLITE_IOERR
            raise self._explain(error) from error
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            raise QueueDamaged(f"{self._path} is damaged ({error}); move it away") from error

    def _open_again(self) -> None:
        """Go on after an input/output error with what a fresh start would find.

        A sync that failed must not be tried again: the kernel has marked the pages clean, and
        the log may be on the medium or not. So the log goes into the database, which is synced.
        """
        with suppress(sqlite3.Error):
            self._connection.close()
        self._connection = self._connect()
        self._configure()
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._failed = False

    def _explain(self, error: sqlite3.Error) -> Exception:
        code = primary_code(error)
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return QueueDamaged(
                f"{self._path} is damaged ({error}); move it away and submit again what was in it"
            )
        if code == sqlite3.SQLITE_FULL:
            return QueueNotWritable(
                f"{self._path}: no space is left for the queue; free some in {self._path.parent}"
            )
        return QueueNotWritable(f"{self._path}: {error}; see to it that it can be written")


class AsyncStore:
    """A ``Store`` in a thread of its own, for an event loop.

    ``await store.run(Store.add, submission, uid, now)``: calls run one after the other, in the
    order in which they were made, and to their end whoever stops waiting for them.
    """

    def __init__(self, store: Store, executor: ThreadPoolExecutor) -> None:
        self._store = store
        self._executor = executor

    @classmethod
    async def open(cls, state: Path) -> Self:
        """Open the queue of a state folder; raises what ``Store.open`` does."""
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="queue")
        loop = asyncio.get_running_loop()
        try:
            store = await loop.run_in_executor(executor, Store.open, state)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(store, executor)

    async def run(
        self, operation: Callable[Concatenate[Store, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call ``operation`` with the store in its thread; raises what that raises."""
        loop = asyncio.get_running_loop()
        call = functools.partial(operation, self._store, *args, **kwargs)
        return await finished(loop.run_in_executor(self._executor, call))

    async def close(self) -> None:
        """Finish the calls under way and close the store."""
        try:
            await self.run(Store.close)
        finally:
            self._executor.shutdown(wait=False)


def _job(row: sqlite3.Row) -> Job:
    columns: dict[str, Any] = {name: row[name] for name in _COLUMNS}
    return msgspec.convert(columns | {"spec": _submission(row["submission"]).spec}, Job)


@functools.lru_cache(LISTED)
def _submission(content: bytes) -> Submission:
    """A submission as it is on record: those of a list are mostly those of the last one."""
    return _DECODER.decode(content)
