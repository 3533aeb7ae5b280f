"""The machine itself, which is to leave nothing behind."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from machine import Machine

PATIENCE = 20.0  # seconds
STARTER = """
import os, sys
from pathlib import Path
from machine import Machine

with Machine(Path(sys.argv[1]), []) as machine:
    print(machine.output("findmnt --noheadings --output FSTYPE /"), flush=True)
    os.kill(os.getpid(), 9)
"""


def left_of(folder: Path) -> list[str]:
    """Processes whose view of the file systems has something mounted below a folder."""
    found = []
    for mounts in Path("/proc").glob("[0-9]*/mounts"):
        try:
            if str(folder) in mounts.read_text():
                found.append(mounts.parent.name)
        except OSError:  # it has ended meanwhile
            continue
    return found


def test_a_machine_ends_with_a_process_that_is_killed_and_leaves_nothing_mounted(
    tmp_path: Path,
) -> None:
    with Machine(tmp_path, []):  # says what is missing here, if anything is
        assert left_of(tmp_path) != []
    assert left_of(tmp_path) == []
    folder = tmp_path / "second"
    folder.mkdir()
    started = subprocess.run(
        [sys.executable, "-c", STARTER, folder],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (started.returncode, started.stdout) == (-9, "overlay\n"), started.stderr
    deadline = time.monotonic() + PATIENCE
    while left_of(folder):
        if time.monotonic() > deadline:
            pytest.fail("a machine outlives whoever started it")
        time.sleep(0.1)
