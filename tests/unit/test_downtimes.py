import json
from pathlib import Path

import pytest

from flatship_sender.convergence import Downtime, PassFigures, Range
from flatship_sender.downtimes import FOLDER, HISTORY, MAX_HISTORY, Disk, Downtimes

DISKS = [Disk("ab" * 32, 1 << 30), Disk("cd" * 32, 2 << 30)]
TOOK = Downtime(
    seconds=200.0,
    opening=1.0,
    carrying=150.0,
    proving=49.0,
    wire=5,
    exposed=600.0,
    projected=Range(100.0, 180.0, 300.0),
)


def figures(began: float) -> PassFigures:
    return PassFigures(
        began=began,
        seconds=10.0,
        opening=1.0,
        carrying=6.0,
        proving=3.0,
        reading=5.0,
        sending=2.0,
        read=100,
        changed=10,
        fresh=0,
        wire=12,
    )


class Book:
    def __init__(self, state: Path, *, vm: str = "web", disks: list[Disk] = DISKS) -> None:
        self.warnings: list[str] = []
        self.downtimes = Downtimes(state, "esx", vm, disks, self.warnings.append)


def record(state: Path) -> Path:
    (path,) = (state / FOLDER).glob("*.json")
    return path


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    assert Book(tmp_path).downtimes.load() == []
    passes = [figures(1.5), figures(20.25)]
    Book(tmp_path).downtimes.save(passes)
    assert Book(tmp_path).downtimes.load() == passes


@pytest.mark.parametrize("disks", [DISKS[:1], DISKS[::-1], [DISKS[0], Disk("cd" * 32, 1 << 20)]])
def test_passes_over_other_disks_are_none(tmp_path: Path, disks: list[Disk]) -> None:
    Book(tmp_path).downtimes.save([figures(1.0)])
    book = Book(tmp_path, disks=disks)
    assert book.downtimes.load() == []
    assert book.warnings == []


def test_machines_have_files_of_their_own(tmp_path: Path) -> None:
    Book(tmp_path).downtimes.save([figures(1.0)])
    assert Book(tmp_path, vm="db").downtimes.load() == []


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"version": 1}', b'{"version": "one"}', b"\0" * 5000],
)
def test_a_damaged_record_is_warned_about_and_done_without(tmp_path: Path, text: bytes) -> None:
    Book(tmp_path).downtimes.save([figures(1.0)])
    record(tmp_path).write_bytes(text)
    book = Book(tmp_path)
    assert book.downtimes.load() == []
    (warning,) = book.warnings
    assert "is not readable" in warning
    book.downtimes.save([figures(2.0)])
    assert Book(tmp_path).downtimes.load() == [figures(2.0)]


def test_a_record_of_a_newer_program_is_warned_about_and_done_without(tmp_path: Path) -> None:
    Book(tmp_path).downtimes.save([figures(1.0)])
    newer = {**json.loads(record(tmp_path).read_bytes()), "version": 2, "more": "of it"}
    record(tmp_path).write_text(json.dumps(newer))
    book = Book(tmp_path)
    assert book.downtimes.load() == []
    (warning,) = book.warnings
    assert "of version 2, this program reads 1" in warning


def test_a_folder_that_cannot_be_written_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    book = Book(tmp_path)
    book.downtimes.save([figures(1.0)])
    book.downtimes.conclude(TOOK, 5.0)
    assert len(book.warnings) == 2


def test_a_final_pass_leaves_a_line_and_no_passes(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.downtimes.save([figures(1.0)])
    book.downtimes.conclude(TOOK, 1234.5)
    assert book.downtimes.load() == []
    (line,) = (tmp_path / FOLDER / HISTORY).read_text().splitlines()
    told = json.loads(line)
    assert (told["version"], told["when"], told["vm"]) == (1, 1234.5, "web")
    assert told["downtime"]["seconds"] == 200.0
    assert told["downtime"]["projected"] == {"low": 100.0, "expected": 180.0, "high": 300.0}


def test_the_history_is_bounded_and_loses_its_oldest_line(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.downtimes.conclude(TOOK, 0.0)
    path = tmp_path / FOLDER / HISTORY
    path.write_bytes(path.read_bytes() * MAX_HISTORY)
    book.downtimes.conclude(TOOK, 1.0)
    lines = path.read_text().splitlines()
    assert len(lines) == MAX_HISTORY
    assert json.loads(lines[-1])["when"] == 1.0
