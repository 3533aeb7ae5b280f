"""Decoders of files: what a program wrote, somebody edited, or a disk damaged."""

import os
from pathlib import Path
from typing import Final

import msgspec

from flatship_protocol.names import name_problem
from flatship_receiver.authorized_senders import AuthorizedSenders
from flatship_receiver.config import configure
from flatship_receiver.datastores.local_image import _NAME_OF_IMAGE, image_named_in
from flatship_receiver.invitations import Invitations, StoredInvitation
from flatship_sender.claims import _last
from flatship_sender.page_index import PageIndex
from flatship_sender.page_slots import Heading, Slot
from flatship_sender.receivers import Receiver, Receivers
from flatship_service.errors import ConfigError, OperatorError
from fuzz.scratch import scratch_folder
from fuzz.target import Target
from fuzz.text_targets import DESCRIPTOR_SEEDS, KEY, KEY_LINE, PEERS

FOREIGN_PARSERS: Final = 5_000  # inputs, where it is tomllib or msgspec that reads them

FOLDER: Final = scratch_folder()
(FOLDER / "invitations").mkdir()
(FOLDER / "receivers.d").mkdir()


def _put(name: str, data: bytes) -> Path:
    """A file of mode 0600 in FOLDER."""
    path = FOLDER / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
    return path


def read_authorized_senders(data: bytes) -> None:
    """Peers are found by their keys, each once."""
    _put("authorized_senders", data)
    senders = AuthorizedSenders(FOLDER)
    peers = senders.peers()
    lines = [line.strip() for line in data.decode().splitlines()]
    assert len(peers) == sum(bool(line) and not line.startswith("#") for line in lines)
    assert all(senders.find(peer.public) == peer for peer in peers)


def read_invitation(data: bytes) -> None:
    """An invitation is written and read again as the same."""
    _put(f"invitations/{KEY[:16].hex()}.invitation", data)
    found = Invitations(FOLDER).find(KEY[:16], 0.0)
    if found is not None:
        assert found.is_live(0.0)
        assert msgspec.json.decode(msgspec.json.encode(found), type=StoredInvitation) == found


INDEXED: Final = {n: Slot(bytes([n]) * 32, bytes([n]) * 1536, anchors=n) for n in range(3)}


class Forgotten(Exception):
    """Of some chunk nothing is known."""


def _page_index() -> PageIndex:
    heading = Heading(bytes(16), bytes(16), bytes(16), len(INDEXED) << 20)
    index = PageIndex.open(FOLDER / "pages.index", heading, bytes(32), lambda: 1 << 30)
    assert index is not None
    return index


