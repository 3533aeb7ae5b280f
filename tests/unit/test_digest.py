import random
import time
import tracemalloc
from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from flatship_protocol.constants import CHUNK_SIZE, SEGMENT_CHUNKS
from flatship_protocol.digest import (
    Manifest,
    chunk_digest,
    root_digest,
    segment_digest,
    zero_digest,
)
from flatship_protocol.errors import DuplicateDiffers

GIB = 1 << 30
TIB = 1 << 40
SIZE = 2 * GIB + 5 * CHUNK_SIZE + 512  # two whole segments, one of six chunks, the last short
CHUNKS = 2 * SEGMENT_CHUNKS + 6
ZERO = zero_digest(CHUNK_SIZE)


def digest_of(index: int) -> bytes:
    return blake3(b"content of chunk %d" % index).digest()


def zero_digest_of(index: int) -> bytes:
    return zero_digest(512) if index == CHUNKS - 1 else ZERO


def root_by_hand(size: int, digests: list[bytes]) -> bytes:
    segments = [
        blake3(
            b"".join(digests[first : first + SEGMENT_CHUNKS]),
            derive_key_context="flatship/1 segment digest",
        ).digest()
        for first in range(0, len(digests), SEGMENT_CHUNKS)
    ]
    return blake3(
        size.to_bytes(8, "big") + b"".join(segments),
        derive_key_context="flatship/1 root digest",
    ).digest()


def test_chunk_digest_is_blake3_of_the_bytes() -> None:
    # https://github.com/BLAKE3-team/BLAKE3/blob/master/test_vectors/test_vectors.json, input 0
    assert chunk_digest(b"").hex() == (
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    )
    assert chunk_digest(memoryview(b"abc")) == blake3(b"abc").digest()


@pytest.mark.parametrize("length", [512, 4096, CHUNK_SIZE])
def test_zero_digest_is_that_of_so_many_zeros(length: int) -> None:
    assert zero_digest(length) == chunk_digest(bytes(length))


def test_the_three_levels_are_separate_domains() -> None:
    data = bytes(64)
    results = {
        chunk_digest((64).to_bytes(8, "big") + data),
        segment_digest((64).to_bytes(8, "big") + data),
        root_digest(64, data),
    }
    assert len(results) == 3


def test_root_is_that_of_spec_by_hand() -> None:
    manifest = Manifest(SIZE)
    for index in range(CHUNKS):
        assert manifest.set_chunk(index, digest_of(index))
    assert manifest.complete
    assert manifest.root() == root_by_hand(SIZE, [digest_of(index) for index in range(CHUNKS)])


def test_root_depends_on_the_size_of_the_disk() -> None:
    roots = set()
    for size in (CHUNK_SIZE - 512, CHUNK_SIZE):
        manifest = Manifest(size)
        manifest.set_chunk(0, digest_of(0))
        roots.add(manifest.root())
    assert len(roots) == 2


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 32))
def test_any_order_gives_the_same_root_and_missing_chunks(seed: int) -> None:
    """Data and zeros, chunk by chunk or in runs: a plain list of digests is the model."""
    order = random.Random(seed)
    zeros = set[int]()
    for _ in range(6):
        first = order.randrange(CHUNKS)
        zeros |= set(range(first, min(CHUNKS, first + order.choice([1, 40, 1100]))))
    steps: list[tuple[int, int, bool]] = [(i, 1, False) for i in range(CHUNKS) if i not in zeros]
    position = 0
    while position < CHUNKS:
        if position not in zeros:
            position += 1
            continue
        length = 1
        limit = order.choice([1, 7, 3000])
        while length < limit and position + length in zeros:
            length += 1
        steps.append((position, length, True))
        position += length
    order.shuffle(steps)

    folded: dict[int, bytes] = {}
    manifest = Manifest(SIZE, lambda index, digests: folded.update({index: digests}))
    missing = set(range(CHUNKS))
    for number, (first, count, are_zeros) in enumerate(steps):
        if are_zeros:
            manifest.set_zeros(first, count)
        else:
            assert manifest.set_chunk(first, digest_of(first))
        missing -= set(range(first, first + count))
        if number % 500 == 0:
            runs = list(manifest.missing())
            assert {i for f, c in runs for i in range(f, f + c)} == missing
            assert all(f + c < g for (f, c), (g, _) in pairwise(runs))
    assert manifest.complete
    assert manifest.open_segments == 0
    assert list(manifest.missing()) == []
    digests = [zero_digest_of(i) if i in zeros else digest_of(i) for i in range(CHUNKS)]
    assert manifest.root() == root_by_hand(SIZE, digests)
    assert b"".join(folded[index] for index in sorted(folded)) == b"".join(digests)


