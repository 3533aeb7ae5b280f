"""Images that chunks are copied from: those of one sender, wherever they stand.

A sender names an image by its uuid. It gets those that bear its own key and no others: what
it does not know, what is another's, what is gone and what cannot be read are all alike, so
that nobody learns what another has stored. What is read proves nothing; ``store`` does.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from flatship_protocol.errors import TransferError
from flatship_receiver.datastores.base import Image, View
from flatship_receiver.facilities import Facilities, Store
from flatship_receiver.journal import ImageRecord, ImageState, Journal

MAX_VIEWS: Final = 32  # open at once over all senders; see ``local_view.MAX_FILES``
MAX_AGE: Final = 10.0  # seconds that a view may keep the space of a disk that was removed


@dataclass(frozen=True, slots=True)
class ImageSource:
    """What ``store`` copies from; ``size`` is the disk's, in bytes."""

    size: int
    read: Callable[[memoryview, int], None]


@dataclass(slots=True)
class _Viewed:
    """A view, how many chunks are being copied from it, and when it was opened.

    A retired one is lent no more, and closed by its last user.
    """

    view: View
    source: ImageSource
    opened: float
    users: int = 0
    retired: bool = False


class CopySources:
    """What the senders of a receiver may copy from.

    Args:
        stores: Datastores by name.
        facilities: Shared by all disks.
        clock: Seconds, any steady clock.
    """

    def __init__(
        self,
        stores: Mapping[str, Store],
        facilities: Facilities,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stores = stores
        self._shared = facilities
        self._clock = clock
        self._under_way: dict[tuple[bytes, bytes], ImageSource] = {}  # by sender's key and uuid
        self._views: dict[tuple[bytes, bytes], _Viewed] = {}  # the least recently used first

    def begin(self, peer: bytes, uuid: bytes, image: Image, size: int) -> None:
        """An image is being written; what it holds may be copied by its sender."""
        self._under_way[peer, uuid] = ImageSource(size, image.read_latest)

    def end(self, peer: bytes, uuid: bytes) -> None:
        """An image is about to be let go of. Idempotent."""
        self._under_way.pop((peer, uuid), None)

    @asynccontextmanager
    async def lend(
        self, peer: bytes, references: Mapping[int, bytes]
    ) -> AsyncIterator[Mapping[int, ImageSource]]:
        """The sources of a chunk's copies, by reference; none where there is nothing to be had.

        Args:
            peer: The static key of the chunk's sender.
            references: The uuids that its references mean.

        Raises:
            JournalError: The record could not be asked.
        """
        lent: list[_Viewed] = []
        sources: dict[int, ImageSource] = {}
        try:
            for reference, uuid in references.items():
                key = (peer, uuid)
                source = self._under_way.get(key)
                if source is None and (viewed := await self._viewed(key)) is not None:
                    viewed.users += 1
                    lent.append(viewed)
                    source = viewed.source
                if source is not None:
                    sources[reference] = source
            yield sources
        finally:
            for viewed in lent:
                viewed.users -= 1
                if viewed.retired and not viewed.users:
                    viewed.view.close()

    def tidy(self) -> None:
        """Retire what was open for long; called every few seconds."""
        for key, viewed in list(self._views.items()):
            if self._clock() - viewed.opened > MAX_AGE:
                self._retire(key)

    def leave(self, peer: bytes) -> None:
        """A session of that sender has ended; another one opens what it needs anew."""
        for key in list(self._views):
            if key[0] == peer:
                self._retire(key)

    async def _viewed(self, key: tuple[bytes, bytes]) -> _Viewed | None:
        """An image that is not being written, open; None if it cannot be had."""
        self.tidy()
        if (viewed := self._views.pop(key, None)) is not None:
            self._views[key] = viewed  # the most recently used
            return viewed
        record = await self._shared.journal.run(Journal.image_of, *key)
        if record is None or record.state is ImageState.DISCARDED:
            return None
        view = await self._open(record)
        if view is None:
            return None
        if key in self._views or not self._make_room():  # another chunk was sooner, or all in use
            view.close()
            return self._views.get(key)
        source = ImageSource(record.size, view.read)
        viewed = self._views[key] = _Viewed(view, source, self._clock())
        return viewed

    async def _open(self, record: ImageRecord) -> View | None:
        store = self._stores.get(record.datastore)
        if store is None:
            return None
        place = (record.vm, record.disk, record.capacity, record.uuid)
        try:
            return await self._shared.slow_workers.run(store.datastore.view, *place)
        except TransferError:
            return None  # locked by a host, being written, not mounted: it comes whole

    def _make_room(self) -> bool:
        for key, viewed in list(self._views.items()):
            if len(self._views) < MAX_VIEWS:
                break
            if not viewed.users:
                self._retire(key)
        return len(self._views) < MAX_VIEWS

    def _retire(self, key: tuple[bytes, bytes]) -> None:
        viewed = self._views.pop(key)
        viewed.retired = True
        if not viewed.users:
            viewed.view.close()
