"""Files with secrets: whoever else can read one has the secret, so such a file is refused."""

import os
import stat
from pathlib import Path
from typing import Final

from flatship_service.errors import KeyFileError

_GROUP_AND_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_GROUP_WRITES_AND_OTHERS: Final = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


def read_secret_file(path: Path, what: str, most: int, *, group_may_read: bool = False) -> bytes:
    """Return what a secret file holds, at most ``most`` bytes of it.

    Args:
        path: The file.
        what: What it is, for messages: ``key file``.
        most: Bytes.
        group_may_read: For files that root writes and the daemon's group reads.

    Raises:
        KeyFileError: Missing, unreadable, not a regular file, or readable by others; says which
            chmod to run.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise KeyFileError(f"{what} {path} does not exist") from error
    except OSError as error:
        raise KeyFileError(f"{what} {path}: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name, which a configuration can spell
        raise KeyFileError(f"{what} {str(path)!r}: {error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{what} {path} is not a regular file")
        if status.st_mode & (_GROUP_WRITES_AND_OTHERS if group_may_read else _GROUP_AND_OTHERS):
            mode = 640 if group_may_read else 600
            raise KeyFileError(
                f"{what} {path} has mode {stat.S_IMODE(status.st_mode):04o}, so that others "
                f"can use what is in it; if they have not read it, run: chmod {mode} {path}"
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    except OSError as error:
        raise KeyFileError(f"{what} {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
