"""A guest with a kernel of its own, under software emulation: device-mapper and LVM are there.

It is Debian (``scripts/lab-image``), built once and kept outside the checkout. Each start
works on an overlay, so what a test does to it is gone afterwards. Commands are run by ssh;
``10.0.2.2`` is this machine's loopback, as seen from there.
"""

import fcntl
import hashlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

ROOT: Final = Path(__file__).parents[2]
IMAGE_SCRIPT: Final = ROOT / "scripts" / "lab-image"
RUNTIME_LOCK: Final = ROOT / "requirements" / "runtime.lock"
GUEST_PYTHON: Final = "3.11"  # Debian bookworm's
HOST: Final = "10.0.2.2"  # this machine, for the guest
PROGRAM: Final = "/opt/flatship"  # where the guest has the project

BUILD_TIMEOUT: Final = 600.0  # seconds
BOOT_TIMEOUT: Final = 180.0
STOP_TIMEOUT: Final = 10.0
COMMAND_TIMEOUT: Final = 120.0
POLL_INTERVAL: Final = 0.5
MEMORY: Final = 1500  # MiB
PROGRAM_DISK: Final = 512 << 20  # bytes


def cache_folder() -> Path:
    """Where images outlive the checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flatship-lab"


def lab_image() -> Path:
    """The folder with disk, kernel and key; built if there is none of this script."""
    if os.geteuid() != 0:
        pytest.skip("boots a guest of its own making, which takes root")
    for tool in ("mmdebstrap", "qemu-system-x86_64", "qemu-img", "ssh"):
        if shutil.which(tool) is None:
            pytest.skip(f"boots a guest, which takes {tool}")
    folder = cache_folder() / f"guest-{_digest(IMAGE_SCRIPT.read_bytes())}"
    with _alone():
        if not folder.is_dir():
            subprocess.run([IMAGE_SCRIPT, folder], check=True, timeout=BUILD_TIMEOUT)
    return folder


@contextmanager
def _alone() -> Iterator[None]:
    """Several test processes may want the same thing built: one builds it, others wait."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def program_disk(folder: Path) -> Path:
    """A file system with the project's wheel and what it needs, for the guest's Python."""
    packages = folder / "program"
    with _alone():
        requirements = _requirements()
    shutil.copytree(requirements, packages)
    _pip("install", "--no-deps", "--no-build-isolation", "--target", packages, ROOT)
    disk = folder / "program.img"
    with disk.open("wb") as file:
        file.truncate(PROGRAM_DISK)
    _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", packages, disk)
    shutil.rmtree(packages)
    return disk


def _requirements() -> Path:
    """What the project needs at run time, unpacked once for each lock file."""
    folder = cache_folder() / f"packages-{_digest(RUNTIME_LOCK.read_bytes())}"
    if not folder.is_dir():
        work = folder.with_name(f"{folder.name}.{os.getpid()}")
        _pip(
            *("install", "--require-hashes", "--no-deps", "--only-binary", ":all:"),
            *("--python-version", GUEST_PYTHON, "--target", work, "--requirement", RUNTIME_LOCK),
        )
        work.rename(folder)
    return folder


def _pip(*arguments: str | Path) -> None:
    _run(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, timeout=BUILD_TIMEOUT)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class Guest:
    """One guest, from ``with`` to its end.

    Args:
        folder: Empty, for its overlay, and for what it says while it boots.
        image: As ``lab_image`` returns it.
        disks: Raw files, which it has as /dev/vdb, /dev/vdc …; the first is read-only, with the
            project on it.
    """

    def __init__(self, folder: Path, image: Path, disks: Sequence[Path]) -> None:
        self._console = folder / "console"
        self._errors = folder / "qemu.err"
        self._folder = folder
        self._image = image
        self._disks = disks
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        overlay = self._folder / "root.qcow2"
        _run(
            *("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw"),
            *("-b", self._image / "disk.img", overlay),
        )
        drives = [f"file={overlay},format=qcow2", f"file={self._disks[0]},format=raw,readonly=on"]
        drives += [f"file={disk},format=raw,discard=unmap" for disk in self._disks[1:]]
        command: list[str | Path] = [
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
            *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(MEMORY)),
            *("-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{self._console}"),
            *("-kernel", self._image / "vmlinuz", "-initrd", self._image / "initrd"),
            *("-append", "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 mitigations=off"),
            *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self._port}-:22"),
            *("-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"),
        ]
        for drive in drives:
            command += ["-drive", f"{drive},if=virtio,cache=unsafe"]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=errors)
        try:
            self._await_boot()
            self.run(f"mount -o ro /dev/vdb {PROGRAM}")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def run(
        self,
        command: str,
        *,
        stdin: str = "",
        expect: int | None = 0,
        timeout: float = COMMAND_TIMEOUT,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command line of bash there, as root, to its end.

        Args:
            command: For bash.
            stdin: What it reads.
            expect: The exit code that it must have; None for any.
            timeout: Seconds that it may take.
        """
        done = subprocess.run(
            self._ssh(command),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert expect is None or done.returncode == expect, (
            f"{command}\nexit {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def output(self, command: str) -> str:
        """What a command that ends well writes to standard output, without the last newline."""
        return self.run(command).stdout.rstrip("\n")

    def sender(self, *arguments: str) -> str:
        """The command line, for bash, of a command of the sender's."""
        words = ("python3", "-m", "flatship_sender", *arguments, "--state", "/var/lib/lab-sender")
        return f"PYTHONPATH={PROGRAM} {shlex.join(words)}"

    def _ssh(self, command: str) -> list[str]:
        options = {
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": "10",
            # One connection for all commands: a new one takes the guest a second.
            "ControlMaster": "auto",
            "ControlPath": str(self._folder / "ssh"),
            "ControlPersist": "600",
        }
        words = ["ssh", "-i", str(self._image / "key"), "-p", str(self._port)]
        for name, value in options.items():
            words += ["-o", f"{name}={value}"]
        return [*words, "root@127.0.0.1", f"bash -c {shlex.quote(command)}"]

    def _await_boot(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + BOOT_TIMEOUT
        while True:
            try:
                done = self.run("true", expect=None, timeout=30)
            except subprocess.TimeoutExpired:
                done = None
            if done is not None and done.returncode == 0:
                return
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                said = [
                    file.read_text(errors="replace")[-2000:]
                    for file in (self._errors, self._console)
                    if file.exists()
                ]
                raise AssertionError("the guest does not boot:\n" + "\n".join(said))
            time.sleep(POLL_INTERVAL)

    def _end(self) -> None:
        """Power it off as a power cut would: its disks are not kept."""
        subprocess.run(
            ["ssh", "-o", f"ControlPath={self._folder / 'ssh'}", "-O", "exit", "root@127.0.0.1"],
            capture_output=True,
            timeout=STOP_TIMEOUT,
            check=False,
        )
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(STOP_TIMEOUT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
