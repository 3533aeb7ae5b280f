"""The receiver's durable record: epochs, images, and the digests of what they hold.

SQLite in the state folder, never on a datastore. What a method has written
is on stable storage when it returns, so an acknowledgement may follow it.
``Journal`` is synchronous and belongs to the thread that opened it;
``AsyncJournal`` gives one a thread of its own and is what an event loop uses.
One process writes, held to that by a lock; others may read meanwhile.

Long because the schema and every statement that relies on it are read together.
"""

import asyncio
import functools
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from enum import Enum, StrEnum
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, Self, TypeVar

import msgspec

from flatship_protocol.constants import DIGEST_SIZE, SEGMENT_CHUNKS
from flatship_protocol.errors import TransferError
from flatship_receiver.segment_record import KNOWN_SIZE, SegmentRecord, by_segment, zero_segment
from flatship_service.database import Locked, primary_code, take_lock, transaction

DATABASE_NAME: Final = "journal.db"
LOCK_NAME: Final = "journal.lock"
LOG_PAGES: Final = 256  # of 4 KiB in SQLite's log before they are moved to the database
READER_PATIENCE: Final = 5.0  # seconds a reader waits while the writer recovers the log

# Each script takes a journal from the version that is its index to the next.
# Epochs are 8 big-endian bytes: SQLite's integers are signed, and blobs compare as bytes.
MIGRATIONS: Final = (
    """
    CREATE TABLE session (
        peer BLOB NOT NULL,
        session_id BLOB NOT NULL,
        epoch BLOB NOT NULL,
        PRIMARY KEY (peer, session_id)
    ) WITHOUT ROWID;
    CREATE TABLE image (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        uuid BLOB NOT NULL UNIQUE,
        peer BLOB NOT NULL,
        datastore TEXT NOT NULL,
        vm TEXT NOT NULL,
        disk TEXT NOT NULL,
        size INTEGER NOT NULL,
        capacity INTEGER NOT NULL,
        source_id BLOB NOT NULL,
        state TEXT NOT NULL,
        root BLOB,
        created REAL NOT NULL,
        completed REAL
    );
    CREATE INDEX image_place ON image (datastore, vm, disk);
    CREATE TABLE segment (
        image INTEGER NOT NULL REFERENCES image (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        digests BLOB NOT NULL,
        PRIMARY KEY (image, number)
    );
    """,
    # A bit a chunk, NULL for a whole segment; and what an image was asked to become.
    """
    ALTER TABLE segment ADD COLUMN known BLOB;
    ALTER TABLE image ADD COLUMN layout TEXT NOT NULL DEFAULT '';
    """,
)

P = ParamSpec("P")
T = TypeVar("T")


class JournalError(TransferError):
    """The journal did not do what was asked; nothing may be acknowledged on its strength."""


class JournalMissing(JournalError):
    """There is no journal in the state folder."""

    exit_code = 10


class JournalLocked(JournalError):
    """Another receiver uses the state folder."""

    exit_code = 11


class JournalVersionRefused(JournalError):
    """The journal's format is not the one this program works with."""


class JournalDamaged(JournalError):
    """The database's content is not what was written into it."""


class EpochClaim(Enum):
    """How a claimed epoch compares with the highest on record for its session."""

    NEW = "new"
    CURRENT = "current"
    STALE = "stale"


