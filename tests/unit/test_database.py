"""One process writes a record; a transaction is whole or was never there."""

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from flatship_service.database import Locked, primary_code, take_lock, transaction


def test_a_lock_names_who_holds_it_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "record.lock"
    held = take_lock(path)
    with pytest.raises(Locked) as refused:
        take_lock(path)
    assert refused.value.holder == str(os.getpid())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    os.close(held)
    os.close(take_lock(path))


def test_a_lock_is_no_link_to_another_file(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious")
    (tmp_path / "record.lock").symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        take_lock(tmp_path / "record.lock")
    assert other.read_text() == "precious"


def test_a_transaction_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "record.db", isolation_level=None)) as connection:
        with transaction(connection) as database:
            database.execute("CREATE TABLE word (text TEXT UNIQUE)")
            database.execute("INSERT INTO word VALUES ('kept')")
        with pytest.raises(sqlite3.IntegrityError) as failed, transaction(connection) as database:
            database.execute("INSERT INTO word VALUES ('dropped'), ('kept')")
        assert primary_code(failed.value) == sqlite3.SQLITE_CONSTRAINT
        assert connection.execute("SELECT text FROM word").fetchall() == [("kept",)]
        assert not connection.in_transaction


def test_an_error_of_the_module_itself_has_no_code() -> None:
    assert primary_code(sqlite3.ProgrammingError("closed")) == 0
