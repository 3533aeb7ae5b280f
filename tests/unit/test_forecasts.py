"""What is foreseen of a transfer, from a sample of its disk and a rate of its link."""

import math
import random
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatship_protocol.constants import CHUNK_SIZE
from flatship_sender.downtimes import Disk
from flatship_sender.forecast import sample as sample_module
from flatship_sender.forecast.foresee import Bound, Machine, foresee
from flatship_sender.forecast.link import Reports, rate_of
from flatship_sender.forecast.record import (
    HISTORY,
    LARGEST,
    STALE,
    UNSURE,
    Forecast,
    Forecasts,
    correction,
    quantiles,
)
from flatship_sender.forecast.sample import LEVELS, STRATA, Sample, picks, sample, together
from flatship_sender.forecast.truth import Quantiles
from flatship_sender.sources.memory import MemorySource

MIB = 1 << 20
MBIT = 1e6 / 8
TWO = Machine(workers=2, cores=2.0, streams=2)
# Shares and costs of the table of rungs.
SHARES = dict(zip(LEVELS, (0.427, 0.357, 0.326, 0.302, 0.289, 0.286), strict=True))
SECONDS = dict(
    zip(LEVELS, (1 / 790e6, 1 / 580e6, 1 / 500e6, 1 / 270e6, 1 / 105e6, 1 / 65e6), strict=True)
)


