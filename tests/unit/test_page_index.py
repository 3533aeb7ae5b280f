"""A slot is what was recorded for that chunk of that image, or it is nothing."""

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from flatship_protocol.constants import CHUNK_SIZE
from flatship_sender import page_slots
from flatship_sender.page_index import PageIndex
from flatship_sender.page_indexes import FOLDER, PageIndexes, Place
from flatship_sender.page_slots import HEADER_SIZE, SLOT_SIZE, Heading, Slot, Slots

SECRET = bytes(range(32))
SIZE = 40 * CHUNK_SIZE + 5 * 4096 + 512
HEADING = Heading(b"S" * 16, b"T" * 16, b"I" * 16, SIZE, first=77)
PLACE = Place(bytes(32), "ssd", "web", "web_1")
IMAGE = bytes(range(16))


def digest(number: int) -> bytes:
    return number.to_bytes(32)


def pages(number: int, count: int = 256) -> bytes:
    return Random(number).randbytes(6 * count)


def slot(number: int, count: int = 256) -> Slot:
    return Slot(digest(number), pages(number, count), anchors=number << 200 | 5)


def opened(path: Path, *, room: int = 1 << 30, **other: object) -> PageIndex:
    secret = other.pop("secret", SECRET)
    heading = replace(HEADING, **other)  # type: ignore[arg-type]
    index = PageIndex.open(path, heading, secret, lambda: room)  # type: ignore[arg-type]
    assert index is not None
    return index


def filled(path: Path, chunks: range = range(41)) -> None:
    index = opened(path)
    for number in chunks:
        index.record(number, slot(number, 6 if number == 40 else 256))
    index.close()


def known(path: Path, **other: object) -> set[int]:
    """The chunks of ``filled`` that are remembered; each as it was."""
    index = opened(path, **other)
    found = {number: index.read(number) for number in range(41)}
    index.close()
    remembered = {number: slot for number, slot in found.items() if slot is not None}
    for number, found_slot in remembered.items():
        assert found_slot == slot(number, 6 if number == 40 else 256)
    return set(remembered)


def test_what_was_recorded_is_recalled_by_the_next_command(tmp_path: Path) -> None:
    filled(tmp_path / "x", range(0, 41, 2))
    assert known(tmp_path / "x") == set(range(0, 41, 2))


def test_a_chunk_is_recalled_only_with_the_digest_it_was_recorded_with(tmp_path: Path) -> None:
    filled(tmp_path / "x")
    index = opened(tmp_path / "x")
    assert index.recall(3, digest(4)) is None
    assert index.recall(4, digest(3)) is None
    index.record(3, slot(99))
    assert index.recall(3, digest(3)) is None
    assert index.recall(3, digest(99)) == slot(99)


def test_what_is_noted_is_known_at_once_and_kept_when_the_index_is_closed(tmp_path: Path) -> None:
    index = opened(tmp_path / "x")
    index.note(5, slot(5))
    assert os.path.getsize(tmp_path / "x") == HEADER_SIZE
    assert index.recall(5, digest(5)) == slot(5)
    index.note(6, slot(6))
    index.close()
    index.close()
    assert known(tmp_path / "x") == {5, 6}


