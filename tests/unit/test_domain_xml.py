"""What a domain's XML says of its disks, and what it cannot make us do."""

import time
import tracemalloc

import pytest
from domain_samples import (
    BLOCK,
    CDROM,
    FLOPPY,
    NETWORK,
    NVME,
    OVERLAY,
    QCOW2,
    UUID,
    VOLUME,
    WITH_OPTIONS_OF_QEMU,
    disk,
    domain,
)

from flatship_sender.domains.xml import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_DISKS,
    MAX_TEXT,
    Domain,
    DomainDisk,
    UnreadableDomain,
    parse_domain,
)


def only(xml: bytes) -> DomainDisk:
    (found,) = parse_domain(xml).disks
    return found


def targets(*disks: str) -> list[str]:
    return [each.target for each in parse_domain(domain(*disks)).disks]


def refused(xml: bytes, why: str) -> None:
    with pytest.raises(UnreadableDomain, match=why):
        parse_domain(xml)


def test_a_domain_has_its_name_and_its_uuid() -> None:
    found = parse_domain(domain(disk()))
    assert (found.name, found.uuid) == ("web01", UUID)


def test_a_disk_is_what_libvirt_says() -> None:
    found = only(domain(disk("sdb", "dev='/dev/vg0/a'", kind="block", bus="scsi", driver=QCOW2)))
    assert (found.target, found.bus, found.device, found.kind) == ("sdb", "scsi", "disk", "block")
    assert (found.path, found.format) == ("/dev/vg0/a", "qcow2")


@pytest.mark.parametrize("driver", ["", "<driver name='qemu'/>", "<driver cache='none'/>"])
def test_a_disk_without_a_format_is_raw_as_libvirt_takes_it(driver: str) -> None:
    assert only(domain(disk(driver=driver))).format == "raw"


def test_a_disk_that_says_no_device_is_one() -> None:
    xml = domain("<disk type='file'><source file='/a'/><target dev='hda'/></disk>")
    assert (only(xml).device, only(xml).bus) == ("disk", "")


def test_backing_files_and_mirrors_are_no_disks_and_say_nothing_of_theirs() -> None:
    found = only(domain(OVERLAY))
    assert (found.target, found.path) == ("vda", "/images/over.qcow2")
    assert (found.encrypted, found.shareable) == (False, False)


def test_drives_for_media_are_told_from_disks() -> None:
    found = parse_domain(domain(CDROM, FLOPPY, disk())).disks
    assert [(each.target, each.is_removable) for each in found] == [
        ("sda", True),
        ("fda", True),
        ("vda", False),
    ]
    assert found[0].path == ""


def test_volumes_networks_and_others_keep_what_they_are() -> None:
    volume, network, block, nvme = (only(domain(each)) for each in (VOLUME, NETWORK, BLOCK, NVME))
    assert (volume.kind, volume.pool, volume.volume) == ("volume", "default", "web01.qcow2")
    assert (network.kind, network.protocol, network.path) == ("network", "rbd", "")
    assert (block.kind, block.path) == ("block", "/dev/vg0/web01-data")
    assert (nvme.kind, nvme.path) == ("nvme", "")


@pytest.mark.parametrize(
    ("xml", "flag"),
    [
        (disk(more="<shareable/>"), "shareable"),
        (disk(more="<transient/>"), "transient"),
        (disk(more="<encryption format='luks'/>"), "encrypted"),
        (disk(in_source="<encryption format='luks'><secret/></encryption>"), "encrypted"),
        (disk(in_source="<slices><slice type='storage' offset='0' size='9'/></slices>"), "sliced"),
    ],
)
def test_what_makes_a_disk_a_special_one_is_seen(xml: str, flag: str) -> None:
    flags = ("shareable", "transient", "encrypted", "sliced")
    found = only(domain(xml))
    assert [each for each in flags if getattr(found, each)] == [flag]


def test_disks_come_in_the_order_of_their_targets() -> None:
    names = ["vdb", "vdaa", "vda", "vdz", "vdab"]
    assert targets(*map(disk, names)) == ["vda", "vdb", "vdz", "vdaa", "vdab"]


def test_buses_come_in_the_order_of_the_text() -> None:
    names = ["sdb", "vdb", "hda", "vda", "sda", "odd"]
    assert targets(*map(disk, names)) == ["sda", "sdb", "vda", "vdb", "hda", "odd"]


def test_the_disk_from_which_the_machine_starts_comes_first() -> None:
    drives = (
        disk("vda", more="<boot order='3'/>"),
        disk("vdb"),
        disk("vdc", more="<boot order='2'/>"),
        disk("sda", "", device="cdrom", more="<boot order='1'/>"),
    )
    assert targets(*drives) == ["vdc", "vda", "vdb", "sda"]


