"""Both programs as an operator runs them: real processes, real sockets, real files.

Every wait is bounded, every process is ended by its own id, and whatever a program says is
held against the promise of the command line: no stack traces, one line an error.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

START_TIMEOUT: Final = 20.0  # seconds
STOP_TIMEOUT: Final = 15.0
RUN_TIMEOUT: Final = 60.0
POLL_INTERVAL: Final = 0.02

RECEIVER: Final = (sys.executable, "-m", "flatship_receiver")
SENDER: Final = (sys.executable, "-m", "flatship_sender")

Argument = str | Path


@dataclass(frozen=True)
class CompletedRun:
    """A command that has ended.

    Args:
        command: What was run.
        exit_code: Negative if a signal ended it.
        stdout: All of standard output.
        stderr: All of standard error.
    """

    command: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"{' '.join(self.command)}\nexit {self.exit_code}\n{self.stdout}{self.stderr}"

    @property
    def json(self) -> Any:
        """Standard output, which is one JSON document."""
        return json.loads(self.stdout)

    @property
    def disks(self) -> list[dict[str, Any]]:
        """The disks in the result of ``send --json``."""
        disks: list[dict[str, Any]] = self.json["disks"]
        return disks

    @property
    def disk(self) -> dict[str, Any]:
        """The only disk in the result of ``send --json``."""
        (disk,) = self.disks
        return disk

    @property
    def error(self) -> str:
        """The one line that says what went wrong, without its ``error:``."""
        (line,) = _error_lines(self.stderr)
        return line

    def expect(self, exit_code: int = 0) -> "CompletedRun":
        """Assert how the command ended; returns itself."""
        assert self.exit_code == exit_code, str(self)
        return self


def _error_lines(text: str) -> list[str]:
    return re.findall(r"^error: (.*)$", text, re.MULTILINE)


def check_manners(run: CompletedRun) -> CompletedRun:
    """Assert what holds for every command, however it ends."""
    assert "Traceback" not in run.stderr + run.stdout, str(run)
    assert "internal error" not in run.stderr, str(run)
    assert len(_error_lines(run.stderr)) <= 1, str(run)
    return run


def run_program(
    *command: Argument,
    stdin: str = "",
    timeout: float = RUN_TIMEOUT,
    environment: dict[str, str] | None = None,
) -> CompletedRun:
    """Run a command to its end and check its manners."""
    words = tuple(str(word) for word in command)
    finished = subprocess.run(
        words,
        input=stdin.encode(),
        capture_output=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    return check_manners(
        CompletedRun(
            words,
            finished.returncode,
            finished.stdout.decode(errors="replace"),
            finished.stderr.decode(errors="replace"),
        )
    )


def wait_until(condition: Callable[[], object], what: str, timeout: float = START_TIMEOUT) -> None:
    """Wait until something is so; the test fails if it takes too long."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout:.0f} s"
        time.sleep(POLL_INTERVAL)


class Running:
    """A command that was started and not waited for.

    Args:
        command: What to run.
        output: Where standard output and standard error go: files ``output``.out and .err.
    """

    def __init__(self, command: Sequence[Argument], output: Path) -> None:
        self.command = tuple(str(word) for word in command)
        self._out, self._err = output.with_suffix(".out"), output.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            # Should the test run itself be killed, the kernel ends the command.
            bound = ("setpriv", "--pdeathsig", "KILL", *self.command)
            self._process = subprocess.Popen(
                bound, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._err.read_text(errors="replace")

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self, timeout: float = RUN_TIMEOUT) -> CompletedRun:
        """Wait for its end and check its manners."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"{' '.join(self.command)} still ran after {timeout:.0f} s\n{self.stderr}"
            ) from None
        return check_manners(
            CompletedRun(
                self.command,
                self._process.returncode,
                self._out.read_text(errors="replace"),
                self.stderr,
            )
        )

    def kill(self) -> None:
        """End it at once, if it still runs."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


