"""A durable record in SQLite that one process writes: its lock, its transactions, its errors."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class Locked(Exception):
    """Another process holds the lock.

    Args:
        holder: Its process id, or what stands in its place.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(f"held by {holder}")
        self.holder = holder


def take_lock(path: Path) -> int:
    """Be the only process that writes; returns the descriptor that holds the lock until closed.

    Raises:
        Locked: Somebody else is.
        OSError: The file cannot be made or opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise Locked(holder) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Commit at the end of the block, or leave everything as it was.

    Args:
        connection: In autocommit mode (``isolation_level=None``).

    Raises:
        sqlite3.Error: The first of those that came; what the block raises passes through.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some failures; the first error counts.
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's code without its extension; 0 for errors of the module itself."""
    code: Any = getattr(error, "sqlite_errorcode", 0)
    return int(code) & 0xFF
