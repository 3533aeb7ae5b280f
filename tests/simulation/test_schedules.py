"""Schedules of faults on virtual time: what was acknowledged stays, and what is wrong never stands.

Each seed is a schedule of 3 to 10 faults; ``schedules.py`` says of which kinds. A failure names
its seed and the command that runs it again.
"""

import os
from collections import Counter

from schedules import KINDS, draw
from soak import soak

SCHEDULES = 1_000


def test_no_schedule_loses_or_spoils_anything_or_hangs() -> None:
    tally = soak(0, SCHEDULES, jobs=os.cpu_count() or 1, seconds=None, report=False)
    assert not tally.failures, tally.failures[:5]
    assert tally.schedules == SCHEDULES
    assert tally.faults.total() >= 3 * SCHEDULES
    assert set(tally.faults) == set(KINDS), "some kind of fault never came"


def test_a_seed_is_a_schedule() -> None:
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    runs = [soak(7, 3, jobs=1, seconds=None, report=False) for _ in range(2)]
    assert runs[0].virtual_seconds == runs[1].virtual_seconds
    assert runs[0].faults == runs[1].faults


def test_every_schedule_has_three_to_ten_faults() -> None:
    counts = Counter(len(draw(seed).faults) for seed in range(500))
    assert set(counts) == set(range(3, 11))
