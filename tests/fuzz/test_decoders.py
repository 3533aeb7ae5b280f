"""Every decoder of bytes that a peer or a disk made, fed with what nobody meant to make.

A decoder takes any bytes and either accepts them or raises the one exception
that its docstring promises. To add one, write a function that takes the bytes
and add a line to ``TARGETS``.
"""

import string
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatship_protocol import messages
from flatship_protocol.codec import Compressor, Decompressor
from flatship_protocol.constants import MESSAGE_HEADER_SIZE
from flatship_protocol.errors import CodecError, ErrorCode, MalformedMessage

RANDOM_EXAMPLES = 400  # a target
MUTATED_EXAMPLES = 1200  # a target
CODE_AT = MESSAGE_HEADER_SIZE  # where a body's error code stands


class Target(NamedTuple):
    """A decoder, what it may raise, and valid inputs to start from."""

    name: str
    decode: Callable[[bytes], None]
    refusal: type[Exception]
    seeds: tuple[bytes, ...]


def decode_message(data: bytes) -> None:
    """What is accepted has one encoding only: that which was decoded.

    Unknown error codes are the exception: they all mean INTERNAL.
    """
    epoch, message = messages.decode(memoryview(data))
    padding = len(data) - len(messages.encode(message, epoch))
    again = messages.encode(message, epoch, padding)
    if getattr(message, "code", None) is ErrorCode.INTERNAL:
        again = again[:CODE_AT] + data[CODE_AT : CODE_AT + 2] + again[CODE_AT + 2 :]
    assert again == data


TEXT = string.printable.encode() * 40


def decompress(data: bytes) -> None:
    """Only the content is checked: many frames decompress to the same bytes."""
    out = bytearray(len(TEXT))
    Decompressor().decompress_into(memoryview(data), memoryview(out))


def message_seeds() -> tuple[bytes, ...]:
    digest = bytes(range(32))
    kinds = messages.SegmentKind
    segments = (
        messages.Segment(kinds.ZERO, 1),
        messages.Segment(kinds.LITERAL, 1),
        messages.Segment(kinds.KEEP, 100),
        messages.Segment(kinds.COPY, 154, 7, 4096),
    )
    raw, zstd = messages.Codec.RAW, messages.Codec.ZSTD
    payload = memoryview(bytes(512))
    seeds: tuple[messages.Message, ...] = (
        messages.Hello(digest[:16], 1, messages.Capability.DELTA, "flatship"),
        messages.HelloOk(messages.Capability.NONE, 1 << 26, 16, 90, "flatship"),
        messages.OpenDisk(
            1,
            1,
            1 << 30,
            1 << 20,
            digest,
            messages.DiskFormat.VMFS,
            messages.Provisioning.THIN,
            messages.Adapter.LSILOGIC,
            19,
            "ssd1",
            "web01",
            "web01",
        ),
        messages.DiskOpened(1, 1, digest[:16], 1 << 30, 1 << 40),
        messages.Chunk(1, 1, 1 << 20, 512, raw, 512, digest, (), payload),
        messages.Chunk(1, 1, 1 << 20, 1 << 20, zstd, 4096, digest, segments, payload[:40]),
        messages.Stored(1, 1, ((0, 1 << 20), (1 << 21, 512))),
        messages.Zero(1, 1, 1 << 20, 512, hole=True),
        messages.EndPass(1, 1, 2, digest),
        messages.Proving(1, 1, 3, 4),
        messages.Abandon(1, 1, ErrorCode.CANCELLED),
        messages.DiskProven(1, 1, 4, digest, published=True),
        messages.Held(1, 1, 7, 2, digest * 2),
        messages.Held(1, 1, 9, 1 << 30, b"", last=True),
        messages.Goodbye(last=True),
        messages.DiskFailed(1, 1, ErrorCode.DATASTORE_FULL, (1, 2)),
        messages.Error(ErrorCode.IDLE),
        messages.Credit(1 << 26),
        messages.Ping(1),
        messages.Pong(1),
    )
    return tuple(messages.encode(message, 5, padding) for message in seeds for padding in (0, 9))


def frame_seeds() -> tuple[bytes, ...]:
    return tuple(Compressor().compress(TEXT, level) for level in (-5, 1, 19))


TARGETS = (
    Target("message", decode_message, MalformedMessage, message_seeds()),
    Target("zstd payload", decompress, CodecError, frame_seeds()),
)
BY_NAME = [pytest.param(target, id=target.name) for target in TARGETS]


def flip(data: bytes, bit: int) -> bytes:
    at = bit // 8 % len(data)
    return data[:at] + bytes([data[at] ^ 1 << bit % 8]) + data[at + 1 :]


def overwrite(data: bytes, at: int, value: bytes) -> bytes:
    at %= len(data)
    return data[:at] + value + data[at + len(value) :]


def mutations(data: bytes) -> st.SearchStrategy[bytes]:
    """``data`` with a bit flipped, a field overwritten, cut, or continued."""
    places = st.integers(0, 8 * len(data) - 1)
    fields = st.sampled_from([b"\0", b"\xff", b"\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff"])
    return st.one_of(
        places.map(lambda bit: flip(data, bit)),
        st.tuples(places, places).map(lambda bits: flip(flip(data, bits[0]), bits[1])),
        st.tuples(places, fields).map(lambda change: overwrite(data, *change)),
        places.map(lambda place: data[: place // 8]),
        st.binary(min_size=1, max_size=40).map(lambda more: data + more),
        places.map(lambda place: data + data[place // 8 :]),
    )


def accept_or_refuse(target: Target, data: bytes) -> None:
    with suppress(target.refusal):
        target.decode(data)


bounded = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("target", BY_NAME)
def test_seeds_are_accepted(target: Target) -> None:
    for seed in target.seeds:
        target.decode(seed)


@pytest.mark.parametrize("target", BY_NAME)
@settings(bounded, max_examples=RANDOM_EXAMPLES)
@given(data=st.binary(max_size=300))
def test_random_bytes_are_accepted_or_refused(target: Target, data: bytes) -> None:
    accept_or_refuse(target, data)


@pytest.mark.parametrize("target", BY_NAME)
@settings(bounded, max_examples=MUTATED_EXAMPLES)
@given(choice=st.data())
def test_mutated_seeds_are_accepted_or_refused(target: Target, choice: st.DataObject) -> None:
    seed = choice.draw(st.sampled_from(target.seeds))
    accept_or_refuse(target, choice.draw(mutations(seed)))
