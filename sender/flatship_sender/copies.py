"""What of a chunk the receiver is to copy from what it has, and from where."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatship_protocol.constants import CHUNK_SIZE
from flatship_sender.page_index import PageIndex
from flatship_sender.references import References

if TYPE_CHECKING:
    from flatship_sender.known_pages import Found, KnownPages


@dataclass(frozen=True, slots=True)
class Copy:
    """A run of pages that is copied; ``reference`` is the number of ``found.image``."""

    found: "Found"
    reference: int


@dataclass(frozen=True, slots=True)
class Copies:
    """Finds what a disk's chunks may copy, in one session."""

    known: "KnownPages"
    references: References
    index: PageIndex

    def find(self, pages: bytes, free: Sequence[bool], chunk: int) -> tuple[Copy, ...]:
        """Runs of a chunk's pages that the receiver has: see ``KnownPages.find``."""
        found = self.known.find(pages, free, self.index, chunk)
        numbered = [(each, self.references.number(each.image)) for each in found]
        return tuple(Copy(each, number) for each, number in numbered if number is not None)

    def underway(self, offset: int) -> None:
        """A chunk goes out: what stood in its place may be no more when the next one comes."""
        self.known.avoid(self.index, offset // CHUNK_SIZE)

    def settled(self, offsets: Iterable[int]) -> None:
        """Chunks are at the receiver as they were sent."""
        for offset in offsets:
            self.known.trust(self.index, offset // CHUNK_SIZE)

    def wanted(self, copies: Iterable[Copy]) -> list[bytes]:
        """The receiver does not have all of these; returns the images to be given up for it."""
        for copy in copies:
            self.known.distrust(copy.found)
        return self.references.wanted({copy.found.image for copy in copies})
