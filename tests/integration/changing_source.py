"""A disk whose guest runs between two copies of it."""

import hashlib
from pathlib import Path
from random import Random

from disks import MIB, prose

from flatship_protocol.constants import CHUNK_SIZE


class Source:
    """A disk whose content changes between two runs, and what it was at each of them."""

    def __init__(self, path: Path, size: int, random: Random) -> None:
        self.path = path
        self.size = size
        self.versions: set[bytes] = set()
        self._random = random
        with path.open("wb") as file:
            file.truncate(size)
            for start in range(0, size, MIB):
                file.seek(start)
                file.write(self._chunk(min(MIB, size - start)))
        self._first = path.read_bytes()

    def chunks(self) -> list[bytes]:
        """What it is now, chunk by chunk."""
        data = self.path.read_bytes()
        return [data[start : start + CHUNK_SIZE] for start in range(0, self.size, CHUNK_SIZE)]

    def note(self) -> None:
        """It is about to be sent as it is."""
        self.versions.add(hashlib.sha256(self.path.read_bytes()).digest())

    def change(self) -> None:
        """Let a guest run: some chunks are others, or all is again as it was at first."""
        with self.path.open("r+b") as file:
            if self._random.random() < 0.5:
                file.write(self._first)
                return
            for _ in range(self._random.randrange(1, 5)):
                start = self._random.randrange(0, self.size, MIB)
                length = self._random.choice((1, 512, MIB))
                file.seek(start)
                file.write(self._chunk(min(length, self.size - start)))

    def _chunk(self, length: int) -> bytes:
        kind = self._random.randrange(6)
        if kind == 0:
            return bytes(length)
        if kind == 1:
            return prose(self._random.getrandbits(30), length)
        return self._random.randbytes(length)