def disk(size: int, error: float = 0.0) -> Sample:
    return Sample(size, size, size, size // MIB, SHARES, SECONDS, 1e-9, error, size)


# Samples


def test_one_chunk_of_each_stratum_is_looked_at() -> None:
    chosen = picks(100 * STRATA, random.Random(1))
    assert sorted(index // 100 for index in chosen) == list(range(STRATA))
    assert chosen != sorted(chosen)
    assert sorted(picks(7, random.Random(1))) == list(range(7))
    assert picks(0, random.Random(1)) == []


def test_holes_are_not_read_and_zeros_do_not_travel() -> None:
    noise = random.Random(1).randbytes(2 * MIB)
    source = MemorySource({4 * MIB: noise + bytes(2 * MIB)}, size=64 * MIB)
    found = sample(source, 60.0)
    assert (found.to_read, found.literal, found.chunks) == (4 * MIB, 2 * MIB, 2)
    assert source.bytes_read == 4 * MIB == found.looked_at
    assert found.error == 0.0  # all of it was read
    assert all(share == 1.0 for share in found.shares.values())


def test_a_disk_of_which_a_part_is_read_is_told_with_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sample_module, "STRATA", 16)
    half = 16 * MIB
    source = MemorySource(random.Random(2).randbytes(half) + b"text" * (half // 4))
    found = sample(source, 600.0)
    assert found.looked_at == 16 * MIB
    assert found.shares[3] == pytest.approx(0.5, abs=0.02)
    assert 0.1 < found.error < 0.2


def test_a_sample_ends_with_its_time_and_has_one_chunk_at_least() -> None:
    source = MemorySource(random.Random(3).randbytes(8 * MIB))
    assert sample(source, 0.0).looked_at == MIB
    ticks = iter(range(100))
    assert sample(source, 3.0, clock=lambda: next(ticks)).looked_at == 3 * MIB


def test_a_disk_without_data_is_no_error() -> None:
    found = sample(MemorySource({}, size=1 << 40), 1.0)
    assert (found.literal, found.error) == (0, 0.0)
    assert foresee(found, 10 * MBIT, TWO).wire == 0
    assert together([found, found]).shares[3] == 1.0


def test_disks_together_are_weighed_by_their_data() -> None:
    noise = Sample(MIB, MIB, MIB, 1, dict.fromkeys(LEVELS, 1.0), SECONDS, 1e-9, 0.1, MIB)
    both = together([disk(3 * MIB), noise])
    assert both.literal == 4 * MIB
    assert both.shares[3] == pytest.approx((3 * 0.302 + 1) / 4)
    assert both.error == pytest.approx(0.1 / 4)


# What the controller will do


@pytest.mark.parametrize(
    ("rate", "level", "history"),
    [(10, (16, 18), True), (100, (9,), True), (2500, (-5, -1, 1), False)],
)
def test_the_rung_is_the_one_that_the_controller_takes(
    rate: int, level: tuple[int, ...], history: bool
) -> None:
    course = foresee(disk(2000 * MIB), rate * MBIT, TWO)
    assert course.rung.level in level
    assert course.rung.history is history


def test_a_slow_link_takes_the_time_of_its_bytes() -> None:
    course = foresee(disk(1000 * MIB), 50 * MBIT, TWO)
    assert course.bound is Bound.LINK
    assert course.seconds == pytest.approx(course.wire / (50 * MBIT), rel=0.02)
    assert course.wire / (1000 * MIB) == pytest.approx(1 / 3.64, rel=0.03)


def test_a_fast_link_waits_for_what_is_slowest() -> None:
    assert foresee(disk(1000 * MIB), inf, TWO).bound in (Bound.PROCESSORS, Bound.SOURCE)
    slow = Sample(MIB, MIB, MIB, 1, SHARES, SECONDS, 1e-6, 0.0, MIB)
    assert foresee(slow, inf, TWO).bound is Bound.SOURCE


def test_a_fixed_level_is_kept() -> None:
    course = foresee(disk(1000 * MIB), 10 * MBIT, Machine(2, 2.0, 0, 1))
    assert (course.rung.level, course.rung.history) == (1, False)


@given(
    size=st.integers(1, 1 << 44),
    rate=st.floats(1e3, 1e10),
    cores=st.floats(0.25, 64),
    share=st.floats(0.0, 1.0),
    reading=st.floats(0.0, 1e-5),
)
def test_whatever_was_sampled_has_an_end(
    size: int, rate: float, cores: float, share: float, reading: float
) -> None:
    seen = Sample(
        size, size, size, -(-size // CHUNK_SIZE), dict.fromkeys(LEVELS, share),
        SECONDS, reading, 0.0, size,
    )  # fmt: skip
    course = foresee(seen, rate, Machine(2, cores, 2))
    assert math.isfinite(course.seconds)
    assert course.seconds > 0
    assert 0 < course.wire <= 1.2 * size + 200


# The link


def reports(*points: tuple[float, int]) -> Reports:
    return Reports(list(points))


def test_the_rate_is_that_of_what_arrived_after_the_first_second_on_all_connections() -> None:
    slow_start = reports((10.0, 100), (11.0, 200), (12.0, 1200), (13.0, 2200), (14.0, 3200))
    steady = reports((10.0, 0), (14.0, 4000))
    found = rate_of([slow_start, steady])
    assert found is not None
    rate, spread, seconds = found
    assert (rate, seconds) == (pytest.approx(2000), 3.0)
    assert spread == pytest.approx(0.0, abs=1e-9)


def test_a_rate_that_swings_is_told_with_its_spread() -> None:
    points = [
        (0.0, 0),
        (1.0, 0),
        (1.5, 100),
        (2.0, 400),
        (2.5, 500),
        (3.0, 800),
        (3.5, 900),
        (4.0, 1200),
    ]
    found = rate_of([reports(*points)])
    assert found is not None
    assert found[:2] == (pytest.approx(400), pytest.approx(0.5))


def test_nothing_is_told_of_what_hardly_came() -> None:
    assert rate_of([]) is None
    assert rate_of([reports((1.0, 56))]) is None
    assert rate_of([reports((1.0, 56), (1.1, 5600))]) is None
    assert rate_of([reports((1.0, 56), (3.0, 56))]) is None


@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 1 << 40)), max_size=8).map(sorted),
        max_size=4,
    )
)
def test_whatever_a_receiver_reports_gives_a_rate_or_none(
    said: list[list[tuple[float, int]]],
) -> None:
    for points in said:
        counts = sorted(count for _, count in points)
        points[:] = [(when, count) for (when, _), count in zip(points, counts, strict=True)]
    monotonous = [Reports(points) for points in said]
    found = rate_of(monotonous)
    assert found is None or (found[0] > 0 and all(map(math.isfinite, found)))


