"""Finds zeros in what was read, at a few microseconds a chunk.

A chunk of data costs some 500 µs to digest, compress and seal, so looking for
zero pages in it may cost about 15. Comparing every page with zeros in Python
costs 100. Instead, a few bytes of each page are gathered by strided slices, which
are C loops, and only the pages whose samples are all zero are compared.
"""

import ctypes
import re
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE

_ZEROS: Final = ctypes.create_string_buffer(CHUNK_SIZE)
_ZEROS_ADDRESS: Final = ctypes.addressof(_ZEROS)
_SIGNATURE: Final = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

# The same function twice: letting go of the GIL pays for a chunk, and not for a page.
_compare_chunk: Final = ctypes.CDLL(None).memcmp
_compare_chunk.argtypes = _SIGNATURE
_compare_page: Final = ctypes.PyDLL(None).memcmp
_compare_page.argtypes = _SIGNATURE

# Places in a page, as shares of it. Headers are at the front, directory entries and
# records grow from the back, and odd ones fall into what alignment does not leave zero.
_SAMPLES: Final = (0.0, 0.0103, 0.0635, 0.2573, 0.5022, 0.7613, 0.9988)
_ZERO_SAMPLES: Final = re.compile(rb"\0+")


def is_zero(buffer: memoryview) -> bool:
    """Whether every byte is zero; ends at the first that is not.

    Args:
        buffer: Writable, contiguous, format "B".
    """
    length = len(buffer)
    if not length:
        return True
    address = _address(buffer)
    if not _is_zero_at(address, min(PAGE_SIZE, length)):  # as most; the GIL is kept for so little
        return False
    for start in range(0, length, CHUNK_SIZE):
        if _compare_chunk(address + start, _ZEROS_ADDRESS, min(CHUNK_SIZE, length - start)):
            return False
    return True


def zero_runs(buffer: memoryview, page: int = PAGE_SIZE) -> list[tuple[int, int]]:
    """Find the pages of ``buffer`` that are zero.

    Args:
        buffer: Writable, contiguous, format "B", at most ``CHUNK_SIZE`` bytes. The
            last page may be short.
        page: Bytes.

    Returns:
        Runs as ``(first page, count)``, in order; no two of them touch.
    """
    length = len(buffer)
    if length > CHUNK_SIZE:
        raise ValueError(f"{length} bytes are more than a chunk ({CHUNK_SIZE})")
    whole = length // page
    address = _address(buffer) if length else 0
    runs: list[tuple[int, int]] = []
    for candidate in _ZERO_SAMPLES.finditer(_samples(buffer, whole, page)):
        first, end = candidate.span()
        if _is_zero_at(address + first * page, (end - first) * page):
            runs.append((first, end - first))
        else:
            for index in range(first, end):
                if _is_zero_at(address + index * page, page):
                    _append(runs, index)
    if length % page and _is_zero_at(address + whole * page, length % page):
        _append(runs, whole)
    return runs


def _samples(buffer: memoryview, pages: int, page: int) -> bytes:
    """One byte a page: zero if all samples of that page are. Ends when no page is in question."""
    body = buffer[: pages * page]
    merged = 0
    samples = b""
    for share in _SAMPLES:
        merged |= int.from_bytes(body[int(share * page) :: page].tobytes(), "little")
        samples = merged.to_bytes(pages, "little")
        if 0 not in samples:
            break
    return samples


def _append(runs: list[tuple[int, int]], index: int) -> None:
    if runs and sum(runs[-1]) == index:
        runs[-1] = (runs[-1][0], runs[-1][1] + 1)
    else:
        runs.append((index, 1))


def _is_zero_at(address: int, length: int) -> bool:
    return not _compare_page(address, _ZEROS_ADDRESS, length)


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
