import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from flatship_protocol.constants import CHUNK_SIZE, DIGEST_SIZE
from flatship_protocol.digest import Manifest, chunk_digest, zero_digest
from flatship_receiver import journal as module
from flatship_receiver.journal import (
    AsyncJournal,
    EpochClaim,
    ImageRecord,
    ImageState,
    Journal,
    JournalDamaged,
    JournalError,
    JournalLocked,
    JournalMissing,
    JournalVersionRefused,
)
from flatship_receiver.segment_record import zero_segment

PEER, SESSION = b"P" * 32, b"S" * 16
UUID, OTHER = bytes(range(16)), bytes(range(16, 32))
ROOT = b"R" * 32
GIB = 1 << 30
RECORD = ImageRecord(
    uuid=UUID,
    peer=PEER,
    datastore="ssd1",
    vm="web01",
    disk="web01",
    size=2 * GIB + 512,
    capacity=2 * GIB + CHUNK_SIZE,
    source_id=b"I" * 32,
    created=1000.5,
)


def random_digests(chunks: int) -> bytes:
    return b"".join(chunk_digest(bytes([i % 251])) for i in range(chunks))


def complete(journal: Journal, uuid: bytes = UUID, when: float = 2000.0) -> None:
    journal.set_state(uuid, ImageState.COMPLETE, when=when, root=ROOT)


def stored_version(folder: Path) -> int:
    connection = sqlite3.connect(folder / "journal.db")
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.close()
    return version


