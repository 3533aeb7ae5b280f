"""The interfaces every datastore and every image in it implement."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from flatship_protocol.errors import DatastoreError
from flatship_protocol.extents import Extent
from flatship_receiver.vmdk import Layout


@dataclass(frozen=True, slots=True)
class Space:
    """What a datastore's file system says of itself; both in bytes."""

    size: int
    free: int


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """Everything needed to make the files of one disk.

    ``capacity`` is in bytes, a multiple of 1 MiB. ``vm`` and ``disk`` are names
    that ``names.check_name`` accepts. ``replace`` allows an existing disk of
    that name to be replaced when the new one is committed, not before.
    ``uuid`` is the image's, 16 bytes, by which ``resume`` knows its files again.
    """

    vm: str
    disk: str
    capacity: int
    layout: Layout
    replace: bool
    uuid: bytes = bytes(16)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What became of the commits that a crash interrupted.

    ``finished`` holds VM and disk of each that now stands under its final
    name; ``failed`` says why others do not. Those are left as they were.
    """

    finished: tuple[tuple[str, str], ...]
    failed: tuple[DatastoreError, ...]


class Image(Protocol):
    """A disk being written. Methods may be called from several threads at once.

    ``tests/conformance/test_datastores.py`` is the contract in executable form.
    """

    @property
    def capacity(self) -> int:
        """Bytes the guest will see."""
        ...

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` at ``offset``.

        Raises:
            DatastoreError: Full, read-only, or the device failed. What was
                written is unknown.
            ValueError: Past the end; nothing was written.
        """
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make ``[offset, offset + length)`` read as zeros.

        Thin gives the space back, thick keeps it, eager writes the zeros.

        Raises:
            DatastoreError, ValueError: As for ``write``.
        """
        ...

    def flush(self) -> None:
        """Return when all completed writes survive a power loss.

        Raises:
            DatastoreError: A flush failed. It must not be tried again: what
                was written since the last good flush is unknown.
        """
        ...

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with what the medium holds at ``offset``, past the page cache.

        Args:
            buffer: Writable, contiguous, page-aligned memory. Its length is
                the read length: a multiple of 4096.
            offset: Bytes from the start of the disk, a multiple of 4096.

        Raises:
            DatastoreError: The device failed; ``buffer`` is undefined.
            ValueError: Misaligned or past the end; nothing was read.
        """
        ...

    def read_latest(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with what was written last at ``offset``, flushed or not.

        Says nothing of the medium: it comes from the page cache where that has it.

        Args:
            buffer: Writable, contiguous. Its length is the read length: any.
            offset: Bytes from the start of the disk: any.

        Raises:
            DatastoreError: The device failed; ``buffer`` is undefined.
            ValueError: Past the end; nothing was read.
        """
        ...

    def extents(self) -> Iterator[Extent]:
        """Runs of data and holes that cover the whole image, in order."""
        ...

    def commit(self, descriptor: bytes) -> None:
        """Publish: put the extents and then the descriptor under their final names.

        Durable when it returns, and the image is closed. The descriptor is
        the last thing to appear.

        Raises:
            DatastoreError: The disk is not visible under its descriptor's
                name. A disk that was to be replaced is still whole, unless
                the new one was already proven durably: then what is left of
                the exchange is done by ``Datastore.recover``, and ``abort``
                removes nothing.
        """
        ...

    def close(self) -> None:
        """Let go of the image and leave its incomplete files where they are. Idempotent."""
        ...

    def abort(self) -> None:
        """Remove the incomplete files and let go. Idempotent."""
        ...


class View(Protocol):
    """A disk as it stands, to be read; whoever writes, replaces or removes it is not hindered.

    Until it is closed the space of a disk that was removed meanwhile is not free.
    """

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with what the disk holds at ``offset``, whoever put it there.

        Args:
            buffer: Writable, contiguous. Its length is the read length: any.
            offset: Bytes from the start of the disk: any.

        Raises:
            DatastoreError: The device failed, or the files are shorter; ``buffer`` is undefined.
            ValueError: Past the end, or closed; nothing was read.

        Thread-safe, but for ``close``.
        """
        ...

    def close(self) -> None:
        """Let go of the disk; no read may be under way. Idempotent."""
        ...


class Datastore(Protocol):
    """A place that holds disks of virtual machines, one folder a machine."""

    @property
    def name(self) -> str:
        """The name by which the receiver's configuration calls it."""
        ...

    def space(self) -> Space:
        """Ask the file system.

        Raises:
            DatastoreError: The path is missing.
        """
        ...

    def check(self, request: ImageRequest) -> None:
        """Raise what ``create`` would raise for want of permission, name or place.

        Creates nothing, so that a dry run can ask.
        """
        ...

    def create(self, request: ImageRequest) -> Image:
        """Make the incomplete files of a disk.

        Incomplete files that an earlier attempt left are replaced. Thick
        images have their space allocated when this returns.

        Raises:
            DatastoreError: With code DISK_EXISTS, DISK_BUSY, DISK_LOCKED,
                FOREIGN_FILE, DATASTORE_FULL, DATASTORE_READ_ONLY,
                DATASTORE_MISSING or SIZE_REFUSED. Nothing that existed
                has been touched.
            NameRefused: VM or disk cannot be called that.
        """
        ...

    def resume(self, request: ImageRequest) -> Image | None:
        """Open the incomplete files that ``create`` made for an equal request and uuid.

        Returns:
            The image, which holds what was flushed before and perhaps more;
            None if there is no such image, or only a part of it. Nothing
            has been touched then.

        Raises:
            DatastoreError, NameRefused: As for ``create``.
        """
        ...

    def descriptor(self, vm: str, disk: str) -> bytes | None:
        """The text of a published disk's descriptor, at most 64 KiB; None if there is none.

        Says what stands under the disk's final name, whoever put it there. A
        publication that a crash interrupted counts once ``recover`` has finished it.

        Raises:
            DatastoreError: It cannot be read, or what stands there is no
                descriptor; the path is missing.
            NameRefused: VM or disk cannot be called that.
        """
        ...

    def view(self, vm: str, disk: str, capacity: int, uuid: bytes) -> View | None:
        """Open the image of that uuid to be read: published, or incomplete and not being written.

        Returns:
            None if there is no such image, another one has taken its name, it has
            another capacity, or it is in more files than a view may have.

        Raises:
            DatastoreError: It cannot be read; with code DISK_BUSY if it is being written.
            NameRefused: VM or disk cannot be called that.
        """
        ...

    def finish(self, vm: str, disk: str) -> None:
        """Finish the commit of one disk, if an error interrupted it after it was decided.

        Raises:
            DatastoreError: It cannot be finished yet; with code DISK_BUSY if it is under way.
            NameRefused: VM or disk cannot be called that.
        """
        ...

    def recover(self) -> Recovery:
        """Finish the commits that a crash interrupted; call it before the first ``create``.

        Raises:
            DatastoreError: The path is missing or cannot be listed.
        """
        ...

    def close(self) -> None:
        """Let go of the place. Images still open stay usable. Idempotent."""
        ...
