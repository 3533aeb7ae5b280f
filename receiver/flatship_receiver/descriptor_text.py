"""The text of a VMDK descriptor: lines into values and back.

Syntax only; what the values must be is for ``vmdk.check`` to say. Pure.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flatship_protocol.constants import SECTOR_SIZE
from flatship_protocol.errors import TransferError

MAX_DESCRIPTOR_SIZE: Final = 64 * 1024  # bytes

SIGNATURE: Final = "# Disk DescriptorFile"
EXTENTS_TITLE: Final = "# Extent description"
DATABASE_TITLE: Final = "# The Disk Data Base "  # the blank at its end belongs there

_HEADER_LINE = re.compile(r'([A-Za-z]+)=(?:"([^"]*)"|([^"\s]+))')
_DATABASE_LINE = re.compile(r'(ddb\.[A-Za-z0-9_.-]+) = "([^"]*)"')
_EXTENT_LINE = re.compile(
    r'(RW|RDONLY|NOACCESS) ([0-9]{1,20}) ([A-Z]+) "([^"]+)"(?: ([0-9]{1,20}))?'
)


class DescriptorError(TransferError):
    """A text is not the descriptor of a virtual disk."""


@dataclass(frozen=True, slots=True)
class ExtentLine:
    """A line of the extent description. ``offset``, in sectors, is absent for kind ``VMFS``."""

    access: str
    sectors: int
    kind: str
    file: str
    offset: int | None

    def __str__(self) -> str:
        text = f'{self.access} {self.sectors} {self.kind} "{self.file}"'
        return text if self.offset is None else f"{text} {self.offset}"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor's text, taken apart but not judged; ``check`` judges.

    ``header`` and ``database`` map keys to values without their quotes, in
    the order of the text; keys of ``database`` start with ``ddb.``.
    """

    header: Mapping[str, str]
    extents: tuple[ExtentLine, ...]
    database: Mapping[str, str]

    @property
    def capacity(self) -> int:
        """Bytes the guest will see."""
        return SECTOR_SIZE * sum(extent.sectors for extent in self.extents)


def render(descriptor: Descriptor) -> bytes:
    """Write a descriptor; ``parse`` takes it apart again."""
    quoted = {"encoding", "createType"}
    header = (
        f'{key}="{value}"' if key in quoted else f"{key}={value}"
        for key, value in descriptor.header.items()
    )
    database = (f'{key} = "{value}"' for key, value in descriptor.database.items())
    lines = [
        *(SIGNATURE, *header, ""),
        *(EXTENTS_TITLE, *map(str, descriptor.extents), ""),
        *(DATABASE_TITLE, "#DDB", "", *database, ""),
    ]
    return "\n".join(lines).encode("ascii")


def parse(text: bytes) -> Descriptor:
    """Take a descriptor apart. Every line must be of a known form, no key given twice.

    Args:
        text: At most 64 KiB of UTF-8, LF line ends.

    Raises:
        DescriptorError: It is no descriptor; the message names the line.
    """
    if len(text) > MAX_DESCRIPTOR_SIZE:
        raise DescriptorError(
            f"descriptor has {len(text)} bytes, at most {MAX_DESCRIPTOR_SIZE} are expected"
        )
    try:
        lines = text.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DescriptorError(f"descriptor is not UTF-8: {error}") from error
    if lines[0] != SIGNATURE:
        raise DescriptorError(f"descriptor does not start with {SIGNATURE!r}")
    if lines[-1]:
        raise DescriptorError("descriptor is cut off: its last line has no end")
    header: dict[str, str] = {}
    extents: list[ExtentLine] = []
    database: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        if found := _EXTENT_LINE.fullmatch(line):
            access, sectors, kind, file, offset = found.groups()
            offset_sectors = None if offset is None else int(offset)
            extents.append(ExtentLine(access, int(sectors), kind, file, offset_sectors))
        elif found := _DATABASE_LINE.fullmatch(line):
            _put(database, found[1], found[2], number)
        elif found := _HEADER_LINE.fullmatch(line):
            _put(header, found[1], found[3] if found[2] is None else found[2], number)
        else:
            raise DescriptorError(f"descriptor, line {number}: {line[:80]!r} is not understood")
    return Descriptor(header, tuple(extents), database)


def _put(values: dict[str, str], key: str, value: str, number: int) -> None:
    if key in values:
        raise DescriptorError(f"descriptor, line {number}: {key} is given twice")
    values[key] = value
