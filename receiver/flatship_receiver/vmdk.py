"""What a VMDK is made of: sizes, extents, files, and what its descriptor must say.

Pure: nothing here touches a file, and entropy is an argument. The rules are
those of the disks that ``vmkfstools`` leaves on a datastore; they are gathered
in ``check``, which states an invariant a line.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE, MAX_DISK_SIZE, SECTOR_SIZE
from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_protocol.messages import Adapter, DiskFormat, Provisioning
from flatship_protocol.names import check_name, name_problem
from flatship_receiver import descriptor_text
from flatship_receiver.descriptor_text import Descriptor, DescriptorError, ExtentLine, parse

__all__ = ["Descriptor", "DescriptorError", "ExtentLine", "parse"]  # callers say vmdk.parse

SPLIT_EXTENT_SECTORS: Final = 4192256  # of a full twoGbMaxExtentFlat extent: 2047 MiB
MAX_SPLIT_EXTENTS: Final = 512  # keeps the descriptor, and the files open at once, bounded
LARGE_DISK_HARDWARE: Final = 10  # ESXi 5.5, the first to take disks of 2 TiB and more
SMALL_DISK_LIMIT: Final = (2 << 40) - SECTOR_SIZE  # bytes, before LARGE_DISK_HARDWARE
HARDWARE_VERSIONS: Final = range(4, 23)

UUID_SIZE: Final = 16  # bytes
CONTENT_ID_SIZE: Final = 16  # bytes
NO_PARENT: Final = "ffffffff"  # as CID of a disk it would mean that there is none

CREATE_TYPES: Final[Mapping[DiskFormat, str]] = {
    DiskFormat.VMFS: "vmfs",
    DiskFormat.MONOLITHIC_FLAT: "monolithicFlat",
    DiskFormat.TWO_GB_MAX_EXTENT_FLAT: "twoGbMaxExtentFlat",
}
ADAPTER_TYPES: Final[Mapping[Adapter, str]] = {
    Adapter.LSILOGIC: "lsilogic",
    Adapter.BUSLOGIC: "buslogic",
    Adapter.IDE: "ide",
}

_UUID_MARK = b"\x60\x00\xc2"  # first bytes of every disk's uuid; the next half byte is 9
_UUID_TEXT = re.compile(r"60 00 C2 9[0-9a-f]( [0-9a-f]{2}){4}-[0-9a-f]{2}( [0-9a-f]{2}){7}")
_EXTENT_FILE = re.compile(r"(.+?)-(?:flat|f[0-9]{3,})\.vmdk", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a disk is laid out in files and described. See SPEC.md, "OPEN_DISK"."""

    format: DiskFormat
    provisioning: Provisioning
    adapter: Adapter
    hardware_version: int


@dataclass(frozen=True, slots=True)
class ExtentFile:
    """A file and the run of the disk that it holds; ``offset`` and ``length`` in bytes."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """Cylinders, heads and sectors a track, as the BIOS of old counts them."""

    cylinders: int
    heads: int
    sectors: int


def round_capacity(size: int) -> int:
    """The capacity, in bytes, of the disk that holds a source of ``size`` bytes.

    Raises:
        DatastoreError: With code SIZE_REFUSED; numbers are the size and the limit.
    """
    if not 0 < size <= MAX_DISK_SIZE:
        raise _size_refused(size, MAX_DISK_SIZE, "a virtual disk holds")
    return -(-size // CHUNK_SIZE) * CHUNK_SIZE


def check_capacity(capacity: int, layout: Layout) -> None:
    """Refuse a capacity that no disk of this layout can have.

    Raises:
        DatastoreError: With code SIZE_REFUSED; numbers are the capacity and the limit.
        ValueError: The capacity is not one that ``round_capacity`` returns.
    """
    if round_capacity(capacity) != capacity:
        raise ValueError(f"capacity {capacity} is not a multiple of {CHUNK_SIZE}")
    if layout.hardware_version < LARGE_DISK_HARDWARE and capacity > SMALL_DISK_LIMIT:
        holder = f"hardware version {layout.hardware_version} holds"
        raise _size_refused(capacity, SMALL_DISK_LIMIT, holder)
    limit = MAX_SPLIT_EXTENTS * SPLIT_EXTENT_SECTORS * SECTOR_SIZE
    if layout.format is DiskFormat.TWO_GB_MAX_EXTENT_FLAT and capacity > limit:
        raise _size_refused(capacity, limit, "twoGbMaxExtentFlat holds here")


def _size_refused(size: int, limit: int, holder: str) -> DatastoreError:
    return DatastoreError(
        f"a disk of {size} bytes is refused: {holder} 1 to {limit} bytes",
        ErrorCode.SIZE_REFUSED,
        (size, limit),
    )


def descriptor_file(disk: str) -> str:
    """Name of the descriptor of ``disk``."""
    return f"{disk}.vmdk"


def extent_files(disk: str, capacity: int, disk_format: DiskFormat) -> tuple[ExtentFile, ...]:
    """The files that hold the bytes of a disk, in order, without gaps; ``capacity`` in bytes."""
    if disk_format is not DiskFormat.TWO_GB_MAX_EXTENT_FLAT:
        return (ExtentFile(f"{disk}-flat.vmdk", 0, capacity),)
    step = SPLIT_EXTENT_SECTORS * SECTOR_SIZE
    return tuple(
        ExtentFile(f"{disk}-f{number:03}.vmdk", offset, min(step, capacity - offset))
        for number, offset in enumerate(range(0, capacity, step), start=1)
    )


def is_extent_file(disk: str, name: str) -> bool:
    """Whether ``name`` is one that ``extent_files`` gives to an extent of ``disk``."""
    return re.fullmatch(rf"{re.escape(disk)}-(flat|f[0-9]{{3,}})\.vmdk", name) is not None


def make_uuid(random: bytes) -> bytes:
    """Turn 16 random bytes into an image's uuid: the first 3.5 bytes are those of every disk."""
    if len(random) != UUID_SIZE:
        raise ValueError(f"a uuid has {UUID_SIZE} bytes, not {len(random)}")
    return _UUID_MARK + bytes([0x90 | random[3] & 0x0F]) + random[4:]


