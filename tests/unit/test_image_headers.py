"""What files say of being disk images, and what such images say of themselves."""

import struct
from pathlib import Path

import pytest

from flatship_sender.sources.containers import ImageFormat, container_format, format_of_name
from flatship_sender.sources.qcow2_header import parse_qcow2, snapshot_names
from flatship_sender.sources.vhd_vdi import vdi_problem, vhd_problem
from flatship_sender.sources.vmdk_header import (
    ExtentFile,
    check_extent,
    descriptor_place,
    names_parent,
    parse_extents,
)

SECTOR = bytes(512)
DESCRIPTOR = b"""# Disk DescriptorFile
version=1
CID=6f5e2b11
parentCID=ffffffff
createType="monolithicFlat"

# Extent description
RW 8192 FLAT "web-flat.vmdk" 16
RW 100 SPARSE "web-s002.vmdk"

ddb.adapterType = "ide"
"""


def qcow2(
    *,
    version: int = 3,
    backing: tuple[int, int] = (0, 0),
    cluster_bits: int = 16,
    crypt: int = 0,
    snapshots: tuple[int, int] = (0, 0),
    features: int = 0,
    behind: bytes = b"",
) -> bytes:
    fixed = struct.pack(
        ">4sIQIIQIIQQIIQ",
        *(b"QFI\xfb", version, *backing, cluster_bits, 1 << 30, crypt),
        *(1, 1 << 17, 1 << 16, 1, *snapshots),
    )
    return fixed + struct.pack(">QQQII", features, 0, 0, 4, 104) + behind


def with_backing(name: bytes, kind: bytes | None) -> bytes:
    extension = b""
    if kind is not None:
        extension = struct.pack(">II", 0xE2792ACA, len(kind)) + kind + bytes(-len(kind) % 8)
    at = 104 + len(extension) + 8
    return qcow2(backing=(at, len(name)), behind=extension + bytes(8) + name)


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"QFI\xfb", ImageFormat.QCOW2),
        (b"KDMV", ImageFormat.VMDK),
        (b"COWD", ImageFormat.VMDK),
        (b"# Disk DescriptorFile", ImageFormat.VMDK),
        (b"vhdxfile", ImageFormat.VHDX),
        (b"conectix", ImageFormat.VHD),
        (bytes(64) + b"\x7f\x10\xda\xbe", ImageFormat.VDI),
        (b"QED\0", ImageFormat.QED),
        (b"\xeb\x63\x90", None),
        (b"", None),
        (b" QFI\xfb", None),
    ],
)
def test_a_container_is_known_by_how_it_begins(head: bytes, found: ImageFormat | None) -> None:
    assert container_format(head, SECTOR) is found
    assert container_format(head.ljust(512, b"\0"), SECTOR) is found


def test_a_fixed_vhd_is_known_by_how_it_ends() -> None:
    assert container_format(SECTOR, b"conectix".ljust(512)) is ImageFormat.VHD


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("web.qcow2", ImageFormat.QCOW2),
        ("/a.raw/WEB.VMDK", ImageFormat.VMDK),
        ("web.vpc", ImageFormat.VHD),
        ("web.raw", ImageFormat.RAW),
        ("web.img", None),
        ("web", None),
        ("web.qcow2.snap1", None),
    ],
)
def test_a_name_says_what_a_file_is_by_its_end(name: str, found: ImageFormat | None) -> None:
    assert format_of_name(name) is found


def test_a_plain_qcow2_stands_alone() -> None:
    header = parse_qcow2(qcow2())
    assert header.size == 1 << 30
    assert header.backing is header.backing_format is None
    assert not any((header.encrypted, header.dirty, header.corrupt, header.data_file))


def test_a_qcow2_names_its_backing_file_and_the_format_of_that() -> None:
    header = parse_qcow2(with_backing(b"base.img", b"raw"))
    assert (header.backing, header.backing_format) == ("base.img", "raw")
    assert parse_qcow2(with_backing(b"base.img", None)).backing_format is None


