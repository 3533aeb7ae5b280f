"""What a device may hold after the power failed at some point of its log.

All that was flushed, and of the rest any part: whole requests may be missing, whatever came
after them, and of a request any of its sectors. The request under way may have begun.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from crash.write_log import DISCARD, FUA, SECTOR, Entry, last_flush

IN_ORDER: Final = "in order"
REORDERED: Final = "reordered"
TORN: Final = "torn"


@dataclass(frozen=True, slots=True)
class PowerCut:
    """One state that is legal after the first ``at`` entries.

    ``lost`` are the indices of the requests of which nothing arrived; ``torn`` has for
    others a seed, from which follows which of their sectors arrived.
    """

    at: int
    kind: str = IN_ORDER
    lost: frozenset[int] = frozenset()
    torn: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        lost = f", lost {sorted(self.lost)}" if self.lost else ""
        torn = f", torn {[index for index, _ in self.torn]}" if self.torn else ""
        return f"{self.kind} at entry {self.at}{lost}{torn}"


def cut_power(entries: Sequence[Entry], at: int, random: Random) -> PowerCut:
    """Draw a state that is legal after the first ``at`` entries."""
    loose = [
        index
        for index in range(last_flush(entries, at), at)
        if entries[index].is_write and not entries[index].flags & FUA
    ]
    kind = random.choice((IN_ORDER, REORDERED, TORN)) if loose else IN_ORDER
    if kind == IN_ORDER:
        return PowerCut(at)
    share = random.random()
    lost = frozenset(index for index in loose if random.random() < share)
    if kind == REORDERED:
        return PowerCut(at, kind, lost or frozenset({random.choice(loose)}))
    arrived = [index for index in loose if index not in lost] or loose
    torn = random.sample(arrived, min(len(arrived), random.randint(1, 3)))
    return PowerCut(
        at,
        kind,
        lost - frozenset(torn),
        tuple((index, random.getrandbits(32)) for index in sorted(torn)),
    )


def choose_cuts(
    entries: Sequence[Entry], start: int, end: int, count: int, random: Random
) -> list[PowerCut]:
    """Draw so many states from ``start`` to ``end``, in the order of the log.

    Half of them lie just before or after a flush, where what must hold changes; no place
    comes twice before each has come once.
    """
    places = range(start, end + 1)
    flushes = [place for place in places if any(e.is_flush for e in entries[place - 1 : place + 1])]
    drawn = _sample(flushes, count // 2, random)
    drawn += _sample(sorted(set(places) - set(drawn)) or places, count - len(drawn), random)
    return [cut_power(entries, place, random) for place in sorted(drawn)]


def _sample(places: Sequence[int], count: int, random: Random) -> list[int]:
    drawn: list[int] = []
    while places and len(drawn) < count:
        drawn += random.sample(places, min(len(places), count - len(drawn)))
    return drawn


class Medium:
    """A device's content, followed along its log; a state beside it is a file of its own.

    Args:
        log: The log.
        entries: What it has.
        image: Where the durable part is kept; made, with ``size`` bytes.
        atom: Bytes that are written whole or not at all, a multiple of the sector.
    """

    def __init__(
        self, log: Path, entries: Sequence[Entry], image: Path, size: int, atom: int = SECTOR
    ) -> None:
        self._atom = atom
        self._entries = entries
        self._image = image
        self._applied = 0
        self._log = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        self._file = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.truncate(self._file, size)

    def close(self) -> None:
        """Let go of the files and remove the image."""
        os.close(self._log)
        os.close(self._file)
        self._image.unlink()

    def write_state(self, cut: PowerCut, path: Path) -> None:
        """Make ``path`` what the device holds after ``cut``; cuts come in order of ``at``."""
        durable = last_flush(self._entries, cut.at)
        while self._applied < durable:
            self._apply(self._file, self._entries[self._applied])
            self._applied += 1
        _copy_sparse(self._file, path)
        torn = dict(cut.torn)
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            for index in range(durable, cut.at):
                if index in torn:
                    self._apply_torn(file, self._entries[index], Random(torn[index]))
                elif index not in cut.lost:
                    self._apply(file, self._entries[index])
        finally:
            os.close(file)

    def _apply(self, file: int, entry: Entry) -> None:
        data = self._data(entry)
        if data.strip(b"\0"):
            os.pwrite(file, data, entry.offset)
        elif entry.length:
            _punch(file, entry.offset, entry.length)

    def _apply_torn(self, file: int, entry: Entry, random: Random) -> None:
        """The first atoms of it arrived, or any."""
        data, end = self._data(entry), entry.offset + entry.length
        atoms = range(entry.offset // self._atom, -(-end // self._atom))
        if random.random() < 0.5:
            arrived = list(atoms[: random.randrange(len(atoms))])
        else:
            arrived = [atom for atom in atoms if random.random() < 0.5]
        for atom in arrived:
            start = max(entry.offset, atom * self._atom)
            stop = min(end, (atom + 1) * self._atom)
            os.pwrite(file, data[start - entry.offset : stop - entry.offset], start)

    def _data(self, entry: Entry) -> bytes:
        if entry.flags & DISCARD:
            return bytes(entry.length)
        return os.pread(self._log, entry.length, entry.at)


def _copy_sparse(file: int, path: Path) -> None:
    copy = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.truncate(copy, os.fstat(file).st_size)
        for start, end in _data_runs(file):
            os.lseek(copy, start, os.SEEK_SET)
            position = start
            while position < end:
                position += os.sendfile(copy, file, position, end - position)
    finally:
        os.close(copy)


def _data_runs(file: int) -> Iterator[tuple[int, int]]:
    end, size = 0, os.fstat(file).st_size
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole to the end
            return
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield start, end


_KEEP_SIZE_AND_PUNCH_HOLE: Final = 0x03  # linux/falloc.h
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _punch(file: int, offset: int, length: int) -> None:
    if _fallocate(file, _KEEP_SIZE_AND_PUNCH_HOLE, offset, length) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
