"""A datastore in memory, for unit tests and simulations."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_protocol.extents import Extent, ExtentKind
from flatship_protocol.messages import Provisioning
from flatship_protocol.names import check_name
from flatship_receiver import vmdk
from flatship_receiver.datastores.base import ImageRequest, Recovery, Space

_THIN: Final = Provisioning.THIN  # what is resumed has its space already


class MemoryDisk:
    """The bytes of a disk, held by chunk; a chunk that was never written takes no room."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._chunks: dict[int, bytearray] = {}

    @property
    def allocated(self) -> int:
        """Bytes of the chunks that are held."""
        return len(self._chunks) * CHUNK_SIZE

    def missing(self, offset: int, length: int) -> int:
        """Bytes that writing there would allocate."""
        return sum(CHUNK_SIZE for index, *_ in _pieces(offset, length) if index not in self._chunks)

    def write(self, offset: int, data: memoryview) -> None:
        """Put ``data`` at ``offset``."""
        taken = 0
        for index, start, length in _pieces(offset, len(data)):
            chunk = self._chunks.setdefault(index, bytearray(CHUNK_SIZE))
            chunk[start : start + length] = data[taken : taken + length]
            taken += length

    def zero(self, offset: int, length: int) -> None:
        """Drop whole chunks, clear parts of others. Costs what is held, not what is named."""
        end = offset + length
        for index in [i for i in self._chunks if i * CHUNK_SIZE < end]:
            first = max(offset - index * CHUNK_SIZE, 0)
            last = min(end - index * CHUNK_SIZE, CHUNK_SIZE)
            if first == 0 and last == CHUNK_SIZE:
                del self._chunks[index]
            elif first < last:
                self._chunks[index][first:last] = bytes(last - first)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range."""
        return b"".join(
            bytes(self._chunks[index][start : start + size])
            if index in self._chunks
            else bytes(size)
            for index, start, size in _pieces(offset, length)
        )

    def extents(self) -> Iterator[Extent]:
        """Runs of held and of absent chunks, in order."""
        position = 0
        for index in sorted(self._chunks):
            start = index * CHUNK_SIZE
            if start > position:
                yield Extent(position, start - position, ExtentKind.HOLE)
            yield Extent(start, CHUNK_SIZE, ExtentKind.DATA)
            position = start + CHUNK_SIZE
        if position < self.capacity:
            yield Extent(position, self.capacity - position, ExtentKind.HOLE)


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Cut a range at chunk boundaries into (chunk index, offset in the chunk, length)."""
    while length > 0:
        index, start = divmod(offset, CHUNK_SIZE)
        size = min(length, CHUNK_SIZE - start)
        yield index, start, size
        offset += size
        length -= size


@dataclass(frozen=True, slots=True)
class CommittedDisk:
    """A disk that was published."""

    descriptor: bytes
    content: MemoryDisk


