"""The handshake of SPEC.md: layouts, secrets, and everything a hostile end may send."""

import hashlib
import hmac
import json
import runpy
import struct
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from noise.connection import Keypair, NoiseConnection  # type: ignore[import-untyped]

from flatship_protocol import noise
from flatship_protocol.errors import HandshakeFailed, ProtocolVersionMismatch, UsageError
from flatship_protocol.handshake import (
    INITIATION_SIZE,
    RESPONSE_SIZE,
    Initiator,
    Keys,
    Preface,
    PrefaceKind,
    Responder,
    pair_psk,
    parse_preface,
    public_key,
    standing_psk,
    version_notice,
)

VECTORS = Path(__file__).parents[1] / "vectors"

SENDER, SENDER_EPHEMERAL, RECEIVER, RECEIVER_EPHEMERAL, PSK = (
    bytes([number]) * 32 for number in range(11, 16)
)
INVITATION = b"0123456789abcdef"
INITIATION_PREFACE = b"FLTS\x01\x01\x00\xb0"
RESPONSE_PREFACE = b"FLTS\x01\x02\x00\x40"


def make_initiator(invitation: bytes | None = None, psk: bytes = PSK) -> Initiator:
    return Initiator(SENDER, public_key(RECEIVER), psk, SENDER_EPHEMERAL, invitation)


def make_responder() -> Responder:
    return Responder(RECEIVER, RECEIVER_EPHEMERAL)


def with_mac1(head: bytes) -> bytes:
    """What anybody can do who knows the receiver's public key."""
    key = hashlib.sha256(b"mac1" + public_key(RECEIVER)).digest()
    return head + hmac.digest(key, head, "sha256")[:16]


def initiation_with_payload(payload: bytes) -> bytes:
    state = noise.HandshakeState(
        initiator=True,
        prologue=b"flatship/1" + INITIATION_PREFACE,
        static_private=SENDER,
        ephemeral_private=SENDER_EPHEMERAL,
        remote_static=public_key(RECEIVER),
    )
    return with_mac1(INITIATION_PREFACE + state.write_message(payload))


def response_with_payload(initiation: bytes, payload: bytes) -> bytes:
    state = noise.HandshakeState(
        initiator=False,
        prologue=b"flatship/1" + INITIATION_PREFACE,
        static_private=RECEIVER,
        ephemeral_private=RECEIVER_EPHEMERAL,
    )
    state.read_message(initiation[8:-16])
    state.set_psk(PSK)
    return RESPONSE_PREFACE + state.write_message(payload)


def complete() -> tuple[Keys, Keys]:
    initiator, responder = make_initiator(), make_responder()
    responder.read_initiation(initiator.initiation())
    response, receivers = responder.respond(PSK)
    return initiator.read_response(response), receivers


# Prefaces


@pytest.mark.parametrize(
    ("data", "preface"),
    [
        (INITIATION_PREFACE, Preface(PrefaceKind.INITIATION, 176)),
        (RESPONSE_PREFACE, Preface(PrefaceKind.RESPONSE, 64)),
        (b"FLTS\x01\x03\x00\x00", Preface(PrefaceKind.VERSION_NOTICE, 0)),
    ],
)
def test_preface_is_parsed(data: bytes, preface: Preface) -> None:
    assert parse_preface(data) == preface


@pytest.mark.parametrize(
    "data",
    [
        b"",
        INITIATION_PREFACE[:7],
        INITIATION_PREFACE + b"\0",
        b"GET / HT",
        b"flts\x01\x01\x00\xb0",
        b"FLTS\x01\x00\x00\xb0",
        b"FLTS\x01\x04\x00\xb0",
        b"FLTS\x01\x01\x00\xb1",
        b"FLTS\x01\x01\xff\xff",
        b"FLTS\x01\x02\x00\xb0",
        b"FLTS\x01\x03\x00\x01",
    ],
)
def test_wrong_preface_is_refused_and_is_no_version_mismatch(data: bytes) -> None:
    with pytest.raises(HandshakeFailed) as caught:
        parse_preface(data)
    assert not isinstance(caught.value, ProtocolVersionMismatch)


def test_other_version_is_told_apart_whatever_else_the_preface_says() -> None:
    with pytest.raises(ProtocolVersionMismatch) as caught:
        parse_preface(b"FLTS\x02\x77\x12\x34")
    assert caught.value.theirs == 2


def test_another_magic_is_never_answered_with_a_version() -> None:
    with pytest.raises(HandshakeFailed) as caught:
        parse_preface(b"FLTX\x02\x01\x00\xb0")
    assert not isinstance(caught.value, ProtocolVersionMismatch)


def test_version_notice_has_our_version_and_no_body() -> None:
    assert version_notice() == b"FLTS\x01\x03\x00\x00"


