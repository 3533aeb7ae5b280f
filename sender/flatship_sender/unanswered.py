"""Chunks of one disk that were sent and not answered yet, and what depends on the answer. Pure.

The receiver answers by STORED, or by WANT where it could not put a chunk together from
what it has. Only then is it certain what the chunk is in this pass: one that is wanted is
read again, and may be another by then, of a source that is in use.
"""

from collections import deque
from collections.abc import Iterable

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.digest import Manifest
from flatship_sender.page_index import PageIndex
from flatship_sender.plan import ReadChunk
from flatship_sender.prepare import Laid


class Unanswered:
    """What waits for the receiver's answer.

    Args:
        size: Bytes of the disk.
        manifest: Gets the digest of each chunk once it is certain.
        index: Gets the pages of each chunk once the receiver has it.
    """

    def __init__(self, size: int, manifest: Manifest, index: PageIndex | None) -> None:
        self._size = size
        self._manifest = manifest
        self._index = index
        self._pages: dict[int, tuple[bytes, bytes]] = {}  # offset: digest, fingerprints
        self._patches: dict[int, tuple[bytes, int]] = {}  # offset: digest, bytes kept
        self._wanted: deque[ReadChunk] = deque()
        self._whole: set[int] = set()

    @property
    def uncertain(self) -> bool:
        """Whether the receiver may yet want a chunk whole."""
        return bool(self._patches)

    @property
    def wanted(self) -> bool:
        """Whether there are chunks to be sent whole."""
        return bool(self._wanted)

    def next_wanted(self) -> ReadChunk:
        """The next of the chunks to be sent whole."""
        return self._wanted.popleft()

    def must_be_whole(self, offset: int) -> bool:
        """Whether the receiver can keep nothing of a chunk."""
        return offset in self._whole

    def sent(self, laid: Laid) -> None:
        """A chunk goes out."""
        assert laid.digest is not None
        if laid.pages is not None:
            self._pages[laid.work.offset] = (laid.digest, laid.pages)
        if laid.kept:
            self._patches[laid.work.offset] = (laid.digest, laid.kept)
        else:
            self._manifest.set_chunk(laid.work.offset // CHUNK_SIZE, laid.digest)

    def stored(self, offsets: Iterable[int]) -> None:
        """Chunks are on the receiver's stable storage, as they were sent."""
        for offset in offsets:
            number = offset // CHUNK_SIZE
            if offset in self._patches:
                self._manifest.set_chunk(number, self._patches.pop(offset)[0])
            if offset in self._pages and self._index is not None:
                self._index.note(number, *self._pages.pop(offset))

    def take_back(self, offset: int, length: int) -> list[int]:
        """The receiver wants what it was to keep a part of: it goes whole.

        Returns:
            For each chunk in that range, how many bytes it was to keep.
        """
        kept = []
        for start in [each for each in self._patches if offset <= each < offset + length]:
            kept.append(self._patches.pop(start)[1])
            self._pages.pop(start, None)
            self._whole.add(start)
            self._wanted.append(ReadChunk(start, min(CHUNK_SIZE, self._size - start)))
        return kept
