"""A tool that changes volumes runs to its end, whatever becomes of who started it."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flatship_sender.sources.lvm import tools
from flatship_sender.sources.lvm.tools import ToolFailed, change, reading

# The tool waits for somebody to open the pipe, and then says that it has come so far.
TOOL = 'echo talks; echo talks >&2; read line < "$0"; echo talks >&2; : > "$1"'
CALLER = """
import fcntl, os, sys
from flatship_sender.sources.lvm.tools import change
lock, *tool = sys.argv[1:]
descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("ready", flush=True)
change(descriptor, "sh", "-c", *tool)
"""


@pytest.fixture
def lock(tmp_path: Path) -> int:
    return os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)


def test_it_goes_on_without_who_started_it_and_keeps_the_lock(tmp_path: Path, lock: int) -> None:
    pipe, done = tmp_path / "pipe", tmp_path / "done"
    os.mkfifo(pipe)
    words = [sys.executable, "-c", CALLER, str(tmp_path / "lock"), TOOL, str(pipe), str(done)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"ready\n"
        with pipe.open("w") as tool:  # which is when the tool has opened it, too
            os.killpg(caller.pid, signal.SIGKILL)
            caller.wait()
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tool.write("go on\n")
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert done.exists()


def test_what_it_says_last_is_why_it_failed(lock: int) -> None:
    with pytest.raises(ToolFailed, match=r"sh .* failed: no room"):
        change(lock, "sh", "-c", "echo wait >&2; echo no room >&2; exit 5")


def test_one_that_is_not_installed_says_which_package_has_it(
    lock: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tools._ENVIRONMENT, "PATH", "/nowhere")
    with pytest.raises(ToolFailed, match="install the package lvm2"):
        change(lock, "lvcreate")


def test_one_that_is_read_and_not_installed_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tools._ENVIRONMENT, "PATH", "/nowhere")
    with (
        pytest.raises(ToolFailed, match=r"thin_dump cannot .* package thin-provisioning-tools"),
        reading("thin_dump"),
    ):
        pass
