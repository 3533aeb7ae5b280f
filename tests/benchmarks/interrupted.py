"""What an interruption costs: the receiver is killed at half of the disk, and started again."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contest import assert_identical, cold_caches
from benchmarks.disk import MIB, Disk
from benchmarks.flatship_pair import RECEIVER, SENDER
from benchmarks.processes import BenchmarkError, Command, free_port, run, serving

_VM = "guest"
_PEER = "bench"
_POLL = 0.01  # seconds between two looks at the copy
_PATIENCE = 300.0  # seconds for a transfer, and for each of its steps


@dataclass(frozen=True, slots=True)
class Interruption:
    """What one interrupted transfer came to. Sizes in bytes, times in seconds.

    ``on_record`` is what the receiver held durably when it was killed, ``resent`` what the
    sender had sent beyond what was acknowledged. ``first_write`` counts from the moment at
    which the receiver listens again; ``reread`` is what merely reading as much of the source
    as was on record takes, caches cold.
    """

    on_record: int
    resent: int
    held: int
    first_write: float
    reread: float


def interrupt(disk: Disk, scratch: Path, target: Path) -> Interruption:
    """Send ``disk`` to an empty ``target``, with a receiver that dies when half of it is there.

    Raises:
        BenchmarkError: The transfer failed, or its copy differs.
    """
    state = scratch / "interrupted"
    state.mkdir()
    address = f"127.0.0.1:{free_port()}"
    at_receiver = ("--state", state / "receiver")
    serve: Command = (
        *(RECEIVER, "serve", *at_receiver, "--listen", address, "--http", "127.0.0.1:0"),
        *("--datastore", f"{_PEER}={target}"),
    )
    at_sender = ("--state", state / "sender")
    send = (SENDER, "send", *at_sender, disk.path, "--to", _PEER, "--vm", _VM, "--json")
    part = target / _VM / f"{_VM}-flat.vmdk.flatship-part"
    cold_caches()
    with serving(serve, state / "first.log", lambda said: address in said) as first:
        invite = (RECEIVER, "invite", *at_receiver, "--name", "bench", "--address", address)
        (state / "invitation").write_text(run(invite).output)
        run((SENDER, "join", *at_sender, "--as", _PEER, state / "invitation"))
        with _sending(send) as process:
            _wait(lambda: part.exists() and part.stat().st_blocks * 512 >= disk.data // 2, process)
            os.kill(first.pid, signal.SIGKILL)
            known = json.loads(run((RECEIVER, "list", *at_receiver, "--json")).output)
            written = part.stat().st_mtime_ns
            with serving(serve, state / "second.log", lambda said: address in said):
                listening = time.perf_counter()
                _wait(lambda: not part.exists() or part.stat().st_mtime_ns > written, process)
                first_write = time.perf_counter() - listening
                output, complaints = process.communicate(timeout=_PATIENCE)
    if process.returncode:
        raise BenchmarkError(f"the transfer exited {process.returncode}: {complaints}")
    assert_identical(disk, target / _VM / f"{_VM}-flat.vmdk", "Flatship")
    totals = json.loads(output)["totals"]["bytes"]
    cold_caches()
    count = known["held"] // MIB
    reread = run(("dd", f"if={disk.path}", "of=/dev/null", "bs=1M", f"count={count}")).seconds
    return Interruption(known["held"], totals["resent"], totals["held"], first_write, reread)


@contextmanager
def _sending(command: Command) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if process.poll() is not None and not condition():
            raise BenchmarkError("the transfer ended before its time")
        if time.monotonic() > deadline:
            raise BenchmarkError(f"nothing came of it in {_PATIENCE:.0f} s")
        time.sleep(_POLL)
