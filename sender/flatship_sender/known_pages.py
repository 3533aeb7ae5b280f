"""Finds pages of a chunk that the receiver has elsewhere: those that this sender sent there.

The table of anchors guesses in which chunk a page is; the slot of that chunk confirms it, and
the run is extended to both sides by comparing fingerprints, into neighbouring chunks too.
Only every other page is entered into the table: with extension that finds every run of two
pages, and half of the single ones. Pages that were copied themselves are entered now and then,
so that they are found when the first to have them is forgotten.

What is found is likely and no more: the receiver judges by the digest of the whole chunk.
"""

import threading
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_sender.anchors import MAX_NUMBER, Anchors, Numbers, anchored, as_numbers, table_size
from flatship_sender.page_index import PageIndex
from flatship_sender.page_slots import Slot, Slots, derived

PAGES: Final = CHUNK_SIZE // PAGE_SIZE  # in a chunk
MOST_GUESSES: Final = 4  # chunks that are looked at for one page
_CACHED: Final = 1024  # slots kept open; 2 KiB each
_BATCH: Final = 64  # chunks entered at once when a table is made


@dataclass(frozen=True, slots=True)
class Found:
    """A run of pages of a chunk that an image has, too.

    Attributes:
        first: Its first page in the chunk.
        count: How many pages.
        image: The uuid of the image.
        source: The first of them there, in pages from the start of its disk.
    """

    first: int
    count: int
    image: bytes
    source: int


