"""Decoders of what comes before there are keys: prefaces, initiations, responses."""

import functools
import hashlib
import hmac
from typing import Final

from flatship_protocol import handshake, noise
from flatship_protocol.constants import PREFACE_SIZE
from flatship_protocol.errors import HandshakeFailed, ProtocolVersionMismatch
from flatship_protocol.handshake import (
    INITIATION_SIZE,
    MAC1_SIZE,
    RESPONSE_SIZE,
    Initiator,
    Responder,
    parse_preface,
    version_notice,
)
from flatship_protocol.noise import HandshakeState
from fuzz.target import Target

# Inputs share their keys: remembering what these pure functions returned changes no result.
public_key = functools.lru_cache(64)(noise.public_key)
noise.public_key = handshake.public_key = public_key
noise.diffie_hellman = functools.lru_cache(512)(noise.diffie_hellman)
noise._derive = functools.lru_cache(512)(noise._derive)

SENDER, SENDER_EPHEMERAL, RECEIVER, RECEIVER_EPHEMERAL, PSK = (
    bytes([number]) * 32 for number in range(21, 26)
)
INVITATION: Final = bytes(range(16))
MAC1_KEY: Final = hashlib.sha256(b"mac1" + public_key(RECEIVER)).digest()
SENDER_PUBLIC: Final = public_key(SENDER)

BODY_SIZES: Final = {1: INITIATION_SIZE - 8, 2: RESPONSE_SIZE - 8, 3: 0}  # SPEC.md, "Preface"


def _initiator(invitation: bytes | None = None) -> Initiator:
    return Initiator(SENDER, public_key(RECEIVER), PSK, SENDER_EPHEMERAL, invitation)


INITIATIONS: Final = (_initiator().initiation(), _initiator(INVITATION).initiation())


def _response() -> bytes:
    responder = Responder(RECEIVER, RECEIVER_EPHEMERAL)
    responder.read_initiation(INITIATIONS[0])
    return responder.respond(PSK)[0]


RESPONSE: Final = _response()
_WAITING: Final[list[Initiator]] = []


def decode_preface(data: bytes) -> None:
    """An accepted preface is the one encoding of what was read from it."""
    of_other_version = len(data) == PREFACE_SIZE and data[:4] == b"FLTS" and data[4] != 1
    try:
        preface = parse_preface(data)
    except HandshakeFailed as error:
        assert isinstance(error, ProtocolVersionMismatch) == of_other_version
        raise
    assert preface.length == BODY_SIZES[preface.kind]
    assert data == b"FLTS\x01" + bytes([preface.kind]) + preface.length.to_bytes(2, "big")


def decode_initiation(data: bytes) -> None:
    """Nobody without the sender's key makes one that is accepted."""
    initiation = Responder(RECEIVER, RECEIVER_EPHEMERAL).read_initiation(data)
    assert data in INITIATIONS
    assert initiation.sender_public == SENDER_PUBLIC
    assert initiation.invitation == (INVITATION if data == INITIATIONS[1] else None)


def with_mac1(data: bytes) -> bytes:
    """``data`` as somebody sends it who knows the receiver's public key."""
    head = data[:-MAC1_SIZE] if len(data) > MAC1_SIZE else data
    return head + hmac.digest(MAC1_KEY, head, "sha256")[:MAC1_SIZE]


def decode_initiation_payload(data: bytes) -> None:
    """``data`` is what the true sender put into its initiation."""
    preface = INITIATIONS[0][:PREFACE_SIZE]
    state = HandshakeState(
        initiator=True,
        prologue=b"flatship/1" + preface,
        static_private=SENDER,
        ephemeral_private=SENDER_EPHEMERAL,
        remote_static=public_key(RECEIVER),
    )
    sealed = with_mac1(preface + state.write_message(data) + bytes(MAC1_SIZE))
    initiation = Responder(RECEIVER, RECEIVER_EPHEMERAL).read_initiation(sealed)
    assert initiation.sender_public == SENDER_PUBLIC
    assert data[0] == (initiation.invitation is not None)
    assert data[1:] == (initiation.invitation or bytes(16)) + bytes(47)


def decode_response(data: bytes) -> None:
    """Nobody without the receiver's key and the psk makes one that is accepted."""
    if len(data) == RESPONSE_SIZE or not _WAITING:  # after it has read that much, it is used up
        _WAITING[:] = [_initiator()]
        _WAITING[0].initiation()
    keys = _WAITING[0].read_response(data)
    assert data == RESPONSE
    assert len({keys.send, keys.receive, keys.handshake_hash}) == 3


TARGETS: Final = (
    Target(
        "preface",
        decode_preface,
        (HandshakeFailed,),
        (INITIATIONS[0][:PREFACE_SIZE], RESPONSE[:PREFACE_SIZE], version_notice()),
    ),
    Target(
        "initiation",
        decode_initiation,
        (HandshakeFailed,),
        INITIATIONS,
        repair=with_mac1,
        repaired=0.1,
    ),
    Target(
        "initiation-payload",
        decode_initiation_payload,
        (HandshakeFailed,),
        (bytes(64), b"\x01" + INVITATION + bytes(47)),
        repair=lambda data: data[:64].ljust(64, b"\0"),
        repaired=0.8,
    ),
    Target("response", decode_response, (HandshakeFailed,), (RESPONSE,)),
)
