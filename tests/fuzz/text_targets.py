"""Decoders of text that people, commands and other programs write."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Final

from flatship_protocol.endpoint import Endpoint, parse_endpoint
from flatship_protocol.errors import NameRefused
from flatship_protocol.invitation import (
    Invitation,
    InvitationError,
    decode_invitation,
    encode_invitation,
)
from flatship_protocol.names import check_name, name_problem
from flatship_receiver import vmdk
from flatship_receiver.peers import format_peer, parse_peer
from flatship_receiver.vmdk import Descriptor, DescriptorError
from flatship_service.keys import format_key, parse_key
from flatship_service.units import parse_duration, parse_rate, parse_size
from fuzz.target import Target

DESCRIPTORS: Final = Path(__file__).parents[1] / "vectors" / "descriptors"
KEY: Final = bytes(range(32))
KEY_LINE: Final = format_key(KEY).encode()
LARGEST_DISK: Final = 62 << 40  # bytes
LIMIT: Final = 1 << 63


def text_of(data: bytes) -> str:
    """``data`` as a command's argument: what is not UTF-8 becomes lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def decode_invitation_line(data: bytes) -> None:
    """An accepted line has the parts that it was made of."""
    invitation = decode_invitation(text_of(data))
    again = encode_invitation(invitation)
    assert decode_invitation(again) == invitation
    assert (len(invitation.public), len(invitation.id), len(invitation.secret)) == (32, 16, 32)
    assert invitation.secret.hex() not in repr(invitation)


def with_checksum(data: bytes) -> bytes:
    """``data`` with the checksum of what stands before it."""
    start, colon, blob = data.strip().rpartition(b":")
    raw = base64.urlsafe_b64decode(re.sub(rb"[^A-Za-z0-9_-]", b"", blob).ljust(112, b"A")[:112])
    body = raw[:80]
    checksum = hashlib.sha256(start + colon + body).digest()[:4]
    return start + colon + base64.urlsafe_b64encode(body + checksum).rstrip(b"=")


def decode_endpoint(data: bytes) -> None:
    """An accepted address is written and read again as the same."""
    endpoint = parse_endpoint(text_of(data))
    assert parse_endpoint(str(endpoint)) == endpoint
    assert 0 <= endpoint.port <= 65535
    assert len(endpoint.host) <= 253
    assert endpoint.host.isascii()
    assert not set(endpoint.host) & set("/\\ \0\n\"'[]")


def decode_name(data: bytes) -> None:
    """An accepted name is one file's name, on every system, and no other disk's."""
    name = text_of(data)
    try:
        check_name(name)
    except NameRefused as error:
        assert name_problem(name)
        assert len(error.name) <= 81
        raise
    assert 0 < len(name) <= 80
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set("/\\:*?\"<>|,;'`$&")
    assert not {name[0], name[-1]} & set(" .")
    assert not name.lower().endswith(("-flat", "-delta", "-ctk", "-rdm", "-sesparse", "-000001"))
    assert not re.search(r"-(f\d{3,}|\d{6})$", name)


def decode_quantity(data: bytes) -> None:
    """Sizes, rates and durations are finite and not negative.

    Raises:
        ValueError: It is none of the three.
    """
    text = text_of(data)
    accepted = 0
    for parse in (parse_size, parse_rate, parse_duration):
        try:
            value = parse(text)
        except ValueError:
            continue
        accepted += 1
        assert value >= 0
        assert value < LIMIT or parse is parse_duration
        assert value < float("inf")
    if not accepted:
        raise ValueError(text)


def decode_key(data: bytes) -> None:
    """A key is 32 bytes."""
    key = parse_key(data.decode("utf-8", "replace"))
    assert len(key) == 32
    assert parse_key(format_key(key)) == key


def decode_peer(data: bytes) -> None:
    """A peer whose names can be written is written and read again as the same."""
    peer = parse_peer(text_of(data))
    assert len(peer.public) == 32
    assert peer.name
    options = re.sub('"[^"]*"', '""', text_of(data)).partition(" ")[0]
    names = re.findall("(?:^|,)([a-z-]+)=", options)
    assert len(names) == len(set(names))
    assert peer.max_bytes is None or 0 <= peer.max_bytes < LIMIT
    assert peer.may_come_from("192.0.2.1") in (True, False)
    assert not (denial := peer.permits("vm", "disk", "ssd1", 1, "::1")) or denial.reason
    try:
        line = format_peer(peer)
    except ValueError:
        return  # its name does not stand on a line of its own
    assert parse_peer(line) == peer


