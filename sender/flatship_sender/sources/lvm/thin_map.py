"""Which parts of a thin volume are mapped, as ``thin_dump`` writes it.

The XML is that of thin-provisioning-tools 0.9 and 1.x: a superblock with the pool's block
size in sectors, a device with its mappings, and, in newer ones, mappings that several
devices share as ``def`` and ``ref``. See thin_dump(8) and
Documentation/admin-guide/device-mapper/thin-provisioning.rst.
"""

from collections.abc import Iterator
from typing import IO, Final
from xml.parsers import expat

from flatship_protocol.constants import CHUNK_SIZE, SECTOR_SIZE
from flatship_protocol.extents import Extent, ExtentKind

_READ_SIZE: Final = 1 << 16


class MapUnreadable(Exception):
    """What was read is no complete dump of that one device; nothing may be concluded from it."""


class ChunkMap:
    """Which chunks of a disk hold anything: one byte each, whatever the fragmentation.

    Args:
        size: Bytes of the disk.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._chunks = bytearray(-(-size // CHUNK_SIZE))

    def mark(self, offset: int, length: int) -> None:
        """Note that there is data in a run of bytes; what lies beyond the disk does not count."""
        first = offset // CHUNK_SIZE
        end = min(-(-(offset + length) // CHUNK_SIZE), len(self._chunks))
        if first < end:
            self._chunks[first:end] = b"\1" * (end - first)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Runs of data and holes that cover exactly ``[offset, offset + length)``, in order."""
        end = offset + length
        while offset < end:
            index = offset // CHUNK_SIZE
            here = self._chunks[index]
            other = self._chunks.find(b"\0" if here else b"\1", index)
            until = end if other < 0 else min(other * CHUNK_SIZE, end)
            yield Extent(offset, until - offset, ExtentKind.DATA if here else ExtentKind.HOLE)
            offset = until


def read_thin_map(dump: IO[bytes], device: int, size: int) -> ChunkMap:
    """Read the mappings of one thin device.

    Args:
        dump: What ``thin_dump --dev-id`` writes.
        device: The thin device's number in its pool.
        size: Bytes of the volume.

    Raises:
        MapUnreadable: It is cut short, or not about that device alone.
    """
    reader = _Reader(device, ChunkMap(size))
    while text := dump.read(_READ_SIZE):
        reader.feed(text)
    return reader.end()


class _Reader:
    def __init__(self, device: int, chunks: ChunkMap) -> None:
        self._device = device
        self._chunks = chunks
        self._block = 0  # bytes
        self._shared: dict[str, list[tuple[int, int]]] = {}  # by the name of their def
        self._definition: str | None = None
        self._inside = False
        self._expected = -1  # blocks
        self._mapped = 0
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._finish

    def feed(self, text: bytes) -> None:
        try:
            self._parser.Parse(text, False)
        except (expat.ExpatError, KeyError, ValueError) as error:
            raise MapUnreadable(f"not a dump of thin metadata: {error}") from error

    def end(self) -> ChunkMap:
        try:
            self._parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise MapUnreadable(f"the dump of thin metadata is cut short: {error}") from error
        if self._expected < 0:
            raise MapUnreadable(f"thin device {self._device} is not in the dump")
        if self._mapped != self._expected:
            raise MapUnreadable(
                f"thin device {self._device} has {self._expected} mapped blocks, and the dump "
                f"lists {self._mapped}"
            )
        return self._chunks

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "superblock":
            self._block = int(attributes["data_block_size"]) * SECTOR_SIZE
        elif name == "def":
            self._definition = attributes["name"]
            self._shared[self._definition] = []
        elif name == "device":
            if int(attributes["dev_id"]) != self._device:
                raise MapUnreadable(f"the dump is about thin device {attributes['dev_id']}")
            self._inside = True
            self._expected = int(attributes["mapped_blocks"])
        elif name == "single_mapping":
            self._map(int(attributes["origin_block"]), 1)
        elif name == "range_mapping":
            self._map(int(attributes["origin_begin"]), int(attributes["length"]))
        elif name == "ref":
            for first, count in self._shared[attributes["name"]]:
                self._map(first, count)

    def _finish(self, name: str) -> None:
        if name == "def":
            self._definition = None
        elif name == "device":
            self._inside = False

    def _map(self, first: int, count: int) -> None:
        if self._definition is not None:
            self._shared[self._definition].append((first, count))
        elif self._inside:
            self._mapped += count
            self._chunks.mark(first * self._block, count * self._block)
        else:
            raise ValueError("a mapping that belongs to no device")
