"""A machine to install things on: a copy of this one that boots with a systemd of its own.

The copy is an overlay in memory above this machine's root, in namespaces of its own:
nothing that happens there is left when it has ended, however it ends: it ends with the
thread that started it, and its mounts with it. Its network is a loopback interface.
Takes root, and Debian's systemd-container; without them tests are skipped.
"""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

BOOT_TIMEOUT: Final = 60.0  # seconds
STOP_TIMEOUT: Final = 20.0
COMMAND_TIMEOUT: Final = 180.0
POLL_INTERVAL: Final = 0.05
# Only what units need: this machine's own services are not started in the copy.
MARK: Final = "/machine-of-a-test"  # a folder that is there, and not here
START: Final = """
set -e
mount -t tmpfs -o size=2g tmpfs {folder}
mkdir {folder}/upper {folder}/work {folder}/root {folder}/upper{mark}
mount -t overlay -o lowerdir=/,upperdir={folder}/upper,workdir={folder}/work overlay {folder}/root
exec systemd-nspawn --quiet --directory={folder}/root {binds} --private-network \
    --register=no --keep-unit --console=pipe --machine=scratch --boot -- --unit=basic.target
"""
# systemd-nspawn's death does not end its machine; that of a process namespace's first process does.
TIED: Final = (
    "setpriv", "--pdeathsig=KILL",
    "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
)  # fmt: skip
ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive",
}


class Machine:
    """One such machine, from ``with`` to its end.

    Args:
        folder: Empty, for its disk and what it says while it boots.
        offered: Folders of this machine that it sees, under the same names; it cannot write there.
            It has a ``/tmp`` of its own.
    """

    def __init__(self, folder: Path, offered: Sequence[Path]) -> None:
        self._console = folder / "console"
        disk = folder / "disk"
        disk.mkdir()
        self._start = START.format(
            folder=shlex.quote(str(disk)),
            mark=MARK,
            binds=shlex.join(f"--bind-ro={path}" for path in offered),
        )

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            pytest.skip("boots a machine, which takes root")
        if shutil.which("systemd-nspawn") is None:
            pytest.skip("boots a machine, which takes systemd-nspawn, of systemd-container")
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                [*TIED, "sh", "-c", self._start],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        try:
            self._await_boot()
            # What this machine may have; and what keeps packages from starting services.
            self.run("rm -rf /etc/flatship /var/lib/flatship /srv/* /usr/sbin/policy-rc.d")
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
        self, command: str, *, stdin: str = "", expect: int | None = 0
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command line of bash there, as root, to its end.

        Args:
            command: For bash.
            stdin: What it reads.
            expect: The exit code that it must have; None for any.
        """
        done = subprocess.run(
            ["nsenter", f"--target={self._init()}", "--mount", "--uts", "--ipc", "--net", "--pid",
             "--cgroup", "--root", "--wd", "bash", "-c", command],
            input=stdin,
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )  # fmt: skip
        assert expect is None or done.returncode == expect, (
            f"{command}\nexit {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def output(self, command: str) -> str:
        """What a command that ends well writes to standard output, without the last newline."""
        return self.run(command).stdout.rstrip("\n")

    def has(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        return self.run(f"test -e {shlex.quote(path)}", expect=None).returncode == 0

    def _init(self) -> int:
        pid = self._process.pid  # of unshare; below it systemd-nspawn, and below that init
        for _ in range(2):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if not children:
                raise ProcessLookupError(self._console.read_text(errors="replace"))
            pid = int(children[0])
        # While it is being set up its processes still see this machine, which must not be touched.
        if not Path(f"/proc/{pid}/root{MARK}").is_dir():
            raise ProcessLookupError("it has not taken its own root yet")
        return pid

    def _await_boot(self) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT
        while True:
            assert self._process.poll() is None, self._console.read_text(errors="replace")
            try:
                state = self.run("systemctl is-system-running", expect=None).stdout.strip()
            except (ProcessLookupError, FileNotFoundError):
                state = "not begun"
            if state in ("running", "degraded"):
                return
            assert time.monotonic() < deadline, f"{state}: {self._console.read_text()}"
            time.sleep(POLL_INTERVAL)

    def _end(self) -> None:
        """Nothing there is worth an orderly shutdown; init's end ends all of it."""
        try:
            os.kill(self._init(), 9)
        except (ProcessLookupError, FileNotFoundError):
            self._process.kill()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
