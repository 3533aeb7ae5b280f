"""How much of a file the page cache holds: cachestat(2), Linux 6.5."""

import ctypes
import errno
import os
from typing import Final

_CACHESTAT: Final = 451  # the same on every architecture but alpha
_UNSUPPORTED: Final = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})  # EPERM: seccomp

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Statistics(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


def cached_pages(fd: int, offset: int, length: int) -> int | None:
    """Pages of a range of a file that are in the page cache; None where the kernel cannot say.

    Args:
        fd: A regular file, open.
        offset: Bytes from its start.
        length: Bytes, at least one.

    Raises:
        OSError: As cachestat(2).
    """
    found = _Statistics()
    asked = _Range(offset, length)
    if _syscall(_CACHESTAT, fd, ctypes.byref(asked), ctypes.byref(found), 0) == 0:
        return int(found.cached)
    error = ctypes.get_errno()
    if error in _UNSUPPORTED:
        return None
    raise OSError(error, os.strerror(error))
