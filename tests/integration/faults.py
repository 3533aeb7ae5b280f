"""System calls of a running process that fail, or take their time, by means of strace(1)."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from disks import is_root
from processes import wait_until

STRACE: Final = shutil.which("strace")

needs_strace = pytest.mark.skipif(
    not (STRACE and is_root()), reason="injects faults with strace, which takes root"
)


@contextmanager
def injected(
    pid: int,
    call: str,
    fault: str,
    path: Path | None = None,
    log: Path = Path("/dev/null"),
) -> Iterator[None]:
    """Make ``call`` of every thread of a process behave as ``fault`` says, in strace's words.

    With ``path``, only calls that concern that file. strace's account goes to ``log``, where
    ``INJECTED`` marks what did not really happen.
    """
    what = ["-e", f"trace={call}", "-e", f"inject={call}:{fault}"]
    if path is not None:
        what += ["-P", str(path)]
    command = (STRACE or "strace", "-f", "-qq", *what, "-o", str(log), "-p", str(pid))
    tracer = subprocess.Popen(command)
    try:
        wait_until(lambda: _all_traced(pid), "tracer attached")
        yield
    finally:
        tracer.terminate()
        tracer.wait()


def _all_traced(pid: int) -> bool:
    try:
        statuses = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    except (FileNotFoundError, ProcessLookupError):  # a thread has ended: look again
        return not Path(f"/proc/{pid}").exists()
    return all("TracerPid:\t0\n" not in status or "State:\tZ" in status for status in statuses)
