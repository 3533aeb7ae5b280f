"""Noise_IKpsk2: other people's vectors, a live peer, and what must be refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from noise.connection import Keypair, NoiseConnection  # type: ignore[import-untyped]

from flatship_protocol.errors import HandshakeFailed, UsageError
from flatship_protocol.noise import (
    PROTOCOL_NAME,
    CipherState,
    HandshakeState,
    diffie_hellman,
    public_key,
    rekey,
)

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "noise_ikpsk2.json").read_text("ascii")
)["vectors"]

INITIATOR, INITIATOR_EPHEMERAL, RESPONDER, RESPONDER_EPHEMERAL, PSK = (
    bytes([number]) * 32 for number in range(1, 6)
)
PROLOGUE = b"prologue"

# Points of small order on Curve25519 (RFC 7748, section 6.1): every shared secret is zero.
SMALL_ORDER_POINTS = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


def make_initiator(**changes: bytes) -> HandshakeState:
    state = HandshakeState(
        initiator=True,
        prologue=changes.get("prologue", PROLOGUE),
        static_private=changes.get("static", INITIATOR),
        ephemeral_private=changes.get("ephemeral", INITIATOR_EPHEMERAL),
        remote_static=changes.get("remote", public_key(RESPONDER)),
    )
    state.set_psk(changes.get("psk", PSK))
    return state


def make_responder(**changes: bytes) -> HandshakeState:
    return HandshakeState(
        initiator=False,
        prologue=changes.get("prologue", PROLOGUE),
        static_private=changes.get("static", RESPONDER),
        ephemeral_private=changes.get("ephemeral", RESPONDER_EPHEMERAL),
    )


def complete() -> tuple[HandshakeState, HandshakeState]:
    initiator, responder = make_initiator(), make_responder()
    responder.read_message(initiator.write_message(b""))
    responder.set_psk(PSK)
    initiator.read_message(responder.write_message(b""))
    return initiator, responder


@pytest.mark.parametrize("vector", VECTORS)
def test_published_vectors_are_reproduced_byte_for_byte(vector: dict[str, Any]) -> None:
    facts = {name: bytes.fromhex(text) for name, text in vector.items() if name != "messages"}
    first, second, from_initiator, to_initiator = (
        (bytes.fromhex(message["payload"]), bytes.fromhex(message["ciphertext"]))
        for message in vector["messages"]
    )
    initiator = make_initiator(
        prologue=facts["prologue"],
        static=facts["init_static"],
        ephemeral=facts["init_ephemeral"],
        remote=public_key(facts["resp_static"]),
        psk=facts["psk"],
    )
    responder = make_responder(
        prologue=facts["prologue"],
        static=facts["resp_static"],
        ephemeral=facts["resp_ephemeral"],
    )

    assert initiator.write_message(first[0]) == first[1]
    assert responder.read_message(first[1]) == first[0]
    assert responder.remote_static == public_key(facts["init_static"])
    responder.set_psk(facts["psk"])
    assert responder.write_message(second[0]) == second[1]
    assert initiator.read_message(second[1]) == second[0]

    assert initiator.split() == responder.split()
    assert initiator.handshake_hash == responder.handshake_hash
    for key, (payload, ciphertext) in zip(
        initiator.split(), (from_initiator, to_initiator), strict=True
    ):
        assert CipherState(key).encrypt_with_ad(b"", payload) == ciphertext


def make_peer(*, initiator: bool) -> Any:
    peer = NoiseConnection.from_name(PROTOCOL_NAME)
    peer.set_prologue(PROLOGUE)
    peer.set_psks(psk=PSK)
    if initiator:
        peer.set_as_initiator()
        peer.set_keypair_from_private_bytes(Keypair.STATIC, INITIATOR)
        peer.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, public_key(RESPONDER))
    else:
        peer.set_as_responder()
        peer.set_keypair_from_private_bytes(Keypair.STATIC, RESPONDER)
    peer.start_handshake()
    return peer


def assert_transport_works(peer: Any, send: CipherState, receive: CipherState) -> None:
    for number in range(3):
        text = b"message %d" % number
        assert peer.decrypt(send.encrypt_with_ad(b"", text)) == text
        assert receive.decrypt_with_ad(b"", peer.encrypt(text)) == text


def test_initiator_completes_with_an_independent_responder() -> None:
    peer, ours = make_peer(initiator=False), make_initiator()
    assert bytes(peer.read_message(ours.write_message(b"to peer"))) == b"to peer"
    assert ours.read_message(bytes(peer.write_message(b"from peer"))) == b"from peer"
    assert ours.handshake_hash == peer.get_handshake_hash()
    send, receive = (CipherState(key) for key in ours.split())
    assert_transport_works(peer, send, receive)


def test_responder_completes_with_an_independent_initiator() -> None:
    peer, ours = make_peer(initiator=True), make_responder()
    assert ours.read_message(bytes(peer.write_message(b"from peer"))) == b"from peer"
    assert ours.remote_static == public_key(INITIATOR)
    ours.set_psk(PSK)
    assert bytes(peer.read_message(ours.write_message(b"to peer"))) == b"to peer"
    assert ours.handshake_hash == peer.get_handshake_hash()
    receive, send = (CipherState(key) for key in ours.split())
    assert_transport_works(peer, send, receive)


def test_rekey_is_that_of_an_independent_implementation() -> None:
    peer, ours = make_peer(initiator=False), make_initiator()
    peer.read_message(ours.write_message(b""))
    ours.read_message(bytes(peer.write_message(b"")))
    peer.rekey_inbound_cipher()
    assert peer.decrypt(CipherState(rekey(ours.split()[0])).encrypt_with_ad(b"", b"x")) == b"x"


@pytest.mark.parametrize("point", SMALL_ORDER_POINTS)
def test_point_of_small_order_is_refused(point: bytes) -> None:
    with pytest.raises(HandshakeFailed, match="X25519"):
        diffie_hellman(INITIATOR, point)
    with pytest.raises(HandshakeFailed, match="X25519"):
        make_initiator(remote=point).write_message(b"")
    message = point + make_initiator().write_message(b"")[32:]
    with pytest.raises(HandshakeFailed, match="X25519"):
        make_responder().read_message(message)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_public_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(HandshakeFailed):
        diffie_hellman(INITIATOR, bytes(length))


def test_message_1_cut_anywhere_fails() -> None:
    message = make_initiator().write_message(b"payload")
    keys_end = 32 + 48  # ephemeral and sealed static key; the payload follows
    for length in range(len(message)):
        with pytest.raises(HandshakeFailed, match="short" if length < keys_end else "open"):
            make_responder().read_message(message[:length])


def test_message_2_cut_anywhere_fails() -> None:
    for length in range(48):
        initiator, responder = make_initiator(), make_responder()
        responder.read_message(initiator.write_message(b""))
        responder.set_psk(PSK)
        message = responder.write_message(b"")
        assert len(message) == 48
        with pytest.raises(HandshakeFailed):
            initiator.read_message(message[:length])


def test_flipping_any_bit_of_message_1_fails() -> None:
    message = make_initiator().write_message(b"payload")
    for bit in range(len(message) * 8):
        altered = bytearray(message)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(HandshakeFailed):
            make_responder().read_message(bytes(altered))


@pytest.mark.parametrize(
    "changes", [{"prologue": b"another"}, {"remote": public_key(PSK)}], ids=lambda c: next(iter(c))
)
def test_message_1_for_another_prologue_or_receiver_does_not_open(
    changes: dict[str, bytes],
) -> None:
    message = make_initiator(**changes).write_message(b"")
    with pytest.raises(HandshakeFailed):
        make_responder().read_message(message)


def test_different_psks_fail_at_message_2() -> None:
    initiator, responder = make_initiator(), make_responder()
    responder.read_message(initiator.write_message(b""))
    responder.set_psk(bytes(32))
    with pytest.raises(HandshakeFailed):
        initiator.read_message(responder.write_message(b""))


def test_responder_without_the_static_key_cannot_answer() -> None:
    initiator = make_initiator()
    initiator.write_message(b"")
    impostor = make_responder(static=PSK)
    impostor.read_message(make_initiator(remote=public_key(PSK)).write_message(b""))
    impostor.set_psk(PSK)
    with pytest.raises(HandshakeFailed):
        initiator.read_message(impostor.write_message(b""))


def test_failed_state_stays_failed() -> None:
    responder = make_responder()
    message = make_initiator().write_message(b"")
    with pytest.raises(HandshakeFailed):
        responder.read_message(message[:-1])
    with pytest.raises(UsageError, match="failed"):
        responder.read_message(message)
    with pytest.raises(UsageError, match="failed"):
        responder.write_message(b"")


def test_messages_out_of_turn_are_refused_and_harm_nothing() -> None:
    initiator, responder = make_initiator(), make_responder()
    with pytest.raises(UsageError):
        initiator.read_message(bytes(96))
    with pytest.raises(UsageError):
        responder.write_message(b"")
    message = initiator.write_message(b"")
    with pytest.raises(UsageError):
        initiator.write_message(b"")
    responder.read_message(message)
    with pytest.raises(UsageError):
        responder.read_message(message)


def test_no_third_message() -> None:
    for state in complete():
        with pytest.raises(UsageError):
            state.write_message(b"")
        with pytest.raises(UsageError):
            state.read_message(bytes(64))


def test_keys_and_hash_exist_only_when_complete() -> None:
    initiator = make_initiator()
    initiator.write_message(b"")
    with pytest.raises(UsageError):
        initiator.split()
    with pytest.raises(UsageError):
        _ = initiator.handshake_hash


def test_missing_psk_is_our_own_fault() -> None:
    responder = make_responder()
    responder.read_message(make_initiator().write_message(b""))
    with pytest.raises(UsageError, match="psk"):
        responder.write_message(b"")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_psk_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(UsageError):
        make_responder().set_psk(bytes(length))


def test_only_the_initiator_names_the_other_end() -> None:
    with pytest.raises(UsageError):
        HandshakeState(
            initiator=True, prologue=b"", static_private=INITIATOR, ephemeral_private=PSK
        )
    with pytest.raises(UsageError):
        HandshakeState(
            initiator=False,
            prologue=b"",
            static_private=INITIATOR,
            ephemeral_private=PSK,
            remote_static=public_key(RESPONDER),
        )


def test_failed_decryption_does_not_advance_the_nonce() -> None:
    sealing, opening = CipherState(PSK), CipherState(PSK)
    ciphertext = sealing.encrypt_with_ad(b"", b"x")
    with pytest.raises(HandshakeFailed):
        opening.decrypt_with_ad(b"other", ciphertext)
    assert opening.decrypt_with_ad(b"", ciphertext) == b"x"
