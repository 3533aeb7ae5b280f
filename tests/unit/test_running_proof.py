"""Re-reading behind the writers, and what the final proof then leaves out."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from test_proof import MIB, FakeDisk, Recorded, content

from flatship_protocol.digest import chunk_digest
from flatship_protocol.errors import TransferError
from flatship_protocol.extents import ExtentSet
from flatship_receiver.proof import Proof, ProofFailed, RunningProof, prove
from flatship_service.workers import Workers

SIZE = 16 * MIB


def running(
    disk: FakeDisk, body: Callable[[RunningProof], Awaitable[None]]
) -> tuple[RunningProof, list[TransferError]]:
    failures: list[TransferError] = []

    async def main() -> RunningProof:
        workers = Workers(1, "test")
        try:
            proof = RunningProof(disk, workers, failures.append)
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
