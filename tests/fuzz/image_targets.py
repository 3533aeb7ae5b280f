"""Decoders of disk images: what a guest or anybody else may have written into a file."""

import struct
from typing import Final

from flatship_sender.sources.containers import HEAD_SIZE, ImageFormat, container_format
from flatship_sender.sources.qcow2_header import (
    HEADER_LIMIT,
    SNAPSHOTS_LIMIT,
    parse_qcow2,
    snapshot_names,
)
from flatship_sender.sources.vhd_vdi import HEADER_SIZE, vdi_problem, vhd_problem
from flatship_sender.sources.vmdk_header import (
    DESCRIPTOR_LIMIT,
    descriptor_place,
    names_parent,
    parse_extents,
)
from fuzz.target import Target
from fuzz.text_targets import DESCRIPTOR_SEEDS, DESCRIPTOR_WORDS

_MAGICS: Final = (b"QFI\xfb", b"KDMV", b"COWD", b"vhdxfile", b"conectix", b"QED\0")


class RawDisk(Exception):
    """It is no image."""


class Unreadable(Exception):
    """It is one that is refused."""


def recognise(data: bytes) -> None:
    """What is called an image begins or ends as one.

    Raises:
        RawDisk: It is none.
    """
    head, tail = data[:HEAD_SIZE], data[-HEAD_SIZE:]
    found = container_format(head, tail)
    if found is None:
        raise RawDisk
    assert found is not ImageFormat.RAW
    text = b"# Disk DescriptorFile"
    assert head.startswith((*_MAGICS, text)) or tail.startswith(b"conectix") or head[64:68]


def read_qcow2(data: bytes) -> None:
    """A backing file's name can be shown, and no more snapshots are named than there are."""
    header = parse_qcow2(data[:HEADER_LIMIT])
    assert header.backing is None or (header.backing.isprintable() and len(header.backing) < 1024)
    table = data[header.snapshots_offset : header.snapshots_offset + SNAPSHOTS_LIMIT]
    assert len(snapshot_names(table, header.snapshots)) <= header.snapshots


def read_vmdk(data: bytes) -> None:
    """An extent is a file of the descriptor's own folder; a descriptor is in reach."""
    place = descriptor_place(data[:512])
    if place is None:
        return
    offset, length = place
    assert 0 <= offset < 1 << 50
    assert length <= DESCRIPTOR_LIMIT
    names_parent(data[offset : offset + length])
    for extent in parse_extents(data[offset : offset + length]):
        assert extent.name not in ("", ".", "..")
        assert not {"/", ":", "\0", "\n"} & set(extent.name)


def read_vhd_and_vdi(data: bytes) -> None:
    """A refusal is a predicate.

    Raises:
        Unreadable: Both would be refused.
    """
    problems = [
        vhd_problem(data[:HEADER_SIZE], data[-HEADER_SIZE:]),
        vdi_problem(data[:HEADER_SIZE], len(data)),
    ]
    for problem in problems:
        assert problem is None or problem.startswith(("is ", "has "))
    if None not in problems:
        raise Unreadable


def _qcow2(backing: bytes = b"") -> bytes:
    behind = struct.pack(">II", 0xE2792ACA, 3) + b"raw" + bytes(5) + bytes(8) + backing
    place = (128, len(backing)) if backing else (0, 0)
    fixed = (b"QFI\xfb", 3, *place, 16, 1 << 30, 0, 1, 1 << 17, 1 << 16, 1, 1, 256)
    head = struct.pack(">4sIQIIQIIQQIIQ", *fixed) + struct.pack(">QQQII", 0, 0, 0, 4, 104)
    table = struct.pack(">QIHHIIQII", 0, 1, 1, 4, 0, 0, 0, 0, 0) + b"1snap"
    return (head + behind).ljust(256, b"\0") + table.ljust(64, b"\0")


def _sparse() -> bytes:
    head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 100, 128, 1, 2)
    return head.ljust(512, b"\0") + DESCRIPTOR_SEEDS[0][:1024].ljust(1024, b"\0")


def _vdi() -> bytes:
    head = bytearray(1024)
    struct.pack_into("<I", head, 0x4C, 1)
    struct.pack_into("<I", head, 0x158, 512)
    struct.pack_into("<IIII", head, 0x178, 512, 0, 8, 1)
    return bytes(head)


_VHD: Final = (b"conectix" + bytes(55) + b"\x03").ljust(512, b"\0")

TARGETS: Final = (
    Target(
        "image-format",
        recognise,
        (RawDisk,),
        (_qcow2(), _sparse(), bytes(64) + b"\x7f\x10\xda\xbe", bytes(512) + _VHD),
        tokens=_MAGICS,
    ),
    Target("qcow2-header", read_qcow2, (ValueError,), (_qcow2(), _qcow2(b"base.img"))),
    Target(
        "vmdk-header",
        read_vmdk,
        (ValueError,),
        (_sparse(), *DESCRIPTOR_SEEDS),
        tokens=DESCRIPTOR_WORDS,
        memory=4 << 20,
        inputs=20_000,
    ),
    Target("vhd-vdi-header", read_vhd_and_vdi, (Unreadable,), (_VHD, _vdi()), inputs=20_000),
)
