"""Which files a disk image consists of, found by reading their headers here.

qemu would find them by itself: it would follow whatever name stands in a header,
over the network as well, and guess at the format of what it finds. So it is told
every file and every format instead (``Layer.node``), and never looks itself. What it
can be told and should not read is refused, with what to do.
"""

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flatship_protocol.errors import SourceError, SourceMissing, SourceReadError, SourceUnsuitable
from flatship_sender.sources.containers import (
    HEAD_SIZE,
    TAIL_SIZE,
    ImageFormat,
    container_format,
)
from flatship_sender.sources.devices import size_of
from flatship_sender.sources.qcow2_header import (
    HEADER_LIMIT,
    SNAPSHOTS_LIMIT,
    Qcow2Header,
    parse_qcow2,
    snapshot_names,
)
from flatship_sender.sources.raw import open_error
from flatship_sender.sources.vhd_vdi import vdi_problem, vhd_problem
from flatship_sender.sources.vmdk_header import (
    check_extent,
    descriptor_place,
    names_parent,
    parse_extents,
)

MAX_LAYERS: Final = 64  # qemu itself gives up on chains of some hundreds
_OVERLAYS: Final = (ImageFormat.QCOW2, ImageFormat.VMDK)  # which qemu lets stand on another image
_BY_DRIVER: Final = {each.driver: each for each in ImageFormat}


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An open file that the disk is read from. Close ``fd`` when done."""

    path: str  # absolute, links resolved
    fd: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One image of a chain, the topmost first."""

    file: ImageFile
    format: ImageFormat
    extents: tuple[ImageFile, ...] = ()  # of a VMDK: files in the same folder

    def node(self, backing: "dict[str, Any] | None", *, live: bool) -> dict[str, Any]:
        """The layer as an option of qemu's --blockdev, over ``backing``."""
        device = stat.S_ISBLK(os.fstat(self.file.fd).st_mode)
        node: dict[str, Any] = {
            "driver": self.format.driver,
            "read-only": True,
            "file": {
                "driver": "host_device" if device else "file",
                "filename": self.file.path,
                "read-only": True,
                "locking": "on",
            },
        }
        if live:
            node["force-share"] = node["file"]["force-share"] = True
        if self.format in _OVERLAYS:
            node["backing"] = backing  # None, too, is said: else qemu takes what the image names
        return node


@dataclass(frozen=True, slots=True)
class Chain:
    """A disk image with all that it stands on."""

    layers: tuple[Layer, ...]

    @property
    def files(self) -> tuple[ImageFile, ...]:
        """Every file that is read, the image itself first."""
        return tuple(file for layer in self.layers for file in (layer.file, *layer.extents))

    def node(self, *, live: bool) -> dict[str, Any]:
        """The disk as an option of qemu's --blockdev: every file, every format."""
        node: dict[str, Any] | None = None
        for layer in reversed(self.layers):
            node = layer.node(node, live=live)
        assert node is not None
        return node

    def close(self) -> None:
        """Close every file."""
        for file in self.files:
            os.close(file.fd)


def resolve_chain(path: str, image_format: ImageFormat, *, trusted: bool) -> Chain:
    """Open an image and all that it stands on, and make sure that they can be read as a disk.

    Args:
        path: The image, as the operator names it.
        image_format: What it is to be read as.
        trusted: Its format is the operator's word. Else it was only recognised, and may be
            a raw disk whose guest wrote a header: then it may not name other files.

    Raises:
        SourceMissing: The image or a file that it names does not exist.
        SourcePermissionError: This user may not read one of them.
        SourceUnsuitable: It is not of that format, damaged, encrypted, has internal
            snapshots, or is of a kind that cannot be read.
        SourceReadError: It could be opened and not read.
    """
    with ExitStack() as cleanup:
        layers = tuple(_layers(path, image_format, cleanup, trusted=trusted))
        cleanup.pop_all()
        return Chain(layers)


