"""When a wave is there, from recorded rates, limits and hours; and what does not fit."""

from dataclasses import replace
from datetime import datetime, timedelta
from math import inf

import pytest

from flatship_protocol.errors import UsageError
from flatship_sender.forecast.fleet import HORIZON, Item, Recorded, plan_fleet
from flatship_sender.forecast.fleet_command import describe, read_items

BEGINS = datetime(2026, 3, 2, 20, 0)  # schedules are in local time
GB = 10**9
SEEN = Recorded(
    usual=1e6,
    slow=0.5e6,
    wire_share=0.25,
    written_share=0.5,
    free={"ssd1": 10.0 * GB},
    filling={},
    left=0.0,
)


def item(name: str, size: int, datastore: str = "ssd1") -> Item:
    return Item(name=name, size=size, datastore=datastore)


def unlimited(_: datetime) -> float:
    return inf


def after(stamp: float | None) -> float:
    assert stamp is not None
    return stamp - BEGINS.timestamp()


def test_machines_arrive_one_after_the_other_at_the_recorded_rate() -> None:
    found = plan_fleet("esx", [item("a", 4 * GB), item("b", 8 * GB)], SEEN, unlimited, BEGINS)
    assert [after(one.p50) for one in found.arrivals] == pytest.approx([1000, 3000])
    assert [after(one.p90) for one in found.arrivals] == pytest.approx([2000, 6000])
    assert (found.p50, found.wire) == (found.arrivals[1].p50, 3 * GB)


def test_what_is_running_goes_first() -> None:
    found = plan_fleet("esx", [item("a", 4 * GB)], replace(SEEN, left=5e8), unlimited, BEGINS)
    assert after(found.p50) == pytest.approx(1500)


def test_limits_hold_at_their_hours() -> None:
    def by_night(moment: datetime) -> float:
        return 0.0 if 6 <= moment.hour < 22 else 250e3

    found = plan_fleet("esx", [item("a", 4 * GB)], SEEN, by_night, BEGINS)
    assert after(found.p50) == pytest.approx(7200 + 4000)
    assert found.p90 == found.p50  # it is the limit that counts


def test_what_has_no_end_in_sight_is_said() -> None:
    found = plan_fleet("esx", [item("a", GB)], SEEN, lambda _: 0.0, BEGINS)
    assert (found.p50, found.p90, found.arrivals[0].p50) == (None, None, None)
    assert "no time in sight" in describe(found)
    long = plan_fleet("esx", [item("a", GB), item("b", 1 << 60)], SEEN, unlimited, BEGINS)
    assert long.arrivals[0].p50 is not None
    assert long.p50 is None
    assert timedelta(days=300) < HORIZON


def test_a_datastore_that_runs_out_is_named_with_its_hour_and_the_machine() -> None:
    wave = [item("a", 16 * GB), item("b", 16 * GB), item("c", 16 * GB), item("d", GB, "other")]
    found = plan_fleet("esx", wave, SEEN, unlimited, BEGINS)
    (full,) = found.full
    assert (full.datastore, full.item, full.short) == ("ssd1", "b", 6 * GB)
    assert after(full.at) == pytest.approx(8000)
    assert found.unknown == ["other"]
    assert "datastore ssd1 runs out at" in describe(found)


def test_what_others_write_there_counts() -> None:
    filling = replace(SEEN, filling={"ssd1": 2.1e6})
    found = plan_fleet("esx", [item("a", 16 * GB)], filling, unlimited, BEGINS)
    assert [one.item for one in found.full] == ["a"]


def test_machines_are_read_as_people_write_them() -> None:
    first, second = read_items(["web01=40GiB@ssd1", "web02=1.5TB"])
    assert first == Item(name="web01", size=40 << 30, datastore="ssd1")
    assert (second.size, second.datastore) == (1_500_000_000_000, "")


@pytest.mark.parametrize("word", ["web01", "web01=", "=40GiB", "web01=much", "a b=1GiB"])
def test_what_is_no_machine_is_refused_with_what_is_expected(word: str) -> None:
    with pytest.raises(UsageError, match="is no machine of a wave: expected"):
        read_items([word])


def test_an_empty_wave_is_refused() -> None:
    with pytest.raises(UsageError, match="the wave is empty"):
        read_items([])