def format_uuid(uuid: bytes) -> str:
    """Write a uuid as a descriptor does: ``60 00 C2 9a 3d 51 7e 02-b4 68 …``.

    Raises:
        ValueError: It is not one that ``make_uuid`` made.
    """
    if len(uuid) != UUID_SIZE or make_uuid(uuid) != uuid:
        raise ValueError(f"{uuid.hex()} is not the uuid of a disk")
    text = f"{uuid[:8].hex(' ')}-{uuid[8:].hex(' ')}"
    return text.replace("60 00 c2", "60 00 C2", 1)


def uuid_of(descriptor: Descriptor) -> bytes | None:
    """The 16 bytes of ``ddb.uuid``, or None if it is missing or not of its form."""
    text = descriptor.database.get("ddb.uuid", "")
    if not _UUID_TEXT.fullmatch(text):
        return None
    return bytes.fromhex(text.replace("-", " "))


def geometry(capacity: int, adapter: Adapter) -> Geometry:
    """The geometry of a disk of ``capacity`` bytes. Cylinders are not clamped."""
    if adapter is Adapter.IDE:
        heads, sectors = 16, 63
    elif capacity < 1 << 30:
        heads, sectors = 64, 32
    elif capacity < 2 << 30:
        heads, sectors = 128, 32
    else:
        heads, sectors = 255, 63
    return Geometry(capacity // SECTOR_SIZE // (heads * sectors), heads, sectors)


def build(disk: str, capacity: int, layout: Layout, uuid: bytes, content_id: bytes) -> bytes:
    """The descriptor of a disk.

    Args:
        disk: Base name; ``check_name`` accepts it.
        capacity: Bytes, accepted by ``check_capacity``.
        layout: Format, provisioning, adapter and hardware version.
        uuid: 16 bytes from ``make_uuid``, unique to the disk.
        content_id: 16 random bytes. The last four become the CID.

    Raises:
        NameRefused: The name cannot be one.
        DatastoreError: The capacity is refused.
        ValueError: ``uuid``, ``content_id`` or the hardware version are out of form.
    """
    check_name(disk)
    check_capacity(capacity, layout)
    if len(content_id) != CONTENT_ID_SIZE:
        raise ValueError(f"a content id has {CONTENT_ID_SIZE} bytes, not {len(content_id)}")
    if layout.hardware_version not in HARDWARE_VERSIONS:
        raise ValueError(f"hardware version {layout.hardware_version} is not known")
    if content_id.hex().endswith(NO_PARENT):
        content_id = content_id[:-1] + b"\xfe"
    shape = geometry(capacity, layout.adapter)
    thin = {"ddb.thinProvisioned": "1"} if layout.provisioning is Provisioning.THIN else {}
    return descriptor_text.render(
        Descriptor(
            header={
                "version": "1",
                "encoding": "UTF-8",
                "CID": content_id[-4:].hex(),
                "parentCID": NO_PARENT,
                "createType": CREATE_TYPES[layout.format],
            },
            extents=tuple(_extent_lines(disk, capacity, layout.format)),
            database={
                "ddb.adapterType": ADAPTER_TYPES[layout.adapter],
                "ddb.geometry.cylinders": str(shape.cylinders),
                "ddb.geometry.heads": str(shape.heads),
                "ddb.geometry.sectors": str(shape.sectors),
                "ddb.longContentID": content_id.hex(),
                **thin,
                "ddb.uuid": format_uuid(uuid),
                "ddb.virtualHWVersion": str(layout.hardware_version),
            },
        )
    )


def _extent_lines(disk: str, capacity: int, disk_format: DiskFormat) -> Iterator[ExtentLine]:
    vmfs = disk_format is DiskFormat.VMFS
    for file in extent_files(disk, capacity, disk_format):
        sectors = file.length // SECTOR_SIZE
        yield ExtentLine("RW", sectors, "VMFS" if vmfs else "FLAT", file.name, None if vmfs else 0)


def check(descriptor: Descriptor) -> list[str]:
    """Everything that keeps this from being a disk that ESXi takes; empty if all is well."""
    return [
        *_header_problems(descriptor),
        *_extent_problems(descriptor),
        *_geometry_problems(descriptor),
        *_database_problems(descriptor),
    ]


def _header_problems(descriptor: Descriptor) -> Iterator[str]:
    header = descriptor.header
    for key, expected in {"version": "1", "encoding": "UTF-8", "parentCID": NO_PARENT}.items():
        if header.get(key) != expected:
            yield f"{key} is {header.get(key)!r}, {expected!r} is expected"
    cid = header.get("CID", "")
    if not re.fullmatch(r"[0-9a-f]{8}", cid) or cid == NO_PARENT:
        yield f"CID is {cid!r}, 8 lower-case hex digits other than {NO_PARENT} are expected"
    if header.get("createType") not in CREATE_TYPES.values():
        known = ", ".join(CREATE_TYPES.values())
        yield f"createType is {header.get('createType')!r}, one of {known} is expected"


def _extent_problems(descriptor: Descriptor) -> Iterator[str]:
    by_text = {text: disk_format for disk_format, text in CREATE_TYPES.items()}
    disk_format = by_text.get(descriptor.header.get("createType", ""))
    if not descriptor.extents:
        yield "there is no extent"
        return
    if disk_format is None:
        return
    if descriptor.capacity % CHUNK_SIZE or not 0 < descriptor.capacity <= MAX_DISK_SIZE:
        yield f"the extents hold {descriptor.capacity} bytes, 1 MiB times n to 62 TiB is expected"
        return
    found = _EXTENT_FILE.fullmatch(descriptor.extents[0].file)
    if found is None or (problem := name_problem(found[1])):
        reason = problem if found else "is not that of a flat extent"
        yield f"extent name {descriptor.extents[0].file!r} {reason}"
        return
    expected = tuple(_extent_lines(found[1], descriptor.capacity, disk_format))
    if len(expected) != len(descriptor.extents):
        yield f"there are {len(descriptor.extents)} extents, {len(expected)} are expected"
    for actual, wanted in zip(descriptor.extents, expected, strict=False):
        if actual != wanted:
            yield f"extent is {str(actual)!r}, {str(wanted)!r} is expected"


def _geometry_problems(descriptor: Descriptor) -> Iterator[str]:
    adapter_type = descriptor.database.get("ddb.adapterType")
    by_text = {text: adapter for adapter, text in ADAPTER_TYPES.items()}
    adapter = by_text.get(adapter_type or "")
    if adapter is None:
        yield f"ddb.adapterType is {adapter_type!r}, one of {', '.join(by_text)} is expected"
        return
    shape = geometry(descriptor.capacity, adapter)
    for name in Geometry.__slots__:
        actual = descriptor.database.get(f"ddb.geometry.{name}")
        expected = str(getattr(shape, name))
        if actual != expected:
            yield f"ddb.geometry.{name} is {actual!r}, {expected!r} is expected"


def _database_problems(descriptor: Descriptor) -> Iterator[str]:
    database = descriptor.database
    content_id = database.get("ddb.longContentID", "")
    if not re.fullmatch(r"[0-9a-f]{32}", content_id):
        yield f"ddb.longContentID is {content_id!r}, 32 lower-case hex digits are expected"
    elif not content_id.endswith(cid := descriptor.header.get("CID", "")):
        yield f"ddb.longContentID is {content_id!r}, it should end in the CID {cid!r}"
    if uuid_of(descriptor) is None:
        yield f"ddb.uuid is {database.get('ddb.uuid')!r}, '60 00 C2 9x …' is expected"
    if database.get("ddb.thinProvisioned", "1") != "1":
        yield "ddb.thinProvisioned is there and is not '1'"
    version = database.get("ddb.virtualHWVersion", "")
    if not re.fullmatch(r"[0-9]{1,2}", version) or int(version) not in HARDWARE_VERSIONS:
        yield f"ddb.virtualHWVersion is {version!r}, a number from 4 to 22 is expected"
