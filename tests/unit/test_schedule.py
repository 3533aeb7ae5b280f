"""Which rate holds when, and what schedules are refused."""

import os
import time
from datetime import datetime, timedelta
from math import inf

import pytest

from flatship_sender.schedule import DAY, DAYS, WEEK, Schedule, period

MONDAY = datetime(2026, 11, 23)
OFFICE = period(["mon-fri"], "08:00", "18:00", 20.0)


def at(day: str, clock: str) -> datetime:
    hour, minute = map(int, clock.split(":"))
    return MONDAY + timedelta(days=DAYS.index(day), hours=hour, minutes=minute)


def test_a_period_holds_from_its_first_minute_until_its_last_and_the_rate_outside() -> None:
    schedule = Schedule(100.0, [OFFICE])
    assert schedule.rate_at(at("mon", "07:59")) == 100
    assert schedule.rate_at(at("mon", "08:00")) == 20
    assert schedule.rate_at(at("fri", "17:59")) == 20
    assert schedule.rate_at(at("fri", "18:00")) == 100
    assert schedule.rate_at(at("sat", "12:00")) == 100


def test_a_period_past_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    schedule = Schedule(inf, [period(["sun"], "22:00", "06:00", 5.0)])
    for moment, rate in (
        (at("sun", "21:59"), inf),
        (at("sun", "22:00"), 5),
        (at("mon", "05:59"), 5),
        (at("mon", "06:00"), inf),
        (at("sat", "23:00"), inf),
    ):
        assert schedule.rate_at(moment) == rate


def test_days_may_go_past_sunday_and_be_named_twice() -> None:
    schedule = Schedule(1.0, [period(["fri-mon", "sat"], "00:00", "24:00", 2.0)])
    assert [schedule.rate_at(at(day, "12:00")) for day in DAYS] == [2, 1, 1, 1, 2, 2, 2]


def test_periods_that_cover_the_week_need_no_rate_beside_them() -> None:
    schedule = Schedule(
        None,
        [
            period(["mon-sun"], "06:00", "22:00", 1.0),
            period(["mon-sun"], "22:00", "06:00", 2.0),
        ],
    )
    moments = [MONDAY + timedelta(minutes=minute) for minute in range(WEEK)]
    assert {schedule.rate_at(moment) for moment in moments} == {1.0, 2.0}
    assert sum(schedule.rate_at(moment) for moment in moments) == WEEK + 8 * 60 * 7


@pytest.mark.parametrize(
    ("periods", "said"),
    [
        (
            [OFFICE, period(["fri"], "17:59", "19:00", 1.0)],
            "periods mon-fri 08:00 to 18:00 and fri 17:59 to 19:00 overlap at fri 17:59",
        ),
        (
            [period(["sun"], "23:00", "09:00", 1.0), OFFICE],
            "periods sun 23:00 to 09:00 and mon-fri 08:00 to 18:00 overlap at mon 08:00",
        ),
        (
            [period(["mon"], "22:00", "21:00", 1.0), period(["tue"], "20:00", "24:00", 1.0)],
            "overlap at tue 20:00",
        ),
    ],
)
def test_periods_that_overlap_are_refused_and_named(periods: list[object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Schedule(100.0, periods)  # type: ignore[arg-type]


def test_a_gap_without_a_rate_beside_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r'no period covers mon 00:00; .* rate = "unlimited"'):
        Schedule(None, [OFFICE])
    with pytest.raises(ValueError, match=r"no period covers sun 23:59"):
        Schedule(
            None,
            [
                period(["mon-sat"], "00:00", "24:00", 1.0),
                period(["sun"], "00:00", "23:59", 1.0),
            ],
        )


@pytest.mark.parametrize(
    ("days", "start", "end", "said"),
    [
        ([], "08:00", "18:00", "expected days such as mon, sat or mon-fri, got none"),
        (["Mon"], "08:00", "18:00", "expected days such as mon, sat or mon-fri, got 'Mon'"),
        (["mon-"], "08:00", "18:00", "got 'mon-'"),
        (["mon"], "8:00", "18:00", "expected a time from 00:00 to 24:00, got '8:00'"),
        (["mon"], "08:00", "24:01", "got '24:01'"),
        (["mon"], "08:60", "24:00", "got '08:60'"),
        (["mon"], "08:00", "08:00", "expected an end that differs from its start"),
        (["mon"], "24:00", "08:00", "expected an end that differs from its start"),
    ],
)
def test_a_period_that_means_nothing_is_refused_and_named(
    days: list[str], start: str, end: str, said: str
) -> None:
    with pytest.raises(ValueError, match=f"^period .*{start} to {end}: .*{said}"):
        period(days, start, end, 1.0)


def test_the_hour_that_a_change_to_summer_time_leaves_out_and_the_one_it_repeats() -> None:
    """What the wall clock shows is what counts: an hour that it shows twice holds twice."""
    schedule = Schedule(100.0, [period(["sun"], "02:00", "03:00", 1.0)])
    zone = os.environ.get("TZ")
    os.environ["TZ"] = "CET-1CEST,M3.5.0,M10.5.0/3"
    try:
        time.tzset()
        for change, minutes in ((1774746000, 0), (1792893600, 120)):  # 02:00 CET, 03:00 CEST
            hours = [change + 60 * minute for minute in range(-120, 120)]
            held = [schedule.rate_at(datetime.fromtimestamp(each)) for each in hours]
            assert held.count(1.0) == minutes
    finally:
        if zone is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = zone
        time.tzset()


def test_every_moment_has_a_rate() -> None:
    schedule = Schedule(7.0, [])
    assert {schedule.rate_at(MONDAY + timedelta(minutes=each)) for each in range(8 * DAY)} == {7.0}
