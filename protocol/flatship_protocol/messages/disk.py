"""Messages about a disk, but for CHUNK. See SPEC.md for their offset tables."""

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final, Self

from flatship_protocol.constants import (
    CHUNK_SIZE,
    DIGEST_SIZE,
    MAX_HELD,
    MAX_RANGES,
    SECTOR_SIZE,
)
from flatship_protocol.errors import ErrorCode
from flatship_protocol.messages.body import (
    DiskMessage,
    error_code,
    malformed,
    number,
    pack_text,
    unpack,
    unpack_front,
    unpack_text,
)
from flatship_protocol.messages.registry import Adapter, DiskFormat, MessageType, Provisioning

MIN_HARDWARE_VERSION: Final = 4
MAX_HARDWARE_VERSION: Final = 22

# size, reserve, source id, format, provisioning, adapter, hardware version
_OPEN_DISK: Final = Struct(">QQ32sBBBB4x")
_DISK_OPENED: Final = Struct(">16sQQ")  # image uuid, capacity, free
_HELD: Final = Struct(">QQ")  # first chunk, how many
_RANGES: Final = Struct(">H6x")  # count
_RANGE: Final = Struct(">QQ")  # offset, length
_ZERO: Final = Struct(">QQ")  # offset, length
_END_PASS: Final = Struct(">Q32s")  # chunks, root digest
_PROVING: Final = Struct(">QQ")  # re-read, in all
_ABANDON: Final = Struct(">H6x")  # code
_DISK_PROVEN: Final = Struct(">Q32s")  # re-read, root digest
_DISK_FAILED: Final = Struct(">H6xQQ")  # code, first number, second number


@dataclass(frozen=True, slots=True)
class OpenDisk(DiskMessage):
    """OPEN_DISK: the sender wants to send a disk.

    Attributes:
        size: Bytes, a multiple of 512.
        reserve: Bytes of space that the receiver must have free for it.
        source_id: 32 bytes, the same for every reading of the same source.
        hardware_version: The virtual machine's, 4 to 22.
        datastore: Its name; empty for the receiver's default.
        vm: Name; what makes one is for the receiver's file layer to say.
        name: The disk's base name, likewise.
        replace: An existing disk of that name may be replaced.
        live: The source is in use; this pass is never published.
        dry_run: Answer, create nothing.
        in_doubt: An earlier session may have sent END_PASS for it, and did not
            hear what came of it. With capability RESUME only.
    """

    TYPE: ClassVar = MessageType.OPEN_DISK
    FLAGS: ClassVar = 0b1111

    size: int
    reserve: int
    source_id: bytes
    format: DiskFormat
    provisioning: Provisioning
    adapter: Adapter
    hardware_version: int
    datastore: str
    vm: str
    name: str
    replace: bool = False
    live: bool = False
    dry_run: bool = False
    in_doubt: bool = False

    def _flags(self) -> int:
        return self.replace | self.live << 1 | self.dry_run << 2 | self.in_doubt << 3

    def _body(self) -> bytes:
        return _OPEN_DISK.pack(
            self.size,
            self.reserve,
            self.source_id,
            self.format,
            self.provisioning,
            self.adapter,
            self.hardware_version,
        ) + pack_text(self.datastore, self.vm, self.name)

    @classmethod
    def _parse(cls, disk: int, pass_number: int, flags: int, body: memoryview) -> Self:
        size, reserve, source_id, format_, provisioning, adapter, hardware_version = unpack_front(
            cls.TYPE, _OPEN_DISK, body
        )
        if size % SECTOR_SIZE:
            malformed(cls.TYPE, f"size {size} is not a multiple of {SECTOR_SIZE}")
        if reserve > size:
            malformed(cls.TYPE, f"reserve {reserve} exceeds size {size}")
        if not MIN_HARDWARE_VERSION <= hardware_version <= MAX_HARDWARE_VERSION:
            malformed(
                cls.TYPE,
                f"hardware version {hardware_version};"
                f" expected {MIN_HARDWARE_VERSION} to {MAX_HARDWARE_VERSION}",
            )
        datastore, vm, name = unpack_text(cls.TYPE, body[_OPEN_DISK.size :], 3)
        return cls(
            disk,
            pass_number,
            size=size,
            reserve=reserve,
            source_id=source_id,
            format=number(cls.TYPE, DiskFormat, format_),
            provisioning=number(cls.TYPE, Provisioning, provisioning),
            adapter=number(cls.TYPE, Adapter, adapter),
            hardware_version=hardware_version,
            datastore=datastore,
            vm=vm,
            name=name,
            replace=bool(flags & 1),
            live=bool(flags & 2),
            dry_run=bool(flags & 4),
            in_doubt=bool(flags & 8),
        )


