"""What has become of each part of a disk, coarse enough to be drawn. Pure.

Either daemon keeps one a disk: the sender from what it reads and what is acknowledged, the
receiver from what it writes, flushes and reads again.
"""

from array import array
from collections.abc import Iterator
from enum import StrEnum
from itertools import groupby
from typing import Final

MAX_CELLS: Final = 1024  # of a disk; its memory and what is sent of it are bounded by that


class MapState(StrEnum):
    """What a byte of a disk may be, by the letter that stands for it."""

    UNREAD = "u"  # nothing is known of it yet
    HOLE = "h"  # never read: the source calls it empty
    ZERO = "z"  # read, and zeros
    HELD = "e"  # the receiver had it before
    KNOWN = "k"  # the receiver copies it from what it has elsewhere
    SENT = "s"  # on its way: not on stable storage
    STORED = "d"  # on stable storage
    PROVEN = "p"  # read again there, and equal


# Where two states have as many bytes of a cell, the one that tells more is drawn.
_STATES: Final = tuple(MapState)


class DiskMap:
    """Counts the bytes of each state, in at most MAX_CELLS cells.

    Memory: 8 KiB for each state that occurs, whatever the disk.

    Args:
        size: Bytes of the disk.
        unit: Bytes; a cell is a whole number of units, but for the last one.
    """

    def __init__(self, size: int, unit: int) -> None:
        units = -(-size // unit)
        self.cell = max(1, -(-units // MAX_CELLS)) * unit
        """Bytes that a cell stands for."""
        self.size = size
        self._count = -(-size // self.cell)
        self._counts: dict[MapState, array[int]] = {}
        self._letters = bytearray()
        self._changed: set[int] = set()
        self.totals: dict[MapState, int] = {}
        """Bytes of the disk in each state; no entry for those that never occurred."""
        self.clear()

    @classmethod
    def of_text(cls, size: int, unit: int, text: str) -> "DiskMap":
        """The map that another process drew: each cell is all of what most of it was.

        Raises:
            ValueError: It is the map of another disk, or no map.
        """
        drawn = cls(size, unit)
        if len(text) != drawn._count:
            raise ValueError(f"a map of {drawn._count} cells was expected, not of {len(text)}")
        offset = 0
        for letter, run in groupby(text):
            length = len(list(run)) * drawn.cell
            drawn.move(offset, length, MapState.UNREAD, MapState(letter))
            offset += length
        return drawn

    def __eq__(self, other: object) -> bool:
        """Whether both are drawn alike."""
        if not isinstance(other, DiskMap):
            return NotImplemented
        return (self.size, self.cell, self.text()) == (other.size, other.cell, other.text())

    __hash__ = None  # type: ignore[assignment]  # it changes

    def clear(self) -> None:
        """Know nothing of the disk any more."""
        self.totals = {MapState.UNREAD: self.size}
        unread = array("Q", [self.cell]) * self._count
        if self._count:
            unread[-1] = self.size - self.cell * (self._count - 1)
        self._counts = {MapState.UNREAD: unread}
        self._letters = bytearray(MapState.UNREAD.encode() * self._count)
        self._changed.clear()

    def move(self, offset: int, length: int, before: MapState, after: MapState) -> int:
        """Note that bytes which were ``before`` are ``after`` now.

        No cell gives more than it has in that state: what is noted twice counts once.

        Returns:
            The bytes that were moved.
        """
        moved = 0
        giving = self._counts.get(before)
        if giving is None or before is after:
            return 0
        taking = self._counts.setdefault(after, array("Q", bytes(8 * self._count)))
        for cell, part in self._parts(offset, length):
            count = min(part, giving[cell])
            if count:
                giving[cell] -= count
                taking[cell] += count
                moved += count
                self._changed.add(cell)
        self.totals[before] -= moved
        self.totals[after] = self.totals.get(after, 0) + moved
        return moved

    def move_all(self, before: MapState, after: MapState) -> int:
        """Note the same of everything that is ``before``."""
        return self.move(0, self.size, before, after)

    def prove(self) -> None:
        """All that the receiver has, since when and however, was read again and is equal."""
        for state in (MapState.STORED, MapState.HELD, MapState.KNOWN):
            self.move_all(state, MapState.PROVEN)

    def total(self, *states: MapState) -> int:
        """Bytes of the disk that are in one of these states."""
        return sum(self.totals.get(state, 0) for state in states)

    def text(self) -> str:
        """One letter a cell: the state that most of its bytes are in."""
        counts = [(state, self._counts[state]) for state in _STATES if state in self._counts]
        for cell in self._changed:
            most, letter = 0, MapState.UNREAD
            for state, column in counts:
                if column[cell] >= most and column[cell]:
                    most, letter = column[cell], state
            self._letters[cell] = ord(letter)
        self._changed.clear()
        return self._letters.decode()

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The cells that a range touches, each with how many of its bytes."""
        end = min(offset + length, self.size)
        while offset < end:
            cell = offset // self.cell
            part = min((cell + 1) * self.cell, end) - offset
            yield cell, part
            offset += part