def decode_descriptor(data: bytes) -> None:
    """What was taken apart can be put together, and what ``check`` lets pass is a disk's."""
    descriptor = vmdk.parse(data)
    assert vmdk.parse(written(descriptor)) == descriptor
    for key in (*descriptor.header, *descriptor.database):
        assert len(re.findall(rf"^{re.escape(key)} ?=".encode(), data, re.MULTILINE)) == 1
    uuid = vmdk.uuid_of(descriptor)
    assert uuid is None or len(uuid) == 16
    if vmdk.check(descriptor):
        return
    assert 0 < descriptor.capacity <= LARGEST_DISK
    assert uuid is not None
    for extent in descriptor.extents:
        assert not set(extent.file) & set("/\\\0")
        assert extent.file.endswith(".vmdk")


def written(descriptor: Descriptor) -> bytes:
    """A descriptor's text, every value in quotes."""
    lines = [
        "# Disk DescriptorFile",
        *(f'{key}="{value}"' for key, value in descriptor.header.items()),
        *map(str, descriptor.extents),
        *(f'{key} = "{value}"' for key, value in descriptor.database.items()),
        "",
    ]
    return "\n".join(lines).encode()


INVITATIONS: Final = tuple(
    encode_invitation(Invitation(Endpoint(host, port), KEY, KEY[:16], KEY)).encode()
    for host, port in (("backup.example.org", 7071), ("192.0.2.7", 1), ("2001:db8::7", 65535))
)
DESCRIPTOR_SEEDS: Final = tuple(path.read_bytes() for path in sorted(DESCRIPTORS.glob("*.vmdk")))
TOO_LARGE: Final = (  # by one chunk; all else of it is right
    (DESCRIPTORS / "vmfs-thin.vmdk")
    .read_bytes()
    .replace(b"RW 83886080 ", b"RW %d " % ((LARGEST_DISK + (1 << 20)) // 512))
    .replace(b'"5221"', b'"%d"' % ((LARGEST_DISK + (1 << 20)) // 512 // (255 * 63)))
)
PEERS: Final = (
    KEY_LINE + b" a sender",
    b'disks="web-*,db-1/root",datastore="ssd1,ssd2",max-bytes=2T,from="10.0.0.0/8,::1" '
    + KEY_LINE
    + b" web",
    b"max-bytes=1.5GiB " + KEY_LINE,
)
DESCRIPTOR_WORDS: Final = (
    b'createType="twoGbMaxExtentFlat"\n',
    b'createType="monolithicFlat"\n',
    b'RW 4192256 FLAT "disk-f001.vmdk" 0\n',
    b'ddb.uuid = ""\n',
    b"RDONLY",
    b"\n",
    b"\r",
    b'"',
    b"18446744073709551615",
)

TARGETS: Final = (
    Target(
        "invitation",
        decode_invitation_line,
        (InvitationError,),
        INVITATIONS,
        tokens=(b":", b"flatship1:", b"[", b"]", b"=", b"\xc3\xa9"),
        repair=with_checksum,
    ),
    Target(
        "endpoint",
        decode_endpoint,
        (ValueError,),
        (b"backup.example.org:7071", b"[2001:db8::7]:1", b"[fe80::1%eth0]:22", b"192.0.2.7:65535"),
        tokens=(b":", b"[", b"]", b"%", b".", b"::", b"\xd9\xa3", b"\0"),
    ),
    Target(
        "name",
        decode_name,
        (NameRefused,),
        (b"web01", b"db (2) - root.img", b"a" * 80),
        tokens=(b"-flat", b"-f001", b"-000001", b"-ctk", b".", b"/", b" ", b"\0", b"\n", b".vmdk"),
    ),
    Target(
        "quantity",
        decode_quantity,
        (ValueError,),
        (b"512", b"20MB", b"1.5GiB", b"100Mbit/s", b"1h30m", b"90s", b"0.5ms"),
        tokens=(b"Mbit", b"/s", b"iB", b"E", b".", b"9" * 20, b"\xd9\xa3", b"1w", b"nan", b"e9"),
    ),
    Target("key", decode_key, (ValueError,), (KEY_LINE, b" " + KEY_LINE + b"\n")),
    Target(
        "peer",
        decode_peer,
        (ValueError,),
        PEERS,
        tokens=(
            *(b"disks=", b"datastore=", b"max-bytes=", b"from=", b"2T", b"10.0.0.0/8", b"/"),
            *(
                b'disks="a",',
                b"max-bytes=1,",
                b'"',
                b",",
                b"::ffff:10.0.0.1",
                b"%eth0",
                KEY_LINE,
                b" ",
                b"\xe2\x80\xa8",
            ),
        ),
    ),
    Target(
        "descriptor",
        decode_descriptor,
        (DescriptorError,),
        (*DESCRIPTOR_SEEDS, TOO_LARGE),
        tokens=DESCRIPTOR_WORDS,
        memory=16 << 20,
    ),
)
