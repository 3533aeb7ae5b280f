"""The record layer: what is sealed opens once, in order, unaltered; all else kills."""

import itertools
import struct
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flatship_protocol import records
from flatship_protocol.constants import MAX_CIPHERTEXT, REKEY_INTERVAL
from flatship_protocol.errors import MalformedMessage, RecordNotAuthentic, UsageError
from flatship_protocol.noise import rekey
from flatship_protocol.records import MAX_PLAINTEXT, Opener, Sealer

KEY = bytes(range(32))
HASH = bytes(range(32, 64))
MESSAGE = bytes(range(100, 140))
LAST_SEQUENCE = 2**64 - 2


@pytest.fixture
def sealer() -> Sealer:
    return Sealer(KEY, HASH)


@pytest.fixture
def opener() -> Opener:
    return Opener(KEY, HASH)


def open_record(opener: Opener, record: bytes) -> bytes:
    out = bytearray(max(len(record) - 24, 0))
    view = memoryview(record)
    size = opener.open_into(view[:8], view[8:], memoryview(out))
    return bytes(out[:size])


def assert_dead(opener: Opener, good_record: bytes) -> None:
    """Whatever comes next, even the record that was due, is refused."""
    with pytest.raises(UsageError, match="failed before"):
        open_record(opener, good_record)
    with pytest.raises(UsageError, match="failed before"):
        opener.body_length(good_record[:8])


def header(length: int, version: int = 1, byte: int = 0, word: int = 0) -> bytes:
    return struct.pack(">IBBH", length, version, byte, word)


# What is on the wire


def test_record_is_laid_out_as_specified(sealer: Sealer) -> None:
    first, second = sealer.seal(MESSAGE), sealer.seal(MESSAGE)
    for n, record in enumerate((first, second)):
        assert record[:8] == header(len(MESSAGE) + 16)
        nonce = bytes(4) + n.to_bytes(8, "big")
        assert AESGCM(KEY).decrypt(nonce, record[8:], record[:8] + HASH) == MESSAGE


@pytest.mark.parametrize("size", [24, 25, 1000, MAX_PLAINTEXT])
def test_what_is_sealed_opens(sealer: Sealer, opener: Opener, size: int) -> None:
    message = bytes(size)
    record = sealer.seal(message)
    assert len(record) == 8 + size + 16
    assert opener.body_length(record[:8]) == size + 16
    assert open_record(opener, record) == message


def test_sealing_into_a_larger_buffer_touches_only_the_record(sealer: Sealer) -> None:
    out = bytearray(b"\xee" * 200)
    length = sealer.seal_into(memoryview(MESSAGE), memoryview(out))
    assert length == len(MESSAGE) + 24
    assert out[length:] == b"\xee" * (200 - length)


def test_opening_into_a_larger_buffer_touches_only_the_message(
    sealer: Sealer, opener: Opener
) -> None:
    record = sealer.seal(MESSAGE)
    out = bytearray(b"\xee" * 200)
    size = opener.open_into(record[:8], memoryview(record)[8:], memoryview(out))
    assert out[:size] == MESSAGE
    assert out[size:] == b"\xee" * (200 - size)


def test_both_ends_count_records_and_bytes(sealer: Sealer, opener: Opener) -> None:
    for size in (24, 100, 1000):
        open_record(opener, sealer.seal(bytes(size)))
    assert sealer.records == opener.records == 3
    assert sealer.bytes == opener.bytes == 24 + 100 + 1000 + 3 * 24


# Rekey