@pytest.mark.parametrize("seed", range(8))
def test_a_byte_that_was_damaged_costs_its_chunk_and_no_other(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    filled(tmp_path / "x")
    content = bytearray((tmp_path / "x").read_bytes())
    hit = random.sample(range(41), 5)
    for number in hit:
        start = HEADER_SIZE + number * SLOT_SIZE
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
    index.record(7, slot(7))  # the same, sealed anew
    index.close()
    after = (tmp_path / "x").read_bytes()
    assert before != after
    torn = bytearray(before)
    middle = HEADER_SIZE + 7 * SLOT_SIZE + 512
    torn[middle:] = after[middle:]
    (tmp_path / "x").write_bytes(torn)
    assert known(tmp_path / "x") == set(range(41)) - {7}


def test_a_slot_of_another_chunk_is_none(tmp_path: Path) -> None:
    filled(tmp_path / "x")
    content = bytearray((tmp_path / "x").read_bytes())
    first, second = (
        slice(HEADER_SIZE + n * SLOT_SIZE, HEADER_SIZE + (n + 1) * SLOT_SIZE) for n in (1, 2)
    )
    content[first], content[second] = content[second], content[first]
    (tmp_path / "x").write_bytes(content)
    assert known(tmp_path / "x") == set(range(41)) - {1, 2}


@pytest.mark.parametrize(
    "other",
    [{"size": SIZE + 512}, {"image": b"J" * 16}, {"store": bytes(16)}, {"secret": bytes(32)}],
    ids=["size", "image", "store", "key"],
)
def test_the_index_of_another_image_or_key_is_begun_anew(
    tmp_path: Path, other: dict[str, object]
) -> None:
    filled(tmp_path / "x")
    assert known(tmp_path / "x", **other) == set()
    assert known(tmp_path / "x") == set()


def test_slots_under_the_header_of_another_disk_do_not_open(tmp_path: Path) -> None:
    filled(tmp_path / "x")
    other = opened(tmp_path / "z", image=b"J" * 16)
    other.record(1, slot(1))
    other.close()
    header = (tmp_path / "x").read_bytes()[:HEADER_SIZE]
    (tmp_path / "z").write_bytes(header + (tmp_path / "z").read_bytes()[len(header) :])
    assert known(tmp_path / "z") == set()


def test_a_newer_version_is_not_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(page_slots, "VERSION", page_slots.VERSION + 1)
        filled(tmp_path / "x")
    assert known(tmp_path / "x") == set()


@pytest.mark.parametrize("content", [b"", b"\0" * 100_000, Random(1).randbytes(100_000)])
def test_a_file_of_another_make_holds_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert known(tmp_path / "x") == set()


def test_a_page_is_not_to_be_recognised_in_the_file(tmp_path: Path) -> None:
    index = opened(tmp_path / "x")
    same = Slot(digest(0), pages(1))
    index.record(0, same)
    index.record(1, same)
    index.close()
    content = (tmp_path / "x").read_bytes()
    assert len(content) == HEADER_SIZE + 2 * SLOT_SIZE
    assert not any(same.pages[at : at + 6] in content for at in range(0, len(same.pages), 6))
    first = content[HEADER_SIZE : HEADER_SIZE + SLOT_SIZE]
    second = content[HEADER_SIZE + SLOT_SIZE :]
    assert len({each[at : at + 8] for each in (first, second) for at in range(0, 1600, 8)}) == 400


def test_two_processes_do_not_share_an_index(tmp_path: Path) -> None:
    index = opened(tmp_path / "x")
    assert PageIndex.open(tmp_path / "x", HEADING, SECRET, lambda: 0) is None
    index.close()


def test_others_may_read_what_is_being_written(tmp_path: Path) -> None:
    index = opened(tmp_path / "x")
    index.record(5, slot(5))
    reader = Slots.open(tmp_path / "x", SECRET)
    assert reader is not None
    assert reader.heading == HEADING
    assert 5 in reader.remembered()
    assert [reader.read(number) for number in (4, 5, 6)] == [None, slot(5), None]
    index.close()


def test_the_numbers_of_an_image_stay_as_they_were_first(tmp_path: Path) -> None:
    filled(tmp_path / "x")
    index = opened(tmp_path / "x", first=4711)
    assert index.heading.first == HEADING.first
    assert index.read(3) == slot(3)
    index.close()


def test_what_is_looked_for_in_a_sparse_index_is_what_is_there(tmp_path: Path) -> None:
    index = opened(tmp_path / "x", size=1 << 40)
    for number in (0, 500_000, 1_000_000):
        index.record(number, slot(number % 50))
    reader = Slots.open(tmp_path / "x", SECRET)
    assert reader is not None
    found = list(reader.remembered())
    assert len(found) < 100
    assert [number for number in found if reader.read(number)] == [0, 500_000, 1_000_000]
    index.close()


def test_an_index_in_which_nothing_was_written_is_not_left_behind(tmp_path: Path) -> None:
    opened(tmp_path / "x").close()
    assert list(tmp_path.iterdir()) == []


def test_no_room_costs_what_does_not_fit(tmp_path: Path) -> None:
    room = iter([8 * SLOT_SIZE, 2 * SLOT_SIZE, SLOT_SIZE - 1])
    index = PageIndex.open(tmp_path / "x", HEADING, SECRET, lambda: next(room, 0))
    assert index is not None
    for number in range(40):
        index.record(number, slot(number))
    index.close()
    assert known(tmp_path / "x") == set(range(10))


@pytest.mark.parametrize("call", ["pread", "pwrite"])
def test_a_disk_that_fails_costs_the_index_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    index = opened(tmp_path / "x")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, call, fail)
    index.record(1, slot(1))
    assert index.recall(1, digest(1)) is None
    index.record(2, slot(2))
    index.close()