def _page_index_seeds() -> tuple[bytes, ...]:
    index = _page_index()
    for number, slot in INDEXED.items():
        index.record(number, slot)
    index.close()
    whole = (FOLDER / "pages.index").read_bytes()
    return whole, whole + bytes(9), whole[: len(whole) // 2]


def read_page_index(data: bytes) -> None:
    """A chunk's pages are what was recorded, or unknown; what is recorded now is known.

    Raises:
        Forgotten: Some are unknown.
    """
    _put("pages.index", data)
    index = _page_index()
    try:
        known = [index.read(number) for number in INDEXED]
        for found, slot in zip(known, INDEXED.values(), strict=True):
            assert found in (None, slot)
        assert index.recall(1, INDEXED[2].digest) is None
        index.record(1, INDEXED[1])
        assert index.recall(1, INDEXED[1].digest) == INDEXED[1]
        if None in known:
            raise Forgotten
    finally:
        index.close()


def read_claim(data: bytes) -> None:
    """A session's name is 16 bytes, and its epoch can be followed by another."""
    noted = _last(_put("claim.json", data))
    assert len(bytes.fromhex(noted.session_id)) == 16
    assert 1 <= noted.epoch < (1 << 64) - 1


def read_receiver(data: bytes) -> None:
    """A receiver has an address and a key."""
    _put("receivers.d/one.toml", data)
    receiver = Receivers(FOLDER).load("one")
    assert len(receiver.public) == len(receiver.psk) == 32
    assert receiver == Receiver("one", receiver.endpoint, receiver.public, receiver.psk)


def read_configuration(data: bytes) -> None:
    """A configuration that is accepted names things as they must be named."""
    config = configure(config=_put("receiver.toml", data), state=FOLDER)
    assert 0 <= config.listen.port <= 65535
    assert not any(map(name_problem, config.datastores))


_LOCK_FILE: Final = os.memfd_create("lock")


def read_lock_file(data: bytes) -> None:
    """The uuid in an unfinished disk's lock file is 16 bytes, or none can be told.

    Raises:
        ConfigError: None can be told.
    """
    os.ftruncate(_LOCK_FILE, 0)
    os.pwrite(_LOCK_FILE, data, 0)
    uuid = image_named_in(_LOCK_FILE)
    if uuid is None:
        raise ConfigError("no uuid")
    assert len(uuid) == 16


INVITATION: Final = msgspec.json.encode(
    StoredInvitation("web", KEY, 1e10, ("web-*",), ("ssd1",), 1)
)
RECEIVER_FILE: Final = (
    b'endpoint = "backup.example.org:7071"\npublic_key = "' + KEY_LINE + b'"\npsk = "one.psk"\n'
)
CONFIGURATION: Final = (
    b'listen = "[::]:7071"\n\n[http]\nlisten = "127.0.0.1:9471"\n'
    b'\n[datastore]\nssd1 = "/srv/ssd1"\n'
)
TOML: Final = (b"[", b"]", b'"', b"'''", b"=", b"\\u0000", b"1979-05-27", b"\n", b"{")
HEAVY_TOML: Final = (*TOML, b"9" * 5000, b"[" * 3000, b"a." * 3000, b"{a=" * 3000)

_put("receivers.d/one.psk", KEY_LINE + b"\n")

TARGETS: Final = (
    Target("page-index", read_page_index, (Forgotten,), _page_index_seeds()),
    Target(
        "authorized-senders",
        read_authorized_senders,
        (OperatorError,),
        (b"# who may come\n\n" + b"\n".join(PEERS[:1]) + b"\n", PEERS[1] + b"\n", b"\n"),
        tokens=(*PEERS, b"\n", b"#", b"\r", b"\x0c", b"\xe2\x80\xa8"),
    ),
    Target(
        "stored-invitation",
        read_invitation,
        (ConfigError,),
        (INVITATION,),
        tokens=(b"null", b"1e999", b"[", b"{", b'"', b"-1"),
        inputs=FOREIGN_PARSERS,
    ),
    Target(
        "claim",
        read_claim,
        (ConfigError,),
        (b'{"session_id":"' + KEY[:16].hex().encode() + b'","epoch":7}',),
        tokens=(b"1e3", b"-1", b"18446744073709551615", b"99999999999999999999", b'"', b"[", b"{"),
        inputs=FOREIGN_PARSERS,
    ),
    Target(
        "receiver-file",
        read_receiver,
        (OperatorError,),
        (RECEIVER_FILE, RECEIVER_FILE[: RECEIVER_FILE.index(b"psk")]),
        tokens=HEAVY_TOML,
        inputs=FOREIGN_PARSERS,
        memory=16 << 20,
    ),
    Target(
        "receiver-configuration",
        read_configuration,
        (OperatorError,),
        (CONFIGURATION, b""),
        tokens=HEAVY_TOML,
        inputs=FOREIGN_PARSERS,
        memory=16 << 20,
    ),
    Target(
        "lock-file",
        read_lock_file,
        (ConfigError,),
        (_NAME_OF_IMAGE + b"60" * 16 + b"\n", *DESCRIPTOR_SEEDS[:1]),
        tokens=(_NAME_OF_IMAGE, b" ", b"\n", b"0x", b"zz"),
        memory=1 << 20,
    ),
)
