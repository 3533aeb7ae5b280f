"""Where exports of disk images live while they are read, and what a crash left of them.

Each export has a folder of its own, and a lock there that the kernel takes off when its
owner ends, however that happens. A folder whose lock is free is one that
nobody needs: what still runs for it is ended, what is still mounted in it is released.
Nothing outside of such folders is touched.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from flatship_sender.processes import PROC

DAEMON: Final = "qemu-storage-daemon"
PID_FILE: Final = "pid"
_LOCK: Final = "lock"
_PREFIX: Final = "export-"
_END_TIMEOUT: Final = 5.0  # seconds for a daemon to leave before it is killed
_STEP: Final = 0.01  # seconds between two looks at a process that is not our child
_MNT_DETACH: Final = 2  # sys/mount.h
_UMOUNT_NOFOLLOW: Final = 8

_libc: Final = ctypes.CDLL(None, use_errno=True)


def default_base() -> Path:
    """``/run/flatship/images`` for root, under XDG_RUNTIME_DIR or /tmp for everybody else."""
    if os.geteuid() == 0:
        return Path("/run/flatship/images")
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if runtime.is_absolute():
        return runtime / "flatship" / "images"
    return Path(tempfile.gettempdir()) / f"flatship-{os.geteuid()}" / "images"


class ExportFolder:
    """A private folder that is ours as long as we live. Made by ``claim_folder``."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def release(self) -> None:
        """Release what is mounted in it, and remove it. Idempotent."""
        if self._lock < 0:
            return
        _clear(self.path)
        os.close(self._lock)
        self._lock = -1


def claim_folder(base: Path) -> ExportFolder:
    """Make a folder below ``base``; clear away those whose owners are gone.

    Raises:
        OSError: There is no place for it.
    """
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in (base, base.parent):
        status = folder.stat()
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "others may write to it", str(folder))
    with _locked(base):
        for path in sorted(base.glob(f"{_PREFIX}*")):
            _clear_if_left(path)
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        lock = _open_lock(path)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return ExportFolder(path, lock)


def detach(path: Path) -> None:
    """Take a FUSE mount out of the name space; it lives as long as it is open.

    Raises:
        OSError: It is none, or not ours.
    """
    if os.geteuid() == 0:
        if _libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
        return
    done = subprocess.run(
        ["fusermount3", "-u", "-z", "-q", "--", str(path)], check=False, capture_output=True
    )
    if done.returncode:
        raise OSError(errno.EINVAL, "fusermount3 does not release it", str(path))


def mount_points(folder: Path, proc: Path = PROC) -> list[Path]:
    """What is mounted below ``folder`` in our name space."""
    found = []
    for line in (proc / "self" / "mountinfo").read_bytes().splitlines():
        point = Path(os.fsdecode(line.split(b" ")[4].decode("unicode_escape").encode("latin-1")))
        if folder in point.parents:
            found.append(point)
    return found


@contextmanager
def _locked(base: Path) -> Iterator[None]:
    lock = _open_lock(base)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _open_lock(folder: Path) -> int:
    return os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _clear_if_left(path: Path) -> None:
    try:
        lock = _open_lock(path)
    except OSError:  # it is being removed
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # its owner lives
    else:
        _end_daemon(path)
        _clear(path)
    finally:
        os.close(lock)


def _clear(path: Path) -> None:
    for point in mount_points(path):
        with suppress(OSError):
            detach(point)
    shutil.rmtree(path, ignore_errors=True)


def _end_daemon(path: Path) -> None:
    """End the daemon whose pid stands in the folder, if it is still the one that serves it."""
    try:
        pid = int((path / PID_FILE).read_text())
    except (OSError, ValueError):
        return
    for sign in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + _END_TIMEOUT
        while _serves(pid, path) and time.monotonic() < until:
            with suppress(ProcessLookupError):
                os.kill(pid, sign)
            time.sleep(_STEP)


def _serves(pid: int, path: Path) -> bool:
    try:
        command = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False
    return DAEMON.encode() in command.split(b"\0")[0] and os.fsencode(path) in command