@pytest.mark.parametrize("order", ["", "x", "-1", "9" * 4000, "1.5", "\u0661"])
def test_a_boot_order_that_is_no_number_is_none(order: str) -> None:
    assert only(domain(disk(more=f"<boot order='{order}'/>"))).boot is None


def test_names_of_other_schemas_are_no_disks() -> None:
    found = parse_domain(domain(disk(), around=WITH_OPTIONS_OF_QEMU))
    assert [each.target for each in found.disks] == ["vda"]


def test_devices_and_folders_of_the_host_are_counted() -> None:
    found = parse_domain(
        domain(disk(), "<hostdev mode='subsystem'/>", "<hostdev/>", "<filesystem type='mount'/>")
    )
    assert (found.host_devices, found.filesystems) == (2, 1)


@pytest.mark.parametrize("path", ["/a&amp;b/&lt;x&gt;'", "/a b", "/\u00e4\u202e", "/a&#10;b"])
def test_hostile_paths_are_kept_as_they_are(path: str) -> None:
    xml = domain(disk(source=f'file="{path}"'))
    expected = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&#10;": "\n"}
    for entity, character in expected.items():
        path = path.replace(entity, character)
    assert only(xml).path == path


def test_a_byte_order_mark_and_a_declaration_are_taken() -> None:
    declared = b"\xef\xbb\xbf<?xml version='1.0' encoding='utf-8'?>\n<!-- made -->\n"
    assert parse_domain(declared + domain(disk())) == parse_domain(domain(disk()))


def test_what_the_text_claims_of_its_encoding_decides_nothing() -> None:
    for encoding in ("latin-1", "utf-16", "rot13", "no-such"):
        declared = f"<?xml version='1.0' encoding='{encoding}'?>".encode()
        assert parse_domain(declared + domain(disk())) == parse_domain(domain(disk()))


@pytest.mark.parametrize(
    "doctype",
    [
        "<!DOCTYPE domain>",
        "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'>",
        "<!DOCTYPE domain [<!ENTITY a 'b'>]>",
        "<!DOCTYPE domain [<!ENTITY % p SYSTEM 'http://[::1]/'> %p;]>",
    ],
)
def test_a_document_type_is_refused_and_with_it_every_entity(doctype: str) -> None:
    refused(doctype.encode() + domain(disk()), "document type")


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        (b"", "no XML"),
        (b"\0" * 1000, "no XML"),
        (b"error: failed\n", "no XML"),
        (domain(disk())[:-20], "no XML"),
        (domain(disk()) * 2, "no XML"),
        (domain("<disk>&unknown;</disk>"), "no XML"),
        (b"<network><name>n</name></network>", "something else than a domain"),
        (b"<domain/>", "no name"),
        (domain(disk(), name=""), "no name"),
        (domain(disk(), name="x" * (MAX_TEXT + 1)), "a name of more than"),
        (domain(disk(source=f"file='/{'x' * MAX_TEXT}'")), "a name of more than"),
        (domain("<disk type='file'/>"), "without a target"),
        (domain(disk(target="")), "without a target"),
        (domain(*["<disk/>"] * (MAX_DISKS + 1)), "more than 1024 drives"),
        (b"<domain>" + b"<a>" * MAX_DEPTH, "deep"),
        (b" " * (MAX_BYTES + 1), "more than libvirt can say"),
    ],
)
def test_what_is_no_domain_of_libvirts_is_refused(xml: bytes, why: str) -> None:
    refused(xml, why)


@pytest.mark.parametrize(
    "garbage",
    [
        b"<domain>" + b"<a/>" * 250_000,
        b"<domain a='" + b"x" * (1 << 20),
        b"<domain><name>" + b"x" * (1 << 20),
        b"<domain><devices>" + b"<disk a='1'>" * 90_000,
        b"\x01\x80<&" * 262_144,
        b"<domain><devices><disk><target dev='vd" + b"a" * (1 << 20) + b"'/></disk>",
    ],
    ids=["elements", "attribute", "text", "disks", "noise", "target"],
)
def test_a_mebibyte_of_garbage_takes_little_time_and_little_memory(garbage: bytes) -> None:
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(UnreadableDomain):
        parse_domain(garbage)
    assert time.process_time() - began < 2
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_as_many_disks_as_a_domain_may_have_are_read() -> None:
    names = [f"vd{chr(97 + number // 26)}{chr(97 + number % 26)}" for number in range(676)]
    found: Domain = parse_domain(domain(*map(disk, names)))
    assert [each.target for each in found.disks] == names
