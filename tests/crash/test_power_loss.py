"""The power fails while a disk is received on a real file system: nothing promised is lost."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash.device import missing

TESTS = Path(__file__).resolve().parent.parent
POINTS = 100  # on each
LAYOUTS = ("ext4-apart", "xfs-together")
TIMEOUT = 400.0  # seconds; a hang fails

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

Runs = dict[str, "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    """Both at once: each waits for its file system most of the time."""
    path = os.pathsep.join(
        filter(None, (os.environ.get("PYTHONPATH"), str(TESTS), str(TESTS / "integration")))
    )
    started = {
        layout: subprocess.Popen(
            (
                *(sys.executable, "-m", "crash", "--layouts", layout, "--stop-at-first"),
                *("--points", str(POINTS), "--per-recording", str(POINTS), "--seed", str(seed)),
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        for seed, layout in enumerate(LAYOUTS, start=1)
    }
    try:
        yield started
    finally:
        for process in started.values():
            process.terminate()  # it takes down what it mounted
        for process in started.values():
            process.communicate(timeout=TIMEOUT)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_acknowledged_or_published_survives_a_power_cut(runs: Runs, layout: str) -> None:
    said, _ = runs[layout].communicate(timeout=TIMEOUT)
    assert runs[layout].returncode == 0, said
    assert f"{POINTS} power cuts on 1 recordings" in said, said
