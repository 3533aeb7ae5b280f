"""Whatever a hostile end sends, nothing but the errors of the contract comes out."""

import hashlib
import hmac

from hypothesis import given, settings
from hypothesis import strategies as st

from flatship_protocol.errors import (
    HandshakeFailed,
    MalformedMessage,
    ProtocolVersionMismatch,
    RecordNotAuthentic,
)
from flatship_protocol.handshake import Initiator, Responder, parse_preface, public_key
from flatship_protocol.noise import HandshakeState
from flatship_protocol.records import Opener, Sealer

BOUNDED = settings(max_examples=300, deadline=None, derandomize=True, database=None)

SENDER, SENDER_EPHEMERAL, RECEIVER, RECEIVER_EPHEMERAL, PSK = (
    bytes([number]) * 32 for number in range(21, 26)
)
HASH = bytes(32)
INITIATION = Initiator(SENDER, public_key(RECEIVER), PSK, SENDER_EPHEMERAL).initiation()
PROLOGUE = b"flatship/1" + INITIATION[:8]


def make_response() -> bytes:
    responder = Responder(RECEIVER, RECEIVER_EPHEMERAL)
    responder.read_initiation(INITIATION)
    return responder.respond(PSK)[0]


RESPONSE = make_response()
RECORD = Sealer(PSK, HASH).seal(bytes(range(24, 96)))


def mutations(data: bytes) -> st.SearchStrategy[bytes]:
    """``data`` with bytes overwritten, a piece cut out, and a piece put in."""

    def mutate(
        overwritten: list[tuple[int, int]], cut: tuple[int, int], insertion: tuple[int, bytes]
    ) -> bytes:
        changed = bytearray(data)
        for index, value in overwritten:
            changed[index] = value
        start, length = cut
        del changed[start : start + length]
        where, piece = insertion
        changed[where:where] = piece
        return bytes(changed)

    index = st.integers(0, len(data) - 1)
    return st.builds(
        mutate,
        st.lists(st.tuples(index, st.integers(0, 255)), max_size=4),
        st.one_of(st.just((0, 0)), st.tuples(index, st.integers(0, 40))),
        st.one_of(st.just((0, b"")), st.tuples(index, st.binary(max_size=40))),
    )


def read_initiation(data: bytes) -> None:
    try:
        initiation = Responder(RECEIVER, RECEIVER_EPHEMERAL).read_initiation(data)
    except HandshakeFailed:
        return
    assert initiation.sender_public == public_key(SENDER)


def with_mac1(head: bytes) -> bytes:
    key = hashlib.sha256(b"mac1" + public_key(RECEIVER)).digest()
    return head + hmac.digest(key, head, "sha256")[:16]


@BOUNDED
@given(st.one_of(st.binary(max_size=20), mutations(INITIATION[:8])))
def test_any_preface(data: bytes) -> None:
    other_version = len(data) == 8 and data[:4] == b"FLTS" and data[4] != 1
    try:
        preface = parse_preface(data)
    except ProtocolVersionMismatch:
        assert other_version
    except HandshakeFailed:
        assert not other_version
    else:
        assert preface.length in (0, 64, 176)


@BOUNDED
@given(st.one_of(st.binary(max_size=300), mutations(INITIATION)))
def test_any_initiation(data: bytes) -> None:
    read_initiation(data)


@BOUNDED
@given(mutations(INITIATION[:-16]))
def test_any_initiation_of_one_who_knows_the_receivers_key(head: bytes) -> None:
    read_initiation(with_mac1(head))


@BOUNDED
@given(st.one_of(st.binary(max_size=80), st.binary(min_size=64, max_size=64), mutations(bytes(64))))
def test_any_payload_of_an_initiation(payload: bytes) -> None:
    state = HandshakeState(
        initiator=True,
        prologue=PROLOGUE,
        static_private=SENDER,
        ephemeral_private=SENDER_EPHEMERAL,
        remote_static=public_key(RECEIVER),
    )
    read_initiation(with_mac1(INITIATION[:8] + state.write_message(payload)))


@BOUNDED
@given(st.one_of(st.binary(max_size=100), mutations(RESPONSE)))
def test_any_response(data: bytes) -> None:
    initiator = Initiator(SENDER, public_key(RECEIVER), PSK, SENDER_EPHEMERAL)
    assert initiator.initiation() == INITIATION
    try:
        initiator.read_response(data)
    except HandshakeFailed:
        assert data != RESPONSE
    else:
        assert data == RESPONSE


@BOUNDED
@given(
    st.one_of(
        st.binary(max_size=200),
        mutations(RECORD),
        st.binary(max_size=100).map(lambda body: RECORD[:8] + body),
        st.binary(max_size=100).map(lambda body: len(body).to_bytes(4, "big") + RECORD[4:8] + body),
    )
)
def test_any_record(data: bytes) -> None:
    opener = Opener(PSK, HASH)
    out = memoryview(bytearray(len(RECORD) + 200))
    try:
        length = opener.body_length(data[:8])
        if length <= len(data) + 100:
            opener.open_into(data[:8], memoryview(data)[8:], out)
    except (MalformedMessage, RecordNotAuthentic):
        assert data != RECORD
        assert not any(out)
        assert opener.records == 0
    else:
        assert opener.records == (data == RECORD)
