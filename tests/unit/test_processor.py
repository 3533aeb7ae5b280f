import os
from pathlib import Path

import pytest

from flatship_sender import processor
from flatship_sender.processor import ProcessorWatch


def test_cores_are_what_we_used_and_what_nobody_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    clock = {"wall": 10.0, "own": 1.0}
    monkeypatch.setattr(processor.time, "monotonic", lambda: clock["wall"])
    monkeypatch.setattr(processor.time, "process_time", lambda: clock["own"])
    stat.write_text(f"cpu  5 0 5 {100 * ticks} {10 * ticks} 0 0 0 0 0\ncpu0 1 1 1 1\n")
    watch = ProcessorWatch(stat)
    clock.update(wall=12.0, own=2.5)
    stat.write_text(f"cpu  9 0 9 {100 * ticks + ticks // 2} {10 * ticks} 0 0 0 0 0\ncpu0 1 1 1 1\n")
    share = watch.look()
    assert share.used == pytest.approx(1.5)
    assert share.cores == pytest.approx((1.5 + 0.5) / 2)


def test_this_machine_has_some() -> None:
    assert 0 <= ProcessorWatch().look().cores < 10 * (os.cpu_count() or 1)
