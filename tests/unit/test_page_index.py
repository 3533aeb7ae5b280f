"""A slot is what was recorded for that chunk with that content, or it is nothing."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from flatship_protocol.constants import CHUNK_SIZE
from flatship_sender import page_index
from flatship_sender.page_index import SLOT_SIZE, PageIndex
from flatship_sender.page_indexes import FOLDER, PageIndexes

SECRET = bytes(range(32))
SOURCE = b"S" * 32
SIZE = 40 * CHUNK_SIZE + 5 * 4096 + 512
TARGET = ("store1", "web", "web_1")


def digest(number: int) -> bytes:
    return number.to_bytes(32)


def pages(number: int, count: int = 256) -> bytes:
    return Random(number).randbytes(8 * count)


def opened(path: Path, *, room: int = 1 << 30, **other: object) -> PageIndex:
    said = {"size": SIZE, "source_id": SOURCE, "secret": SECRET, "room": room, "make": True}
    index = PageIndex.open(path, **(said | other))  # type: ignore[arg-type]
    assert index is not None
    return index


def filled(path: Path, chunks: range = range(41)) -> None:
    index = opened(path)
    for number in chunks:
        index.record(number, digest(number), pages(number, 6 if number == 40 else 256))
    index.close()


def known(path: Path, **other: object) -> set[int]:
    """The chunks of ``filled`` that are remembered; each as it was."""
    index = opened(path, **other)
    found = {number: index.recall(number, digest(number)) for number in range(41)}
    index.close()
    remembered = {number: slot for number, slot in found.items() if slot is not None}
    for number, slot in remembered.items():
        assert slot == pages(number, 6 if number == 40 else 256)
    return set(remembered)


def test_what_was_recorded_is_recalled_by_the_next_command(tmp_path: Path) -> None:
    filled(tmp_path / "x", range(0, 41, 2))
    assert known(tmp_path / "x") == set(range(0, 41, 2))


def test_a_chunk_is_recalled_only_with_the_digest_it_was_recorded_with(tmp_path: Path) -> None:
    filled(tmp_path / "x")
    index = opened(tmp_path / "x")
    assert index.recall(3, digest(4)) is None
    assert index.recall(4, digest(3)) is None
    index.record(3, digest(99), pages(99))
    assert index.recall(3, digest(3)) is None
    assert index.recall(3, digest(99)) == pages(99)


def test_what_is_noted_is_known_at_once_and_kept_when_the_index_is_closed(tmp_path: Path) -> None:
    index = opened(tmp_path / "x")
    index.note(5, digest(5), pages(5))
    assert os.path.getsize(tmp_path / "x") < SLOT_SIZE
    assert index.recall(5, digest(5)) == pages(5)
    index.note(6, digest(6), pages(6))
    index.close()
    index.close()
    assert known(tmp_path / "x") == {5, 6}


@pytest.mark.parametrize("seed", range(8))
def test_a_byte_that_was_damaged_costs_its_chunk_and_no_other(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    filled(tmp_path / "x")
    content = bytearray((tmp_path / "x").read_bytes())
    header = len(content) - 40 * SLOT_SIZE - (SLOT_SIZE - 250 * 8)
    hit = random.sample(range(41), 5)
    for number in hit:
        start = header + number * SLOT_SIZE
        content[random.randrange(start, min(start + SLOT_SIZE, len(content)))] ^= 0x40
    (tmp_path / "x").write_bytes(content)
    assert known(tmp_path / "x") == set(range(41)) - set(hit)


@pytest.mark.parametrize("lost", [1, 20, 28, 2000, 2 * SLOT_SIZE, 30 * SLOT_SIZE])
def test_what_a_truncated_file_has_lost_is_unknown(tmp_path: Path, lost: int) -> None:
    filled(tmp_path / "x")
    os.truncate(tmp_path / "x", os.path.getsize(tmp_path / "x") - lost)
    left = known(tmp_path / "x")
    assert left == set(range(len(left)))
    assert len(left) >= 40 - lost // SLOT_SIZE - 1


def test_a_slot_of_which_only_some_sectors_were_written_is_unknown(tmp_path: Path) -> None:
    filled(tmp_path / "x")
    before = (tmp_path / "x").read_bytes()
    index = opened(tmp_path / "x")
    index.record(7, digest(7), pages(7))  # the same, sealed anew
    index.close()
    after = (tmp_path / "x").read_bytes()
    assert before != after
    torn = bytearray(before)
    torn[8 * 2048 :] = after[8 * 2048 :]
    (tmp_path / "x").write_bytes(torn)
    assert known(tmp_path / "x") == set(range(41)) - {7}


def test_a_slot_of_another_chunk_is_none(tmp_path: Path) -> None:
    filled(tmp_path / "x")
    content = bytearray((tmp_path / "x").read_bytes())
    header = len(content) - 40 * SLOT_SIZE - (SLOT_SIZE - 250 * 8)
    first, second = (slice(header + n * SLOT_SIZE, header + (n + 1) * SLOT_SIZE) for n in (1, 2))
    content[first], content[second] = content[second], content[first]
    (tmp_path / "x").write_bytes(content)
    assert known(tmp_path / "x") == set(range(41)) - {1, 2}


@pytest.mark.parametrize(
    "other",
    [{"size": SIZE + 512}, {"source_id": b"T" * 32}, {"secret": bytes(32)}],
    ids=["size", "source", "key"],
)
def test_the_index_of_another_disk_or_key_is_begun_anew(
    tmp_path: Path, other: dict[str, object]
) -> None:
    filled(tmp_path / "x")
    assert known(tmp_path / "x", **other) == set()
    assert known(tmp_path / "x") == set()


def test_slots_under_the_header_of_another_disk_do_not_open(tmp_path: Path) -> None:
    filled(tmp_path / "x")
    filled(tmp_path / "y", range(0))
    other = opened(tmp_path / "z", source_id=b"T" * 32)
    other.record(1, digest(1), pages(1))
    other.close()
    header = (tmp_path / "y").read_bytes()
    (tmp_path / "z").write_bytes(header + (tmp_path / "z").read_bytes()[len(header) :])
    assert known(tmp_path / "z") == set()


def test_a_newer_version_is_not_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(page_index, "VERSION", page_index.VERSION + 1)
        filled(tmp_path / "x")
    assert known(tmp_path / "x") == set()


@pytest.mark.parametrize("content", [b"", b"\0" * 100_000, Random(1).randbytes(100_000)])
def test_a_file_of_another_make_holds_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert known(tmp_path / "x") == set()


def test_a_page_is_not_to_be_recognised_in_the_file(tmp_path: Path) -> None:
    index = opened(tmp_path / "x")
    same = pages(1)
    index.record(0, digest(0), same)
    index.record(1, digest(0), same)
    index.close()
    content = (tmp_path / "x").read_bytes()
    slots = content[-2 * SLOT_SIZE : -SLOT_SIZE], content[-SLOT_SIZE:]
    assert not any(same[at : at + 8] in content for at in range(0, len(same), 8))
    assert len({slot[at : at + 8] for slot in slots for at in range(0, 2048, 8)}) == 512


def test_a_slot_takes_a_fifth_of_a_percent_of_its_chunk() -> None:
    assert SLOT_SIZE <= 0.0025 * CHUNK_SIZE


def test_two_processes_do_not_share_an_index(tmp_path: Path) -> None:
    opened(tmp_path / "x")
    assert PageIndex.open(tmp_path / "x", SIZE, SOURCE, SECRET, 0, make=True) is None


def test_no_room_costs_what_does_not_fit(tmp_path: Path) -> None:
    index = opened(tmp_path / "x", room=8 * 4096)
    for number in range(40):
        index.record(number, digest(number), pages(number))
    index.close()
    assert os.stat(tmp_path / "x").st_blocks * 512 <= 8 * 4096
    assert 8 <= len(known(tmp_path / "x")) <= 16


@pytest.mark.parametrize("call", ["pread", "pwrite"])
def test_a_disk_that_fails_costs_the_index_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    index = opened(tmp_path / "x")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, call, fail)
    index.record(1, digest(1), pages(1))
    assert index.recall(1, digest(1)) is None
    index.record(2, digest(2), pages(2))
    index.close()


def test_a_removed_index_is_gone_and_harmless(tmp_path: Path) -> None:
    index = opened(tmp_path / "x")
    index.note(1, digest(1), pages(1))
    index.remove()
    index.remove()
    assert index.recall(1, digest(1)) is None
    index.record(1, digest(1), pages(1))
    index.close()
    assert list(tmp_path.iterdir()) == []


# The folder


def in_folder(state: Path, limit: int = 1 << 30, **other: object) -> PageIndex | None:
    said = {"target": TARGET, "size": SIZE, "source_id": SOURCE, "make": True}
    return PageIndexes(state, limit).open(**(said | other))  # type: ignore[arg-type]


def test_a_disk_finds_its_own_index_again_and_no_other_does(tmp_path: Path) -> None:
    index = in_folder(tmp_path)
    assert index is not None
    index.record(1, digest(1), pages(1))
    index.close()
    for target in (("store2", *TARGET[1:]), ("store1", "web", "web"), ("store1w", "eb", "web_1")):
        other = in_folder(tmp_path, target=target)
        assert other is not None
        assert other.recall(1, digest(1)) is None
    again = in_folder(tmp_path, make=False)
    assert again is not None
    assert again.recall(1, digest(1)) == pages(1)


def test_none_is_begun_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert in_folder(tmp_path, make=False) is None
    assert list(tmp_path.iterdir()) == []


def test_none_is_had_where_none_is_allowed(tmp_path: Path) -> None:
    assert in_folder(tmp_path, 0) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", [Path.unlink, lambda key: key.write_bytes(b"no key")])
def test_a_lost_key_costs_what_it_sealed(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    index = in_folder(tmp_path)
    assert index is not None
    index.record(1, digest(1), pages(1))
    index.close()
    spoil(tmp_path / FOLDER / "key")
    index = in_folder(tmp_path)
    assert index is not None
    assert index.recall(1, digest(1)) is None


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    assert in_folder(tmp_path) is not None
    folder = tmp_path / FOLDER
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_the_oldest_make_room_and_those_in_use_do_not(tmp_path: Path) -> None:
    names = ["oldest, in use", "old", "newer"]
    paths: dict[str, Path] = {}
    for age, name in enumerate(names):
        before = set(tmp_path.glob("pages/*.index"))
        index = in_folder(tmp_path, target=("store1", name, name))
        assert index is not None
        for number in range(40):
            index.record(number, digest(number), pages(number))
        index.close()
        (paths[name],) = set(tmp_path.glob("pages/*.index")) - before
        os.utime(paths[name], (1000 + age, 1000 + age))
    used = os.open(paths["oldest, in use"], os.O_RDWR)
    fcntl.flock(used, fcntl.LOCK_EX)
    one = paths["old"].stat().st_blocks * 512
    index = in_folder(tmp_path, 3 * one + 41 * SLOT_SIZE // 2)
    assert index is not None
    assert [name for name in names if paths[name].exists()] == ["oldest, in use", "newer"]
    os.close(used)


def test_a_folder_that_cannot_be_made_costs_the_index_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_bytes(b"in the way")
    assert in_folder(tmp_path) is None
