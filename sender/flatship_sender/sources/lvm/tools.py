"""Runs the tools of device-mapper and LVM: bounded in time, in English, tied to this process."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

TIMEOUT: Final = 60.0  # seconds; a tool that waits longer waits for a device that hangs

_PACKAGES: Final = {
    "dmsetup": "dmsetup",
    "lvs": "lvm2",
    "lvcreate": "lvm2",
    "lvremove": "lvm2",
    "thin_dump": "thin-provisioning-tools",
}
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "LVM_SUPPRESS_FD_WARNINGS": "1",
}


class ToolFailed(Exception):
    """A tool is missing, failed, or did not end; the text says which, and what it said."""


def run(*command: str) -> str:
    """Run a tool to its end; returns what it wrote to standard output.

    Raises:
        ToolFailed: It is not installed, did not end well, or took longer than ``TIMEOUT``.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            env=_ENVIRONMENT,
            check=False,
        )
    except OSError as error:
        raise _missing(command, error) from error
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(f"{' '.join(command)} did not end within {TIMEOUT:.0f} s") from error
    if done.returncode:
        raise _failed(command, done.returncode, done.stderr)
    return done.stdout.decode(errors="replace")


def change(lock: int, *command: str) -> None:
    """Run a tool that changes volumes, to its end, whatever becomes of this process.

    Killed halfway it could leave a volume suspended. So no signal of a terminal reaches it, it
    writes to no pipe that might break, and it is not killed for being slow.

    Args:
        lock: Of an empty file; a lock on it is held for as long as the tool runs.
        command: The tool and its arguments.

    Raises:
        ToolFailed: It is not installed, did not end well, or runs on after ``TIMEOUT``.
    """
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                command,
                stdin=lock,  # LVM's tools close every other descriptor that they inherit
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=_ENVIRONMENT,
                start_new_session=True,
            )
        except OSError as error:
            raise _missing(command, error) from error
        try:
            _await_end(process, command)
        except KeyboardInterrupt:
            _await_end(process, command)
            raise
        if process.returncode:
            said.seek(0)
            raise _failed(command, process.returncode, said.read())


def _await_end(process: subprocess.Popen[bytes], command: tuple[str, ...]) -> None:
    try:
        process.wait(TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(
            f"{' '.join(command)} did not end within {TIMEOUT:.0f} s, and goes on"
        ) from error


@contextmanager
def reading(*command: str) -> Iterator[IO[bytes]]:
    """Run a tool and read what it writes while it does; it has ended after the block.

    Raises:
        ToolFailed: It is not installed, or did not end well.
    """
    if shutil.which(command[0], path=_ENVIRONMENT["PATH"]) is None:
        raise _missing(command, FileNotFoundError())
    # Whoever reads may be killed: then the kernel ends the tool, which must not hold the pool.
    bound = ("setpriv", "--pdeathsig", "KILL", *command)
    try:
        process = subprocess.Popen(
            bound,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_ENVIRONMENT,
        )
    except OSError as error:
        raise _missing(bound, error) from error
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        yield process.stdout
        process.stdout.close()
        said = process.stderr.read()
        if process.wait(TIMEOUT):
            raise _failed(command, process.returncode, said)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def _missing(command: tuple[str, ...], error: OSError) -> ToolFailed:
    package = _PACKAGES.get(command[0])
    advice = f"; install the package {package}" if package else ""
    return ToolFailed(f"{command[0]} cannot be run: {error.strerror or os.strerror(2)}{advice}")


def _failed(command: tuple[str, ...], code: int, said: bytes) -> ToolFailed:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    reason = lines[-1] if lines else f"exit code {code}"
    return ToolFailed(f"{' '.join(command)} failed: {reason}")
