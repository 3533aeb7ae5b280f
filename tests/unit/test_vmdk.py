"""The rules of names, sizes and descriptors, against golden texts and by breaking each in turn."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatship_protocol.errors import DatastoreError, ErrorCode, NameRefused
from flatship_protocol.messages import Adapter, DiskFormat, Provisioning
from flatship_protocol.names import check_name
from flatship_receiver import vmdk
from flatship_receiver.descriptor_text import MAX_DESCRIPTOR_SIZE, DescriptorError, parse, render
from flatship_receiver.vmdk import Layout

GOLDEN = Path(__file__).parent.parent / "vectors" / "descriptors"
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
VMFS_THIN = Layout(DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 14)
SPLIT = Layout(DiskFormat.TWO_GB_MAX_EXTENT_FLAT, Provisioning.EAGER, Adapter.BUSLOGIC, 17)
UUID = bytes.fromhex("6000c29a3d517e02b4681fc905da77e1")
CONTENT_ID = bytes(range(16))


@pytest.mark.parametrize(
    ("file", "disk", "capacity", "layout", "uuid", "content_id"),
    [
        (
            "vmfs-thin",
            "web01",
            40 * GIB,
            VMFS_THIN,
            UUID,
            bytes.fromhex("7ed9bde6bd0e9d3c78369865fffffffe"),
        ),
        (
            "vmfs-thick",
            "db (old) 2_1",
            512 * MIB,
            Layout(DiskFormat.VMFS, Provisioning.THICK, Adapter.LSILOGIC, 20),
            vmdk.make_uuid(bytes(15) + b"\1"),
            bytes(15) + b"\x2a",
        ),
        (
            "monolithic-flat-ide",
            "web01",
            20 * GIB,
            Layout(DiskFormat.MONOLITHIC_FLAT, Provisioning.THIN, Adapter.IDE, 8),
            vmdk.make_uuid(b"\xff" * 16),
            CONTENT_ID,
        ),
        ("split-buslogic", "web01", 4095 * MIB, SPLIT, UUID, CONTENT_ID),
    ],
)
def test_descriptor_is_the_golden_text(
    file: str, disk: str, capacity: int, layout: Layout, uuid: bytes, content_id: bytes
) -> None:
    expected = (GOLDEN / f"{file}.vmdk").read_bytes()
    assert vmdk.build(disk, capacity, layout, uuid, content_id) == expected
    assert vmdk.check(parse(expected)) == []
    assert render(parse(expected)) == expected


@given(
    capacity=st.integers(1, 1000 * GIB).map(vmdk.round_capacity),
    layout=st.builds(
        Layout,
        st.sampled_from(DiskFormat),
        st.sampled_from(Provisioning),
        st.sampled_from(Adapter),
        st.integers(4, 22),
    ),
    random=st.binary(min_size=16, max_size=16),
    content_id=st.binary(min_size=16, max_size=16),
)
def test_what_is_built_is_parsed_and_passes_every_check(
    capacity: int, layout: Layout, random: bytes, content_id: bytes
) -> None:
    uuid = vmdk.make_uuid(random)
    descriptor = parse(vmdk.build("web01", capacity, layout, uuid, content_id))
    assert vmdk.check(descriptor) == []
    assert descriptor.capacity == capacity
    assert vmdk.uuid_of(descriptor) == uuid


GOOD = (GOLDEN / "vmfs-thin.vmdk").read_text()


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("version=1\n", "version=2\n", "version is '2'"),
        ('encoding="UTF-8"', 'encoding="windows-1252"', "encoding"),
        ("CID=fffffffe\np", "CID=FFFFFFFE\np", "CID"),
        ("CID=fffffffe\np", "CID=ffffffff\np", "CID"),
        ("CID=fffffffe\np", "CID=fffffff\np", "CID"),
        ("parentCID=ffffffff", "parentCID=00000001", "parentCID"),
        ('createType="vmfs"', 'createType="vmfsThin"', "createType"),
        ('createType="vmfs"\n', "", "createType is None"),
        ('RW 83886080 VMFS "web01-flat.vmdk"\n', "", "no extent"),
        ("RW 83886080", "RW 83886081", "the extents hold"),
        ("RW 83886080", "RW 0", "the extents hold 0"),
        ("RW 83886080", "RDONLY 83886080", "extent is"),
        ('VMFS "web01-flat.vmdk"', 'VMFS "web01-flat.vmdk" 0', "extent is"),
        ('VMFS "web01-flat.vmdk"', 'FLAT "web01-flat.vmdk" 0', "extent is"),
        ("web01-flat.vmdk", "web01.vmdk", "extent name"),
        ("web01-flat.vmdk", "../web01-flat.vmdk", "extent name"),
        ("web01-flat.vmdk", "web01-f001.vmdk", "extent is"),
        ("RW 83886080", "RW 84090880", "geometry.cylinders"),
        ('adapterType = "lsilogic"', 'adapterType = "pvscsi"', "adapterType"),
        ('cylinders = "5221"', 'cylinders = "5222"', "geometry.cylinders"),
        ('heads = "255"', 'heads = "16"', "geometry.heads"),
        ('ddb.geometry.sectors = "63"\n', "", "geometry.sectors is None"),
        ("fffffffe\nparent", "00000001\nparent", "should end in the CID"),
        ("7ed9bde6bd0e9d3c", "7ED9bde6bd0e9d3c", "longContentID"),
        ("60 00 C2 9a", "60 00 C2 8a", "uuid"),
        ("02-b4", "02 b4", "uuid"),
        ('thinProvisioned = "1"', 'thinProvisioned = "0"', "thinProvisioned"),
        ('HWVersion = "14"', 'HWVersion = "3"', "virtualHWVersion"),
        ('HWVersion = "14"', 'HWVersion = "latest"', "virtualHWVersion"),
    ],
)
def test_every_broken_rule_is_found(old: str, new: str, complaint: str) -> None:
    broken = GOOD.replace(old, new, 1)
    assert broken != GOOD
    problems = vmdk.check(parse(broken.encode()))
    assert any(complaint in problem for problem in problems), problems


def test_missing_split_extent_is_found() -> None:
    text = (GOLDEN / "split-buslogic.vmdk").read_text()
    broken = text.replace('RW 4192256 FLAT "web01-f002.vmdk" 0\n', "")
    assert any("extent" in problem for problem in vmdk.check(parse(broken.encode())))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "does not start"),
        (b"KDMV\1\0\0\0", "does not start"),
        (GOOD.encode().replace(b"\n", b"\r\n"), "does not start"),
        (GOOD.encode()[:-1], "cut off"),
        (GOOD.encode()[:-3] + b"\n", "line 21"),
        (GOOD.encode() + b"\xff\n", "not UTF-8"),
        (GOOD.encode() + b"ddb.comment = unquoted\n", "line 22"),
        (GOOD.encode() + b'ddb.uuid = "twice"\n', "ddb.uuid is given twice"),
        (GOOD.encode() + b"version=1\n", "version is given twice"),
        (GOOD.encode() + b"\0" * 10 + b"\n", "line 22"),
        (GOOD.encode() + b"\n" * MAX_DESCRIPTOR_SIZE, "at most"),
        (GOOD.replace("83886080", "\N{ARABIC-INDIC DIGIT ONE}").encode(), "line 9"),
    ],
)
def test_what_is_no_descriptor_is_refused(text: bytes, complaint: str) -> None:
    with pytest.raises(DescriptorError, match=complaint):
        parse(text)


@given(st.binary(max_size=300), st.integers(0, len(GOOD)))
def test_any_bytes_parse_or_are_refused(noise: bytes, position: int) -> None:
    text = GOOD.encode()
    with suppress(DescriptorError):
        vmdk.check(parse(text[:position] + noise + text[position:]))


def test_no_file_of_one_disk_is_a_file_of_another() -> None:
    """Descriptor and extents of ``x`` must not be the descriptor of any other allowed name."""
    for disk_format in DiskFormat:
        for file in vmdk.extent_files("x", 5 * GIB, disk_format):
            with pytest.raises(NameRefused):
                check_name(file.name.removesuffix(".vmdk"))


@pytest.mark.parametrize(
    ("size", "capacity"),
    [(1, MIB), (512, MIB), (MIB, MIB), (MIB + 1, 2 * MIB), (62 * TIB, 62 * TIB)],
)
def test_capacity_is_rounded_up_to_a_mebibyte(size: int, capacity: int) -> None:
    assert vmdk.round_capacity(size) == capacity


@pytest.mark.parametrize("size", [0, -1, 62 * TIB + 1])
def test_size_that_no_disk_has_is_refused(size: int) -> None:
    with pytest.raises(DatastoreError) as caught:
        vmdk.round_capacity(size)
    assert caught.value.code is ErrorCode.SIZE_REFUSED
    assert caught.value.numbers == (size, 62 * TIB)


@pytest.mark.parametrize(
    ("capacity", "layout"),
    [
        (2 * TIB, replace(VMFS_THIN, hardware_version=9)),
        (512 * 2047 * MIB + MIB, SPLIT),
    ],
)
def test_capacity_beyond_its_layout_is_refused(capacity: int, layout: Layout) -> None:
    vmdk.check_capacity(capacity - MIB, layout)
    with pytest.raises(DatastoreError) as caught:
        vmdk.check_capacity(capacity, layout)
    assert caught.value.code is ErrorCode.SIZE_REFUSED


def test_largest_split_disk_has_a_descriptor_that_can_be_read_back() -> None:
    text = vmdk.build("n" * 80, 512 * 2047 * MIB, SPLIT, UUID, CONTENT_ID)
    assert vmdk.check(parse(text)) == []


@given(st.integers(1, 900 * GIB).map(vmdk.round_capacity), st.sampled_from(DiskFormat))
def test_extents_cover_the_disk_once_in_whole_chunks(capacity: int, form: DiskFormat) -> None:
    position = 0
    for file in vmdk.extent_files("x", capacity, form):
        assert file.offset == position
        assert file.length % MIB == 0
        assert file.length > 0
        assert vmdk.is_extent_file("x", file.name)
        position += file.length
    assert position == capacity


def test_uuid_is_that_of_a_disk_and_reads_back() -> None:
    uuid = vmdk.make_uuid(bytes.fromhex("0123456789abcdef0123456789abcdef"))
    assert vmdk.format_uuid(uuid) == "60 00 C2 97 89 ab cd ef-01 23 45 67 89 ab cd ef"
    assert vmdk.make_uuid(uuid) == uuid
    with pytest.raises(ValueError, match="not the uuid of a disk"):
        vmdk.format_uuid(bytes(16))
    with pytest.raises(ValueError, match="16 bytes"):
        vmdk.make_uuid(bytes(15))


def test_cid_never_says_that_there_is_no_disk() -> None:
    descriptor = parse(vmdk.build("x", MIB, VMFS_THIN, UUID, b"\xff" * 16))
    assert descriptor.header["CID"] == "fffffffe"
    assert vmdk.check(descriptor) == []


@pytest.mark.parametrize(
    ("capacity", "adapter", "expected"),
    [
        (40 * GIB, Adapter.LSILOGIC, (5221, 255, 63)),
        (8 * GIB, Adapter.BUSLOGIC, (1044, 255, 63)),
        (20 * GIB, Adapter.IDE, (41610, 16, 63)),
        (GIB - MIB, Adapter.LSILOGIC, (1023, 64, 32)),
        (GIB, Adapter.LSILOGIC, (512, 128, 32)),
        (2 * GIB, Adapter.LSILOGIC, (261, 255, 63)),
        (62 * TIB, Adapter.LSILOGIC, (8287829, 255, 63)),
    ],
)
def test_geometry_follows_adapter_and_size(
    capacity: int, adapter: Adapter, expected: tuple[int, int, int]
) -> None:
    shape = vmdk.geometry(capacity, adapter)
    assert (shape.cylinders, shape.heads, shape.sectors) == expected