def test_a_removed_index_is_gone_and_harmless(tmp_path: Path) -> None:
    index = opened(tmp_path / "x")
    index.note(1, slot(1))
    index.remove()
    index.remove()
    assert index.recall(1, digest(1)) is None
    index.record(1, slot(1))
    index.close()
    assert list(tmp_path.iterdir()) == []


# The folder


def in_folder(
    state: Path,
    limit: int = 1 << 30,
    *,
    place: Place = PLACE,
    image: bytes = IMAGE,
    size: int = SIZE,
    make: bool = True,
) -> PageIndex | None:
    return PageIndexes(state, limit).open(place, image, size, make=make)


def kept(state: Path, **other: object) -> None:
    """One chunk is remembered."""
    index = in_folder(state, **other)  # type: ignore[arg-type]
    assert index is not None
    index.record(1, slot(1))
    index.close()


def test_an_image_finds_its_own_index_again_and_no_other_does(tmp_path: Path) -> None:
    kept(tmp_path)
    other = in_folder(tmp_path, image=bytes(16))
    assert other is not None
    assert other.read(1) is None
    other.close()
    again = in_folder(tmp_path, make=False)
    assert again is not None
    assert again.read(1) == slot(1)
    again.close()


def test_no_two_images_have_a_number_in_common(tmp_path: Path) -> None:
    taken: set[int] = set()
    for image in range(5):
        index = in_folder(tmp_path, image=bytes([image]) * 16)
        assert index is not None
        index.record(1, slot(1))
        numbers = set(range(index.heading.first, index.heading.first + index.heading.chunks + 1))
        assert not numbers & taken
        taken |= numbers
        index.close()
        if image == 2:
            (tmp_path / FOLDER / f"{bytes([1] * 16).hex()}.index").unlink()
            taken -= set(range(42, 84))
    assert len(taken) == max(taken) + 1


def test_none_is_begun_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert in_folder(tmp_path, make=False) is None
    assert list(tmp_path.iterdir()) == []


def test_none_is_had_where_none_is_allowed(tmp_path: Path) -> None:
    assert in_folder(tmp_path, 0) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", [Path.unlink, lambda key: key.write_bytes(b"no key")])
def test_a_lost_key_costs_what_it_sealed(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    kept(tmp_path)
    spoil(tmp_path / FOLDER / "key")
    index = in_folder(tmp_path)
    assert index is not None
    assert index.read(1) is None
    index.close()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    kept(tmp_path)
    folder = tmp_path / FOLDER
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_the_oldest_make_room_and_those_in_use_do_not(tmp_path: Path) -> None:
    names = ["oldest, in use", "old", "newer"]
    paths: dict[str, Path] = {}
    for age, name in enumerate(names):
        index = in_folder(tmp_path, image=bytes([age]) * 16)
        assert index is not None
        for number in range(40):
            index.record(number, slot(number))
        index.close()
        paths[name] = tmp_path / FOLDER / f"{(bytes([age]) * 16).hex()}.index"
        os.utime(paths[name], (1000 + age, 1000 + age))
    used = os.open(paths["oldest, in use"], os.O_RDWR)
    fcntl.flock(used, fcntl.LOCK_EX)
    one = paths["old"].stat().st_blocks * 512
    index = in_folder(tmp_path, 2 * one + (1 << 20) + one // 2)
    assert index is not None
    assert all(path.exists() for path in paths.values())  # it needs no room yet
    index.record(1, slot(1))
    index.close()
    assert [name for name in names if paths[name].exists()] == ["oldest, in use", "newer"]
    os.close(used)


def test_all_of_them_stay_within_the_limit(tmp_path: Path) -> None:
    limit = 3 << 20
    for image in range(8):
        index = in_folder(tmp_path, limit, image=bytes([image]) * 16, size=2048 * CHUNK_SIZE)
        assert index is not None
        for number in range(600):
            index.record(number, slot(number))
        index.close()
        files = (tmp_path / FOLDER).glob("*.index")
        assert sum(path.stat().st_blocks * 512 for path in files) <= limit
    assert len(list((tmp_path / FOLDER).glob("*.index"))) == 3


def test_what_another_version_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(page_slots, "VERSION", page_slots.VERSION + 1)
        kept(tmp_path, image=bytes(16))
    kept(tmp_path)
    assert [path.stem for path in (tmp_path / FOLDER).glob("*.index")] == [IMAGE.hex()]


def test_a_folder_that_cannot_be_made_costs_the_index_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_bytes(b"in the way")
    assert in_folder(tmp_path) is None
