"""Numbers that SPEC.md, "Messages", assigns."""

from enum import IntEnum, IntFlag


class MessageType(IntEnum):
    """First byte of a message."""

    HELLO = 0x01
    HELLO_OK = 0x02
    OPEN_DISK = 0x03
    DISK_OPENED = 0x04
    CHUNK = 0x05
    STORED = 0x06
    ZERO = 0x07
    WANT = 0x08
    END_PASS = 0x09
    PROVING = 0x0A
    ABANDON = 0x0B
    DISK_PROVEN = 0x0C
    GOODBYE = 0x0D
    DISK_FAILED = 0x0E
    CREDIT = 0x10
    PING = 0x11
    PONG = 0x12
    ERROR = 0x14
    HELD = 0x40
    IMAGE = 0x42
    PROBE = 0x43
    PROBED = 0x44


class Capability(IntFlag):
    """What an end can do beyond the minimum.

    Bits without a name are kept: a HELLO may offer what this version does not
    know, and the receiver leaves it out of its HELLO_OK.
    """

    NONE = 0
    DELTA = 1  # chunks with KEEP segments, WANT in answer to them
    KNOWN = 2  # IMAGE, chunks with COPY segments, WANT in answer to them
    RESUME = 4  # HELD after DISK_OPENED; incomplete disks are kept
    HISTORY = 8  # payloads of one connection coded as one stream
    PROBE = 16  # PROBE, PROBED in answer to it


class Codec(IntEnum):
    """How the payload of a CHUNK is coded."""

    RAW = 0
    ZSTD = 1  # a frame of its own
    HISTORY = 2  # the next blocks of the connection's stream


class SegmentKind(IntEnum):
    """Where the bytes of a chunk's segment come from."""

    LITERAL = 0
    ZERO = 1
    KEEP = 2
    COPY = 3


class DiskFormat(IntEnum):
    """Layout of the disk's files at the datastore."""

    VMFS = 0
    MONOLITHIC_FLAT = 1
    TWO_GB_MAX_EXTENT_FLAT = 2


class Provisioning(IntEnum):
    """When the datastore allocates the disk's space."""

    THIN = 0
    THICK = 1
    EAGER = 2


class Adapter(IntEnum):
    """The adapter type that the descriptor names."""

    LSILOGIC = 0
    BUSLOGIC = 1
    IDE = 2
