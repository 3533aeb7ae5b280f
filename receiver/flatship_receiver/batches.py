"""What was written to a disk and not flushed yet, and how the journal is told. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE

FLUSH_DELAY: Final = 0.5  # seconds that a written chunk waits for company
# Until it is answered for what it had the receiver take from its images, a sender does not end its
# pass. Where such a chunk was written, and no other comes, a flush is what is waited for.
GUESS_DELAY: Final = 0.1  # seconds


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


class Unflushed:
    """What was written to a disk since the last flush began, and when the next one is due.

    Args:
        enough: Bytes that are flushed without delay.
    """

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self._written: list[Written] = []
        self._since = 0.0
        self._guessed_at: float | None = None  # when the last guess was written
        self.size = 0
        """Bytes of chunks among it."""

    def add(self, written: Written, now: float, *, guess: bool = False) -> bool:
        """Note what was written.

        Args:
            written: Chunks or zeros.
            now: Seconds of a steady clock, as everywhere here.
            guess: It was put together with what images hold.

        Returns:
            Whether a flush may be due sooner than was said before.
        """
        sooner = not self._written or (guess and self._guessed_at is None)
        if not self._written and not written.again:
            self._since = now
        self._written.append(written)
        if guess:
            self._guessed_at = now
        if written.digest is not None:
            self.size += written.length
        return sooner or written.again or self.size >= self._enough

    def flush_at(self) -> float | None:
        """When a flush is due; None while nothing waits for one."""
        if not self._written:
            return None
        if self.size >= self._enough:
            return self._since
        latest = self._since + FLUSH_DELAY
        return latest if self._guessed_at is None else min(latest, self._guessed_at + GUESS_DELAY)

    def take(self) -> list[Written]:
        """All of it, in the order of the disk, so that neighbours are re-read together."""
        taken, self._written = self._written, []
        self.size, self._guessed_at = 0, None
        return sorted(taken, key=lambda item: item.offset)
