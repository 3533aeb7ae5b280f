"""A short run of each series of faults between real processes; ``make faults`` plays long ones."""

import itertools
from pathlib import Path

import pytest
from faults import needs_strace
from series import SERIES, run_series


@needs_strace
@pytest.mark.parametrize(("name", "enough"), [("kills", 30), ("calls", 20), ("links", 20)])
def test_whatever_fails_on_the_way_the_disks_arrive(name: str, enough: int, tmp_path: Path) -> None:
    account = run_series(SERIES[name].play, itertools.count(1), enough, tmp_path)
    assert not account.failures, "\n".join(account.failures.values())
    assert account.faults >= enough
