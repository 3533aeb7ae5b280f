"""Where the processor's time goes: py-spy samples both ends, native code included."""

import contextlib
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import Server

_PY_SPY = Path(sys.executable).parent / "py-spy"
_SAMPLES_PER_SECOND = "200"
_ROWS = 15


def recording(output: Path) -> tuple[str | Path, ...]:
    """The words before a command that have it profiled into ``output``."""
    return (*_record(output), "--")


@contextlib.contextmanager
def attached(server: Server, output: Path) -> Iterator[None]:
    """Profile a running server into ``output`` for the length of the block."""
    command = [*_record(output), "--pid", str(server.pid)]
    with output.with_suffix(".log").open("w") as log:
        recorder = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        recorder.send_signal(signal.SIGINT)  # it writes its output and ends
        recorder.wait()


def _record(output: Path) -> tuple[str | Path, ...]:
    options = ("--native", "--threads", "--format", "raw", "--rate", _SAMPLES_PER_SECOND)
    return (_PY_SPY, "record", *options, "--output", output)


def hottest(folded: Path) -> list[str]:
    """The functions with the most samples of their own, waiting left out, as a Markdown table.

    Args:
        folded: py-spy's raw format: ``thread;caller;callee COUNT`` a line.
    """
    own: Counter[str] = Counter()
    for line in folded.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if _waits(frames):
            continue
        frame = frames[-1]
        own[re.sub(r":\d+\)$", ")", frame)] += int(count)
    total = own.total() or 1
    lines = ["| own time | function |", "|---|---|"]
    return lines + [f"| {100 * n / total:.1f} % | {name} |" for name, n in own.most_common(_ROWS)]


def _waits(frames: list[str]) -> bool:
    """Whether a thread only waits: the loop for events, a worker for work."""
    python = next((frame for frame in reversed(frames) if ".py" in frame), "")
    idle_worker = python.startswith(("_work (flatship_service", "_worker (concurrent/futures"))
    return frames[-1].startswith("epoll_pwait") or (idle_worker and "(libc" in frames[-1])
