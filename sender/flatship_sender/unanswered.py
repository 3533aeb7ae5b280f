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
from flatship_sender.page_slots import Slot
from flatship_sender.plan import ReadChunk
from flatship_sender.prepare import Laid


class Unanswered:
    """What waits for the receiver's answer.

    Args:
        size: Bytes of the disk.
        manifest: Gets the digest of each chunk once it is certain.
    """

    def __init__(self, size: int, manifest: Manifest) -> None:
        self._size = size
        self._manifest = manifest
        self.index: PageIndex | None = None
        """Gets the pages of each chunk once the receiver has it."""
        self._slots: dict[int, Slot] = {}  # by offset
        self._guesses: dict[int, Laid] = {}  # by offset; the receiver may yet want them whole
        self._wanted: deque[ReadChunk] = deque()
        self._whole: set[int] = set()

    @property
    def uncertain(self) -> bool:
        """Whether the receiver may yet want a chunk whole."""
        return bool(self._guesses)

    @property
    def wanted(self) -> bool:
        """Whether there are chunks to be sent whole."""
        return bool(self._wanted)

    def next_wanted(self) -> ReadChunk:
        """The next of the chunks to be sent whole."""
        return self._wanted.popleft()

    def must_be_whole(self, offset: int) -> bool:
        """Whether the receiver has nothing of a chunk."""
        return offset in self._whole

    def sent(self, laid: Laid) -> None:
        """A chunk goes out."""
        assert laid.digest is not None
        offset = laid.work.offset
        if laid.slot is not None:
            self._slots[offset] = laid.slot
        if laid.is_guess:
            self._guesses[offset] = laid
        else:
            self._manifest.set_chunk(offset // CHUNK_SIZE, laid.digest)

    def stored(self, offsets: Iterable[int]) -> list[Laid]:
        """Chunks are on the receiver's stable storage, as they were sent.

        Returns:
            Those of them that it put together from what it had.
        """
        guessed = []
        for offset in offsets:
            number = offset // CHUNK_SIZE
            if offset in self._guesses:
                guessed.append(laid := self._guesses.pop(offset))
                assert laid.digest is not None
                self._manifest.set_chunk(number, laid.digest)
            if offset in self._slots and self.index is not None:
                self.index.note(number, self._slots.pop(offset))
        return guessed

    def take_back(self, offset: int, length: int) -> list[Laid]:
        """The receiver wants what it was to have a part of: it goes whole.

        Returns:
            The chunks in that range, as they were sent.
        """
        taken = []
        for start in [each for each in self._guesses if offset <= each < offset + length]:
            taken.append(self._guesses.pop(start))
            self._slots.pop(start, None)
            self._whole.add(start)
            self._wanted.append(ReadChunk(start, min(CHUNK_SIZE, self._size - start)))
        return taken
