"""What a command remembers of one disk: the index of its image, over all of its sessions."""

from flatship_sender.copies import Copies
from flatship_sender.page_index import PageIndex
from flatship_sender.page_indexes import PageIndexes, Place
from flatship_sender.references import References


class DiskMemory:
    """Opens the index of a disk's image when the receiver has said which that is.

    ``copies`` touches no file; all else is for worker threads, one at a time.

    Args:
        indexes: Where it is kept.
        place: Where the disk goes.
        size: Bytes of the disk.
    """

    def __init__(self, indexes: PageIndexes, place: Place, size: int) -> None:
        self._indexes = indexes
        self._place = place
        self._size = size
        self._image: bytes | None = None
        self._index: PageIndex | None = None
        self._searches = False

    def open(self, image: bytes, *, make: bool) -> PageIndex | None:
        """The index of an image; None if there is none, or none can be had.

        Args:
            image: The uuid that the receiver gave it.
            make: Whether to begin an index if there is none.
        """
        if image != self._image:
            self.close()
            self._image = image
            self._index = self._indexes.open(self._place, image, self._size, make=make)
        return self._index

    def is_any_known(self) -> bool:
        """Whether there may be something to copy: pages were remembered before."""
        return self._indexes.is_any_known(self._place)

    def search(self) -> None:
        """Have chunks find pages, those of the image that is open among them. Idempotent.

        It takes a tenth of a second, and memory; until then ``copies`` has nothing.
        """
        if self._index is not None and not self._searches:
            self._searches = True
            self._indexes.search(self._place, self._index)

    def copies(self, references: References) -> Copies | None:
        """What finds pages to copy for the image that is open, in a session that begins now.

        Returns:
            None if nothing is looked for.
        """
        known = self._indexes.known(self._place)
        if known is None or self._index is None or not self._searches:
            return None
        known.begin(self._index)
        return Copies(known, references, self._index)

    def published(self) -> None:
        """The image stands as the disk: others that stood or were begun there are no more."""
        if self._image is not None:
            self._indexes.published(self._place, self._image)

    def give_up(self, images: list[bytes]) -> None:
        """Nothing is to be copied from these images any more."""
        for image in images:
            self._indexes.forget(self._place, image)

    def forget(self) -> None:
        """Nobody goes on with the image, and nothing is copied from it."""
        if self._index is not None:
            self._index.remove()

    def close(self) -> None:
        """Write what is to be remembered. Idempotent."""
        if self._index is not None:
            self._index.close()
        self._index = self._image = None
        self._searches = False