def test_disk_of_zeros_has_the_root_of_its_zero_chunks() -> None:
    manifest = Manifest(SIZE)
    manifest.set_zeros(0, CHUNKS)
    assert manifest.root() == root_by_hand(SIZE, [zero_digest_of(i) for i in range(CHUNKS)])


def test_known_chunk_can_be_asked_for_until_its_segment_is_folded() -> None:
    manifest = Manifest(2 * CHUNK_SIZE)
    assert manifest.chunk(0) is None
    manifest.set_chunk(0, digest_of(0))
    assert manifest.chunk(0) == digest_of(0)
    assert manifest.chunk(1) is None
    manifest.set_chunk(1, digest_of(1))
    assert manifest.chunk(0) is None


def test_equal_duplicate_is_no_news() -> None:
    manifest = Manifest(SIZE)
    assert manifest.set_chunk(7, digest_of(7))
    assert not manifest.set_chunk(7, digest_of(7))


def test_duplicate_of_a_folded_segment_is_ignored() -> None:
    manifest = Manifest(CHUNK_SIZE)
    manifest.set_chunk(0, digest_of(0))
    root = manifest.root()
    assert not manifest.set_chunk(0, digest_of(1))
    manifest.set_zeros(0, 1)
    assert manifest.root() == root


def test_duplicate_that_differs_is_refused_and_changes_nothing() -> None:
    manifest = Manifest(SIZE)
    manifest.set_chunk(SEGMENT_CHUNKS + 1, digest_of(1))
    with pytest.raises(DuplicateDiffers) as caught:
        manifest.set_chunk(SEGMENT_CHUNKS + 1, digest_of(2))
    assert caught.value.offset == GIB + CHUNK_SIZE
    with pytest.raises(DuplicateDiffers) as caught:
        manifest.set_zeros(SEGMENT_CHUNKS, 3)
    assert caught.value.offset == GIB + CHUNK_SIZE
    assert manifest.chunk(SEGMENT_CHUNKS + 1) == digest_of(1)
    assert manifest.chunk(SEGMENT_CHUNKS) is None


def test_chunk_of_zeros_may_come_again_as_data_or_in_a_run() -> None:
    manifest = Manifest(SIZE)
    manifest.set_zeros(3, 2)
    assert not manifest.set_chunk(3, ZERO)
    assert manifest.set_chunk(5, ZERO)
    manifest.set_zeros(2, 5)
    assert list(manifest.missing()) == [(0, 2), (7, CHUNKS - 7)]


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, -1), (CHUNKS, 1), (0, CHUNKS + 1)])
def test_chunks_beyond_the_disk_are_refused(first: int, count: int) -> None:
    with pytest.raises(ValueError, match="chunks"):
        Manifest(SIZE).set_zeros(first, count)


def test_digest_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        Manifest(SIZE).set_chunk(0, bytes(31))


def test_root_of_an_incomplete_disk_is_refused() -> None:
    manifest = Manifest(SIZE)
    manifest.set_zeros(0, CHUNKS - 1)
    with pytest.raises(ValueError, match="1 of 3"):
        manifest.root()


def test_eight_tebibytes_of_zeros_take_a_fraction_of_a_second() -> None:
    started = time.process_time()
    manifest = Manifest(8 * TIB)
    manifest.set_zeros(0, manifest.chunks)
    manifest.root()
    assert time.process_time() - started < 0.2


def test_the_largest_disk_costs_less_than_ten_mebibytes() -> None:
    """Folded segments cost the same whatever they held, so most of them may be zeros."""
    tracemalloc.start()
    try:
        manifest = Manifest(62 * TIB)
        for index in range(8 * SEGMENT_CHUNKS):
            manifest.set_chunk(index, ZERO[:16] + bytes(16))
        manifest.set_zeros(8 * SEGMENT_CHUNKS, manifest.chunks - 8 * SEGMENT_CHUNKS)
        manifest.root()
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_open_segments_of_zeros_cost_less_than_a_kibibyte() -> None:
    segments = 4096
    tracemalloc.start()
    try:
        manifest = Manifest(segments * GIB)
        for number in range(segments):
            manifest.set_zeros(number * SEGMENT_CHUNKS + 1, 1)
        assert manifest.open_segments == segments
        assert tracemalloc.get_traced_memory()[1] < segments * 1024
    finally:
        tracemalloc.stop()
