"""How runs of ``send`` on one host share a limit.

Each run has a file in the state folder that says what it could use, and holds a lock on it for
as long as it lives: the kernel lets go of the lock however the run ends, and whoever finds a
file that nobody has locked removes it. From all files each run works out by itself what is its
own part. Less is taken at once, more only when the others have had the time to take less.
"""

import fcntl
import os
import secrets
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Final

import msgspec

from flatship_service import files

FOLDER: Final = "limits"
MAX_ENTRY: Final = 512  # bytes of a file
CAUTION: Final = 3  # looks, a second apart, that must agree before a run takes more


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one run could use, in bytes a second; None for whatever it can get.

    ``want`` is what it would use now, ``most`` what it may use in any case.
    """

    receiver: str
    want: float | None = None
    most: float | None = None


class Table:
    """This run's entry among those of others.

    Args:
        state: The sender's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER
        self._path: Path | None = None
        self._descriptor = -1

    def publish(self, entry: Entry) -> None:
        """Tell the others; durable in no way, and not meant to be.

        Raises:
            OSError: The state folder cannot be written.
        """
        if self._path is None:
            self._enter()
        line = msgspec.json.encode(entry)
        os.pwrite(self._descriptor, line.ljust(MAX_ENTRY - 1) + b"\n", 0)

    def others(self) -> list[Entry]:
        """What the other runs say that are alive; of one that cannot be read, that it wants all.

        Raises:
            OSError: The state folder cannot be read.
        """
        found = []
        for path in self._folder.glob("*.run"):
            if path == self._path:
                continue
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    if _locked(descriptor):
                        path.unlink()  # its run has ended
                    else:
                        found.append(_read(descriptor))
                finally:
                    os.close(descriptor)
        return found

    def close(self) -> None:
        """Leave what was shared to the others."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._path = None

    def _enter(self) -> None:
        files.make_private_folder(self._folder)
        while self._path is None:
            path = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}.run"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(path, flags, files.PRIVATE_FILE)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():  # else another run found it before it was locked
                self._path, self._descriptor = path, descriptor
            else:
                os.close(descriptor)


class Caution:
    """Takes less at once, and more when CAUTION looks in a row have said so. Pure.

    Args:
        first: What a run may use that the others have not yet seen.
    """

    def __init__(self, first: float) -> None:
        self._looks = deque([first] * CAUTION, maxlen=CAUTION)

    def look(self, share: float, *, alone: bool) -> float:
        """What may be used now, if ``share`` is what all entries make of it."""
        self._looks.append(share)
        if alone:
            self._looks.extend([share] * CAUTION)
        return min(self._looks)


def own_share(
    mine: Entry, others: Sequence[Entry], *, site: float, receiver: float, least: float
) -> float:
    """What this run may use, in bytes a second. Pure; all runs come to the same result.

    Args:
        mine: This run's entry.
        others: The others'.
        site: The limit of all runs together.
        receiver: That of those which send to the same receiver.
        least: What a run gets in any case, or its connections would count as dead.
    """
    same = [each for each in others if each.receiver == mine.receiver]
    got = divide(receiver, [mine, *same], least)[0]
    at_most = Entry(mine.receiver, min(_number(mine.want), got), min(_number(mine.most), got))
    return divide(site, [at_most, *others], least)[0]


def divide(limit: float, entries: Sequence[Entry], least: float) -> list[float]:
    """Give each what it wants or an equal part, and what is left to whoever may use it."""
    wants = [max(least, min(_number(each.want), _number(each.most))) for each in entries]
    parts = _fill(limit, wants)
    rest = max(0.0, limit - sum(parts))
    rooms = [max(0.0, _number(each.most) - part) for each, part in zip(entries, parts, strict=True)]
    more = _fill(rest, rooms) if rest < inf else rooms
    return [max(least, part + extra) for part, extra in zip(parts, more, strict=True)]


def _fill(limit: float, wants: Sequence[float]) -> list[float]:
    """Share out ``limit`` so that nobody who wants more gets less than anybody else."""
    parts, left = [0.0] * len(wants), limit
    order = sorted(range(len(wants)), key=lambda index: wants[index])
    for place, index in enumerate(order):
        parts[index] = min(wants[index], left / (len(order) - place))
        left -= parts[index] if parts[index] < inf else 0.0
    return parts


def _number(rate: float | None) -> float:
    return inf if rate is None else rate


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(descriptor: int) -> Entry:
    try:
        return msgspec.json.decode(os.pread(descriptor, MAX_ENTRY, 0), type=Entry)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Entry(receiver="")
