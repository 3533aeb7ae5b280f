"""What a receiver says it holds of a disk, so that only the rest is sent."""

import tempfile
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE, DIGEST_SIZE
from flatship_protocol.extents import ExtentSet
from flatship_protocol.messages import Held

_IN_MEMORY: Final = 4 << 20  # bytes of digests; what is more goes to a file without a name


class HeldChunks:
    """Digests of the chunks that a receiver has on stable storage, by index.

    It is the sender's reading of the source that decides: a chunk is left out
    only if it was read, or is a hole, and is what the receiver says it has.
    Memory: bounded, whatever the disk; a bit of it for each run of chunks.
    """

    def __init__(self) -> None:
        self._zeros = ExtentSet()
        self._others = ExtentSet()  # both in chunks
        self._digests: tempfile.SpooledTemporaryFile[bytes] | None = (
            None  # made for the first one, for most disks never
        )
        self.complete = False
        """Whether the receiver has said all."""

    def take(self, message: Held) -> None:
        """Note what one message says."""
        self.complete = message.last
        if message.zeros:
            self._zeros.add(message.first, message.count)
        elif message.count:
            self._others.add(message.first, message.count)
            at = message.first * DIGEST_SIZE
            if self._digests is None:  # not in a with block: it lives until ``close``
                self._digests = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
            if at + len(message.digests) > _IN_MEMORY:
                # Not left to the write: in memory that would fill all before it with zeros first.
                self._digests.rollover()
            self._digests.seek(at)
            self._digests.write(message.digests)

    @property
    def has_data(self) -> bool:
        """Whether the receiver holds anything that is not zeros."""
        return self._others.total > 0

    def digest(self, index: int) -> bytes | None:
        """The digest of a chunk held that is not zeros; None for all others."""
        if self._digests is None or not self._others.covers(index, 1):
            return None
        self._digests.seek(index * DIGEST_SIZE)
        return self._digests.read(DIGEST_SIZE)

    def are_zeros(self, offset: int, length: int) -> bool:
        """Whether a range, in bytes of whole chunks, is held and zeros."""
        return self._zeros.covers(offset // CHUNK_SIZE, -(-length // CHUNK_SIZE))

    def overlaps(self, offset: int, length: int) -> bool:
        """Whether any chunk of a range, in bytes of whole chunks, is held, whatever is in it."""
        first, count = offset // CHUNK_SIZE, -(-length // CHUNK_SIZE)
        return self._others.overlaps(first, count) or self._zeros.overlaps(first, count)

    def data_within(self, offset: int, length: int) -> int:
        """Bytes of a range, from the start of a chunk, that are held and not zeros."""
        first, count = offset // CHUNK_SIZE, -(-length // CHUNK_SIZE)
        absent = sum(chunks for _, chunks in self._others.gaps(first, count))
        held = (count - absent) * CHUNK_SIZE
        last_is_short = length % CHUNK_SIZE and self._others.covers(first + count - 1, 1)
        return held - (CHUNK_SIZE - length % CHUNK_SIZE) if last_is_short else held

    def close(self) -> None:
        """Let go of the digests."""
        if self._digests is not None:
            self._digests.close()
