import os
import random

import pytest

from flatship_protocol.constants import CHUNK_SIZE
from flatship_sender import inspect as inspect_module
from flatship_sender.inspect import inspect
from flatship_sender.sources.memory import MemorySource

MIB = 1 << 20


def test_sizes_add_up_and_holes_are_not_read() -> None:
    source = MemorySource({MIB: os.urandom(MIB), 6 * MIB: bytes(512 * 1024)}, size=8 * MIB)
    found = inspect(source)
    assert found.virtual_size == 8 * MIB
    assert found.allocated == MIB + 512 * 1024
    assert found.hole == 8 * MIB - found.allocated
    assert found.zero == 512 * 1024
    assert found.exact
    assert source.bytes_read == found.allocated


def test_random_data_costs_what_it_is_and_zeros_cost_nothing() -> None:
    found = inspect(MemorySource(random.Random(1).randbytes(4 * MIB) + bytes(4 * MIB)))
    assert 4 * MIB <= found.wire < 4.01 * MIB
    assert inspect(MemorySource(bytes(4 * MIB))).wire == 0


def test_text_costs_what_compression_leaves() -> None:
    found = inspect(MemorySource(b"flatship moves all disks of a vm" * (2 * MIB // 32)))
    assert 0 < found.wire < found.allocated // 100


def test_disk_of_holes_costs_nothing() -> None:
    found = inspect(MemorySource({}, size=1 << 43))
    assert (found.allocated, found.zero, found.wire) == (0, 0, 0)
    assert found.exact


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(inspect_module, "SAMPLE_LIMIT", 8 * CHUNK_SIZE)
    return 8 * CHUNK_SIZE


def half_zero(chunks: int) -> bytes:
    noise = random.Random(2).randbytes(CHUNK_SIZE // 2)
    return (noise + bytes(CHUNK_SIZE // 2)) * chunks


def test_more_than_the_limit_is_sampled_and_scaled(small_sample: int) -> None:
    source = MemorySource(half_zero(64))
    found = inspect(source)
    assert source.bytes_read <= small_sample
    assert not found.exact
    assert found.allocated == 64 * MIB
    assert found.zero == pytest.approx(32 * MIB, rel=0.05)
    assert found.wire == pytest.approx(32 * MIB, rel=0.05)


def test_exact_reads_everything_and_counts_every_zero_page(small_sample: int) -> None:
    source = MemorySource(half_zero(64))
    found = inspect(source, exact=True)
    assert found.exact
    assert source.bytes_read == 64 * MIB > small_sample
    assert found.zero == 32 * MIB
    assert found.wire == pytest.approx(32 * MIB, rel=0.05)


def test_sample_is_spread_over_all_runs_of_data(small_sample: int) -> None:
    noise = random.Random(3).randbytes(16 * MIB)
    source = MemorySource({0: noise, 100 * MIB: bytes(16 * MIB)}, size=200 * MIB)
    found = inspect(source)
    assert source.bytes_read <= small_sample
    assert found.zero == pytest.approx(16 * MIB, rel=0.15)


def test_progress_ends_at_all_of_the_data() -> None:
    seen: list[tuple[int, int]] = []
    inspect(MemorySource(half_zero(3)), progress=lambda done, of: seen.append((done, of)))
    assert seen == [(MIB, 3 * MIB), (2 * MIB, 3 * MIB), (3 * MIB, 3 * MIB)]
