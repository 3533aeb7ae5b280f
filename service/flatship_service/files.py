"""Small files that are either whole or not there, also after a power loss.

A file that root makes belongs to the owner of its folder: a command that an
administrator runs must not leave files that the unprivileged daemon cannot read.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PRIVATE_FILE: Final = 0o600
PRIVATE_FOLDER: Final = 0o700


def create(path: Path, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """Make ``path`` with all of ``data``; durable when it returns.

    Raises:
        FileExistsError: It is there already; it has not been touched.
        OSError: Nothing is there under that name.
    """
    temporary = _write_temporary(path, data, mode)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()
    _sync_folder(path.parent)


def replace(path: Path, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """Put ``data`` in the place of what ``path`` holds, if anything; durable when it returns.

    Raises:
        OSError: ``path`` is as it was.
    """
    temporary = _write_temporary(path, data, mode)
    try:
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove ``path``; durable when it returns.

    Raises:
        FileNotFoundError: Somebody else removed it first.
    """
    path.unlink()
    _sync_folder(path.parent)


def make_private_folder(path: Path) -> None:
    """Make ``path``, private, and the folders above it, unless they are there."""
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=PRIVATE_FOLDER)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _give_to_owner_of_folder(descriptor, path.parent)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the advisory lock ``path`` against other processes and threads; waits for it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        _give_to_owner_of_folder(descriptor, path.parent)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_temporary(path: Path, data: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # the umask may have taken bits that are wanted
            _give_to_owner_of_folder(descriptor, path.parent)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        temporary.unlink()
        raise
    return temporary


def _give_to_owner_of_folder(descriptor: int, folder: Path) -> None:
    if os.geteuid() != 0:
        return
    owner, made = folder.stat(), os.fstat(descriptor)
    # Not where it changes nothing: a confined daemon may not do it, whoever owns what.
    if (made.st_uid, made.st_gid) != (owner.st_uid, owner.st_gid):
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
