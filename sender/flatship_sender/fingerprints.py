"""Keyed fingerprints of pages: which ones of a chunk are others than they were, or known already.

They need not be unforgeable, for the digest of the whole chunk judges what was made with
their help; but a guest that writes to the disk must not be able to make two pages alike.
GMAC is a universal hash: without the key two pages agree with a probability of 257 in 2^128,
and truncated, of 257 in 2^48. That holds only as long as nobody sees a tag, and what finds known
pages shows parts of fingerprints (``anchors``). So each tag is enciphered before it is cut short:
what is left of it tells whether two pages are equal, and nothing of the key. All of it takes
0.3 ms for a chunk, where keyed BLAKE3 takes 0.6.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from flatship_protocol.constants import PAGE_SIZE

FINGERPRINT_SIZE: Final = 6  # bytes
KEYS_SIZE: Final = 64  # bytes: one key to hash with, one to encipher with
_KEY_SIZE: Final = 32
_TAG_SIZE: Final = 16
_NONCE: Final = bytes(12)  # one for all: equal pages are to have equal fingerprints


def fingerprints(keys: bytes, data: memoryview) -> bytes:
    """Fingerprints of the pages of ``data``, in order; the last page may be short.

    Args:
        keys: 64 bytes, used for nothing else.
        data: Contiguous, format "B".
    """
    tag = AESGCM(keys[:_KEY_SIZE]).encrypt  # one a call: it is not said to be safe in threads
    tags = b"".join(
        tag(_NONCE, b"", data[at : at + PAGE_SIZE]) for at in range(0, len(data), PAGE_SIZE)
    )
    # Block by block: each tag is one, and equal ones are to stay equal.
    enciphered = Cipher(AES(keys[_KEY_SIZE:]), ECB()).encryptor().update(tags)  # noqa: S305  # a block a tag
    cut = bytearray(len(tags) // _TAG_SIZE * FINGERPRINT_SIZE)
    for byte in range(FINGERPRINT_SIZE):
        cut[byte::FINGERPRINT_SIZE] = enciphered[byte::_TAG_SIZE]
    return bytes(cut)


def changed_pages(before: bytes, after: bytes) -> list[int]:
    """Numbers of the pages whose fingerprints differ, in order.

    Raises:
        ValueError: They are not of as many pages.
    """
    if len(before) != len(after):
        raise ValueError(f"fingerprints of {len(before)} and {len(after)} bytes; one is longer")
    starts = range(0, len(after), FINGERPRINT_SIZE)
    return [
        number
        for number, at in enumerate(starts)
        if before[at : at + FINGERPRINT_SIZE] != after[at : at + FINGERPRINT_SIZE]
    ]


def runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as runs of neighbours: first, count."""
    for _, run in groupby(enumerate(numbers), lambda item: item[1] - item[0]):
        first, *others = (number for _, number in run)
        yield first, 1 + len(others)
