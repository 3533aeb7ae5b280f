from dataclasses import replace
from ipaddress import ip_network

import pytest

from flatship_protocol.errors import ErrorCode
from flatship_receiver.peers import NO_PSK, Peer, format_peer, parse_peer
from flatship_service.keys import fingerprint, format_key

PUBLIC = bytes(range(32))
KEY = format_key(PUBLIC)
OPTIONS = (
    'disks="web-*,db/data?",datastore="ssd1,ssd2",max-bytes=2T,from="10.0.0.0/8,2001:db8::/32"'
)


def permitted(options: str, **changes: str | int) -> ErrorCode | None:
    asked: dict[str, str | int] = {
        "vm": "web-01", "disk": "web-01", "datastore": "ssd1", "size": 1 << 30,
        "address": "10.1.2.3",
    }  # fmt: skip
    peer = parse_peer(f"{options} {KEY} kvm1")
    denial = peer.permits(**(asked | changes))  # type: ignore[arg-type]
    return denial.code if denial else None


def test_line_with_all_options_is_read() -> None:
    assert parse_peer(f"{OPTIONS} {KEY} kvm1 in rack 4") == Peer(
        public=PUBLIC,
        name="kvm1 in rack 4",
        disks=("web-*", "db/data?"),
        datastores=("ssd1", "ssd2"),
        max_bytes=2 << 40,
        networks=(ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")),
    )


def test_key_alone_is_a_peer_without_limits_named_by_its_fingerprint() -> None:
    assert parse_peer(KEY) == Peer(public=PUBLIC, name=fingerprint(PUBLIC), psk=NO_PSK)


def test_spaces_inside_quotes_belong_to_the_value() -> None:
    assert parse_peer(f'disks="web 01" {KEY}').disks == ("web 01",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"disk=a {KEY}", "unknown option disk; known are disks"),
        (f"disks=a,disks=b {KEY}", "disks is given twice"),
        (f'disks="" {KEY}', "disks holds an empty word"),
        (f'disks="a,,b" {KEY}', "disks holds an empty word"),
        (f"disks=a, {KEY}", "another option after the comma"),
        (f'disks="a {KEY}', "expected a key"),
        (f"max-bytes=lots {KEY}", "max-bytes: expected a size"),
        (f"from=10.0.0.1/8 {KEY}", "from: expected networks"),
        (f"from=kvm1 {KEY}", "from: expected networks"),
        ("", "expected a key"),
        ("kvm1", "expected a key"),
        (f"disks=a  {KEY[:-4]}", "expected a key"),
        (f"kvm1 {KEY}", "expected a key"),
    ],
)
def test_wrong_line_is_refused_whole(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_peer(line)


@pytest.mark.parametrize("line", [KEY, f"{OPTIONS} {KEY} kvm1", f'datastore="ssd 1" {KEY} a b'])
def test_peer_survives_its_line(line: str) -> None:
    assert parse_peer(format_peer(parse_peer(line))) == parse_peer(line)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a\nb"},
        {"name": ""},
        {"name": " a"},
        {"disks": ("a,b",)},
        {"disks": ('a",from="::/0',)},
        {"datastores": ("",)},
    ],
)
def test_peer_that_its_line_would_not_give_back_is_not_written(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"hold|empty|unknown|expected"):
        format_peer(replace(Peer(PUBLIC, "kvm1"), **change))  # type: ignore[arg-type]


def test_peer_without_options_may_do_everything() -> None:
    assert parse_peer(KEY).permits("vm", "disk", "ssd1", 1 << 60, "192.0.2.1") is None


@pytest.mark.parametrize(
    ("pattern", "vm", "disk", "allowed"),
    [
        ("web-*", "web-01", "anything", True),
        ("web-*", "db", "web-01", False),
        ("web-*", "WEB-01", "a", False),
        ("web-01", "web-011", "a", False),
        ("db/data?", "db", "data1", True),
        ("db/data?", "db", "log", False),
        ("db/*", "db2", "data1", False),
        ("a,web-*", "web-01", "a", True),
    ],
)
def test_disks_limits_machines_and_their_disks(
    pattern: str, vm: str, disk: str, allowed: bool
) -> None:
    expected = None if allowed else ErrorCode.NOT_PERMITTED
    assert permitted(f'disks="{pattern}"', vm=vm, disk=disk) is expected


def test_datastore_limits_where_disks_go() -> None:
    assert permitted('datastore="ssd1,ssd2"', datastore="ssd2") is None
    assert permitted('datastore="ssd1"', datastore="ssd10") is ErrorCode.NOT_PERMITTED


def test_max_bytes_limits_the_size_of_a_disk() -> None:
    assert permitted("max-bytes=1MiB", size=1 << 20) is None
    assert permitted("max-bytes=1MiB", size=(1 << 20) + 1) is ErrorCode.QUOTA_EXCEEDED


@pytest.mark.parametrize(
    ("address", "allowed"),
    [("10.255.0.1", True), ("::ffff:10.0.0.1", True), ("11.0.0.1", False), ("2001:db8::1", False)],
)
def test_from_limits_where_a_peer_comes_from(address: str, allowed: bool) -> None:
    peer = parse_peer(f"from=10.0.0.0/8 {KEY}")

    assert peer.may_come_from(address) is allowed
    assert permitted("from=10.0.0.0/8", address=address) is (
        None if allowed else ErrorCode.NOT_PERMITTED
    )


def test_denial_says_who_and_what() -> None:
    denial = parse_peer(f"disks=web {KEY} kvm1").permits("db", "data", "ssd1", 1, "10.0.0.1")

    assert denial is not None
    assert denial.reason == "kvm1: disk db/data is not among what its line allows"


def test_repr_hides_the_psk() -> None:
    assert "PPPP" not in repr(Peer(PUBLIC, "kvm1", psk=b"P" * 32))
