"""What a receiver holds, as its sender remembers it."""

import tracemalloc

from flatship_protocol.constants import CHUNK_SIZE, DIGEST_SIZE, MAX_DISK_SIZE
from flatship_protocol.messages import Held
from flatship_sender import held as module
from flatship_sender.held import HeldChunks


def digests(first: int, count: int) -> bytes:
    return b"".join(index.to_bytes(DIGEST_SIZE) for index in range(first, first + count))


def test_digests_are_those_of_their_chunks_and_no_others():
    held = HeldChunks()
    held.take(Held(1, 1, 5, 3, digests(5, 3)))
    held.take(Held(1, 1, 1000, 2, digests(1000, 2), last=True))
    assert held.complete
    assert [held.digest(index) for index in (4, 5, 7, 8, 999, 1001)] == [
        None,
        digests(5, 1),
        digests(7, 1),
        None,
        None,
        digests(1001, 1),
    ]
    held.close()


def test_zeros_are_held_only_where_all_of_a_range_is():
    held = HeldChunks()
    held.take(Held(1, 1, 2, 4, b""))
    assert not held.complete
    assert held.are_zeros(2 * CHUNK_SIZE, 3 * CHUNK_SIZE + 512)
    assert not held.are_zeros(2 * CHUNK_SIZE, 4 * CHUNK_SIZE + 512)
    assert not held.are_zeros(CHUNK_SIZE, 2 * CHUNK_SIZE)
    assert held.digest(2) is None
    held.close()


def test_what_is_held_of_a_range_is_counted_in_bytes():
    held = HeldChunks()
    held.take(Held(1, 1, 2, 3, digests(2, 3)))
    held.take(Held(1, 1, 5, 2, b""))
    assert held.data_within(0, 8 * CHUNK_SIZE) == 3 * CHUNK_SIZE
    assert held.data_within(3 * CHUNK_SIZE, CHUNK_SIZE + 512) == CHUNK_SIZE + 512
    assert held.data_within(3 * CHUNK_SIZE, 2 * CHUNK_SIZE + 512) == 2 * CHUNK_SIZE
    assert held.data_within(0, 2 * CHUNK_SIZE) == held.data_within(5 * CHUNK_SIZE, 512) == 0
    asked = [held.overlaps(index * CHUNK_SIZE, CHUNK_SIZE) for index in range(8)]
    assert asked == [False, False, True, True, True, True, True, False]
    held.close()


def test_many_digests_are_kept_out_of_memory(monkeypatch):
    monkeypatch.setattr(module, "_IN_MEMORY", 1024)
    held = HeldChunks()
    for first in range(0, 2048, 512):
        held.take(Held(1, 1, first, 512, digests(first, 512)))
    assert held._digests._rolled
    assert all(held.digest(index) == digests(index, 1) for index in (0, 511, 512, 2047))
    held.close()


def test_a_digest_far_behind_the_others_takes_no_memory_for_what_is_between():
    far = MAX_DISK_SIZE // CHUNK_SIZE - 1
    held = HeldChunks()
    tracemalloc.start()
    try:
        held.take(Held(1, 1, 5, 1, digests(5, 1)))
        held.take(Held(1, 1, far, 1, digests(far, 1)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    assert (held.digest(5), held.digest(far)) == (digests(5, 1), digests(far, 1))
    held.close()


def test_nothing_is_held_before_anything_was_said():
    held = HeldChunks()
    assert held.digest(0) is None
    assert not held.are_zeros(0, CHUNK_SIZE)
    held.close()