class MemoryImage:
    """A disk being written in a ``MemoryDatastore``, which makes it."""

    def __init__(
        self, datastore: "MemoryDatastore", request: ImageRequest, disk: MemoryDisk
    ) -> None:
        self._datastore = datastore
        self._request = request
        self._disk = disk
        self._committed = False
        self._thin = request.layout.provisioning is Provisioning.THIN
        self._lock = threading.Lock()
        self._open = True

    @property
    def capacity(self) -> int:
        """Bytes the guest will see."""
        return self._disk.capacity

    @property
    def reserved(self) -> int:
        """Bytes of the datastore that this image takes."""
        return self._disk.allocated if self._thin else self._disk.capacity

    def write(self, offset: int, data: memoryview) -> None:
        """See ``Image.write``."""
        self._check_range(offset, len(data))
        with self._lock:
            if self._thin:
                self._datastore.require(self._disk.missing(offset, len(data)))
            self._disk.write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        """See ``Image.zero``."""
        self._check_range(offset, length)
        with self._lock:
            self._disk.zero(offset, length)

    def flush(self) -> None:
        """Check that the image is open; memory has nothing to flush to."""
        self._check_open()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See ``Image.read_into``."""
        self._check_range(offset, len(buffer))
        if offset % PAGE_SIZE or len(buffer) % PAGE_SIZE:
            raise ValueError(f"read of {len(buffer)} bytes at {offset} is not page-aligned")
        self.read_latest(buffer, offset)

    def read_latest(self, buffer: memoryview, offset: int) -> None:
        """See ``Image.read_latest``; here nothing stands between."""
        self._check_range(offset, len(buffer))
        with self._lock:
            buffer[:] = self._disk.read(offset, len(buffer))

    def extents(self) -> Iterator[Extent]:
        """See ``Image.extents``."""
        self._check_open()
        with self._lock:
            return iter(list(self._disk.extents()))

    def commit(self, descriptor: bytes) -> None:
        """See ``Image.commit``."""
        self._check_open()
        self._datastore.publish(self._request, CommittedDisk(descriptor, self._disk))
        self._committed = True
        self.close()

    def close(self) -> None:
        """See ``Image.close``."""
        if self._open:
            self._open = False
            self._datastore.release(self._request, None if self._committed else self._disk)

    def abort(self) -> None:
        """See ``Image.abort``."""
        if self._open:
            self._open = False
            self._datastore.release(self._request, None)

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError(f"image {self._request.vm}/{self._request.disk} is closed")

    def _check_range(self, offset: int, length: int) -> None:
        self._check_open()
        if offset < 0 or length < 0 or offset + length > self.capacity:
            raise ValueError(f"{length} bytes at {offset} reach past the end, {self.capacity}")


class MemoryView:
    """A disk of a ``MemoryDatastore`` to be read."""

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk: MemoryDisk | None = disk

    def read(self, buffer: memoryview, offset: int) -> None:
        """See ``View.read``."""
        disk = self._disk
        if disk is None or offset < 0 or offset + len(buffer) > disk.capacity:
            raise ValueError(f"{len(buffer)} bytes at {offset}: past the end, or closed")
        buffer[:] = disk.read(offset, len(buffer))

    def close(self) -> None:
        """See ``View.close``."""
        self._disk = None


class MemoryDatastore:
    """Holds disks in a dictionary; ``size``, in bytes, bounds what they take together."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._disks: dict[tuple[str, str], CommittedDisk] = {}
        self._images: dict[tuple[str, str], MemoryImage] = {}
        self._kept: dict[tuple[str, str], tuple[ImageRequest, MemoryDisk]] = {}
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """The name by which the receiver's configuration calls it."""
        return self._name

    @property
    def disks(self) -> Mapping[tuple[str, str], CommittedDisk]:
        """The published disks by VM and disk name."""
        return MappingProxyType(self._disks)

    def space(self) -> Space:
        """See ``Datastore.space``."""
        with self._lock:
            used = sum(image.reserved for image in self._images.values())
            used += sum(disk.allocated for _, disk in self._kept.values())
            used += sum(disk.content.allocated for disk in self._disks.values())
        return Space(size=self._size, free=self._size - used)

    def check(self, request: ImageRequest) -> None:
        """See ``Datastore.check``."""
        check_name(request.vm)
        check_name(request.disk)
        vmdk.check_capacity(request.capacity, request.layout)
        key = (request.vm, request.disk)
        with self._lock:
            if key in self._images:
                raise DatastoreError(f"disk {key} is being written", ErrorCode.DISK_BUSY)
            if key in self._disks and not request.replace:
                raise DatastoreError(f"disk {key} exists", ErrorCode.DISK_EXISTS)
            if request.layout.provisioning is not Provisioning.THIN:
                self.require(request.capacity)

    def create(self, request: ImageRequest) -> MemoryImage:
        """See ``Datastore.create``."""
        with self._lock:
            self.check(request)
            self._kept.pop((request.vm, request.disk), None)
            image = MemoryImage(self, request, MemoryDisk(request.capacity))
            self._images[request.vm, request.disk] = image
            return image

    def resume(self, request: ImageRequest) -> MemoryImage | None:
        """See ``Datastore.resume``."""
        key = (request.vm, request.disk)
        with self._lock:
            self.check(replace(request, layout=replace(request.layout, provisioning=_THIN)))
            kept_request, disk = self._kept.get(key, (None, None))
            if disk is None or kept_request is None or kept_request.uuid != request.uuid:
                return None
            del self._kept[key]
            image = MemoryImage(self, request, disk)
            self._images[key] = image
            return image

    def descriptor(self, vm: str, disk: str) -> bytes | None:
        """See ``Datastore.descriptor``."""
        check_name(vm)
        check_name(disk)
        with self._lock:
            found = self._disks.get((vm, disk))
        return found.descriptor if found else None

    def view(self, vm: str, disk: str, capacity: int, uuid: bytes) -> MemoryView | None:
        """See ``Datastore.view``."""
        check_name(vm)
        check_name(disk)
        key = (vm, disk)
        with self._lock:
            published, (request, kept) = self._disks.get(key), self._kept.get(key, (None, None))
            if published is not None and vmdk.uuid_of(vmdk.parse(published.descriptor)) == uuid:
                kept = published.content
            elif key in self._images:
                raise DatastoreError(f"disk {key} is being written", ErrorCode.DISK_BUSY)
            elif request is None or request.uuid != uuid:
                return None
        return MemoryView(kept) if kept is not None and kept.capacity == capacity else None

    def finish(self, vm: str, disk: str) -> None:
        """Nothing is ever half published."""
        check_name(vm)
        check_name(disk)

    def recover(self) -> Recovery:
        """Nothing outlives the process, so nothing is left to finish."""
        return Recovery(finished=(), failed=())

    def close(self) -> None:
        """Do nothing: the disks stay to be looked at."""

    def require(self, length: int) -> None:
        """Raise DATASTORE_FULL unless ``length`` more bytes fit."""
        free = self.space().free
        if length > free:
            raise DatastoreError(
                f"datastore {self._name} is full: {length} bytes are needed, {free} are free",
                ErrorCode.DATASTORE_FULL,
                (length, free),
            )

    def publish(self, request: ImageRequest, disk: CommittedDisk) -> None:
        """Make a disk visible, in place of an older one of its name."""
        with self._lock:
            self._disks[request.vm, request.disk] = disk

    def release(self, request: ImageRequest, kept: MemoryDisk | None) -> None:
        """Forget the image that was made for a request, but for the disk that is kept."""
        key = (request.vm, request.disk)
        with self._lock:
            del self._images[key]
            if kept is not None:
                self._kept[key] = (request, kept)
