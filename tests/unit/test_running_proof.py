"""Re-reading behind the writers, and what the final proof then leaves out."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from test_proof import MIB, FakeDisk, Recorded, content

from flatship_protocol.digest import chunk_digest
from flatship_protocol.errors import TransferError
from flatship_protocol.extents import ExtentSet
from flatship_receiver.proof import Proof, ProofFailed, prove
from flatship_receiver.running_proof import LATE, RunningProof
from flatship_service.workers import Workers

SIZE = 16 * MIB


def running(
    disk: FakeDisk, body: Callable[[RunningProof], Awaitable[None]]
) -> tuple[RunningProof, list[TransferError]]:
    failures: list[TransferError] = []

    async def main() -> RunningProof:
        workers = Workers(1, "test")
        try:
            proof = RunningProof(disk, workers, failures.append, lambda *_: None)
            try:
                await body(proof)
            finally:
                await proof.stop()
            return proof
        finally:
            workers.close()

    return asyncio.run(main()), failures


async def settled(proof: RunningProof, done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():  # noqa: ASYNC110  # the proof has nobody to tell
            await asyncio.sleep(0.001)


def test_what_was_flushed_is_re_read_neighbours_together():
    data = {index: content(index) for index in (2, 3, 4, 9)}
    disk = FakeDisk(SIZE, data)

    async def body(proof):
        for index, held in data.items():
            proof.add(index * MIB, MIB, chunk_digest(held))
        await settled(proof, lambda: proof.proven.total == 4 * MIB)

    proof, failures = running(disk, body)
    assert list(proof.proven) == [(2 * MIB, 3 * MIB), (9 * MIB, MIB)]
    assert disk.reads == [(2 * MIB, 3 * MIB), (9 * MIB, MIB)]
    assert not failures


def test_a_chunk_that_is_not_what_was_received_fails_the_disk_and_is_not_proven():
    data = {5: content(5)}

    async def body(proof):
        proof.add(5 * MIB, MIB, chunk_digest(content(6)))
        await settled(proof, lambda: any(task.done() for task in proof._tasks))

    failures: list[TransferError]
    proof, failures = running(FakeDisk(SIZE, data), body)
    assert isinstance(failures[0], ProofFailed)
    assert failures[0].numbers == (5 * MIB, 0)
    assert proof.proven.total == 0


def test_a_short_last_chunk_is_left_to_the_final_proof():
    async def body(proof):
        proof.add(15 * MIB, MIB - 512, chunk_digest(content(1)[:-512]))
        await asyncio.sleep(0)

    proof, failures = running(FakeDisk(SIZE, {15: content(1)}), body)
    assert proof.proven.total == 0
    assert not failures


class OnRecord:
    """What an earlier session left, and what of it is on record still."""

    def __init__(self, data: dict[int, bytes]) -> None:
        self.data = dict(data)
        self.held = {index * MIB for index in data}

    async def chunks(self) -> AsyncIterator[tuple[int, bytes]]:
        for index, content_ in self.data.items():
            yield index * MIB, chunk_digest(content_)

    def is_held(self, offset: int) -> bool:
        return offset in self.held

    def let_go(self, proof: RunningProof, index: int) -> None:
        self.held.discard(index * MIB)
        proof.let_go(index * MIB, MIB)


def test_what_was_held_before_is_re_read_well_behind_what_comes():
    data = {index: content(index) for index in (0, 1, 4)}
    disk, record = FakeDisk(SIZE, data), OnRecord(data)

    async def body(proof):
        proof.follow(record.chunks(), record.is_held)
        proof.came(LATE + MIB)
        await settled(proof, lambda: proof.proven.total == 2 * MIB)
        await asyncio.sleep(0.01)
        assert list(proof.proven) == [(0, 2 * MIB)]
        proof.came(LATE + 9 * MIB)
        await settled(proof, lambda: proof.proven.total == 3 * MIB)

    _, failures = running(disk, body)
    assert not failures
    assert sorted(offset for offset, _ in disk.reads) in ([0, 4 * MIB], [0, MIB, 4 * MIB])


def test_a_held_chunk_that_is_another_by_now_fails_the_disk():
    record = OnRecord({0: content(1)})

    async def body(proof):
        proof.follow(record.chunks(), record.is_held)
        proof.came(LATE)
        await settled(proof, lambda: sum(task.done() for task in proof._tasks) > 1)

    proof, failures = running(FakeDisk(SIZE, {0: content(2)}), body)
    assert isinstance(failures[0], ProofFailed)
    assert proof.proven.total == 0


def test_a_held_chunk_that_is_written_anew_is_not_proven_by_what_was_read_before():
    data = {0: content(0), 1: content(1)}
    record = OnRecord(data)

    async def body(proof):
        proof.follow(record.chunks(), record.is_held)
        proof.came(LATE + MIB)
        await settled(proof, lambda: proof.proven.total == 2 * MIB)
        record.let_go(proof, 0)

    proof, failures = running(FakeDisk(SIZE, data), body)
    assert list(proof.proven) == [(MIB, MIB)]
    assert not failures


def test_a_held_chunk_that_is_written_while_it_is_read_is_neither_proven_nor_a_failure():
    record = OnRecord({0: content(0)})
    reading, go_on = threading.Event(), threading.Event()

    class SlowDisk(FakeDisk):
        def read_into(self, buffer: memoryview, offset: int) -> None:
            reading.set()
            assert go_on.wait(10)
            super().read_into(buffer, offset)

    disk = SlowDisk(SIZE, {0: content(0)})

    async def body(proof):
        proof.follow(record.chunks(), record.is_held)
        proof.came(LATE)
        await settled(proof, reading.is_set)
        record.let_go(proof, 0)
        disk.data[0] = content(7)
        go_on.set()
        proof.add(0, MIB, chunk_digest(content(7)))
        await settled(proof, lambda: proof.proven.total == MIB)

    _, failures = running(disk, body)
    assert not failures
    assert len(disk.reads) == 2


def test_a_held_chunk_that_was_let_go_of_before_its_turn_is_not_read():
    data = {0: content(0), 1: content(1)}
    disk, record = FakeDisk(SIZE, data), OnRecord(data)

    async def body(proof):
        record.let_go(proof, 0)
        proof.follow(record.chunks(), record.is_held)
        proof.came(LATE + MIB)
        await settled(proof, lambda: proof.proven.total == MIB)

    _, failures = running(disk, body)
    assert disk.reads == [(MIB, MIB)]
    assert not failures


def test_the_final_proof_reads_only_what_was_not_proven():
    data = {index: content(index) for index in range(8)}
    disk, recorded = FakeDisk(SIZE, data), Recorded(SIZE, data)
    proven = ExtentSet()
    proven.add(0, 3 * MIB)
    proven.add(5 * MIB, MIB)
    totals: list[tuple[int, int]] = []
    proof = prove(
        disk,
        SIZE,
        recorded,
        progress=lambda done, total: totals.append((done, total)),
        should_stop=lambda: False,
        proven=proven,
    )
    assert proof == Proof(recorded.root, 8 * MIB)
    assert sorted(disk.reads) == [(3 * MIB, 2 * MIB), (6 * MIB, 2 * MIB)]
    assert totals[-1] == (4 * MIB, 4 * MIB)


def test_a_proven_chunk_that_is_a_hole_in_the_end_is_found():
    data = {index: content(index) for index in range(8)}
    recorded = Recorded(SIZE, data)
    proven = ExtentSet()
    proven.add(0, 8 * MIB)
    lost = FakeDisk(SIZE, {index: held for index, held in data.items() if index != 3})
    with pytest.raises(ProofFailed) as failed:
        prove(
            lost,
            SIZE,
            recorded,
            progress=lambda done, total: None,
            should_stop=lambda: False,
            proven=proven,
        )
    assert failed.value.offset == 3 * MIB
