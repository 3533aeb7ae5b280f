"""Keyed fingerprints of pages: which ones of a chunk are others than they were.

They need not be unforgeable, for the digest of the whole chunk judges what was made with
their help; but a guest that writes to the disk must not be able to make two pages alike.
GMAC, truncated, is a universal hash: without the key two pages agree with a probability
of 257 in 2^64. That holds only as long as nobody sees the fingerprints, so they are kept sealed
(``page_index``). It takes 0.25 ms for a chunk, where keyed BLAKE3 takes 0.6.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flatship_protocol.constants import PAGE_SIZE

FINGERPRINT_SIZE: Final = 8  # bytes
_NONCE: Final = bytes(12)  # one for all: equal pages are to have equal fingerprints


def fingerprints(key: bytes, data: memoryview) -> bytes:
    """Fingerprints of the pages of ``data``, in order; the last page may be short.

    Args:
        key: 32 bytes, used for nothing else.
        data: Contiguous, format "B".
    """
    tag = AESGCM(key).encrypt  # one a call: it is not said to be safe in several threads
    return b"".join(
        tag(_NONCE, b"", data[at : at + PAGE_SIZE])[:FINGERPRINT_SIZE]
        for at in range(0, len(data), PAGE_SIZE)
    )


def changed_pages(before: bytes, after: bytes) -> list[int]:
    """Numbers of the pages whose fingerprints differ, in order.

    Raises:
        ValueError: They are not of as many pages.
    """
    pairs = zip(memoryview(before).cast("Q"), memoryview(after).cast("Q"), strict=True)
    return [number for number, (then, now) in enumerate(pairs) if then != now]


def runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as runs of neighbours: first, count."""
    for _, run in groupby(enumerate(numbers), lambda item: item[1] - item[0]):
        first, *others = (number for _, number in run)
        yield first, 1 + len(others)