class Receiver:
    """A receiver with its state and one datastore, ``ds``, below ``folder``.

    Made stopped. After the first start it keeps its port, so that senders that have
    paired find it again after a restart.

    Args:
        folder: Where it is kept; made.
        state: The state folder, if it is elsewhere.
        datastore: The datastore's folder, if it is elsewhere.
        program: What serves, if not the receiver as it is.
    """

    def __init__(
        self,
        folder: Path,
        state: Path | None = None,
        datastore: Path | None = None,
        program: Sequence[Argument] = RECEIVER,
    ) -> None:
        self.folder = folder
        self.state = state or folder / "receiver"
        self.datastore = datastore or folder / "ds"
        self._program = program
        self.address = "127.0.0.1:0"
        self.metrics_url = ""
        self._running: Running | None = None
        self._starts = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.datastore.mkdir(parents=True)

    def start(self, *options: Argument) -> None:
        """Start it and wait until it listens."""
        assert self._running is None
        self._starts += 1
        command = (
            *self._program,
            *("serve", "--state", self.state, "--listen", self.address, "--http", "127.0.0.1:0"),
            *("--datastore", f"ds={self.datastore}", *options),
        )
        running = Running(command, self.folder / f"receiver-{self._starts}")
        self._running = running
        wait_until(lambda: running.ended or "listening on" in running.stderr, "receiver listens")
        found = re.search(r"listening on (\S+), metrics on (\S+),", running.stderr)
        assert found, running.stderr
        self.address, self.metrics_url = found[1], found[2]

    def stop(self) -> CompletedRun | None:
        """End it in good order, if it runs, and assert that it ended well."""
        if self._running is None:
            return None
        self.process.signal(signal.SIGTERM)
        return self.wait_stopped()

    def wait_stopped(self) -> CompletedRun:
        """Wait for its end after SIGTERM, and assert that it ended well."""
        running, self._running = self.process, None
        return running.wait(STOP_TIMEOUT).expect(0)

    def kill(self) -> None:
        """End it as a power cut would."""
        running, self._running = self.process, None
        running.kill()

    def close(self) -> None:
        """End it at once, if it still runs."""
        if self._running is not None:
            self.kill()

    @property
    def process(self) -> Running:
        """The process that serves."""
        assert self._running is not None
        return self._running

    @property
    def log(self) -> str:
        """What it has said since it was last started."""
        return (self.folder / f"receiver-{self._starts}.err").read_text(errors="replace")

    def run(self, *arguments: Argument) -> CompletedRun:
        """Run another command of flatship-receiver on this one's state."""
        return run_program(*RECEIVER, *arguments, "--state", self.state)

    def invite(self, *options: Argument, name: str = "kvm1") -> str:
        """Make an invitation; returns its line."""
        arguments = ("invite", "--name", name, "--address", self.address, *options)
        return self.run(*arguments).expect(0).stdout

    def verify(self, vm: str, disk: str = "", *options: Argument) -> CompletedRun:
        """Run ``verify`` on a published disk, its first if none is named."""
        return self.run("verify", self.descriptor(vm, disk), *options)

    def descriptor(self, vm: str, disk: str = "") -> Path:
        """Where a disk's descriptor is, once it is published."""
        return self.datastore / vm / f"{disk or vm}.vmdk"

    def flat(self, vm: str, disk: str = "") -> Path:
        """Where the flat extent of a disk is, once it is published."""
        return self.datastore / vm / f"{disk or vm}-flat.vmdk"

    def files(self, vm: str) -> list[str]:
        """Names of everything in a VM's folder; none if there is no folder."""
        folder = self.datastore / vm
        try:
            return sorted(entry.name for entry in folder.iterdir())
        except FileNotFoundError:  # removed, perhaps while we look
            return []

    def metrics(self) -> "Metrics":
        """Scrape it."""
        return scrape(self.metrics_url)


class Sender:
    """A sender's state folder below ``folder``, and the commands that use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "sender"
        self._runs = 0
        self._started: list[Running] = []
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, *arguments: Argument, stdin: str = "") -> CompletedRun:
        """Run a command of flatship-sender on this state."""
        return run_program(*SENDER, *arguments, "--state", self.state, stdin=stdin)

    def join(self, invitation: str, name: str = "esx") -> CompletedRun:
        """Pair with the receiver that made an invitation."""
        return self.run("join", "--as", name, "-", stdin=invitation)

    def send(
        self, *sources: Argument, vm: str, options: Sequence[Argument] = (), to: str = "esx"
    ) -> CompletedRun:
        """Send disks with ``--json`` and wait for the end."""
        return run_program(*self.send_command(*sources, vm=vm, options=options, to=to))

    def start_send(
        self, *sources: Argument, vm: str, options: Sequence[Argument] = (), to: str = "esx"
    ) -> Running:
        """Start to send disks; whatever happens, the process ends with the test."""
        self._runs += 1
        command = self.send_command(*sources, vm=vm, options=options, to=to)
        running = Running(command, self.folder / f"send-{self._runs}")
        self._started.append(running)
        return running

    def send_command(
        self, *sources: Argument, vm: str, options: Sequence[Argument] = (), to: str = "esx"
    ) -> tuple[Argument, ...]:
        """The command line of ``send``, which does not wait for lost receivers unless told to."""
        target = ("--to", to, "--vm", vm, "--json", "--state", self.state, "--patience", "0")
        return (*SENDER, "send", *sources, *target, *options)

    def close(self) -> None:
        """End what was started and still runs."""
        for running in self._started:
            running.kill()


@dataclass(frozen=True)
class Pair:
    """A receiver that serves, and a sender that has paired with it as ``esx``."""

    receiver: Receiver
    sender: Sender

    def send(self, *sources: Argument, vm: str, options: Sequence[Argument] = ()) -> CompletedRun:
        """Send disks and wait for the end."""
        return self.sender.send(*sources, vm=vm, options=options)

    def start_send(self, *sources: Argument, vm: str, options: Sequence[Argument] = ()) -> Running:
        """Start to send disks."""
        return self.sender.start_send(*sources, vm=vm, options=options)


@dataclass(frozen=True)
class Metrics:
    """One scrape.

    Args:
        text: As it was served.
        samples: (name, labels, value), in order.
    """

    text: str
    samples: tuple[tuple[str, dict[str, str], float], ...]

    @property
    def names(self) -> set[str]:
        """Names of all samples."""
        return {name for name, _, _ in self.samples}

    def value(self, metric: str, **labels: str) -> float:
        """Sum over the samples of this name that bear these labels; there must be one."""
        found = [
            value
            for name, present, value in self.samples
            if name == metric and labels.items() <= present.items()
        ]
        assert found, f"no {metric} with {labels} in\n{self.text}"
        return sum(found)


def scrape(url: str) -> Metrics:
    """Fetch and parse metrics."""
    text = fetch(url)
    return Metrics(
        text,
        tuple(
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ),
    )


def fetch(url: str) -> str:
    """Body of an HTTP GET."""
    with urllib.request.urlopen(url, timeout=RUN_TIMEOUT) as answer:
        body: bytes = answer.read()
    return body.decode()
