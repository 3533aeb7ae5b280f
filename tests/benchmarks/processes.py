"""Processes that a benchmark starts, measures and ends, always by their own id."""

import contextlib
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024

_METER_INTERVAL = 0.1  # seconds between looks at a process tree; a look takes time of its own
_POLL_INTERVAL = 0.02  # seconds between looks at a server that starts
_START_TIMEOUT = 20.0  # seconds for a server to listen
_STOP_TIMEOUT = 10.0  # seconds between SIGTERM and SIGKILL
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

Command = Sequence[str | Path]


class BenchmarkError(Exception):
    """A program failed or never got ready; what it said is in the message."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its descendants cost."""

    cpu: float  # seconds, user and system
    peak_rss: int  # bytes; the sum of each process's own peak

    def __sub__(self, earlier: "Usage") -> "Usage":
        return Usage(self.cpu - earlier.cpu, self.peak_rss)


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ran to its end and succeeded."""

    seconds: float
    usage: Usage
    output: str  # standard output alone


class _Meter:
    """Looks at a process tree again and again: what ended keeps its last figures."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: dict[int, Usage] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def read(self) -> Usage:
        self._look()
        seen = list(self._seen.values())
        return Usage(sum(one.cpu for one in seen), sum(one.peak_rss for one in seen))

    def stop(self) -> Usage:
        self._ended.set()
        self._thread.join()
        return self.read()

    def _watch(self) -> None:
        while not self._ended.wait(_METER_INTERVAL):
            self._look()

    def _look(self) -> None:
        for pid in _tree(self._pid):
            with contextlib.suppress(OSError, AttributeError, IndexError):  # it ended meanwhile
                self._seen[pid] = _usage_of(pid)


def run(command: Command, *, shell: bool = False) -> Finished:
    """Run ``command`` to its end and measure it.

    Args:
        command: Arguments, or with ``shell`` one string for ``bash -c``.
        shell: Whether the command is a pipeline, which fails if any part does.

    Raises:
        BenchmarkError: It exited with something else than 0.
    """
    words = (
        ["bash", "-o", "pipefail", "-c", str(command[0])] if shell else [str(w) for w in command]
    )
    before = _waited_for()
    started = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    meter = _Meter(process.pid)
    try:
        output, complaints = process.communicate()
    finally:
        end(process)
        seconds = time.perf_counter() - started
        usage = Usage(_waited_for() - before, meter.stop().peak_rss)
    if process.returncode != 0:
        raise BenchmarkError(f"{shown(command)} exited {process.returncode}:\n{output}{complaints}")
    return Finished(seconds, usage, output)


class Server:
    """A running server. ``usage()`` may be asked for as long as it runs."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.pid = process.pid
        self._log = log
        self._meter = _Meter(process.pid)

    def usage(self) -> Usage:
        """What it has cost since it started."""
        return self._meter.read()

    def said(self) -> str:
        """Everything it wrote so far."""
        return self._log.read_text(errors="replace")

    def stop_meter(self) -> None:
        """End the measuring thread."""
        self._meter.stop()


@contextlib.contextmanager
def serving(command: Command, log: Path, ready: Callable[[str], bool]) -> Iterator[Server]:
    """Run a server for the length of the ``with`` block.

    Args:
        command: Must stay in the foreground.
        log: Takes its output.
        ready: Whether it serves, judged by what it has written so far.

    Raises:
        BenchmarkError: It ended, or was not ready in time.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=output, stderr=subprocess.STDOUT, text=True
        )
    server = Server(process, log)
    try:
        deadline = time.monotonic() + _START_TIMEOUT
        while not ready(server.said()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"{shown(command)} does not serve:\n{server.said()}")
            time.sleep(_POLL_INTERVAL)
        yield server
    finally:
        end(process)
        server.stop_meter()


def end(process: subprocess.Popen[str]) -> None:
    """End ``process`` if it still runs: politely, then not."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def exit_when_terminated() -> None:
    """Let SIGTERM end this program as an exception does, all cleaning up included.

    Further ones are ignored: timeout(1) sends two, and the second would break off the cleaning.
    """

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def listens(port: int) -> bool:
    """Whether somebody accepts connections on that port of the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A loopback port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def shown(command: Command) -> str:
    """The command as one would type it."""
    return str(command[0]) if len(command) == 1 else shlex.join(str(word) for word in command)


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):  # it ended meanwhile
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found += [int(child) for child in children.read_text().split()]
    return found


def _waited_for() -> float:
    """Seconds of CPU of all child processes that have ended, exactly."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _usage_of(pid: int) -> Usage:
    status = Path(f"/proc/{pid}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    if peak is None:
        raise AttributeError("a zombie has no memory")
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Usage((int(fields[11]) + int(fields[12])) / _CLOCK_TICKS, int(peak[1]) * 1024)