@dataclass(frozen=True, slots=True)
class DiskOpened(DiskMessage):
    """DISK_OPENED: the receiver will take the disk.

    Attributes:
        image_uuid: 16 bytes.
        capacity: Bytes the guest will see, a multiple of 1 MiB.
        free: Bytes free at the datastore beyond all reservations.
    """

    TYPE: ClassVar = MessageType.DISK_OPENED

    image_uuid: bytes
    capacity: int
    free: int

    def _body(self) -> bytes:
        return _DISK_OPENED.pack(self.image_uuid, self.capacity, self.free)

    @classmethod
    def _parse(cls, disk: int, pass_number: int, flags: int, body: memoryview) -> Self:
        image_uuid, capacity, free = unpack(cls.TYPE, _DISK_OPENED, body)
        if capacity % CHUNK_SIZE:
            malformed(cls.TYPE, f"capacity {capacity} is not a multiple of {CHUNK_SIZE}")
        return cls(disk, pass_number, image_uuid, capacity, free)


@dataclass(frozen=True, slots=True)
class Held(DiskMessage):
    """HELD: chunks that the receiver has on stable storage from an earlier session.

    Attributes:
        first: Index of the run's first chunk.
        count: Chunks in the run, 0 for none.
        digests: Theirs in order, 32 bytes each, of at most 512 chunks; empty
            for a run of zeros, which may have any length.
        last: No further HELD follows for this disk.
    """

    TYPE: ClassVar = MessageType.HELD
    FLAGS: ClassVar = 0b11

    first: int
    count: int
    digests: bytes
    last: bool = False

    @property
    def zeros(self) -> bool:
        """Whether it is a run of zeros."""
        return self.count > 0 and not self.digests

    def _flags(self) -> int:
        return self.last | self.zeros << 1

    def _body(self) -> bytes:
        return _HELD.pack(self.first, self.count) + self.digests

    @classmethod
    def _parse(cls, disk: int, pass_number: int, flags: int, body: memoryview) -> Self:
        first, count = unpack_front(cls.TYPE, _HELD, body)
        digests = bytes(body[_HELD.size :])
        expected = 0 if flags & 2 else count
        if expected > MAX_HELD:
            malformed(cls.TYPE, f"{count} digests; at most {MAX_HELD}")
        if len(digests) != expected * DIGEST_SIZE:
            malformed(
                cls.TYPE, f"{len(digests)} bytes of digests; expected {expected * DIGEST_SIZE}"
            )
        if flags & 2 and not count:
            malformed(cls.TYPE, "a run of zeros that is empty")
        return cls(disk, pass_number, first, count, digests, last=bool(flags & 1))


@dataclass(frozen=True, slots=True)
class _Ranges(DiskMessage):
    """1 to 1024 ranges of the disk, ``(offset, length)`` in bytes."""

    ranges: tuple[tuple[int, int], ...]

    def _body(self) -> bytes:
        count = _RANGES.pack(len(self.ranges))
        return count + b"".join(_RANGE.pack(offset, length) for offset, length in self.ranges)

    @classmethod
    def _parse(cls, disk: int, pass_number: int, flags: int, body: memoryview) -> Self:
        (count,) = unpack_front(cls.TYPE, _RANGES, body)
        if not 1 <= count <= MAX_RANGES:
            malformed(cls.TYPE, f"{count} ranges; expected 1 to {MAX_RANGES}")
        table = body[_RANGES.size :]
        if len(table) != count * _RANGE.size:
            malformed(cls.TYPE, f"{len(table)} bytes of ranges; expected {count * _RANGE.size}")
        ranges: tuple[tuple[int, int], ...] = tuple(_RANGE.iter_unpack(table))
        if not all(length for _, length in ranges):
            malformed(cls.TYPE, "a range is empty")
        return cls(disk, pass_number, ranges)


@dataclass(frozen=True, slots=True)
class Stored(_Ranges):
    """STORED: these 1 to 1024 ranges, ``(offset, length)`` in bytes, are on stable storage."""

    TYPE: ClassVar = MessageType.STORED


@dataclass(frozen=True, slots=True)
class Want(_Ranges):
    """WANT: chunks in these ranges came with KEEP and did not come out right; send them whole."""

    TYPE: ClassVar = MessageType.WANT


