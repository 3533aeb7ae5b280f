"""Decoders of what libvirt says: its XML holds names that whoever defined a domain has chosen."""

from typing import Final

from flatship_sender.domains.xml import MAX_DISKS, MAX_TEXT, UnreadableDomain, parse_domain
from fuzz.target import Target


def read_domain(data: bytes) -> None:
    """What is read of a disk is bounded, and every disk has a target; all of them are there."""
    domain = parse_domain(data)
    assert 0 < len(domain.name) <= MAX_TEXT
    assert len(domain.disks) <= min(MAX_DISKS, data.count(b"<disk"))
    for disk in domain.disks:
        assert disk.target
        texts = (disk.target, disk.bus, disk.device, disk.kind, disk.format, disk.path, disk.volume)
        assert max(map(len, texts)) <= MAX_TEXT
        assert disk.boot is None or disk.boot >= 0


_DISK: Final = (
    b"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
    b"<source file='/i/a.qcow2'><encryption/></source><target dev='vda' bus='virtio'/>"
    b"<boot order='1'/></disk>"
)
_CDROM: Final = b"<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>"


def _domain(devices: bytes) -> bytes:
    return (
        b"<domain type='kvm'><name>web01</name><uuid>0b4f6e1c</uuid><devices>"
        + devices
        + b"<hostdev/></devices></domain>"
    )


TARGETS: Final = (
    Target(
        "domain-xml",
        read_domain,
        (UnreadableDomain,),
        (_domain(_DISK + _CDROM), _domain(_DISK)),
        tokens=(
            *(b"<disk>", b"</disk>", b"<target dev='vdb'/>", b"<shareable/>", b"<!DOCTYPE a>"),
            *(b"<!ENTITY a 'b'>", b"&a;", b"&#10;", b"<![CDATA[", b"]]>", b"<!--", b"-->"),
            *(
                b"<?xml version='1.0'?>",
                b"\xef\xbb\xbf",
                b"\0",
                b"\xff",
                b"xmlns:a='b'",
                b"<source/>",
            ),
        ),
        memory=128 << 10,
    ),
)
