"""What was written to a disk and not flushed yet, and how the journal is told. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flatship_protocol.constants import CHUNK_SIZE


@dataclass(frozen=True, slots=True)
class Written:
    """A range that was written and not flushed.

    ``digest`` is None for zeros, and for what came ``again`` and is known already.
    """

    offset: int
    length: int
    digest: bytes | None
    again: bool = False


def runs(batch: Iterable[Written]) -> Iterator[tuple[int, int, bytes | None]]:
    """What was written anew, in order, as runs of chunks for ``Journal.hold``."""
    start = count = 0
    digests: list[bytes] = []
    for item in batch:
        if item.again:
            continue
        index = item.offset // CHUNK_SIZE
        if item.digest is None:
            yield index, -(-item.length // CHUNK_SIZE), None
            continue
        if digests and index != start + count:
            yield start, count, b"".join(digests)
            digests = []
        if not digests:
            start, count = index, 0
        digests.append(item.digest)
        count += 1
    if digests:
        yield start, count, b"".join(digests)