def _layers(
    source: str, image_format: ImageFormat, cleanup: ExitStack, *, trusted: bool
) -> Iterator[Layer]:
    path, seen, subject = source, set[tuple[int, int]](), f"source {source}"
    while True:
        file = _open(path, subject, cleanup)
        status = os.fstat(file.fd)
        if (status.st_dev, status.st_ino) in seen or len(seen) == MAX_LAYERS:
            raise SourceUnsuitable(
                f"source {source} stands on more than {MAX_LAYERS} images, or on itself;"
                " flatten it with qemu-img convert"
            )
        seen.add((status.st_dev, status.st_ino))
        reading = _Reading(subject, file, cleanup, trusted=trusted)
        yield Layer(file, image_format, reading.extents(image_format))
        header = reading.qcow2
        if header is None or header.backing is None:
            return
        image_format = reading.format_of_backing(header)
        path = os.path.join(os.path.dirname(file.path), header.backing)
        subject = f"source {source}: its backing file {path}"


class _Reading:
    """One image under examination. ``subject`` begins every refusal."""

    def __init__(self, subject: str, file: ImageFile, cleanup: ExitStack, *, trusted: bool) -> None:
        self._subject = subject
        self._file = file
        self._cleanup = cleanup
        self._trusted = trusted
        self.qcow2: Qcow2Header | None = None

    def extents(self, image_format: ImageFormat) -> tuple[ImageFile, ...]:
        """Judge the image, and open the files with its extents if it has such."""
        if image_format is ImageFormat.RAW:
            return ()
        size = size_of(self._file.fd)
        head, tail = self._read(0, HEAD_SIZE), self._read(max(0, size - TAIL_SIZE), TAIL_SIZE)
        found = container_format(head, tail)
        if found is not image_format:
            raise self._refused(
                f"is {'no image' if found is None else f'a {found.label} image'} by its content,"
                f" and {image_format.label} was expected; say what it is with --source-format"
                " if it is the source, and mend the image above it otherwise"
            )
        try:
            if image_format is ImageFormat.QCOW2:
                self._examine_qcow2()
            elif image_format is ImageFormat.VMDK:
                return self._vmdk_extents(head)
        except ValueError as error:
            raise self._refused(f"{error}; convert it with qemu-img convert, or copy it") from None
        problem = None
        if image_format is ImageFormat.VHD:
            problem = vhd_problem(head, tail)
        elif image_format is ImageFormat.VDI:
            problem = vdi_problem(head, size)
        elif image_format is ImageFormat.QED:
            problem = "is a QED image, which cannot be read; convert it with qemu-img convert"
        if problem:
            raise self._refused(problem)
        return ()

    def format_of_backing(self, header: Qcow2Header) -> ImageFormat:
        """What the image says that its backing file is, if it may be followed there."""
        name, path = header.backing or "", shlex.quote(self._file.path)
        if not self._trusted:
            raise self._names_others(f"backing file {name}", ImageFormat.QCOW2)
        if ":" in name.split("/")[0]:
            raise self._refused(
                f"has the backing file {name!r}, and only files of this machine are read;"
                " flatten the image with qemu-img convert"
            )
        stated = _BY_DRIVER.get(header.backing_format or "")
        if stated is None or stated is ImageFormat.QED:
            raise self._refused(
                f"does not say of its backing file {name} in which format it is"
                f" ({header.backing_format or 'no format'} stands there), and nobody should guess;"
                f" state it: qemu-img rebase -u -b {shlex.quote(name)} -F FORMAT {path}"
            )
        return stated

    def _examine_qcow2(self) -> None:
        header = self.qcow2 = parse_qcow2(self._read(0, HEADER_LIMIT))
        path = shlex.quote(self._file.path)
        if header.encrypted:
            raise self._refused(
                "is encrypted; its content can be read only with its key: decrypt it into"
                " another image with qemu-img convert, and send that"
            )
        if header.data_file:
            raise self._refused(
                "keeps its data in an external data file, which is not supported;"
                " make one image of both with qemu-img convert -O qcow2"
            )
        if header.corrupt:
            raise self._refused(
                f"is marked as corrupt; see what qemu-img check {path} says, repair a copy of it"
                " with qemu-img check -r all, or restore it"
            )
        if header.dirty:
            raise self._refused(
                "was not closed properly, so its tables may be wrong;"
                f" repair them with qemu-img check -r all {path}"
            )
        if header.snapshots:
            table = self._read(header.snapshots_offset, SNAPSHOTS_LIMIT)
            names = snapshot_names(table, header.snapshots)
            shown = ", ".join(map(repr, names[:8])) + (" …" if len(names) > 8 else "")
            raise self._refused(
                f"has internal snapshots ({header.snapshots}: {shown}), which a VMDK cannot hold;"
                f" delete them with qemu-img snapshot -d NAME {path},"
                " or send a copy without them, made by qemu-img convert"
            )

    def _vmdk_extents(self, head: bytes) -> tuple[ImageFile, ...]:
        place = descriptor_place(head)
        if place is None:
            raise ValueError(
                "is one extent of a VMDK and no disk by itself: name the descriptor instead"
            )
        descriptor = self._read(*place)
        if names_parent(descriptor):
            raise ValueError(
                "is a VMDK of a snapshot, which holds what changed since its parent:"
                " consolidate the snapshots where it was made"
            )
        if place[0]:  # within a sparse extent, which is the disk
            return ()
        extents = parse_extents(descriptor)
        if not self._trusted:
            raise self._names_others(f"extent {extents[0].name}", ImageFormat.VMDK)
        files = []
        for extent in extents:
            path = os.path.join(os.path.dirname(self._file.path), extent.name)
            file = _open(path, f"{self._subject}: its extent {path}", self._cleanup)
            size = size_of(file.fd)
            if size < extent.least_size:
                raise self._refused(
                    f"has an extent {path} of {size} bytes, and its descriptor wants"
                    f" {extent.least_size}: it is cut short; copy it again"
                )
            if not extent.least_size:
                check_extent(os.pread(file.fd, HEAD_SIZE, 0))
            files.append(file)
        return tuple(files)

    def _names_others(self, what: str, image_format: ImageFormat) -> SourceUnsuitable:
        return self._refused(
            f"begins like a {image_format.label} image and names another file ({what})."
            " A raw disk whose guest wrote that would have this machine's files read:"
            f" if it is an image that you made, pass --source-format {image_format.value},"
            " if it is a raw disk, --source-format raw"
        )

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._file.fd, length, offset)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "no such place"
            raise SourceReadError(
                f"{self._subject}: reading {length} bytes at {offset} failed: {reason}"
            ) from error

    def _refused(self, predicate: str) -> SourceUnsuitable:
        return SourceUnsuitable(f"{self._subject} {predicate}")


def _open(path: str, subject: str, cleanup: ExitStack) -> ImageFile:
    real = os.path.realpath(path)
    try:
        real.encode("utf-8")
    except UnicodeEncodeError:
        raise SourceUnsuitable(
            f"{subject} has a name that is not UTF-8, and qemu takes no other; rename it"
        ) from None
    try:
        mode = os.stat(real).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise SourceUnsuitable(f"{subject} is neither a file nor a block device")
        fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _opening_failed(subject, path, error) from error
    cleanup.callback(os.close, fd)
    return ImageFile(real, fd)


def _opening_failed(subject: str, path: str, error: OSError) -> SourceError:
    plain = open_error(path, error)
    if subject == f"source {path}":
        return plain
    if isinstance(plain, SourceMissing):
        return SourceMissing(
            f"{subject} does not exist; bring it back to {Path(path).parent},"
            " or the disk cannot be read"
        )
    return type(plain)(f"{subject} cannot be opened: {error.strerror}; {_remedy(plain)}")


def _remedy(error: SourceError) -> str:
    return str(error).rpartition("; ")[2]
