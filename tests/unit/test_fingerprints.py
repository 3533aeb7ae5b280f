"""Pages that differ have other fingerprints, and the same ones under the same key."""

from random import Random

import pytest

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_sender.fingerprints import FINGERPRINT_SIZE, changed_pages, fingerprints, runs

KEY = bytes(range(64))
DATA = Random(1).randbytes(CHUNK_SIZE)


def of(data: bytes, key: bytes = KEY) -> bytes:
    return fingerprints(key, memoryview(data))


def test_a_page_whose_bytes_changed_and_no_other_is_told() -> None:
    random = Random(2)
    before = of(DATA)
    assert len(before) == 256 * FINGERPRINT_SIZE
    for _ in range(40):
        changed = bytearray(DATA)
        pages = sorted(random.sample(range(256), random.randrange(1, 9)))
        for page in pages:
            changed[page * PAGE_SIZE + random.randrange(PAGE_SIZE)] ^= 1 << random.randrange(8)
        assert changed_pages(before, of(bytes(changed))) == pages


def test_nothing_is_told_of_what_did_not_change() -> None:
    assert changed_pages(of(DATA), of(bytes(bytearray(DATA)))) == []


@pytest.mark.parametrize("size", [512, PAGE_SIZE, 3 * PAGE_SIZE + 1024])
def test_the_last_page_may_be_short(size: int) -> None:
    short = of(DATA[:size])
    assert len(short) == -(-size // PAGE_SIZE) * FINGERPRINT_SIZE
    last = len(short) // FINGERPRINT_SIZE - 1
    assert changed_pages(short, of(DATA[: size - 1] + bytes([DATA[size - 1] ^ 1]))) == [last]
    assert of(bytes(512)) != of(bytes(1024))


def test_another_key_gives_other_fingerprints_throughout() -> None:
    assert len(changed_pages(of(DATA), of(DATA, bytes(64)))) == 256


@pytest.mark.parametrize("part", [slice(0, 32), slice(32, 64)])
def test_each_half_of_the_key_counts(part: slice) -> None:
    other = bytearray(KEY)
    other[part] = bytes(32)
    assert len(changed_pages(of(DATA), of(DATA, bytes(other)))) == 256


def test_fingerprints_do_not_add_up_as_hashes_do() -> None:
    """Of the hash itself, pages that differ in the same way would have tags that do, too."""
    pages = [bytearray(PAGE_SIZE) for _ in range(4)]
    pages[1][7] = pages[2][99] = pages[3][7] = pages[3][99] = 1
    none, one, other, both = (int.from_bytes(of(bytes(page))) for page in pages)
    assert none ^ one ^ other ^ both != 0


def test_pages_that_stand_elsewhere_keep_their_fingerprints() -> None:
    moved = of(DATA[PAGE_SIZE:])
    assert moved == of(DATA)[FINGERPRINT_SIZE:]


def test_chunks_of_other_lengths_are_not_compared() -> None:
    with pytest.raises(ValueError, match="longer"):
        changed_pages(of(DATA[:PAGE_SIZE]), of(DATA))


def test_neighbours_make_runs() -> None:
    assert list(runs([])) == []
    assert list(runs([3])) == [(3, 1)]
    assert list(runs([0, 1, 2, 7, 9, 10])) == [(0, 3), (7, 1), (9, 2)]
