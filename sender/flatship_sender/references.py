"""The images that the chunks of a session copy from, and the numbers that stand for them.

A number means the same image on all connections of the session, and is announced on each
of them before the first chunk there that uses it. An image whose copies the receiver keeps wanting
is given up: it is gone, or was changed, and the receiver does not say which.
"""

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Final
from weakref import WeakKeyDictionary

MAX_REFERENCES: Final = 1024
MOST_WANTED: Final = 4  # chunks that are wanted before an image is given up


class References:
    """Numbers for the images of a session. Thread-safe."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._numbers: dict[bytes, int] = {}
        self._images: list[bytes] = []
        self._bound: WeakKeyDictionary[object, set[int]] = WeakKeyDictionary()
        self._stored: Counter[bytes] = Counter()
        self._wanted: Counter[bytes] = Counter()
        self._given_up: set[bytes] = set()

    def number(self, image: bytes) -> int | None:
        """The number for an image; None if nothing is to be copied from it."""
        with self._turn:
            if image in self._given_up:
                return None
            if image not in self._numbers:
                if len(self._images) == MAX_REFERENCES:
                    return None
                self._numbers[image] = len(self._images)
                self._images.append(image)
            return self._numbers[image]

    def unannounced(self, connection: object, numbers: Iterable[int]) -> list[tuple[int, bytes]]:
        """Which of these numbers a connection does not know, and what they mean.

        They are taken for announced: tell the receiver, or close the connection.
        """
        with self._turn:
            bound = self._bound.setdefault(connection, set())
            new = sorted(set(numbers) - bound)
            bound.update(new)
            return [(number, self._images[number]) for number in new]

    def stored(self, images: Iterable[bytes]) -> None:
        """The receiver has put a chunk together with copies from these."""
        self._stored.update(set(images))

    def wanted(self, images: Iterable[bytes]) -> list[bytes]:
        """The receiver could not; returns which of them are given up now."""
        lost = []
        for image in set(images) - self._given_up:
            self._wanted[image] += 1
            # One of many is a chunk that changed; most of them, an image that is not there.
            if self._wanted[image] >= MOST_WANTED and self._wanted[image] > self._stored[image]:
                lost.append(image)
        with self._turn:
            self._given_up.update(lost)
        return lost