class KnownPages:
    """All that is known of the pages in one store. ``find`` and ``add`` are for worker threads.

    Args:
        path: Of the table; beside it are the indexes, named by their images.
        images: The indexes that there are.
        secret: 32 bytes that seal them.
        zero_page: The fingerprint of a page of zeros.
        room: Says how many bytes of so many a table may take.
    """

    def __init__(
        self,
        path: Path,
        images: Iterable[Slots],
        secret: bytes,
        zero_page: bytes,
        room: Callable[[int], int],
    ) -> None:
        self._path = path
        self._key_id = derived("flatship/1 page index key", secret)[:8]
        self._zero = as_numbers(zero_page)[0]
        self._room = room
        self._turn = threading.Lock()  # for what follows
        self._images = {each.heading.first: each for each in images}
        self._firsts = sorted(self._images)
        self._cache: OrderedDict[int, Numbers | None] = OrderedDict()
        self._writers: list[PageIndex] = []
        self._avoided: set[int] = set()  # numbers of chunks that are about to be others
        self._growing = threading.Lock()
        self._late: list[tuple[int, Slot]] | None = None  # entered while a new table is made
        self._may_grow = True
        self._anchors = Anchors.open(path, self._key_id)
        if self._anchors is None:
            self._grow(self._estimate())

    @property
    def any(self) -> bool:
        """Whether there is anything to be found."""
        return self._anchors is not None and self._anchors.taken > 0

    def add(self, index: PageIndex, slots: Slots) -> None:
        """Know an image that is sent now, too: what is written to its index is found at once."""
        first = index.heading.first
        with self._turn:
            if first not in self._images:
                insort(self._firsts, first)
            self._images[first] = slots
            if index not in self._writers:
                self._writers.append(index)
        index.on_written = lambda slots: self._enter([(first + at, slot) for at, slot in slots])

    def begin(self, index: PageIndex) -> None:
        """A session begins: no chunk of the image is on its way."""
        first = index.heading.first
        last = first + index.heading.chunks
        self._avoided = {each for each in self._avoided if not first <= each < last}

    def forget(self, image: bytes) -> None:
        """Find nothing in an image any more."""
        with self._turn:
            for first, slots in list(self._images.items()):
                if slots.heading.image == image:
                    del self._images[first]
                    self._firsts.remove(first)
            self._cache.clear()

    def forget_file(self, path: Path) -> None:
        """Find nothing any more in the image whose index was removed."""
        with suppress(ValueError):  # it is not named by an image
            self.forget(bytes.fromhex(path.stem))

    def avoid(self, index: PageIndex, chunk: int) -> None:
        """A chunk is on its way, and where it goes it may take the place of what is known."""
        self._avoided.add(index.heading.first + chunk)

    def trust(self, index: PageIndex, chunk: int) -> None:
        """A chunk is at the receiver as it was sent last."""
        self._avoided.discard(index.heading.first + chunk)

    def distrust(self, found: Found) -> None:
        """The receiver does not have there what it should have."""
        with self._turn:
            for first, slots in self._images.items():
                if slots.heading.image == found.image:
                    last = (found.source + found.count - 1) // PAGES
                    self._avoided.update(range(first + found.source // PAGES, first + last + 1))

    def find(self, pages: bytes, free: Sequence[bool], index: PageIndex, chunk: int) -> list[Found]:
        """Find the pages of a chunk that are known, as long runs as can be had.

        Args:
            pages: Their fingerprints.
            free: For each of them, whether it may be copied.
            index: Of the image that the chunk is of.
            chunk: Its number there; it is no source of its own pages.

        Returns:
            Runs in order, none of which overlap.
        """
        for writer in self._writers:
            writer.write_noted()
        if self._anchors is None:
            return []
        numbers, may = as_numbers(pages), np.array(free, bool)
        asked = np.flatnonzero(may & (numbers != self._zero))
        hits = self._anchors.find(numbers[asked])
        search = _Search(numbers, may, self._reader(index.heading.first + chunk))
        found: list[Found] = []
        end = 0
        for which, guesses in groupby(hits, itemgetter(0)):
            page = int(asked[which])
            if page < end:
                continue
            runs = (search.run(page, end, number) for _, number in islice(guesses, MOST_GUESSES))
            best = max((run for run in runs if run), key=lambda run: run[1], default=None)
            if best is not None and (known := self._located(*best)) is not None:
                found.append(known)
                end = known.first + known.count
        return found

    def close(self) -> None:
        """Let go of all files."""
        with self._turn:
            self._images.clear()
            self._firsts.clear()
            self._writers.clear()
        if self._anchors is not None:
            self._anchors.close()
            self._anchors = None

    def _located(self, first: int, count: int, number: int, page: int) -> Found | None:
        """A run that begins with a page of a chunk of the store, as one of an image."""
        image = self._image(number)
        if image is None:
            return None
        heading = image.heading
        return Found(first, count, heading.image, (number - heading.first) * PAGES + page)

    def _image(self, number: int) -> Slots | None:
        with self._turn:
            at = bisect_right(self._firsts, number) - 1
            image = self._images[self._firsts[at]] if at >= 0 else None
        if image is None or number - image.heading.first >= image.heading.chunks:
            return None
        return image

    def _reader(self, own: int) -> Callable[[int], Numbers | None]:
        """What tells the fingerprints of a chunk, if it may be copied from."""

        def read(number: int) -> Numbers | None:
            return None if number == own or number in self._avoided else self._pages(number)

        return read

    def _pages(self, number: int) -> Numbers | None:
        with self._turn:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
        image = self._image(number)
        try:
            slot = None if image is None else image.read(number - image.heading.first)
        except OSError:
            slot = None
        pages = None if slot is None else as_numbers(slot.pages)
        with self._turn:
            self._cache[number] = pages
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return pages

    def _enter(self, slots: Sequence[tuple[int, Slot]]) -> None:
        """Slots were written."""
        slots = [(number, slot) for number, slot in slots if number <= MAX_NUMBER]
        with self._turn:
            for number, _ in slots:
                self._cache.pop(number, None)
            if self._late is not None:
                self._late += slots
        if self._anchors is None:
            return
        _enter(self._anchors, slots)
        if self._anchors.full and self._may_grow:
            self._grow(self._anchors.taken)

    def _grow(self, anchors: int) -> None:
        """Make a new table of what the slots say; whoever comes meanwhile uses the old one."""
        if not self._growing.acquire(blocking=False):
            return
        try:
            with self._turn:
                images, self._late = list(self._images.values()), []
            size = table_size(anchors)
            fits = self._room(size) >= size
            table = Anchors.make(self._path, self._key_id, anchors) if fits else None
            if table is None:
                self._may_grow = False  # the next command may find room
                return
            for batch in _batches(_all(images)):
                _enter(table, batch)
            with self._turn:
                late, self._late = self._late, None
            _enter(table, late)
            self._anchors = table
        finally:
            self._late = None
            self._growing.release()

    def _estimate(self) -> int:
        """How many anchors the slots may have: every other page of each."""
        chunks = 0
        for image in self._images.values():
            try:
                chunks += sum(1 for _ in image.remembered())
            except OSError:
                continue
        return chunks * PAGES // 2


class _Search:
    """Runs of one chunk's pages in other chunks.

    Args:
        numbers: The chunk's fingerprints.
        may: For each page, whether it may be copied.
        read: Tells the fingerprints of another chunk, by its number.
    """

    def __init__(
        self, numbers: Numbers, may: NDArray[np.bool_], read: Callable[[int], Numbers | None]
    ) -> None:
        self._numbers = numbers
        self._read = read
        barred = np.flatnonzero(~may)
        self._barred = [-1, *barred.tolist(), len(may)]

    def run(self, page: int, lowest: int, number: int) -> tuple[int, int, int, int] | None:
        """The run around a page, if a chunk has it.

        Args:
            page: One that may be copied.
            lowest: The first page that is not taken yet.
            number: Of the chunk that may have it.

        Returns:
            First page and count of the run; the number of a chunk and the page in it where it is.
        """
        there = self._read(number)
        places = [] if there is None else np.flatnonzero(there == self._numbers[page]).tolist()
        if not places:
            return None
        bar = bisect_right(self._barred, page)
        before = self._behind(page, max(lowest, self._barred[bar - 1] + 1), number, places[0])
        after = self._ahead(page, self._barred[bar], number, places[0])
        start = number * PAGES + places[0] - before
        return page - before, before + after, start // PAGES, start % PAGES

    def _ahead(self, page: int, limit: int, number: int, place: int) -> int:
        """How many pages from ``page`` on, before ``limit``, are as those at a place."""
        start = page
        while page < limit and (there := self._read(number)) is not None:
            span = min(limit - page, len(there) - place)
            same = self._numbers[page : page + span] == there[place : place + span]
            alike = span if same.all() else int(same.argmin())
            page += alike
            if alike < span or len(there) < PAGES:
                break
            number, place = number + 1, 0
        return page - start

    def _behind(self, page: int, limit: int, number: int, place: int) -> int:
        """How many pages before ``page``, down to ``limit``, are as those before a place."""
        start = page
        while page > limit:
            if place == 0:
                number, place = number - 1, PAGES
            there = self._read(number) if number >= 0 else None
            if there is None or len(there) < place:
                break
            span = min(page - limit, place)
            same = self._numbers[page - span : page] == there[place - span : place]
            alike = span if same.all() else int(same[::-1].argmin())
            page, place = page - alike, place - alike
            if alike < span:
                break
        return start - page


def _enter(table: Anchors, slots: Sequence[tuple[int, Slot]]) -> None:
    chosen = [(number, anchored(as_numbers(slot.pages), slot.anchors)) for number, slot in slots]
    if chosen:
        numbers = np.concatenate([pages for _, pages in chosen])
        counts = [len(pages) for _, pages in chosen]
        table.enter(numbers, np.repeat(np.array([at for at, _ in chosen], np.uint64), counts))


def _all(images: Iterable[Slots]) -> Iterator[tuple[int, Slot]]:
    """Every slot that opens."""
    for image in images:
        first = image.heading.first
        try:
            for chunk in image.remembered():
                slot = image.read(chunk)
                if slot is not None and first + chunk <= MAX_NUMBER:
                    yield first + chunk, slot
        except OSError:
            continue


def _batches(slots: Iterator[tuple[int, Slot]]) -> Iterator[list[tuple[int, Slot]]]:
    while batch := list(islice(slots, _BATCH)):
        yield batch
