#!/usr/bin/env python3
"""Moves the two disks of a small guest from one end of Flatship to the other, on this machine.

A receiver on loopback, a sender, an invitation between them: the commands are
the ones an administrator types, and each is shown as it runs. Everything lives
in a temporary folder that is removed at the end, whatever the end is.
"""

import contextlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MIB = 1024 * 1024
SYSTEM_DISK_SIZE = 1024 * MIB
DATA_DISK_SIZE = 512 * MIB
LOG_SIZE = 24 * MIB

PROGRAMS = Path(sys.executable).parent
SENDER = PROGRAMS / "flatship-sender"
RECEIVER = PROGRAMS / "flatship-receiver"
AT_RECEIVER = ("--state", "receiver")  # folders for keys and journals
AT_SENDER = ("--state", "sender")
DATASTORE = Path("datastore")  # stands for what an ESXi host would mount
PEER = "esx"
VM = "web01"
LINK = "100Mbit"

START_TIMEOUT = 20.0  # seconds
STOP_TIMEOUT = 10.0  # seconds


class StepFailedError(Exception):
    """A step of the demo failed; the message says which and what it said."""


console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Run the demo.

    Raises:
        StepFailedError: A command failed. Nothing is left behind even so.
    """
    with tempfile.TemporaryDirectory(prefix="flatship-demo-") as folder, contextlib.chdir(folder):
        console.print(f"Everything happens in {folder}, which is removed at the end.")
        step("Make the disks of a guest: a file system with files, and a nearly empty data disk")
        disks = [make_system_disk(), make_data_disk()]
        with serving() as address:
            step("Pair the two ends: the receiver invites, the sender joins")
            pair(address)
            step("See what there is to send")
            run(SENDER, "inspect", *disks)
            step(f"Send both disks, as over a link of {LINK}")
            sent = send(disks)
        step("Compare what arrived with the disks, byte by byte")
        proofs = [prove(number, disk) for number, disk in enumerate(disks)]
        console.print("\n", summary(disks, sent, proofs))
    console.print(
        "\nA host can attach such a disk as it is. To see what a disk of your own would take:\n"
        "    .venv/bin/flatship-sender inspect /dev/vg0/web01\n"
    )


def make_system_disk() -> Path:
    """An ext4 file system that holds the Python packages of this checkout."""
    disk = make_sparse(Path("system.raw"), SYSTEM_DISK_SIZE)
    mke2fs = shutil.which("mke2fs") or "/usr/sbin/mke2fs"
    packages = sysconfig.get_path("purelib")
    run_quietly(mke2fs, "-q", "-t", "ext4", "-F", "-d", packages, disk)
    return disk


def make_data_disk() -> Path:
    """A web server's log in the middle of an empty disk."""
    disk = make_sparse(Path("data.raw"), DATA_DISK_SIZE)
    entry = "192.0.2.{} - - [{:08d}] GET /articles/{:05d} HTTP/1.1 200\n"
    with disk.open("r+") as file:
        file.seek(DATA_DISK_SIZE // 2)
        for number in range(LOG_SIZE // len(entry)):
            file.write(entry.format(number % 251, number, number * 7919 % 99991))
    return disk


def make_sparse(path: Path, size: int) -> Path:
    """Make a file of ``size`` bytes that occupies none."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run a receiver for the length of the block; yields the address it listens on."""
    step("Start a receiver; its datastore would be the folder that ESXi mounts")
    DATASTORE.mkdir()
    listen = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    command = (RECEIVER, "serve", *AT_RECEIVER, *listen, "--datastore", f"nfs1={DATASTORE}")
    show(*command)
    log = Path("receiver.log")
    with log.open("w") as output:
        # Should the demo itself be killed, the kernel ends the receiver.
        bound = ("setpriv", "--pdeathsig", "TERM", *command)
        process = subprocess.Popen(bound, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield wait_for_address(process, log)
    except StepFailedError:
        console.print(f"The receiver said:\n{log.read_text()}", markup=False)
        raise
    finally:
        stop(process)


def wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the receiver says where it listens."""
    deadline = time.monotonic() + START_TIMEOUT
    while not (found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())):
        if process.poll() is not None or time.monotonic() > deadline:
            raise StepFailedError("the receiver does not listen")
        time.sleep(0.05)
    return found[1]


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the receiver, in good order if it can."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def pair(address: str) -> None:
    """Hand an invitation from the receiver to the sender."""
    invite = (RECEIVER, "invite", *AT_RECEIVER, "--name", "kvm1", "--address", address)
    show(*invite)
    invitation = run_quietly(*invite)
    run(SENDER, "join", *AT_SENDER, "--as", PEER, "-", stdin=invitation)


def send(disks: list[Path]) -> list[dict[str, Any]]:
    """Send the disks; returns what the sender reports of each."""
    to = ("--to", PEER, "--vm", VM, "--limit", LINK)
    command: list[str | Path] = [SENDER, "send", *AT_SENDER, *disks, *to, "--json"]
    show(*command)
    report = json.loads(run_quietly(*command))
    reported: list[dict[str, Any]] = report["disks"]
    return reported


def prove(number: int, disk: Path) -> str:
    """Have source and copy compared by everybody here who can; returns who found them equal."""
    name = f"{VM}_{number}" if number else VM
    descriptor = DATASTORE / VM / f"{name}.vmdk"
    run(RECEIVER, "verify", *AT_RECEIVER, descriptor, "--against", disk)
    if not shutil.which("qemu-img"):
        return "flatship"
    run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", disk, descriptor)
    return "flatship, qemu-img"


def summary(disks: list[Path], sent: list[dict[str, Any]], proofs: list[str]) -> Table:
    """The table at the end."""
    table = Table()
    for heading in ("disk", "size", "data", "on the wire", "seconds", "proven equal by"):
        table.add_column(heading, justify="left" if heading.startswith(("disk", "p")) else "right")
    for disk, report, proof in zip(disks, sent, proofs, strict=True):
        status = disk.stat()
        sizes = (status.st_size, status.st_blocks * 512, report["bytes"]["wire"])
        seconds = f"{report['seconds']['total']:.1f}"
        table.add_row(disk.name, *(f"{size / MIB:.0f} MiB" for size in sizes), seconds, proof)
    return table


def step(text: str) -> None:
    """Say what comes next."""
    console.print(f"\n[bold]{text}[/bold]")


def show(*command: str | Path) -> None:
    """Show a command as an administrator would type it."""
    words = [word.name if word in {SENDER, RECEIVER} else str(word) for word in command]
    console.print(f"  $ {shlex.join(words)}", style="cyan", markup=False)


def run(*command: str | Path, stdin: str | None = None) -> None:
    """Show a command, run it, show what it says."""
    show(*command)
    said = run_quietly(*command, stdin=stdin)
    for line in said.splitlines():
        console.print(f"  {line}", markup=False)


def run_quietly(*command: str | Path, stdin: str | None = None) -> str:
    """Run a command to its end; its standard output. The demo ends if it fails."""
    finished = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        said = f"{finished.stdout}{finished.stderr}"
        raise StepFailedError(
            f"{shlex.join(map(str, command))} exited {finished.returncode}:\n{said}"
        )
    return finished.stdout


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # leave by way of every clean-up
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        main()
    except StepFailedError as error:
        console.print(f"\nThe demo failed: {error}", style="red", markup=False)
        sys.exit(1)