def save_segments(journal: Journal, *segments: tuple[int, bytes]) -> None:
    journal.hold(UUID, [(number * 1024, len(of) // DIGEST_SIZE, of) for number, of in segments])


def held(journal: Journal) -> list[tuple[int, int, bytes | None]]:
    return [run for number in journal.held_segments(UUID) for run in journal.held_in(UUID, number)]


@pytest.fixture
def journal(tmp_path):
    opened = Journal.open(tmp_path)
    yield opened
    opened.close()


def test_only_a_higher_epoch_is_new(journal):
    assert journal.claim_epoch(PEER, SESSION, 7) is EpochClaim.NEW
    assert journal.claim_epoch(PEER, SESSION, 7) is EpochClaim.CURRENT
    assert journal.claim_epoch(PEER, SESSION, 6) is EpochClaim.STALE
    assert journal.claim_epoch(PEER, SESSION, 8) is EpochClaim.NEW
    assert journal.claim_epoch(PEER, SESSION, 7) is EpochClaim.STALE


def test_epochs_compare_as_unsigned_64_bit_numbers(journal):
    assert journal.claim_epoch(PEER, SESSION, 255) is EpochClaim.NEW
    assert journal.claim_epoch(PEER, SESSION, 256) is EpochClaim.NEW
    assert journal.claim_epoch(PEER, SESSION, 2**63) is EpochClaim.NEW
    assert journal.claim_epoch(PEER, SESSION, 2**63 - 1) is EpochClaim.STALE
    assert journal.claim_epoch(PEER, SESSION, 2**64 - 1) is EpochClaim.NEW


def test_sessions_and_peers_have_epochs_of_their_own(journal):
    assert journal.claim_epoch(PEER, SESSION, 9) is EpochClaim.NEW
    assert journal.claim_epoch(PEER, b"T" * 16, 1) is EpochClaim.NEW
    assert journal.claim_epoch(b"Q" * 32, SESSION, 1) is EpochClaim.NEW


def test_everything_survives_a_reopen(tmp_path):
    digests = random_digests(1024)
    journal = Journal.open(tmp_path)
    journal.claim_epoch(PEER, SESSION, 5)
    journal.begin_image(RECORD)
    save_segments(journal, (1, digests))
    complete(journal)
    journal.close()
    journal = Journal.open(tmp_path)
    assert journal.claim_epoch(PEER, SESSION, 4) is EpochClaim.STALE
    assert journal.image(UUID) == replace(
        RECORD, state=ImageState.COMPLETE, root=ROOT, completed=2000.0
    )
    assert journal.segment(UUID, 1) == digests
    journal.close()


def test_a_process_that_is_killed_loses_nothing_it_was_told_is_durable(tmp_path):
    program = (
        "import os, sys; from pathlib import Path; from flatship_receiver.journal import Journal\n"
        "journal = Journal.open(Path(sys.argv[1]))\n"
        "journal.claim_epoch(b'P' * 32, b'S' * 16, 12)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, tmp_path], check=False, timeout=60)
    assert killed.returncode == -9
    journal = Journal.open(tmp_path)
    assert journal.claim_epoch(PEER, SESSION, 12) is EpochClaim.CURRENT
    journal.close()


def test_commits_are_synchronous_and_logged_ahead(journal):
    assert journal._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert journal._connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert journal._connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1


def test_an_image_is_found_by_uuid_and_by_place(journal):
    assert journal.image(UUID) is None
    assert journal.image_at("ssd1", "web01", "web01") is None
    journal.begin_image(RECORD)
    later = replace(RECORD, uuid=OTHER, created=1.0)
    journal.begin_image(later)
    assert journal.image(UUID) == RECORD
    assert journal.image_at("ssd1", "web01", "web01") == later
    assert journal.image_at("ssd1", "web01", "web01_1") is None
    assert journal.images() == (RECORD, later)


def test_a_uuid_is_taken_once(journal):
    journal.begin_image(RECORD)
    with pytest.raises(JournalError, match="on record already"):
        journal.begin_image(replace(RECORD, vm="db01"))
    assert journal.images() == (RECORD,)


def test_a_completed_image_supersedes_the_older_ones_of_its_place_only(journal):
    elsewhere = replace(RECORD, uuid=b"E" * 16, disk="web01_1")
    newer = replace(RECORD, uuid=b"N" * 16)
    for record in (RECORD, elsewhere, replace(RECORD, uuid=OTHER), newer):
        journal.begin_image(record)
    save_segments(journal, (0, random_digests(1024)))
    complete(journal, OTHER)
    assert [image.uuid for image in journal.images()] == [b"E" * 16, OTHER, b"N" * 16]
    assert journal.segment(UUID, 0) is None
    assert journal._connection.execute("SELECT count(*) FROM segment").fetchone()[0] == 0


def test_an_image_is_not_complete_without_its_root(journal):
    journal.begin_image(RECORD)
    with pytest.raises(JournalError, match="root digest"):
        journal.set_state(UUID, ImageState.COMPLETE, when=1.0)
    assert journal.image(UUID) == RECORD


def test_the_root_recorded_at_publishing_stays(journal):
    journal.begin_image(RECORD)
    journal.set_state(UUID, ImageState.PUBLISHING, when=1.0, root=ROOT)
    journal.set_state(UUID, ImageState.COMPLETE, when=2.0)
    assert journal.image(UUID) == replace(
        RECORD, state=ImageState.COMPLETE, root=ROOT, completed=2.0
    )


def test_a_discarded_image_keeps_no_segments(journal):
    journal.begin_image(RECORD)
    save_segments(journal, (0, random_digests(1024)))
    journal.set_state(UUID, ImageState.DISCARDED, when=1.0)
    assert journal.image(UUID) == replace(RECORD, state=ImageState.DISCARDED)
    assert journal.segment(UUID, 0) is None


def test_states_and_segments_are_refused_for_an_unknown_image(journal):
    with pytest.raises(JournalError, match="not on record"):
        journal.set_state(UUID, ImageState.DISCARDED, when=1.0)
    with pytest.raises(JournalError, match="not on record"):
        save_segments(journal, (0, random_digests(1024)))


def test_a_zero_segment_takes_no_room_and_comes_back_as_digests(journal):
    journal.begin_image(RECORD)
    whole, last = zero_digest(CHUNK_SIZE) * 1024, zero_digest(512)
    save_segments(journal, (0, whole), (1, whole), (2, last))
    assert list(journal.segments(UUID)) == [(0, whole), (1, whole), (2, last)]
    stored = journal._connection.execute("SELECT sum(length(digests)) FROM segment").fetchone()
    assert stored[0] == 0


def test_zero_segments_are_those_that_a_manifest_folds(journal):
    size = GIB + 3 * CHUNK_SIZE + 512
    folded: dict[int, bytes] = {}
    Manifest(size, folded.__setitem__).set_zeros(0, 1024 + 4)
    assert folded == {number: zero_segment(size, number) for number in (0, 1)}
    with pytest.raises(ValueError, match="no digest segment 2"):
        zero_segment(size, 2)


def test_chunks_that_the_disk_does_not_have_are_refused_and_nothing_of_the_batch_stays(journal):
    journal.begin_image(RECORD)
    good = random_digests(1024)
    for number, wrong in ((2, good), (3, good), (-1, good)):
        with pytest.raises(ValueError, match="digest segment"):
            save_segments(journal, (0, good), (number, wrong))
    with pytest.raises(ValueError, match="31 bytes of digests for 1 chunks"):
        journal.hold(UUID, [(0, 1024, good), (1024, 1, good[:31])])
    assert list(journal.segments(UUID)) == []
    assert held(journal) == []


def test_what_is_held_comes_back_in_runs_and_what_is_let_go_does_not(journal):
    journal.begin_image(RECORD)
    digests = random_digests(1024)
    journal.hold(UUID, [(3, 2, digests[:64]), (1022, 3, None), (10, 1, None)])
    assert held(journal) == [(3, 2, digests[:64]), (10, 1, None), (1022, 2, None), (1024, 1, None)]
    assert journal.segment(UUID, 0) is None
    journal.let_go(UUID, [(4, 1020)])
    assert held(journal) == [(3, 1, digests[:32]), (1024, 1, None)]
    journal.hold(UUID, [(0, 1024, digests)])
    assert journal.segment(UUID, 0) == digests


def test_held_chunks_survive_a_reopen_and_zeros_cost_nothing(tmp_path):
    journal = Journal.open(tmp_path)
    journal.begin_image(RECORD)
    journal.hold(UUID, [(0, 2048, None)])
    journal.let_go(UUID, [(7, 1)])
    journal.close()
    journal = Journal.open(tmp_path)
    assert held(journal) == [(0, 7, None), (8, 1016, None), (1024, 1024, None)]
    stored = journal._connection.execute("SELECT sum(length(digests)) FROM segment").fetchone()
    assert stored[0] == 0
    journal.close()


def test_a_segment_saved_again_replaces_the_former(journal):
    journal.begin_image(RECORD)
    save_segments(journal, (0, zero_digest(CHUNK_SIZE) * 1024))
    save_segments(journal, (0, random_digests(1024)))
    assert list(journal.segments(UUID)) == [(0, random_digests(1024))]


def test_state_costs_less_than_a_twentieth_of_a_percent_of_the_disk(tmp_path):
    size = 128 * GIB
    journal = Journal.open(tmp_path)
    journal.begin_image(replace(RECORD, size=size, capacity=size))
    digests = random_digests(1024)
    save_segments(journal, *((number, digests) for number in range(128)))
    journal.close()
    used = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert used <= size * 0.0005


def test_a_pass_that_changes_chunks_here_and_there_needs_no_more_state_while_it_runs(tmp_path):
    size = 8 * GIB
    journal = Journal.open(tmp_path)
    journal.begin_image(replace(RECORD, size=size, capacity=size))
    save_segments(journal, *((number, random_digests(1024)) for number in range(8)))
    random = Random(1)
    most = 0
    for _ in range(200):
        chunk = random.randrange(8192)
        journal.let_go(UUID, [(chunk, 1)])
        journal.hold(UUID, [(chunk, 1, random_digests(1))])
        used = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
        most = max(most, used)
    journal.close()
    assert most <= size * 0.0005


def test_an_older_journal_is_brought_up_to_date(tmp_path, monkeypatch):
    journal = Journal.open(tmp_path)
    journal.begin_image(RECORD)
    journal.close()
    later = (
        *module.MIGRATIONS,
        "CREATE TABLE intent (chunk INTEGER); INSERT INTO intent VALUES (3)",
    )
    monkeypatch.setattr(module, "MIGRATIONS", later)
    journal = Journal.open(tmp_path)
    assert journal.image(UUID) == RECORD
    assert journal._connection.execute("SELECT chunk FROM intent").fetchone()[0] == 3
    journal.close()
    assert stored_version(tmp_path) == len(later)
    Journal.open(tmp_path).close()  # runs no script twice


def test_a_migration_that_fails_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    Journal.open(tmp_path).close()
    before = stored_version(tmp_path)
    broken = (*module.MIGRATIONS, "CREATE TABLE half (a); INSERT INTO nowhere VALUES (1)")
    monkeypatch.setattr(module, "MIGRATIONS", broken)
    with pytest.raises(JournalError, match="nowhere"):
        Journal.open(tmp_path)
    monkeypatch.undo()
    assert stored_version(tmp_path) == before
    journal = Journal.open(tmp_path)
    tables = journal._connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert "half" not in {table[0] for table in tables}
    journal.close()


@pytest.mark.parametrize("opener", [Journal.open, Journal.open_read_only])
def test_a_journal_from_a_newer_version_is_refused_and_untouched(tmp_path, opener):
    connection = sqlite3.connect(tmp_path / "journal.db")
    connection.execute(f"PRAGMA user_version = {len(module.MIGRATIONS) + 1}")
    connection.close()
    before = (tmp_path / "journal.db").read_bytes()
    with pytest.raises(JournalVersionRefused, match="newer") as refused:
        opener(tmp_path)
    assert refused.value.exit_code == 1
    assert (tmp_path / "journal.db").read_bytes() == before


def test_a_reader_does_not_migrate(tmp_path):
    sqlite3.connect(tmp_path / "journal.db").close()
    with pytest.raises(JournalVersionRefused, match="start the receiver once"):
        Journal.open_read_only(tmp_path)


def test_a_second_receiver_on_the_same_folder_is_refused(tmp_path, journal):
    with pytest.raises(JournalLocked, match=str(os.getpid())) as refused:
        Journal.open(tmp_path)
    assert refused.value.exit_code == 11
    journal.close()
    Journal.open(tmp_path).close()


def test_a_failed_open_lets_go_of_the_lock(tmp_path):
    (tmp_path / "journal.db").write_bytes(b"no database" * 100)
    with pytest.raises(JournalDamaged):
        Journal.open(tmp_path)
    (tmp_path / "journal.db").unlink()
    Journal.open(tmp_path).close()


def test_a_reader_sees_what_the_writer_has_committed(tmp_path, journal):
    journal.begin_image(RECORD)
    reader = Journal.open_read_only(tmp_path)
    assert reader.image(UUID) == RECORD
    complete(journal)
    found = reader.image(UUID)
    assert found is not None
    assert found.state is ImageState.COMPLETE
    with pytest.raises(JournalError):
        reader.begin_image(replace(RECORD, uuid=OTHER))
    reader.close()


def test_a_reader_creates_nothing(tmp_path):
    with pytest.raises(JournalMissing) as missing:
        Journal.open_read_only(tmp_path)
    assert missing.value.exit_code == 10
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_reported(tmp_path):
    (tmp_path / "journal.db").write_bytes(os.urandom(8192))
    for opener in (Journal.open, Journal.open_read_only):
        with pytest.raises(JournalDamaged, match="damaged"):
            opener(tmp_path)


def test_a_database_with_broken_pages_is_reported(tmp_path):
    journal = Journal.open(tmp_path)
    journal.begin_image(RECORD)
    save_segments(journal, (0, random_digests(1024)))
    journal.close()
    content = bytearray((tmp_path / "journal.db").read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    (tmp_path / "journal.db").write_bytes(content)
    journal = Journal.open(tmp_path)
    with pytest.raises(JournalDamaged):
        journal.image(UUID)
    with pytest.raises(JournalDamaged):
        journal.begin_image(replace(RECORD, uuid=OTHER))
    journal.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE segment SET digests = substr(digests, 2)",
        "UPDATE segment SET digests = 'text'",
        "UPDATE image SET size = 'text'",
        "UPDATE image SET size = 512, capacity = 512",
    ],
)
def test_a_segment_that_does_not_fit_its_image_is_reported(journal, change):
    journal.begin_image(RECORD)
    save_segments(journal, (1, random_digests(1024)))
    journal._connection.execute(change)
    with pytest.raises(JournalDamaged):
        journal.segment(UUID, 1)


def test_an_unknown_state_is_reported(journal):
    journal.begin_image(RECORD)
    journal._connection.execute("UPDATE image SET state = 'elsewhere'")
    with pytest.raises(JournalDamaged, match="elsewhere"):
        journal.images()


def test_a_full_disk_is_reported_and_the_journal_lives_on(journal):
    journal.begin_image(RECORD)
    pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalError, match="no space is left"):
        save_segments(journal, (0, random_digests(1024)))
    journal._connection.execute("PRAGMA max_page_count = 1000000")
    save_segments(journal, (0, random_digests(1024)))
    assert journal.segment(UUID, 0) == random_digests(1024)


class FailingDisk:
    """A connection whose next COMMIT fails as it does when the disk fails to sync."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.commits = 0

    def execute(self, statement, *values):
        if statement == "COMMIT":
            self.commits += 1
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return self._connection.execute(statement, *values)

    def __getattr__(self, name):
        return getattr(self._connection, name)


def test_a_failed_sync_is_never_tried_again_but_on_a_database_that_was_opened_anew(journal):
    journal.begin_image(RECORD)
    disk = FailingDisk(journal._connection)
    journal._connection = disk
    with pytest.raises(JournalError, match="I/O"):
        journal.claim_epoch(PEER, SESSION, 1)
    assert journal.claim_epoch(PEER, SESSION, 1) is EpochClaim.NEW
    assert disk.commits == 1
    assert journal._connection is not disk
    assert journal.image(UUID) == RECORD


def test_what_is_found_after_a_failed_sync_is_made_durable_before_it_is_believed(tmp_path, journal):
    journal.begin_image(RECORD)
    journal._connection = FailingDisk(journal._connection)
    with pytest.raises(JournalError):
        journal.claim_epoch(PEER, SESSION, 1)
    log = tmp_path / "journal.db-wal"
    assert log.stat().st_size
    assert journal.image(UUID) == RECORD
    assert not log.stat().st_size  # all of it is in the database, which was synced


def test_a_database_that_cannot_be_opened_anew_is_reported_until_it_can(journal, monkeypatch):
    journal._connection = FailingDisk(journal._connection)
    with pytest.raises(JournalError):
        journal.claim_epoch(PEER, SESSION, 1)
    with monkeypatch.context() as patched:
        patched.setattr("flatship_receiver.journal.DATABASE_NAME", "missing/journal.db")
        for _ in range(2):
            with pytest.raises(JournalError, match="cannot be opened"):
                journal.claim_epoch(PEER, SESSION, 1)
    assert journal.claim_epoch(PEER, SESSION, 1) is EpochClaim.NEW


def test_a_state_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="state folder"):
        Journal.open(tmp_path / "file" / "state")


def test_the_async_journal_works_in_one_thread_of_its_own(tmp_path):
    def thread_of(_: Journal) -> int:
        return threading.get_ident()

    async def scenario() -> None:
        journal = await AsyncJournal.open(tmp_path)
        calls = (journal.run(Journal.claim_epoch, PEER, SESSION, epoch) for epoch in range(20))
        assert set(await asyncio.gather(*calls)) == {EpochClaim.NEW}
        threads = set(await asyncio.gather(*(journal.run(thread_of) for _ in range(5))))
        assert len(threads) == 1
        assert threading.get_ident() not in threads
        await journal.run(Journal.begin_image, RECORD)
        await journal.run(Journal.set_state, UUID, ImageState.COMPLETE, when=2.0, root=ROOT)
        assert await asyncio.to_thread(journal.run_from_thread, Journal.segment, UUID, 0) is None
        await journal.close()

    asyncio.run(scenario())
    Journal.open(tmp_path).close()


def test_the_async_journal_hands_on_what_opening_raises(tmp_path, journal):
    async def scenario() -> None:
        await AsyncJournal.open(tmp_path)

    with pytest.raises(JournalLocked):
        asyncio.run(scenario())


DAMAGE = {
    "a segment's number is text": "UPDATE segment SET number = 'one'",
    "an image's uuid is text": "UPDATE image SET uuid = 'sixteen letters!'",
    "an image's state is unknown": "UPDATE image SET state = 'lost'",
    "an image's size is text": "UPDATE image SET size = 'large'",
    "a name is not UTF-8": "UPDATE image SET vm = CAST(x'ff' AS TEXT)",
    "the schema is not UTF-8": (
        "PRAGMA writable_schema = ON; "
        "UPDATE sqlite_schema SET sql = CAST(x'ff' || sql AS TEXT) WHERE name = 'image'"
    ),
}


def damaged(folder: Path, statements: str) -> Path:
    """A journal with one image and one chunk, to which ``statements`` were done."""
    with closing(Journal.open(folder)) as journal:
        journal.begin_image(RECORD)
        journal.hold(UUID, [(0, 1, None)])
    with closing(sqlite3.connect(folder / "journal.db")) as connection:
        connection.executescript(statements)
    return folder


def read_all(folder: Path) -> None:
    with closing(Journal.open_read_only(folder)) as journal:
        assert journal.images() == (RECORD,)
        assert journal.held_segments(UUID) == [0]
        assert journal.held_in(UUID, 0) == [(0, 1, None)]
        assert list(journal.segments(UUID)) == []


@pytest.mark.parametrize("statements", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_whoever_reads(tmp_path: Path, statements: str) -> None:
    with pytest.raises(JournalError, match=r"journal\.db"):
        read_all(damaged(tmp_path, statements))


def test_columns_are_known_by_their_places(tmp_path: Path) -> None:
    read_all(damaged(tmp_path, "ALTER TABLE image RENAME COLUMN layout TO laYout"))


def test_state_takes_no_more_than_one_two_thousandth_of_a_disk_that_came_in_pieces(
    tmp_path: Path,
) -> None:
    size = 16 * GIB
    chunks = size // CHUNK_SIZE
    with closing(Journal.open(tmp_path)) as journal:
        journal.begin_image(replace(RECORD, size=size, capacity=size))
        for part in range(7):  # every seventh chunk in each flush, and the last ones never
            places = range(part, chunks - part, 7)
            journal.hold(UUID, [(place, 1, os.urandom(DIGEST_SIZE)) for place in places])
        taken = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert taken <= size // 2000
