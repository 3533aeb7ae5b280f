import threading
import time
from collections.abc import Iterator

import pytest

from flatship_protocol.constants import CHUNK_SIZE, DIGEST_SIZE, SEGMENT_CHUNKS
from flatship_protocol.digest import Manifest, chunk_digest
from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_protocol.extents import Extent, ExtentKind
from flatship_receiver.proof import (
    READ_CHUNKS,
    READERS,
    Proof,
    ProofFailed,
    ProofStopped,
    data_chunks,
    data_size,
    prove,
)

MIB = CHUNK_SIZE


class FakeDisk:
    """A disk of ``capacity`` bytes of which only the chunks in ``data`` are not holes."""

    def __init__(self, capacity: int, data: dict[int, bytes]) -> None:
        self.capacity = capacity
        self.data = dict(data)
        self.reads: list[tuple[int, int]] = []
        self.held: set[int] = set()  # buffers seen

    def read_into(self, buffer: memoryview, offset: int) -> None:
        assert len(buffer) <= READ_CHUNKS * MIB
        self.reads.append((offset, len(buffer)))
        self.held.add(id(buffer.obj))
        for at in range(0, len(buffer), MIB):
            piece = self.data.get((offset + at) // MIB, b"")
            buffer[at : at + len(piece)] = piece
            buffer[at + len(piece) : at + MIB] = bytes(len(buffer[at + len(piece) : at + MIB]))

    def extents(self) -> Iterator[Extent]:
        position = 0
        for index in sorted(self.data):
            if index * MIB > position:
                yield Extent(position, index * MIB - position, ExtentKind.HOLE)
            length = min(MIB, self.capacity - index * MIB)
            yield Extent(index * MIB, length, ExtentKind.DATA)
            position = index * MIB + length
        if position < self.capacity:
            yield Extent(position, self.capacity - position, ExtentKind.HOLE)


class Recorded:
    """The digests of a disk as it should be, as the journal would hand them out."""

    def __init__(self, size: int, data: dict[int, bytes]) -> None:
        self.segments: dict[int, bytes] = {}
        self.asked: list[int] = []
        manifest = Manifest(size, self.segments.__setitem__)
        for index, content in data.items():
            manifest.set_chunk(index, chunk_digest(content[: size - index * MIB]))
        for first, count in list(manifest.missing()):
            manifest.set_zeros(first, count)
        self.root = manifest.root()

    def __call__(self, number: int) -> bytes:
        self.asked.append(number)
        return self.segments[number]


def content(seed: int, length: int = MIB) -> bytes:
    return seed.to_bytes(4, "big") * (length // 4)


def run(disk, size, recorded, *, should_stop=lambda: False, progress=lambda done, total: None):
    return prove(disk, size, recorded, progress=progress, should_stop=should_stop)


def test_an_image_that_is_as_received_is_proven_by_what_was_read():
    data = {index: content(index) for index in (1, 2, 3, 9, 10, 12, 20, 21, 22, 23, 24, 25)}
    size = 40 * MIB
    disk, recorded = FakeDisk(size, data), Recorded(size, data)
    assert run(disk, size, recorded) == Proof(recorded.root, len(data) * MIB)
    assert sorted(disk.reads) == sorted(
        (first * MIB, count * MIB) for first, count in ((1, 3), (9, 2), (12, 1), (20, 4), (24, 2))
    )


@pytest.mark.parametrize("wrong", [0, 1, 3, 4, 1023, 1024, 1500])
def test_one_flipped_bit_is_found_at_its_chunk(wrong):
    size = 1501 * MIB
    data = {index: content(7) for index in (*range(9), *range(1020, 1030), 1500)}
    recorded = Recorded(size, data)
    data[wrong] = content(7)[:-1] + b"\x06"
    with pytest.raises(ProofFailed) as failed:
        run(FakeDisk(size, data), size, recorded)
    assert failed.value.offset == wrong * MIB
    assert failed.value.numbers == (wrong * MIB, 0)
    assert failed.value.code is ErrorCode.PROOF_FAILED


def test_the_first_of_several_differences_is_named():
    size, data = 64 * MIB, {index: content(index) for index in range(64)}
    recorded = Recorded(size, data)
    for wrong in (61, 17, 30):
        data[wrong] = content(1000)
    with pytest.raises(ProofFailed) as failed:
        run(FakeDisk(size, data), size, recorded)
    assert failed.value.offset == 17 * MIB


def test_a_hole_where_data_was_received_is_found():
    size, data = 16 * MIB, {4: content(4), 8: content(8)}
    recorded = Recorded(size, data)
    del data[8]
    with pytest.raises(ProofFailed) as failed:
        run(FakeDisk(size, data), size, recorded)
    assert failed.value.offset == 8 * MIB


def test_zeros_and_holes_prove_the_same():
    size, data = 16 * MIB, {4: content(4)}
    recorded = Recorded(size, data)
    written = FakeDisk(size, data | {index: bytes(MIB) for index in (0, 1, 2, 3, 9)})
    assert run(written, size, recorded).root == run(FakeDisk(size, data), size, recorded).root


def test_the_root_comes_from_the_bytes_and_not_from_the_record():
    size, data = 8 * MIB, {0: content(1)}
    segments = Recorded(size, data).segments
    assert run(FakeDisk(size, data), size, segments.__getitem__).root == Recorded(size, data).root


@pytest.mark.parametrize("place", [512, 4096, MIB - 1])
def test_a_tail_that_is_not_zero_is_found_at_its_byte(place):
    size = 3 * MIB + 512
    data = {3: content(3, 512)}
    recorded = Recorded(size, data)
    tail = bytearray(MIB)
    tail[:512] = content(3, 512)
    assert run(FakeDisk(4 * MIB, {3: bytes(tail)}), size, recorded).root == recorded.root
    tail[place] = 1
    with pytest.raises(ProofFailed, match="past the disk's size") as failed:
        run(FakeDisk(4 * MIB, {3: bytes(tail)}), size, recorded)
    assert failed.value.offset == 3 * MIB + place


def test_chunks_past_the_size_must_be_zero():
    size, data = 2 * MIB, {0: content(1)}
    recorded = Recorded(size, data)
    assert run(FakeDisk(6 * MIB, data | {4: bytes(MIB)}), size, recorded).root == recorded.root
    with pytest.raises(ProofFailed) as failed:
        run(FakeDisk(6 * MIB, data | {4: bytes(MIB - 1) + b"x"}), size, recorded)
    assert failed.value.offset == 5 * MIB - 1


def test_the_last_short_chunk_counts_as_zeros_when_it_is_a_hole():
    size = 2 * MIB + 1024
    recorded = Recorded(size, {0: content(1)})
    assert run(FakeDisk(3 * MIB, {0: content(1)}), size, recorded).root == recorded.root


@pytest.mark.parametrize("cut", [-DIGEST_SIZE, DIGEST_SIZE])
def test_a_record_of_another_length_proves_nothing(cut):
    size, data = 4 * MIB, {0: content(1)}
    digests = Recorded(size, data).segments[0]
    wrong = digests[:cut] if cut < 0 else digests + digests[:cut]
    with pytest.raises(ProofFailed):
        run(FakeDisk(size, data), size, lambda _: wrong)


def test_the_record_is_asked_for_each_segment_once_in_order_in_the_callers_thread():
    size = 4 * SEGMENT_CHUNKS * MIB + 512
    data = {0: content(0), 3000: content(3000)}
    recorded = Recorded(size, data)
    threads = set()

    def expected(number: int) -> bytes:
        threads.add(threading.get_ident())
        return recorded(number)

    run(FakeDisk(-(-size // MIB) * MIB, data), size, expected)
    assert recorded.asked == [0, 1, 2, 3, 4]
    assert threads == {threading.get_ident()}


def test_progress_starts_at_nothing_and_ends_at_all():
    size, data = 40 * MIB, {index: content(index) for index in (*range(12), 30)}
    told: list[tuple[int, int]] = []
    run(
        FakeDisk(size, data),
        size,
        Recorded(size, data),
        progress=lambda *amounts: told.append(amounts),
    )
    assert told[0] == (0, 13 * MIB)
    assert told[-1] == (13 * MIB, 13 * MIB)
    assert told == sorted(told)


def test_it_stops_when_told_to():
    size, data = 64 * MIB, {index: content(index) for index in range(64)}
    disk = FakeDisk(size, data)
    answers = iter([False, False, True])
    with pytest.raises(ProofStopped):
        run(disk, size, Recorded(size, data), should_stop=lambda: next(answers))
    assert len(disk.reads) <= 2


def test_a_device_that_fails_ends_the_proof_and_leaves_no_thread():
    class Failing(FakeDisk):
        def read_into(self, buffer: memoryview, offset: int) -> None:
            if offset >= 8 * MIB:
                raise DatastoreError("device failed", ErrorCode.WRITE_FAILED)
            super().read_into(buffer, offset)

    size, data = 64 * MIB, {index: content(index) for index in range(64)}
    with pytest.raises(DatastoreError, match="device failed"):
        run(Failing(size, data), size, Recorded(size, data))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("proof")]


def test_buffers_are_few_and_used_again():
    size, data = 256 * MIB, {index: content(index) for index in range(256)}
    disk = FakeDisk(size, data)
    run(disk, size, Recorded(size, data))
    assert len(disk.held) <= READERS


def test_eight_tebibytes_with_a_little_data_take_no_longer_than_the_data():
    size = 8 << 40
    data = {index: content(index) for index in (5, 1 << 20, (1 << 23) - 1)}
    recorded = Recorded(size, data)
    disk = FakeDisk(size, data)
    started = time.process_time()
    assert run(disk, size, recorded) == Proof(recorded.root, 3 * MIB)
    assert time.process_time() - started < 5  # seconds; a step for each chunk takes longer
    assert len(disk.reads) == 3


def test_runs_of_chunks_cover_what_data_touches_and_merge():
    def data(offset: int, length: int) -> Extent:
        return Extent(offset, length, ExtentKind.DATA)

    def hole(offset: int, length: int) -> Extent:
        return Extent(offset, length, ExtentKind.HOLE)

    assert list(data_chunks([])) == []
    assert list(data_chunks([hole(0, 10 * MIB)])) == []
    assert list(data_chunks([data(0, 1)])) == [(0, 1)]
    assert list(data_chunks([data(MIB - 1, 2), hole(MIB + 1, 1), data(MIB + 9, 9)])) == [(0, 2)]
    assert list(data_chunks([data(MIB, MIB), data(2 * MIB, 1)])) == [(1, 3)]
    assert list(data_chunks([data(0, MIB), hole(MIB, MIB), data(2 * MIB, 1)])) == [(0, 1), (2, 3)]
    assert list(data_chunks([data(0, 9 * MIB), data(MIB, 1), data(10 * MIB, 1)])) == [
        (0, 9),
        (10, 11),
    ]
    assert data_size([data(3 * MIB, 9)], 3 * MIB + 512) == 512
