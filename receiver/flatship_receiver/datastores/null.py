"""A datastore that keeps nothing: a sink for benchmarks of everything before it."""

from collections.abc import Iterator

from flatship_protocol.constants import MAX_DISK_SIZE
from flatship_protocol.extents import Extent, ExtentKind
from flatship_protocol.names import check_name
from flatship_receiver import vmdk
from flatship_receiver.datastores.base import ImageRequest, Recovery, Space, View


class NullImage:
    """Takes every byte and reads as zeros; what it was given can never be proven."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity

    @property
    def capacity(self) -> int:
        """Bytes the guest would see."""
        return self._capacity

    def write(self, offset: int, data: memoryview) -> None:
        """Discard ``data``."""

    def zero(self, offset: int, length: int) -> None:
        """Do nothing: all of it reads as zeros."""

    def flush(self) -> None:
        """Do nothing: there is nothing to lose."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with zeros."""
        buffer[:] = bytes(len(buffer))

    def read_latest(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with zeros."""
        buffer[:] = bytes(len(buffer))

    def extents(self) -> Iterator[Extent]:
        """One hole."""
        yield Extent(0, self._capacity, ExtentKind.HOLE)

    def commit(self, descriptor: bytes) -> None:
        """Publish nothing."""

    def close(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing."""


class NullDatastore:
    """Makes any number of ``NullImage``; refuses only names and sizes that no disk may have."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        """The name by which the receiver's configuration calls it."""
        return self._name

    def space(self) -> Space:
        """Room for the largest disk, always."""
        return Space(size=MAX_DISK_SIZE, free=MAX_DISK_SIZE)

    def check(self, request: ImageRequest) -> None:
        """Check names and capacity; nothing else can fail here."""
        check_name(request.vm)
        check_name(request.disk)
        vmdk.check_capacity(request.capacity, request.layout)

    def create(self, request: ImageRequest) -> NullImage:
        """Make an image that forgets."""
        self.check(request)
        return NullImage(request.capacity)

    def resume(self, request: ImageRequest) -> NullImage | None:
        """None: nothing was kept."""
        self.check(request)
        return None

    def descriptor(self, vm: str, disk: str) -> bytes | None:
        """None: nothing is ever published."""
        check_name(vm)
        check_name(disk)
        return None

    def view(self, vm: str, disk: str, capacity: int, uuid: bytes) -> View | None:
        """None: nothing is held."""
        check_name(vm)
        check_name(disk)
        return None

    def finish(self, vm: str, disk: str) -> None:
        """Nothing is ever half published."""

    def recover(self) -> Recovery:
        """Nothing is ever left to finish."""
        return Recovery(finished=(), failed=())

    def close(self) -> None:
        """Do nothing."""