# The way it should go


def test_both_ends_hold_the_same_keys_crosswise() -> None:
    sender, receiver = complete()
    assert sender.send == receiver.receive
    assert sender.receive == receiver.send
    assert sender.send != sender.receive
    assert sender.handshake_hash == receiver.handshake_hash


def test_sizes_are_those_of_the_specification() -> None:
    initiator, responder = make_initiator(), make_responder()
    initiation = initiator.initiation()
    responder.read_initiation(initiation)
    response, _ = responder.respond(PSK)
    assert len(initiation) == INITIATION_SIZE == 184
    assert len(response) == RESPONSE_SIZE == 72
    assert initiation.startswith(INITIATION_PREFACE)
    assert response.startswith(RESPONSE_PREFACE)


@pytest.mark.parametrize("invitation", [None, INVITATION, bytes(16)])
def test_receiver_learns_who_calls_and_by_which_invitation(invitation: bytes | None) -> None:
    initiation = make_responder().read_initiation(make_initiator(invitation).initiation())
    assert initiation.sender_public == public_key(SENDER)
    assert initiation.invitation == invitation


def test_invitation_and_caller_are_not_visible_on_the_wire() -> None:
    initiation = make_initiator(INVITATION).initiation()
    assert INVITATION not in initiation
    assert public_key(SENDER) not in initiation


def test_psks_are_separate_derivations_of_the_secret() -> None:
    # HKDF of RFC 5869 written out: extract with an empty salt, one block of expand.
    secret = bytes(range(32))
    prk = hmac.digest(bytes(32), secret, "sha256")
    assert pair_psk(secret) == hmac.digest(prk, b"flatship/1 pair\x01", "sha256")
    assert standing_psk(secret) == hmac.digest(prk, b"flatship/1 psk\x01", "sha256")


def test_repr_of_keys_shows_no_key() -> None:
    keys = Keys(send=b"\xaa" * 32, receive=b"\xbb" * 32, handshake_hash=bytes(32))
    assert "aa" not in repr(keys).lower()
    assert "bb" not in repr(keys).lower()


# What a receiver refuses


def test_flipping_any_bit_of_an_initiation_is_refused() -> None:
    initiation = make_initiator().initiation()
    for bit in range(len(initiation) * 8):
        altered = bytearray(initiation)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(HandshakeFailed):
            make_responder().read_initiation(bytes(altered))


def test_initiation_cut_or_prolonged_is_refused() -> None:
    initiation = make_initiator().initiation()
    for data in [*(initiation[:length] for length in range(184)), initiation + b"\0"]:
        with pytest.raises(HandshakeFailed):
            make_responder().read_initiation(data)