def test_both_ends_rekey_exactly_every_8192_records(sealer: Sealer, opener: Opener) -> None:
    keys = [KEY, rekey(KEY), rekey(rekey(KEY))]
    for n in range(2 * REKEY_INTERVAL + 1):
        record = sealer.seal(MESSAGE)
        assert open_record(opener, record) == MESSAGE
        if n % REKEY_INTERVAL in (0, 1, REKEY_INTERVAL - 1):
            nonce = n.to_bytes(12, "big")
            key = keys[n // REKEY_INTERVAL]
            assert AESGCM(key).decrypt(nonce, record[8:], record[:8] + HASH) == MESSAGE


def test_rekey_is_the_one_of_the_specification() -> None:
    nonce = bytes(4) + b"\xff" * 8
    assert rekey(KEY) == AESGCM(KEY).encrypt(nonce, bytes(32), b"")[:32]


# Wrong order


@pytest.mark.parametrize(
    ("order", "opens"),
    [([1], 0), ([0, 0], 1), ([0, 2], 1), ([0, 1, 0], 2), ([2, 1, 0], 0)],
    ids=["swapped", "duplicate", "dropped", "replayed", "reversed"],
)
def test_records_out_of_order_kill(
    sealer: Sealer, opener: Opener, order: list[int], opens: int
) -> None:
    sealed = [sealer.seal(MESSAGE) for _ in range(3)]
    for index in order[:opens]:
        open_record(opener, sealed[index])
    with pytest.raises(RecordNotAuthentic) as caught:
        open_record(opener, sealed[order[opens]])
    assert caught.value.sequence == opener.records == opens
    assert_dead(opener, sealed[opens])


# Altered


def test_flipping_any_bit_of_a_record_kills(sealer: Sealer) -> None:
    record = sealer.seal(bytes(24))
    for bit in range(len(record) * 8):
        altered = bytearray(record)
        altered[bit // 8] ^= 1 << bit % 8
        opener = Opener(KEY, HASH)
        with pytest.raises((MalformedMessage, RecordNotAuthentic)):
            open_record(opener, bytes(altered))
        assert opener.records == opener.bytes == 0
        assert_dead(opener, record)


def test_every_header_byte_is_authenticated_not_only_checked() -> None:
    # Sealed by hand under another header than the one that is then shown.
    for shown, sealed in itertools.permutations([header(40), header(41), header(40, word=1)], 2):
        length = struct.unpack(">I", shown[:4])[0]
        ciphertext = AESGCM(KEY).encrypt(bytes(12), bytes(length - 16), sealed + HASH)
        with pytest.raises((MalformedMessage, RecordNotAuthentic)):
            open_record(Opener(KEY, HASH), shown + ciphertext)


@pytest.mark.parametrize(
    "make", [lambda: Opener(KEY, bytes(32)), lambda: Opener(bytes(32), HASH)], ids=["hash", "key"]
)
def test_record_of_another_handshake_does_not_open(
    sealer: Sealer, make: Callable[[], Opener]
) -> None:
    with pytest.raises(RecordNotAuthentic):
        open_record(make(), sealer.seal(MESSAGE))


def test_unauthenticated_plaintext_is_wiped(sealer: Sealer, opener: Opener) -> None:
    record = bytearray(sealer.seal(b"secret" * 100))
    record[-1] ^= 1
    out = bytearray(b"\xee" * 700)
    with pytest.raises(RecordNotAuthentic):
        opener.open_into(memoryview(record)[:8], memoryview(record)[8:], memoryview(out))
    assert out == bytes(600) + b"\xee" * 100


# Lying lengths and other headers


@pytest.mark.parametrize("length", [0, 1, 39, MAX_CIPHERTEXT + 1, 2**31, 2**32 - 1])
def test_length_out_of_bounds_kills_before_the_body(
    sealer: Sealer, opener: Opener, length: int
) -> None:
    with pytest.raises(MalformedMessage):
        opener.body_length(header(length))
    assert_dead(opener, sealer.seal(MESSAGE))


@pytest.mark.parametrize("length", [40, MAX_CIPHERTEXT])
def test_length_at_its_bounds_is_taken(opener: Opener, length: int) -> None:
    assert opener.body_length(header(length)) == length
    assert opener.body_length(memoryview(header(length))) == length


@pytest.mark.parametrize(
    "data",
    [
        header(40, version=0),
        header(40, version=2),
        header(40, byte=1),
        header(40, word=1),
        header(40, word=0x100),
        header(40)[:7],
        header(40) + b"\0",
        b"",
    ],
)
def test_any_other_header_kills(sealer: Sealer, opener: Opener, data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        opener.body_length(data)
    assert_dead(opener, sealer.seal(MESSAGE))


@pytest.mark.parametrize("difference", [-1, 1])
def test_body_of_another_length_than_its_header_says_kills(
    sealer: Sealer, opener: Opener, difference: int
) -> None:
    record = sealer.seal(MESSAGE)
    with pytest.raises(MalformedMessage):
        open_record(opener, header(len(record) - 8 + difference) + record[8:])
    assert_dead(opener, record)


# Our own mistakes


@pytest.mark.parametrize("size", [0, 23, MAX_PLAINTEXT + 1])
def test_message_out_of_bounds_is_refused_and_takes_no_number(
    sealer: Sealer, opener: Opener, size: int
) -> None:
    with pytest.raises(UsageError):
        sealer.seal(bytes(size))
    assert sealer.records == 0
    assert open_record(opener, sealer.seal(MESSAGE)) == MESSAGE


def test_short_output_is_refused_and_takes_no_number(sealer: Sealer, opener: Opener) -> None:
    with pytest.raises(UsageError, match="room"):
        sealer.seal_into(memoryview(MESSAGE), memoryview(bytearray(len(MESSAGE) + 23)))
    record = sealer.seal(MESSAGE)
    with pytest.raises(UsageError, match="room"):
        opener.open_into(record[:8], memoryview(record)[8:], memoryview(bytearray(39)))
    assert open_record(opener, record) == MESSAGE


def test_fault_after_the_number_is_taken_kills_the_sealer(sealer: Sealer) -> None:
    read_only = memoryview(bytes(100))
    with pytest.raises(TypeError):
        sealer.seal_into(memoryview(MESSAGE), read_only)
    assert sealer.records == 1
    for _ in range(2):
        with pytest.raises(UsageError, match="failed before"):
            sealer.seal(MESSAGE)
    assert sealer.bytes == 0


class Interrupted(BaseException):
    """Stands for what is no Exception: KeyboardInterrupt, CancelledError."""


class InterruptedAESGCM:
    """Seals, then is interrupted before the caller knows."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def encrypt_into(
        self, nonce: bytes, data: memoryview, associated: bytes, out: memoryview
    ) -> int:
        self._aead.encrypt_into(nonce, data, associated, out)
        raise Interrupted


def test_interrupted_sealer_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "AESGCM", InterruptedAESGCM)
    sealer = Sealer(KEY, HASH)
    with pytest.raises(Interrupted):
        sealer.seal(MESSAGE)
    with pytest.raises(UsageError, match="failed before"):
        sealer.seal(MESSAGE)


# The end of the numbers


@pytest.fixture
def at_the_end(sealer: Sealer, opener: Opener) -> None:
    sealer._direction.sequence = LAST_SEQUENCE
    opener._direction.sequence = LAST_SEQUENCE


@pytest.mark.usefixtures("at_the_end")
def test_the_number_that_rekeying_uses_is_never_taken(sealer: Sealer, opener: Opener) -> None:
    assert open_record(opener, sealer.seal(MESSAGE)) == MESSAGE
    with pytest.raises(UsageError, match="used up"):
        sealer.seal(MESSAGE)
    with pytest.raises(UsageError, match="used up"):
        open_record(opener, header(40) + bytes(40))
    assert sealer.records == opener.records == LAST_SEQUENCE + 1
