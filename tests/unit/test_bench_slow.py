"""The parts of the slow suite that need neither root nor a link."""

from pathlib import Path

import pytest

from benchmarks.contest import Run
from benchmarks.crossing import Crossing, Rival, crossed, footprint
from benchmarks.disk import GIB, MIB
from benchmarks.flatship_pair import FlatshipPair, Kept
from benchmarks.packaged_guests import PACKAGES
from benchmarks.plan import Plan
from benchmarks.processes import Usage
from benchmarks.shaped_link import Wire
from benchmarks.step_recorder import sample
from benchmarks.verdicts import Verdict, judged, ratio

PAGE = """\
# HELP flatship_sender_compression_level The zstd level in use.
# TYPE flatship_sender_compression_level gauge
flatship_sender_compression_level{disk="guest.vmdk",transfer="guest"} 6.0
flatship_sender_disk_remaining_bytes{disk="guest.vmdk",transfer="guest"} 5.0
flatship_sender_read_bytes_total 1.048576e+06
flatship_sender_queue_bytes{stage="send"} 4096.0
flatship_sender_queue_seconds_bucket{le="1"} 7.0
"""


def run(seconds: float, sender_rss: int = MIB, receiver_rss: int = MIB) -> Run:
    return Run(seconds, Usage(1.0, sender_rss), Usage(2.0, receiver_rss))


@pytest.mark.parametrize(
    ("measured", "bar", "at_least", "holds"),
    [
        (1.05, 1.05, False, True),
        (1.06, 1.05, False, False),
        (0.8, 0.8, True, True),
        (0.79, 0.8, True, False),
        (float("inf"), 1.0, False, False),
    ],
)
def test_a_bar_is_a_ceiling_or_a_floor_and_may_be_touched(
    measured: float, bar: float, at_least: bool, holds: bool
) -> None:
    verdict = Verdict("it", measured, bar, at_least=at_least)
    assert verdict.holds is holds
    assert ("**missed**" in judged([verdict])[-1]) is not holds


def test_a_ratio_to_nothing_keeps_to_no_bar() -> None:
    assert ratio(0, 0) == float("inf")


def test_every_line_of_a_table_has_as_many_cells_as_its_head() -> None:
    rival = Rival("Flatship", FlatshipPair(Path("nowhere")))
    rival.crossings = [Crossing(run(2.0), Wire(25_000_000, 1000, 0))]
    for lines in (
        judged([Verdict("it", 1.0, 2.0, "s")]),
        crossed([rival], 100e6),
        crossed([rival], None),
    ):
        assert len({line.count("|") for line in lines}) == 1


def test_a_link_is_busy_for_the_time_that_its_rate_needs_for_the_bytes() -> None:
    assert Crossing(run(2.0), Wire(12_500_000, 9, 0)).use(100e6) == pytest.approx(0.5)


def test_what_is_kept_and_the_highest_of_all_peaks_are_held_against_their_bars() -> None:
    runs = [run(1.0, sender_rss=256 * MIB), run(1.0, receiver_rss=257 * MIB)]
    kept = Kept(sender=2 * MIB, receiver=MIB)
    judgement = {
        one.what: one.holds for one in footprint(runs, kept, disk_size=4 * GIB, data=512 * MIB)
    }
    assert judgement == {
        "peak RSS, sender": True,
        "peak RSS, receiver": False,
        "receiver's state / disk": True,
        "sender's state / data": False,
    }


def test_a_page_of_metrics_gives_level_bytes_read_and_whatever_is_called_a_queue() -> None:
    found = sample(PAGE, 1.5, 7, 8)
    assert (found.at, found.wire, found.waiting) == (1.5, 7, 8)
    assert (found.level, found.read) == (6, MIB)
    assert found.queues == (('queue_bytes{stage="send"}', 4096.0),)


def test_before_anything_is_served_nothing_is_read_and_the_level_is_raw() -> None:
    found = sample("", 0.1, 0, 0)
    assert (found.level, found.read, found.queues) == (None, 0, ())


@pytest.mark.parametrize(
    ("data", "packages"), [(None, len(PACKAGES)), (GIB, len(PACKAGES)), (MIB, 1), (256 * MIB, 5)]
)
def test_a_smaller_disk_means_fewer_packages_and_smaller_parts(
    data: int | None, packages: int
) -> None:
    plan = Plan(data=data)
    assert len(plan.packages()) == packages
    assert plan.part(160 * MIB) == (160 * MIB if data is None else max(MIB, 160 * data // 1024))