def test_no_diffie_hellman_is_spent_on_a_wrong_mac1(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[bytes] = []
    original = noise.diffie_hellman

    def counting(private: bytes, public: bytes) -> bytes:
        spent.append(public)
        return original(private, public)

    monkeypatch.setattr(noise, "diffie_hellman", counting)
    initiation = make_initiator().initiation()
    spent.clear()
    with pytest.raises(HandshakeFailed, match="mac1"):
        make_responder().read_initiation(initiation[:-1] + bytes([initiation[-1] ^ 1]))
    assert spent == []
    make_responder().read_initiation(initiation)
    assert len(spent) == 2


def test_mac1_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def recording(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", recording)
    make_responder().read_initiation(make_initiator().initiation())
    assert compared == [(16, 16)]


def test_right_mac1_around_garbage_is_refused() -> None:
    with pytest.raises(HandshakeFailed):
        make_responder().read_initiation(with_mac1(INITIATION_PREFACE + b"\x09" * 160))


@pytest.mark.parametrize("index", [*range(1, 64)])
def test_reserved_bytes_of_an_initiation_must_be_zero(index: int) -> None:
    payload = bytearray(64)
    payload[index] = 1
    with pytest.raises(HandshakeFailed):
        make_responder().read_initiation(initiation_with_payload(bytes(payload)))


@pytest.mark.parametrize("bit", range(1, 8))
def test_undefined_flags_of_an_initiation_must_be_zero(bit: int) -> None:
    payload = bytes([1 << bit]) + bytes(63)
    with pytest.raises(HandshakeFailed):
        make_responder().read_initiation(initiation_with_payload(payload))


def test_refused_initiation_leaves_nothing_to_respond_to() -> None:
    responder = make_responder()
    with pytest.raises(HandshakeFailed):
        responder.read_initiation(initiation_with_payload(b"\x80" + bytes(63)))
    with pytest.raises(UsageError):
        responder.respond(PSK)


def test_a_responder_reads_one_initiation() -> None:
    responder = make_responder()
    responder.read_initiation(make_initiator().initiation())
    with pytest.raises(UsageError):
        responder.read_initiation(make_initiator().initiation())


def test_a_responder_responds_once() -> None:
    responder = make_responder()
    responder.read_initiation(make_initiator().initiation())
    responder.respond(PSK)
    with pytest.raises(UsageError):
        responder.respond(PSK)


def test_response_and_notice_are_no_initiation() -> None:
    for data in (version_notice(), RESPONSE_PREFACE + bytes(64)):
        with pytest.raises(HandshakeFailed):
            make_responder().read_initiation(data)


# What a sender refuses


def test_flipping_any_bit_of_a_response_is_refused() -> None:
    responder = make_responder()
    responder.read_initiation(make_initiator().initiation())
    response, _ = responder.respond(PSK)
    for bit in range(len(response) * 8):
        initiator = make_initiator()
        initiator.initiation()
        altered = bytearray(response)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(HandshakeFailed):
            initiator.read_response(bytes(altered))


def test_response_cut_or_prolonged_is_refused() -> None:
    responder = make_responder()
    responder.read_initiation(make_initiator().initiation())
    response, _ = responder.respond(PSK)
    for data in [*(response[:length] for length in range(72)), response + b"\0"]:
        initiator = make_initiator()
        initiator.initiation()
        with pytest.raises(HandshakeFailed):
            initiator.read_response(data)


def test_receiver_with_another_psk_is_refused() -> None:
    initiator, responder = make_initiator(), make_responder()
    responder.read_initiation(initiator.initiation())
    response, _ = responder.respond(bytes(32))
    with pytest.raises(HandshakeFailed):
        initiator.read_response(response)


@pytest.mark.parametrize("index", range(16))
def test_reserved_bytes_of_a_response_must_be_zero(index: int) -> None:
    initiator = make_initiator()
    payload = bytearray(16)
    payload[index] = 1
    response = response_with_payload(initiator.initiation(), bytes(payload))
    with pytest.raises(HandshakeFailed, match="reserved"):
        initiator.read_response(response)


def test_version_notice_of_another_version_is_reported() -> None:
    initiator = make_initiator()
    initiator.initiation()
    with pytest.raises(ProtocolVersionMismatch) as caught:
        initiator.read_response(b"FLTS\x07\x03\x00\x00")
    assert caught.value.theirs == 7


def test_version_notice_of_our_own_version_is_no_answer() -> None:
    initiator = make_initiator()
    initiator.initiation()
    with pytest.raises(HandshakeFailed) as caught:
        initiator.read_response(version_notice())
    assert not isinstance(caught.value, ProtocolVersionMismatch)


def test_an_initiator_initiates_once() -> None:
    initiator = make_initiator()
    initiator.initiation()
    with pytest.raises(UsageError):
        initiator.initiation()


@pytest.mark.parametrize("length", [0, 15, 17])
def test_invitation_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(UsageError):
        make_initiator(bytes(length))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_psk_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(UsageError):
        make_initiator(psk=bytes(length))


# The worked example of SPEC.md


def load_example() -> dict[str, Any]:
    example: dict[str, Any] = json.loads((VECTORS / "connection_start.json").read_text("ascii"))
    return example


def test_worked_example_is_reproduced() -> None:
    script = runpy.run_path(str(VECTORS / "make_connection_start.py"))
    assert script["connection_start"]() == load_example()


# The peer warns of a fixed ephemeral key, rightly; an example cannot do without.
@pytest.mark.filterwarnings("ignore:One of ephemeral keypairs is already set")
def test_worked_example_opens_without_our_code() -> None:
    facts = {name: bytes.fromhex(text) for name, text in load_example().items()}
    peer = NoiseConnection.from_name(noise.PROTOCOL_NAME)
    peer.set_as_responder()
    peer.set_prologue(b"flatship/1" + facts["initiation"][:8])
    peer.set_psks(psk=facts["pair_psk"])
    peer.set_keypair_from_private_bytes(Keypair.STATIC, facts["receiver_static_private"])
    peer.set_keypair_from_private_bytes(Keypair.EPHEMERAL, facts["receiver_ephemeral_private"])
    peer.start_handshake()

    payload = bytes(peer.read_message(facts["initiation"][8:168]))
    assert payload == b"\x01" + facts["invitation_id"] + bytes(47)
    assert bytes(peer.write_message(bytes(16))) == facts["response"][8:]
    assert peer.get_handshake_hash() == facts["h"]
    for key, message, record in (
        ("k1", "hello", "hello_record"),
        ("k2", "hello_ok", "hello_ok_record"),
    ):
        header, ciphertext = facts[record][:8], facts[record][8:]
        assert header == struct.pack(">IBBH", len(ciphertext), 1, 0, 0)
        opened = AESGCM(facts[key]).decrypt(bytes(12), ciphertext, header + facts["h"])
        assert opened == facts[message]