@dataclass(frozen=True, slots=True)
class Zero(DiskMessage):
    """ZERO: these whole chunks of the disk are zeros.

    Attributes:
        offset: Bytes, a multiple of 1 MiB.
        length: Bytes; up to a multiple of 1 MiB or to the disk's end, which
            only the session knows.
        hole: The source says so; otherwise it was read and is zero.
    """

    TYPE: ClassVar = MessageType.ZERO
    FLAGS: ClassVar = 1

    offset: int
    length: int
    hole: bool

    def _flags(self) -> int:
        return int(self.hole)

    def _body(self) -> bytes:
        return _ZERO.pack(self.offset, self.length)

    @classmethod
    def _parse(cls, disk: int, pass_number: int, flags: int, body: memoryview) -> Self:
        offset, length = unpack(cls.TYPE, _ZERO, body)
        if offset % CHUNK_SIZE:
            malformed(cls.TYPE, f"offset {offset} is not a multiple of {CHUNK_SIZE}")
        if not length or length % SECTOR_SIZE:
            malformed(cls.TYPE, f"length {length} is not a positive multiple of {SECTOR_SIZE}")
        return cls(disk, pass_number, offset, length, bool(flags))


@dataclass(frozen=True, slots=True)
class EndPass(DiskMessage):
    """END_PASS: everything of this pass has been sent.

    Attributes:
        chunks: Those that came as CHUNK, each counted once.
        root_digest: 32 bytes.
    """

    TYPE: ClassVar = MessageType.END_PASS

    chunks: int
    root_digest: bytes

    def _body(self) -> bytes:
        return _END_PASS.pack(self.chunks, self.root_digest)

    @classmethod
    def _parse(cls, disk: int, pass_number: int, flags: int, body: memoryview) -> Self:
        return cls(disk, pass_number, *unpack(cls.TYPE, _END_PASS, body))


@dataclass(frozen=True, slots=True)
class Proving(DiskMessage):
    """PROVING: the receiver has re-read so many of so many bytes."""

    TYPE: ClassVar = MessageType.PROVING

    reread: int
    total: int

    def _body(self) -> bytes:
        return _PROVING.pack(self.reread, self.total)

    @classmethod
    def _parse(cls, disk: int, pass_number: int, flags: int, body: memoryview) -> Self:
        return cls(disk, pass_number, *unpack(cls.TYPE, _PROVING, body))


@dataclass(frozen=True, slots=True)
class Abandon(DiskMessage):
    """ABANDON: the sender gives the disk up; ``code`` says why."""

    TYPE: ClassVar = MessageType.ABANDON

    code: ErrorCode

    def _body(self) -> bytes:
        return _ABANDON.pack(self.code)

    @classmethod
    def _parse(cls, disk: int, pass_number: int, flags: int, body: memoryview) -> Self:
        (code,) = unpack(cls.TYPE, _ABANDON, body)
        return cls(disk, pass_number, error_code(code))


@dataclass(frozen=True, slots=True)
class DiskProven(DiskMessage):
    """DISK_PROVEN: the target was re-read and equals the source.

    Attributes:
        reread: Bytes; the others are holes at the target.
        root_digest: 32 bytes, of what was re-read.
        published: The descriptor stands under its final name.
    """

    TYPE: ClassVar = MessageType.DISK_PROVEN
    FLAGS: ClassVar = 1

    reread: int
    root_digest: bytes
    published: bool

    def _flags(self) -> int:
        return int(self.published)

    def _body(self) -> bytes:
        return _DISK_PROVEN.pack(self.reread, self.root_digest)

    @classmethod
    def _parse(cls, disk: int, pass_number: int, flags: int, body: memoryview) -> Self:
        reread, root_digest = unpack(cls.TYPE, _DISK_PROVEN, body)
        return cls(disk, pass_number, reread, root_digest, bool(flags))


@dataclass(frozen=True, slots=True)
class DiskFailed(DiskMessage):
    """DISK_FAILED: the disk ends here. ``numbers`` mean what the code defines."""

    TYPE: ClassVar = MessageType.DISK_FAILED

    code: ErrorCode
    numbers: tuple[int, int] = (0, 0)

    def _body(self) -> bytes:
        return _DISK_FAILED.pack(self.code, *self.numbers)

    @classmethod
    def _parse(cls, disk: int, pass_number: int, flags: int, body: memoryview) -> Self:
        code, first, second = unpack(cls.TYPE, _DISK_FAILED, body)
        return cls(disk, pass_number, error_code(code), (first, second))
