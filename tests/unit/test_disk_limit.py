"""A disk keeps to a limit of its own, whatever its chunks turn out to be."""

import pytest

from flatship_protocol.constants import CHUNK_SIZE
from flatship_sender.disk_limit import PACKED, DiskLimit

MEGABYTE = 1_000_000


def go_on(sizes: list[int], *, rate: float, pumps: int = 8) -> float:
    """Begin chunks of which each is sent in so many bytes, at the rate; returns the time."""
    limit, now, wire, done = DiskLimit(rate, 0, 0, 0.0), 0.0, 0, 0
    under_way: list[int] = []
    for size in sizes:
        while len(under_way) == pumps or (delay := limit.wait(wire, done, now)):
            if under_way:
                sent = under_way.pop(0)
                now += sent / rate / PACKED
                wire, done = wire + sent, done + CHUNK_SIZE
                continue
            now += delay
        limit.begin(CHUNK_SIZE)
        under_way.append(size)
    return now


@pytest.mark.parametrize("size", [40, 10_000, CHUNK_SIZE])
def test_the_average_is_the_limit(size: int) -> None:
    count = 20 * MEGABYTE // size
    took = go_on([size] * count, rate=MEGABYTE)
    assert count * size / took == pytest.approx(MEGABYTE * PACKED, rel=0.06)


def test_chunks_that_are_not_sent_after_all_take_no_time() -> None:
    took = go_on([CHUNK_SIZE] * 4 + [0] * 100_000, rate=MEGABYTE)
    assert took == pytest.approx(4 * CHUNK_SIZE / MEGABYTE / PACKED, rel=0.1)


def test_a_disk_that_sent_nothing_for_an_hour_goes_on_with_one_chunk() -> None:
    limit = DiskLimit(MEGABYTE, 0, 0, 0.0)
    assert limit.wait(0, 0, 3600.0) == 0
    limit.begin(CHUNK_SIZE)
    assert limit.wait(0, 0, 3600.0) > 0.5
    assert limit.wait(CHUNK_SIZE, CHUNK_SIZE, 3600.0) > 0.5


def test_what_went_in_an_earlier_session_does_not_count() -> None:
    limit = DiskLimit(MEGABYTE, 1 << 40, 1 << 41, 0.0)
    assert limit.wait(1 << 40, 1 << 41, 0.0) == 0