# What became of forecasts

DISKS = [Disk("ab", MIB)]


def forecast(made: float = 1000.0) -> Forecast:
    return Forecast(
        made=made,
        disks=DISKS,
        seconds=Quantiles(120.0, 150.0),
        wire=Quantiles(500.0, 600.0),
        raw_seconds=100.0,
        raw_wire=500.0,
        limit=None,
    )


def kept(folder: Path) -> tuple[Forecasts, list[str]]:
    warnings: list[str] = []
    return Forecasts(folder, warnings.append), warnings


def test_a_forecast_is_held_against_the_truth_once(tmp_path: Path) -> None:
    forecasts, warnings = kept(tmp_path)
    forecasts.keep("esx", "web01", forecast())
    found = forecasts.pending("esx", "web01", DISKS, 2000.0)
    assert found == forecast()
    judged = forecasts.conclude("esx", "web01", found, 132.0, 550, 2000.0)
    assert (judged.ratio, judged.wire_ratio, judged.within_p90) == (1.1, 1.1, True)
    assert forecasts.pending("esx", "web01", DISKS, 2000.0) is None
    of_time, of_size = forecasts.corrections("esx")
    assert of_time.of == of_size.of == 1
    assert of_time.factor == pytest.approx(1.32**0.5)  # of what was foreseen before correcting
    assert forecasts.corrections("another")[0].factor == 1.0
    assert warnings == []


def test_a_forecast_of_other_disks_or_of_last_week_is_none(tmp_path: Path) -> None:
    forecasts, _ = kept(tmp_path)
    forecasts.keep("esx", "web01", forecast())
    assert forecasts.pending("esx", "web01", [Disk("cd", MIB)], 2000.0) is None
    assert forecasts.pending("esx", "web01", DISKS, 1001.0 + STALE) is None
    assert forecasts.pending("esx", "web02", DISKS, 2000.0) is None


def test_damaged_records_are_done_without(tmp_path: Path) -> None:
    forecasts, warnings = kept(tmp_path)
    forecasts.keep("esx", "web01", forecast())
    (one,) = (tmp_path / "forecasts").iterdir()
    one.write_text("{")
    assert forecasts.pending("esx", "web01", DISKS, 2000.0) is None
    assert "going on without the forecast" in warnings[0]
    (tmp_path / "forecasts" / HISTORY).write_bytes(b"{\n\xff\n")
    assert forecasts.corrections("esx")[0].of == 0


def test_a_correction_follows_the_median_and_is_bounded() -> None:
    assert correction([]).deviation == UNSURE
    one, many = correction([1.5]), correction([1.5] * 9 + [100.0])
    assert 1 < one.factor < many.factor < 1.5
    assert correction([1000.0] * 20).factor == pytest.approx(math.exp(LARGEST))
    assert correction([0.001] * 20).factor == pytest.approx(math.exp(-LARGEST))


def test_what_came_otherwise_each_time_makes_the_next_less_sure() -> None:
    sure, unsure = correction([1.0] * 10), correction([0.7, 1.4] * 5)
    assert sure.deviation < UNSURE < unsure.deviation
    assert quantiles(100, unsure.deviation).p90 > quantiles(100, sure.deviation).p90 > 100


@given(st.lists(st.floats(1e-6, 1e6), max_size=40), st.floats(0.5, 2.0))
def test_corrections_are_within_their_bounds_whatever_came(
    ratios: list[float], scale: float
) -> None:
    found = correction(ratios)
    assert 0.499 < found.factor < 2.001
    assert math.isfinite(found.deviation)
    assert quantiles(scale, found.deviation).p90 >= scale
