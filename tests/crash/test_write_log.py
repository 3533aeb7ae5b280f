"""Logs of writes, and the states that a power cut may leave, from logs made by hand."""

import struct
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from crash.power_cut import IN_ORDER, Medium, PowerCut, choose_cuts, cut_power
from crash.write_log import (
    DISCARD,
    FLUSH,
    FUA,
    MAGIC,
    SECTOR,
    Entry,
    NotAWriteLog,
    last_flush,
    read_entries,
)

SIZE = 64 * SECTOR
Request = tuple[int, bytes, int]  # sector, data, flags


def write(sector: int, letter: bytes, sectors: int = 1, flags: int = 0) -> Request:
    return sector, letter * SECTOR * sectors, flags


FLUSHED: Request = (0, b"", FLUSH)


def make_log(path: Path, requests: Sequence[Request]) -> list[Entry]:
    """A log as ``blklogwrites`` lays it out."""
    log = struct.pack("<QQQI", MAGIC, 1, len(requests), SECTOR).ljust(SECTOR, b"\0")
    for sector, data, flags in requests:
        log += struct.pack("<QQQQ", sector, len(data) // SECTOR, flags, 0).ljust(SECTOR, b"\0")
        log += b"" if flags & DISCARD else data
    path.write_bytes(log)
    return read_entries(path)


def state(folder: Path, requests: Sequence[Request], *cuts: PowerCut) -> bytes:
    """First bytes of each sector after the last of ``cuts``."""
    entries = make_log(folder / "log", requests)
    medium = Medium(folder / "log", entries, folder / "durable", SIZE)
    for cut in cuts:
        (folder / "state").unlink(missing_ok=True)
        medium.write_state(cut, folder / "state")
    medium.close()
    return (folder / "state").read_bytes()[::SECTOR]


def test_entries_are_read_as_they_were_laid_out(tmp_path: Path) -> None:
    requests = [write(3, b"a", 2), FLUSHED, write(5, b"\0", 4, DISCARD), write(1, b"b")]
    entries = make_log(tmp_path / "log", requests)
    assert [(entry.offset, entry.length) for entry in entries] == [
        (3 * SECTOR, 2 * SECTOR),
        (0, 0),
        (5 * SECTOR, 4 * SECTOR),
        (SECTOR, SECTOR),
    ]
    log = (tmp_path / "log").read_bytes()
    assert log[entries[0].at :][: entries[0].length] == b"a" * 2 * SECTOR
    assert log[entries[3].at :] == b"b" * SECTOR


@pytest.mark.parametrize("cut", [10, SECTOR + 10, 3 * SECTOR - 1])
def test_a_log_that_ends_early_is_refused(tmp_path: Path, cut: int) -> None:
    make_log(tmp_path / "log", [write(0, b"a", 2)])
    whole = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(whole[:cut])
    with pytest.raises(NotAWriteLog):
        read_entries(tmp_path / "log")


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(bytes(SECTOR))
    with pytest.raises(NotAWriteLog, match="magic 0x0"):
        read_entries(tmp_path / "log")


@pytest.mark.parametrize(("end", "durable"), [(0, 0), (1, 0), (2, 2), (3, 2), (4, 2)])
def test_what_lies_before_the_last_flush_is_durable(tmp_path: Path, end: int, durable: int) -> None:
    requests = [write(0, b"a"), FLUSHED, write(0, b"b"), write(1, b"c")]
    assert last_flush(make_log(tmp_path / "log", requests), end) == durable


def test_a_cut_in_order_leaves_what_was_written_before_it(tmp_path: Path) -> None:
    requests = [write(0, b"a", 3), FLUSHED, write(1, b"b"), write(2, b"c")]
    assert state(tmp_path, requests, PowerCut(1), PowerCut(3)).startswith(b"aba\0")


def test_a_lost_write_leaves_what_was_there(tmp_path: Path) -> None:
    requests = [write(0, b"a", 3), FLUSHED, write(1, b"b"), write(2, b"c")]
    cut = PowerCut(4, lost=frozenset({2}))
    assert state(tmp_path, requests, cut).startswith(b"aac\0")


def test_a_discard_leaves_zeros(tmp_path: Path) -> None:
    requests = [write(0, b"a", 3), FLUSHED, write(1, b"\0", 1, DISCARD)]
    assert state(tmp_path, requests, PowerCut(3)).startswith(b"a\0a\0")


def test_a_torn_write_leaves_some_of_its_sectors_and_no_others(tmp_path: Path) -> None:
    seen = set()
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        found = state(
            folder, [write(0, b"a", 4), write(0, b"b", 4)], PowerCut(2, torn=((1, seed),))
        )
        assert set(found[:4]) <= set(b"ab")
        assert not found[4:].strip(b"\0")
        seen.add(found[:4])
    assert len(seen) > 8


def test_no_state_loses_what_was_flushed_or_forced(tmp_path: Path) -> None:
    requests = [write(0, b"a"), FLUSHED, write(1, b"b", 1, FUA), write(2, b"c"), write(3, b"d")]
    entries = make_log(tmp_path / "log", requests)
    drawn = [cut_power(entries, len(entries), Random(seed)) for seed in range(200)]
    touched = {index for cut in drawn for index in (*cut.lost, *dict(cut.torn))}
    assert touched == {3, 4}
    assert {cut.kind for cut in drawn} == {"in order", "reordered", "torn"}
    assert all(bool(cut.lost or cut.torn) == (cut.kind != IN_ORDER) for cut in drawn)


def test_cuts_follow_from_the_seed_and_come_in_order(tmp_path: Path) -> None:
    requests = [request for n in range(20) for request in (write(n, b"a"), FLUSHED)]
    entries = make_log(tmp_path / "log", requests)
    cuts = choose_cuts(entries, 10, 38, 50, Random(5))
    assert cuts == choose_cuts(entries, 10, 38, 50, Random(5))
    assert [cut.at for cut in cuts] == sorted(cut.at for cut in cuts)
    assert len(cuts) == 50
    assert {cut.at for cut in cuts} == set(range(10, 39))


def test_an_atom_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    entries = make_log(tmp_path / "log", [write(3, b"a", 10)])
    for seed in range(20):
        medium = Medium(tmp_path / "log", entries, tmp_path / "durable", SIZE, 4 * SECTOR)
        medium.write_state(PowerCut(1, torn=((0, seed),)), tmp_path / str(seed))
        medium.close()
        found = (tmp_path / str(seed)).read_bytes()[::SECTOR]
        for first, last in ((3, 4), (4, 8), (8, 12), (12, 13)):
            assert found[first:last] in (b"a" * (last - first), bytes(last - first))
