"""How a process ends although a thread of it never will."""

import os
import sys
from typing import NoReturn

from flatship_service.cli import tell


def leave_without_threads(reason: str, exit_code: int) -> NoReturn:
    """Say why, and end the process at once, as a second signal would.

    A thread that waits for a file server which is gone cannot be cancelled, and
    an interpreter that ends in good order waits for it. What has to outlast
    the process must be on stable storage already.
    """
    tell(f"error: {reason}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
