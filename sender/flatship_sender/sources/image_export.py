"""A disk image as a raw file: ``qemu-storage-daemon`` with read-only FUSE exports.

The mount is taken out of the name space as soon as its file is open. So nobody
else sees the disk, and when this process and the daemon end, nothing is left
mounted, whoever was killed. The daemon is killed with the thread that
started it (PR_SET_PDEATHSIG): open images in one that lives as long as they do.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from flatship_protocol.errors import SourceBusy, SourceError, SourceUnsuitable
from flatship_sender.sources.export_folders import (
    DAEMON,
    PID_FILE,
    ExportFolder,
    claim_folder,
    detach,
)
from flatship_sender.sources.raw import SourcePermissionError

START_TIMEOUT: Final = 60.0  # seconds until the daemon has opened the image
STOP_TIMEOUT: Final = 5.0  # seconds until it is killed
FUSE_DEVICE: Final = Path("/dev/fuse")
_STEP: Final = 0.005  # seconds between two looks whether it has
_LOG: Final = "log"
_LOG_LIMIT: Final = 4096  # bytes of what it said that are read
_CONFINED: Final = "; to a daemon that systemd confines the package's images.conf permits it"


class ImageProgramMissing(SourceError):
    """What reads disk images is not installed; install it."""

    exit_code = 2


class ImageExport:
    """A running daemon and the files through which it gives out a disk.

    Made by ``export``. ``fds`` are whoever takes them.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", folder: ExportFolder) -> None:
        self._process = process
        self._folder = folder
        self.pid = process.pid
        self.fds: tuple[int, ...] = ()

    def wait_until_ready(self) -> str | None:
        """Wait until it serves; what it said if it gave up instead."""
        ready = self._folder.path / PID_FILE
        until = time.monotonic() + START_TIMEOUT
        while not ready.exists():
            if self._process.poll() is not None:
                return self._said() or self.ended() or ""
            if time.monotonic() > until:
                return f"it did not open the image within {START_TIMEOUT:.0f} seconds"
            time.sleep(_STEP)
        return None

    def ended(self) -> str | None:
        """How the daemon came to its end; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        if code < 0:
            return f"it was ended by {signal.Signals(-code).name}"
        said = self._said()
        return f"it ended with code {code}" + (f": {said}" if said else "")

    def close(self) -> None:
        """End the daemon and release all that was made for it. Idempotent."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._folder.release()

    def _said(self) -> str:
        try:
            with (self._folder.path / _LOG).open("rb") as log:
                lines = log.read(_LOG_LIMIT).decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.removeprefix(f"{DAEMON}: ") for line in lines if line.strip()), "")


def export(source: str, node: dict[str, Any], base: Path, count: int) -> ImageExport:
    """Have qemu give out a disk as raw files, open for reading.

    Args:
        source: What the operator calls it.
        node: The disk as an option of --blockdev, every file and format named.
        base: Where folders for exports are made.
        count: How many files, each served by a thread of its own.

    Raises:
        ImageProgramMissing: There is no qemu-storage-daemon, or it knows no FUSE.
        SourcePermissionError: This user may not mount.
        SourceBusy: Another program holds the image's lock.
        SourceUnsuitable: qemu refuses the image.
    """
    program = shutil.which(DAEMON)
    if program is None:
        raise ImageProgramMissing(
            f"source {source} is a disk image, and {DAEMON}, which reads it, is not installed:"
            " install the package qemu-utils (Debian 12: qemu-system-common),"
            " or convert the image with qemu-img convert -O raw"
        )
    _check_fuse(source)
    try:
        folder = claim_folder(base)
    except OSError as error:
        raise SourcePermissionError(
            f"source {source}: {base}, where disk images are made readable, cannot be used:"
            f" {error.strerror}; make it a folder of this user's alone"
        ) from error
    try:
        running = ImageExport(_start(program, node, folder.path, count), folder)
    except OSError as error:
        folder.release()
        raise ImageProgramMissing(
            f"source {source}: {DAEMON} cannot be started by setpriv: {error.strerror};"
            " install the package util-linux"
        ) from error
    except BaseException:
        folder.release()
        raise
    try:
        refused = running.wait_until_ready()
        if refused is not None:
            raise _refusal(source, refused)
        running.fds = _take(source, folder.path, count)
    except BaseException:
        running.close()
        raise
    return running


def _start(
    program: str, node: dict[str, Any], folder: Path, count: int
) -> "subprocess.Popen[bytes]":
    arguments = []
    for number in range(count):
        (folder / f"disk{number}").touch()
        graph = json.dumps({**node, "node-name": f"disk{number}"}, ensure_ascii=False)
        arguments += ["--object", f"iothread,id=thread{number}", "--blockdev", graph]
        offered = {
            "type": "fuse",
            "id": f"export{number}",
            "node-name": f"disk{number}",
            "mountpoint": str(folder / f"disk{number}"),
            "iothread": f"thread{number}",
            "writable": False,
            "growable": False,
            "allow-other": "off",
        }
        arguments += ["--export", json.dumps(offered, ensure_ascii=False)]
    command = ["setpriv", "--pdeathsig", "TERM", "--", program, *arguments]
    command += ["--pidfile", str(folder / PID_FILE)]
    with (folder / _LOG).open("wb") as log:
        # A session of its own: Ctrl-C is for us, who end it when we are done with it.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def _take(source: str, folder: Path, count: int) -> tuple[int, ...]:
    fds: list[int] = []
    try:
        for number in range(count):
            fds.append(os.open(folder / f"disk{number}", os.O_RDONLY | os.O_CLOEXEC))
            detach(folder / f"disk{number}")
    except OSError as error:
        for fd in fds:
            os.close(fd)
        raise SourcePermissionError(
            f"source {source}: what {DAEMON} exports cannot be opened: {error.strerror};"
            " run as root"
        ) from error
    return tuple(fds)


def _check_fuse(source: str) -> None:
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        advice = (
            "load it with modprobe fuse, and in a container pass the device through"
            if not FUSE_DEVICE.exists()
            else "run as root, or let this user open it"
        )
        raise SourcePermissionError(
            f"source {source} is a disk image, which takes FUSE to be read, and {FUSE_DEVICE}"
            f" cannot be opened: {error.strerror}; {advice}"
        ) from error


def _refusal(source: str, said: str) -> SourceError:
    if "lock" in said:
        return SourceBusy(
            f"source {source} is in use by another program ({said}); stop that program or pass"
            " --live"
        )
    if "does not accept value 'fuse'" in said:
        return ImageProgramMissing(
            f"source {source} is a disk image, and the {DAEMON} that is installed was built"
            " without FUSE; install another, or convert the image with qemu-img convert -O raw"
        )
    if "fuse" in said.lower() or "mount" in said:
        return SourcePermissionError(
            f"source {source}: {DAEMON} cannot mount what it exports ({said}); run as root, or"
            f" install the package fuse3{_CONFINED}"
        )
    if said.startswith("setpriv:"):
        return SourcePermissionError(
            f"source {source} is a disk image, and {DAEMON}, which reads it, may not be started"
            f" ({said}){_CONFINED}"
        )
    return SourceUnsuitable(f"source {source} cannot be read by {DAEMON}: {said}")