def test_flags_of_a_qcow2_are_told_apart() -> None:
    assert parse_qcow2(qcow2(features=1)).dirty
    assert parse_qcow2(qcow2(features=2)).corrupt
    assert parse_qcow2(qcow2(features=4)).data_file
    assert parse_qcow2(qcow2(crypt=2)).encrypted
    assert not parse_qcow2(qcow2(version=2, features=7)).dirty  # which version 2 does not have


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"QFI\xfb", "cut short"),
        (qcow2()[:80], "cut short"),
        (b"QFA\xfb" + qcow2()[4:], "does not begin"),
        (qcow2(version=1), "version 1 of the format"),
        (qcow2(cluster_bits=40), r"2\^40 bytes"),
        (qcow2(backing=(1 << 40, 8)), "where no name can be"),
        (qcow2(backing=(104, 4096), behind=bytes(9000)), "where no name can be"),
        (with_backing(b"\xff\xfe", b"raw"), "not UTF-8"),
        (with_backing(b"a\nb", b"raw"), "cannot be printed"),
    ],
)
def test_a_qcow2_header_that_makes_no_sense_is_refused(head: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_qcow2(head)


def test_snapshots_are_named_as_far_as_their_table_goes() -> None:
    entries = b""
    for name in (b"before", b"after"):
        entry = struct.pack(">QIHHIIQII", 0, 1, 1, len(name), 0, 0, 0, 0, 16) + bytes(16)
        entry += b"1" + name
        entries += entry + bytes(-len(entry) % 8)
    assert snapshot_names(entries, 2) == ["before", "after"]
    assert snapshot_names(entries, 1) == ["before"]
    assert snapshot_names(entries[:-8], 2) == ["before"]
    assert snapshot_names(b"", 1 << 31) == []


def test_a_descriptor_names_its_extents_and_how_long_they_must_be() -> None:
    assert parse_extents(DESCRIPTOR) == (
        ExtentFile("web-flat.vmdk", 8208 * 512),
        ExtentFile("web-s002.vmdk", 0),
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"ffffffff", b"6f5e2b11"),
        (b"version=1", b"# parentCID=6f5e2b11"),  # qemu takes the first one, wherever it stands
        (b"version=1", b'parentFileNameHint="/srv/other.vmdk"'),
    ],
)
def test_a_disk_of_a_snapshot_is_known_by_whatever_makes_qemu_look_for_its_parent(
    before: bytes, after: bytes
) -> None:
    assert not names_parent(DESCRIPTOR)
    assert names_parent(DESCRIPTOR.replace(before, after))


@pytest.mark.parametrize(
    "line",
    [
        b'RW +8 FLAT "/etc/shadow" 0',
        b'RW\n8 FLAT "/etc/shadow" 0',
        b'\n \rRW 8 FLAT\n"/etc/shadow" 0',
        b'RW 8 FLAT "/etc/shadow',
        b'RW 8 FLAT "web-flat.vmdk" -1',
        b'RDONLY 8 FLAT "web-flat.vmdk" 0',  # which qemu leaves out
        b"RW 8 ZERO",
    ],
)
def test_an_extent_that_qemu_may_read_otherwise_than_we_do_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="an extent that cannot be read: b'R"):
        parse_extents(DESCRIPTOR + line + b"\n")


@pytest.mark.parametrize("name", [b"/etc/shadow", b"../other.raw", b"nbd:host:1", b"", b".."])
def test_an_extent_elsewhere_is_refused(name: bytes) -> None:
    with pytest.raises(ValueError, match="a plain name in its own folder"):
        parse_extents(DESCRIPTOR.replace(b"web-flat.vmdk", name))


def sparse(capacity: int, place: int, length: int) -> bytes:
    return struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, capacity, 128, place, length)


def test_a_sparse_extent_says_where_its_descriptor_is() -> None:
    assert descriptor_place(sparse(100, 1, 20)) == (512, 10240)
    assert descriptor_place(sparse(100, 0, 0)) is None
    assert descriptor_place(DESCRIPTOR) == (0, 1 << 20)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (sparse(0, 1, 20), "no capacity"),  # of which qemu would follow a descriptor
        (sparse(100, 1, 1 << 40), "places its descriptor"),
        (sparse(100, 1 << 60, 1), "places its descriptor"),
        (b"COWD", "redo log"),
        (b"KDMV", "does not begin"),
    ],
)
def test_a_sparse_extent_that_makes_no_disk_is_refused(head: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        descriptor_place(head)


def test_an_extent_is_no_descriptor_that_names_others() -> None:
    check_extent(sparse(100, 1, 20))
    for head, reason in ((DESCRIPTOR, "another descriptor"), (sparse(0, 1, 20), "no capacity")):
        with pytest.raises(ValueError, match=reason):
            check_extent(head)


def footer(kind: int) -> bytes:
    return (b"conectix" + bytes(52) + struct.pack(">I", kind)).ljust(512, b"\0")


def test_a_vhd_is_whole_or_refused() -> None:
    assert vhd_problem(footer(3), footer(3)) is None
    assert vhd_problem(SECTOR, footer(2)) is None
    assert "cut short" in (vhd_problem(footer(3), SECTOR) or "")
    assert "differencing" in (vhd_problem(footer(4), footer(3)) or "")
    assert "differencing" in (vhd_problem(SECTOR, footer(4)) or "")


def vdi(kind: int, allocated: int) -> bytes:
    head = bytearray(512)
    struct.pack_into("<I", head, 0x4C, kind)
    struct.pack_into("<I", head, 0x158, 4096)
    struct.pack_into("<IIII", head, 0x178, 1 << 20, 0, 8, allocated)
    return bytes(head)


def test_a_vdi_is_whole_or_refused() -> None:
    assert vdi_problem(vdi(1, 2), 4096 + (2 << 20)) is None
    assert "is cut short" in (vdi_problem(vdi(1, 2), 4095 + (2 << 20)) or "")
    assert "differencing" in (vdi_problem(vdi(4, 2), 1 << 30) or "")
    assert "cut short" in (vdi_problem(b"", 0) or "")


def test_a_real_descriptor_is_read(tmp_path: Path) -> None:
    for path in sorted((Path(__file__).parents[1] / "vectors").rglob("*.vmdk")):
        assert parse_extents(path.read_bytes()), path