class ImageState(StrEnum):
    """What has become of an image."""

    RECEIVING = "receiving"
    PUBLISHING = "publishing"
    COMPLETE = "complete"
    DISCARDED = "discarded"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What the journal knows of one image.

    ``uuid`` is 16 bytes, the one in the descriptor; ``peer`` the sender's
    static key; ``size`` and ``capacity`` are in bytes; ``root`` is the root
    digest that was proven; ``created`` and ``completed`` are Unix time in seconds;
    ``layout`` says what was asked for, and is only ever compared.
    """

    uuid: bytes
    peer: bytes
    datastore: str
    vm: str
    disk: str
    size: int
    capacity: int
    source_id: bytes
    created: float
    state: ImageState = ImageState.RECEIVING
    root: bytes | None = None
    completed: float | None = None
    layout: str = ""


_IMAGE_FIELDS: Final = tuple(field.name for field in fields(ImageRecord))
_IMAGE_COLUMNS: Final = ", ".join(_IMAGE_FIELDS)
_IMAGE_VALUES: Final = ", ".join(f":{name}" for name in _IMAGE_FIELDS)


class Journal:
    """The record in one state folder. Belongs to the thread that opened it.

    Every method raises ``JournalError`` when the database fails. Whether what
    it was to write is on record is unknown after an input/output error, so the
    next call opens the database again first, and makes durable what is found.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self._folder = folder
        self._connection = connection
        self._lock = lock  # descriptor that holds the lock; None for a reader
        self._failed = False

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open for writing; create or migrate the database as needed.

        Raises:
            JournalLocked: Another process has it open for writing.
            JournalVersionRefused: A newer receiver wrote it. It is untouched.
            JournalDamaged: The file is not a database or is broken.
            JournalError: The folder or the database cannot be used.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = take_lock(folder / LOCK_NAME)
        except Locked as error:
            raise JournalLocked(
                f"state folder {folder} is in use by another receiver (pid {error.holder}); "
                "stop it, or give this one a folder of its own with --state"
            ) from error
        except OSError as error:
            raise JournalError(f"state folder {folder}: {error.strerror}") from error
        try:
            journal = cls(folder, _connect(folder, "rwc"), lock)
        except BaseException:
            os.close(lock)
            raise
        try:
            journal._prepare()
            _sync_folder(folder)
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def open_read_only(cls, folder: Path) -> Self:
        """Open for reading, whether or not a receiver is writing.

        Raises:
            JournalMissing: No receiver has kept a journal in ``folder``.
            JournalVersionRefused: It is older or newer than this program.
            JournalDamaged: The file is not a database or is broken.
        """
        if not (folder / DATABASE_NAME).is_file():
            raise JournalMissing(f"state folder {folder}: there is no {DATABASE_NAME}")
        journal = cls(folder, _connect(folder, "ro"), None)
        try:
            with journal._guarded():
                version = journal._version()
            if version < len(MIGRATIONS):
                raise JournalVersionRefused(
                    f"{folder / DATABASE_NAME}: format {version}, expected {len(MIGRATIONS)}; "
                    "start the receiver once to bring it up to date"
                )
        except BaseException:
            journal.close()
            raise
        return journal

    def close(self) -> None:
        """Let go of the database and of the lock. Idempotent."""
        try:
            self._connection.close()
        except sqlite3.Error as error:
            raise _explain(self._folder, error) from error
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def claim_epoch(self, peer: bytes, session_id: bytes, epoch: int) -> EpochClaim:
        """Record ``epoch`` (unsigned, 64 bits) if it is the highest of its session."""
        claimed = epoch.to_bytes(8, "big")
        with self._transaction() as database:
            row = database.execute(
                "SELECT epoch FROM session WHERE peer = ? AND session_id = ?", (peer, session_id)
            ).fetchone()
            if row is not None and claimed <= row[0]:
                return EpochClaim.CURRENT if claimed == row[0] else EpochClaim.STALE
            database.execute(
                "INSERT INTO session (peer, session_id, epoch) VALUES (?, ?, ?) "
                "ON CONFLICT (peer, session_id) DO UPDATE SET epoch = excluded.epoch",
                (peer, session_id, claimed),
            )
        return EpochClaim.NEW

    def begin_image(self, record: ImageRecord) -> None:
        """Put a new image on record.

        Raises:
            JournalError: Its uuid is on record already.
        """
        with self._transaction() as database:
            if self._find(record.uuid) is not None:
                raise JournalError(f"image {record.uuid.hex()} is on record already")
            database.execute(
                f"INSERT INTO image ({_IMAGE_COLUMNS}) VALUES ({_IMAGE_VALUES})",  # noqa: S608
                asdict(record),
            )

    def set_state(
        self, uuid: bytes, state: ImageState, *, when: float, root: bytes | None = None
    ) -> None:
        """Record what has become of an image.

        ``COMPLETE`` drops the older images of the same place with their
        segments; ``DISCARDED`` drops the image's own segments. ``root`` stays
        what it was when ``None`` is given; ``when`` is kept for ``COMPLETE``.

        Raises:
            JournalError: No such image, or it would be complete without a root.
        """
        completed = when if state is ImageState.COMPLETE else None
        with self._transaction() as database:
            image, _ = self._require(uuid)
            database.execute(
                "UPDATE image SET state = ?, root = coalesce(?, root), completed = ? WHERE id = ?",
                (state, root, completed, image),
            )
            if state is ImageState.DISCARDED:
                database.execute("DELETE FROM segment WHERE image = ?", (image,))
            if state is ImageState.COMPLETE:
                self._supersede(image)

    def image(self, uuid: bytes) -> ImageRecord | None:
        """Return what is known of the image, if anything."""
        return next(self._records("WHERE uuid = ?", uuid), None)

    def image_of(self, peer: bytes, uuid: bytes) -> ImageRecord | None:
        """The image of that uuid if it is that sender's; another's is as if there were none."""
        return next(self._records("WHERE peer = ? AND uuid = ?", peer, uuid), None)

    def images(self) -> tuple[ImageRecord, ...]:
        """Return every image on record, the oldest first."""
        return tuple(self._records("ORDER BY id"))

    def image_at(self, datastore: str, vm: str, disk: str) -> ImageRecord | None:
        """Return the image last begun at a place, if any."""
        found = self._records(
            "WHERE datastore = ? AND vm = ? AND disk = ? ORDER BY id DESC LIMIT 1",
            datastore,
            vm,
            disk,
        )
        return next(found, None)

    def hold(self, uuid: bytes, runs: Iterable[tuple[int, int, bytes | None]]) -> None:
        """Record that chunks are on stable storage, all of them or none.

        Args:
            uuid: Of an image on record.
            runs: First chunk, how many, and their digests in order, 32 bytes
                each; None in the place of digests stands for zeros.

        Raises:
            JournalError: No such image.
            ValueError: Not chunks of that image, or not so many digests.
        """
        with self._transaction() as database:
            image, size = self._require(uuid)
            rows: dict[int, SegmentRecord] = {}
            for first, count, digests in runs:
                if digests is not None and len(digests) != count * DIGEST_SIZE:
                    raise ValueError(f"{len(digests)} bytes of digests for {count} chunks")
                for number, place, length in by_segment(first, count):
                    row = rows.get(number) or self._segment_record(image, size, number)
                    at = (number * SEGMENT_CHUNKS + place - first) * DIGEST_SIZE
                    part = None if digests is None else digests[at : at + length * DIGEST_SIZE]
                    rows[number] = row.with_chunks(place, length, part)
            for row in rows.values():
                database.execute(
                    "INSERT INTO segment (image, number, digests, known) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (image, number) DO UPDATE "
                    "SET digests = excluded.digests, known = excluded.known",
                    (image, row.number, *row.columns()),
                )

    def let_go(self, uuid: bytes, runs: Iterable[tuple[int, int]]) -> None:
        """Record that what chunks hold is unknown from now on: they are about to be written.

        Args:
            uuid: The image's.
            runs: First chunk, and how many.

        Raises:
            JournalError: No such image.
            ValueError: Not chunks of that image.
        """
        with self._transaction() as database:
            image, size = self._require(uuid)
            for first, count in runs:
                for number, place, length in by_segment(first, count):
                    row = self._segment_record(image, size, number).without_chunks(place, length)
                    database.execute(
                        "UPDATE segment SET digests = ?, known = ? WHERE image = ? AND number = ?",
                        (*row.columns(), image, number),
                    )

    def held_segments(self, uuid: bytes) -> list[int]:
        """Return the numbers of the digest segments of which something is on record, in order.

        Raises:
            JournalDamaged: What is on record is not a number.
        """
        with self._guarded():
            rows = self._connection.execute(
                "SELECT number FROM segment JOIN image ON image.id = segment.image "
                "WHERE image.uuid = ? ORDER BY number",
                (uuid,),
            ).fetchall()
        numbers = [row["number"] for row in rows]
        if not all(isinstance(number, int) for number in numbers):
            raise JournalDamaged(self._about("a digest segment's number is none"))
        return numbers

    def held_in(self, uuid: bytes, number: int) -> list[tuple[int, int, bytes | None]]:
        """Return what ``hold`` was told of a digest segment, and ``let_go`` was not.

        Returns:
            Runs of chunks in order, as ``hold`` takes them.

        Raises:
            JournalError: No such image.
            JournalDamaged: What is on record is not a segment of that image.
        """
        with self._guarded():
            image, size = self._require(uuid)
        return list(self._segment_record(image, size, number).runs())

    def resumable(self, datastore: str, vm: str, disk: str) -> ImageRecord | None:
        """Return the image last begun at a place, unless it is complete or discarded.

        One whose publication was begun and not recorded may stand there or be incomplete.
        """
        found = self.image_at(datastore, vm, disk)
        incomplete = (ImageState.RECEIVING, ImageState.PUBLISHING)
        return found if found is not None and found.state in incomplete else None

    def segment(self, uuid: bytes, number: int) -> bytes | None:
        """Return the chunk digests of one digest segment, 32 bytes each, if all are on record.

        Raises:
            JournalDamaged: What is on record is not a segment of that image.
        """
        with self._guarded():
            found = self._find(uuid)
        if found is None:
            return None
        record = self._segment_record(*found, number)
        return record.digests if record.is_whole else None

    def _segment_record(self, image: int, size: int, number: int) -> SegmentRecord:
        """Return what is on record of one digest segment.

        Raises:
            JournalDamaged: It is not a segment of that image.
            ValueError: The image has no such segment.
        """
        with self._guarded():
            row = self._connection.execute(
                "SELECT digests, known FROM segment WHERE image = ? AND number = ?", (image, number)
            ).fetchone()
        try:
            zeros = zero_segment(size, number)
        except TypeError as error:
            raise JournalDamaged(self._about(f"digest segment {number}: {error}")) from error
        except ValueError as error:
            if row is None:
                raise
            raise JournalDamaged(self._about(f"digest segment {number}: {error}")) from error
        if row is None:
            return SegmentRecord(number, zeros, zeros, 0)
        digests = zeros if row["digests"] == b"" else row["digests"]
        if not isinstance(digests, bytes) or len(digests) != len(zeros):
            raise JournalDamaged(self._about(f"digest segment {number} has a wrong length"))
        known = row["known"]
        if known is None:
            return SegmentRecord(number, zeros, digests, SegmentRecord.all_of(zeros))
        if not isinstance(known, bytes) or len(known) != KNOWN_SIZE:
            raise JournalDamaged(self._about(f"digest segment {number}: a damaged bitmap"))
        return SegmentRecord(number, zeros, digests, int.from_bytes(known, "little"))

    def segments(self, uuid: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield number and chunk digests of every recorded digest segment, in order.

        One query a segment: a slow consumer holds up no checkpoint.
        """
        for number in self.held_segments(uuid):
            digests = self.segment(uuid, number)
            if digests is not None:
                yield number, digests

    def _prepare(self) -> None:
        with self._guarded():
            version = self._version()  # first: a newer journal stays as it is
            self._configure()
            for number in range(version, len(MIGRATIONS)):
                # executescript commits what is open, so the script brings its own transaction.
                self._connection.executescript(
                    f"BEGIN IMMEDIATE; {MIGRATIONS[number]}"
                    f"; PRAGMA user_version = {number + 1}; COMMIT;"
                )

    def _configure(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        # SQLite's own 1,000 pages are as much as the record of an 8 GiB disk may take in all.
        self._connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        self._connection.execute(f"PRAGMA journal_size_limit = {LOG_PAGES * 4096}")

    def _version(self) -> int:
        version: int = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise JournalVersionRefused(
                f"{self._folder / DATABASE_NAME}: format {version} is newer than this program's "
                f"{len(MIGRATIONS)}; use the receiver that wrote it, or a later one"
            )
        return version

    def _find(self, uuid: bytes) -> tuple[int, int] | None:
        row: sqlite3.Row | None = self._connection.execute(
            "SELECT id, size FROM image WHERE uuid = ?", (uuid,)
        ).fetchone()
        return None if row is None else (row["id"], row["size"])

    def _require(self, uuid: bytes) -> tuple[int, int]:
        """Return the row number and the size in bytes of an image on record."""
        found = self._find(uuid)
        if found is None:
            raise JournalError(f"image {uuid.hex()} is not on record")
        return found

    def _supersede(self, image: int) -> None:
        root, *place = self._connection.execute(
            "SELECT root, datastore, vm, disk FROM image WHERE id = ?", (image,)
        ).fetchone()
        if root is None or len(root) != DIGEST_SIZE:
            raise JournalError("an image cannot be complete without its root digest")
        self._connection.execute(
            "DELETE FROM image WHERE id < ? AND datastore = ? AND vm = ? AND disk = ?",
            (image, *place),
        )

    def _records(self, clause: str, *values: bytes | str) -> Iterator[ImageRecord]:
        with self._guarded():
            rows = self._connection.execute(
                f"SELECT {_IMAGE_COLUMNS} FROM image {clause}",  # noqa: S608 - both constants
                values,
            ).fetchall()
        for row in rows:
            columns = dict(zip(_IMAGE_FIELDS, row, strict=True))
            try:
                record = msgspec.convert(columns, ImageRecord, builtin_types=(bytes,))
            except msgspec.ValidationError as error:
                raise JournalDamaged(self._about(f"an image's record: {error}")) from error
            yield record

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit durably at the end, or leave everything as it was."""
        with self._guarded(), transaction(self._connection) as database:
            yield database

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn the database's exceptions into ``JournalError``."""
        try:
            if self._failed:
                self._open_again()
            yield
        except sqlite3.Error as error:
            self._failed |= primary_code(error) == sqlite3.SQLITE_IOERR
            raise _explain(self._folder, error) from error
        except UnicodeDecodeError as error:  # of SQLite's own message about a damaged schema, too
            raise JournalDamaged(self._about(f"text that is not UTF-8: {error}")) from error

    def _open_again(self) -> None:
        """Go on after an input/output error with what a fresh start would find.

        A sync that failed must not be tried again: the kernel has marked the
        pages clean, and the log may be on the medium or not. So the log's
        content is written anew, into the database, and that is synced.
        """
        with suppress(sqlite3.Error):
            self._connection.close()
        self._connection = _connect(self._folder, "ro" if self._lock is None else "rwc")
        if self._lock is not None:
            self._configure()
            busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise JournalError(self._about("in use by a reader; try again"))
        self._failed = False

    def _about(self, what: str) -> str:
        return f"{self._folder / DATABASE_NAME}: {what}"


class AsyncJournal:
    """A writing ``Journal`` in a thread of its own, for an event loop.

    ``await journal.run(Journal.claim_epoch, peer, session_id, epoch)``: calls
    run one after the other, in the order in which they were made. A call
    whose awaiter is cancelled may or may not take effect.
    """

    def __init__(self, journal: Journal, executor: ThreadPoolExecutor) -> None:
        self._journal = journal
        self._executor = executor

    @classmethod
    async def open(cls, folder: Path) -> Self:
        """Open the journal in ``folder`` for writing; raises what ``Journal.open`` does."""
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        loop = asyncio.get_running_loop()
        try:
            journal = await loop.run_in_executor(executor, Journal.open, folder)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(journal, executor)

    async def run(
        self,
        operation: Callable[Concatenate[Journal, P], T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call ``operation`` with the journal in its thread; raises what that raises.

        Not for ``Journal.segments``, whose iterator must stay in that thread.
        """
        call = functools.partial(operation, self._journal, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def run_from_thread(
        self,
        operation: Callable[Concatenate[Journal, P], T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Do what ``run`` does for a worker thread, which waits; never on the loop's thread."""
        return self._executor.submit(operation, self._journal, *args, **kwargs).result()

    async def close(self) -> None:
        """Finish the calls under way and close the journal."""
        try:
            await self.run(Journal.close)
        finally:
            self._executor.shutdown(wait=False)


def _connect(folder: Path, mode: str) -> sqlite3.Connection:
    address = f"{(folder / DATABASE_NAME).absolute().as_uri()}?mode={mode}"
    try:
        connection = sqlite3.connect(
            address, uri=True, isolation_level=None, timeout=READER_PATIENCE
        )
    except sqlite3.Error as error:
        raise _explain(folder, error) from error
    connection.row_factory = sqlite3.Row
    return connection


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(folder: Path, error: sqlite3.Error) -> JournalError:
    path = folder / DATABASE_NAME
    code = primary_code(error)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return JournalDamaged(
            f"{path} is damaged ({error}); move it away: transfers start over, "
            "published disks stay as they are"
        )
    if code == sqlite3.SQLITE_FULL:
        return JournalError(f"{path}: no space is left for the journal; free some in {folder}")
    if code == sqlite3.SQLITE_IOERR:
        return JournalError(f"{path}: {error}; look into the kernel's log for {folder}")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return JournalError(f"{path} cannot be opened ({error}); run this as the receiver's user")
    return JournalError(f"{path}: {error}")
