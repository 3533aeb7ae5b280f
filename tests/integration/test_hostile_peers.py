"""A sender that lies, or is none, gets nothing; whoever comes next is served as if it had not been.

After every test an honest sender's disk is published, the receiver's memory has stayed small,
and its log shows no stack trace.
"""

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from disks import make_disk, same_content
from faults import injected, needs_strace
from processes import Pair, Receiver, Sender, wait_until
from raw_peer import (
    PASS,
    Ended,
    Identity,
    RawSender,
    Wire,
    chunk,
    compressed,
    dial,
    end_pass,
    hello,
    opening,
    read_exactly,
    read_to_end,
    reset,
    root_of,
    segmented,
    send_disk,
    shake_hands,
    zero,
    zstd,
)

from flatship_protocol.codec import HistoryEncoder
from flatship_protocol.constants import CHUNK_SIZE, MAX_CIPHERTEXT, MAX_DISK_SIZE, SEGMENT_CHUNKS
from flatship_protocol.errors import ErrorCode
from flatship_protocol.handshake import RESPONSE_SIZE, Initiator, pair_psk, version_notice
from flatship_protocol.invitation import decode_invitation
from flatship_protocol.messages import (
    Abandon,
    Capability,
    Codec,
    Credit,
    DiskFailed,
    DiskOpened,
    DiskProven,
    EndPass,
    Error,
    Goodbye,
    HelloOk,
    Message,
    Ping,
    Pong,
    Proving,
    Segment,
    SegmentKind,
    Stored,
    encode,
)
from flatship_receiver.admission import (
    CONNECTIONS_PER_SESSION,
    HANDSHAKE_DEADLINE,
    MAX_PENDING,
    MAX_PENDING_PER_ADDRESS,
    SESSIONS_PER_PEER,
)
from flatship_receiver.credit import BOUND, FIRST
from flatship_receiver.pipeline import MAX_OPEN_SEGMENTS
from flatship_receiver.session import MAX_DISKS
from flatship_receiver.windows import STREAMS
from flatship_service.keys import format_key

MEMORY_LIMIT: Final = 256 << 20  # bytes, resident, at its peak
MIB: Final = CHUNK_SIZE
FLOOD: Final = 300  # connections
SILENT: Final[list[Message]] = []
HTTP_GET: Final = b"GET / HTTP/1.1\r\nHost: datastore\r\nUser-Agent: curl/8\r\n\r\n"
TLS_CLIENT_HELLO: Final = bytes.fromhex("16030100c8010000c40303") + bytes(range(190))

pytestmark = pytest.mark.usefixtures("_receiver_stays_well")


@pytest.fixture
def _receiver_stays_well(
    pair: Pair, authorised: Callable[..., RawSender], vm: str
) -> Iterator[None]:
    honest = authorised()
    yield
    with honest.session() as wire:
        assert send_disk(wire, f"{vm}-after", b"honest".ljust(MIB, b".")).published
        wire.send(Goodbye(last=True))
    assert peak_memory(pair.receiver) < MEMORY_LIMIT
    assert "Traceback" not in pair.receiver.log
    assert "connection failed" not in pair.receiver.log  # what nobody thought of


def peak_memory(receiver: Receiver) -> int:
    """The most memory that was ever resident, in bytes."""
    status = Path(f"/proc/{receiver.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def noise(size: int, seed: int = 7) -> bytes:
    """Bytes that do not compress."""
    return Random(seed).randbytes(size)


def is_let_go(me: RawSender, vm: str) -> bool:
    """Whether a disk of that name may be opened; asks without making it."""
    with me.session() as wire:
        wire.send(opening(vm, MIB, dry_run=True))
        return isinstance(wire.receive(), DiskOpened)


# Before the handshake


def initiation(me: RawSender) -> bytes:
    """A right first message."""
    return Initiator(me.identity.private, me.receiver, me.psk, secrets.token_bytes(32)).initiation()


@pytest.mark.parametrize(
    "first_bytes",
    [
        noise(184),
        noise(100_000),
        TLS_CLIENT_HELLO,
        HTTP_GET,
        b"FLTS\x01\x02\x00\x40" + bytes(176),
        b"FLTS\x01\x01\xff\xff" + bytes(176),
        b"FLTS\x01\x09\x00\xb0" + bytes(176),
    ],
    ids=["random", "much", "tls", "http", "response", "length", "type"],
)
def test_strangers_are_closed_without_a_byte(pair: Pair, first_bytes: bytes) -> None:
    with dial(pair.receiver.address) as sock:
        sock.sendall(first_bytes)
        assert read_to_end(sock) == b""


def test_wrong_mac1_is_closed_without_a_byte(me: RawSender) -> None:
    message = bytearray(initiation(me))
    message[-1] ^= 1
    with dial(me.address) as sock:
        sock.sendall(message)
        assert read_to_end(sock) == b""


def test_unknown_key_is_closed_without_a_byte(me: RawSender) -> None:
    with dial(me.address) as sock:
        sock.sendall(initiation(replace(me, identity=Identity())))
        assert read_to_end(sock) == b""


def test_revoked_key_is_closed_without_a_byte(
    pair: Pair, authorised: Callable[..., RawSender]
) -> None:
    me = authorised()
    with me.session():
        pass
    listed = pair.receiver.state / "authorized_senders"
    key = format_key(me.identity.public)
    lines = [line for line in listed.read_text().splitlines() if key not in line]
    listed.write_text("\n".join([*lines, ""]))
    with dial(me.address) as sock:
        sock.sendall(initiation(me))
        assert read_to_end(sock) == b""


def test_wrong_psk_never_gets_past_hello(me: RawSender) -> None:
    other = replace(me, psk=secrets.token_bytes(32))
    with dial(me.address) as sock:
        sock.sendall(initiation(other))
        assert len(read_exactly(sock, RESPONSE_SIZE)) == RESPONSE_SIZE
        sock.sendall((64).to_bytes(4, "big") + b"\x01\0\0\0" + noise(64))
        assert read_to_end(sock) == b""


@pytest.mark.parametrize("rest", [b"", bytes(176)], ids=["preface", "whole"])
def test_another_version_gets_the_notice(pair: Pair, rest: bytes) -> None:
    with dial(pair.receiver.address) as sock:
        sock.sendall(b"FLTS\x02\x01\x00\xb0" + rest)
        assert read_to_end(sock) == version_notice()


def test_replayed_initiation_makes_no_session_and_touches_no_disk(
    pair: Pair, me: RawSender
) -> None:
    message = initiation(me)
    before = sorted(pair.receiver.datastore.rglob("*"))
    for _ in range(3):
        with dial(me.address) as sock:
            sock.sendall(message)
            read_exactly(sock, RESPONSE_SIZE)
            sock.sendall((64).to_bytes(4, "big") + b"\x01\0\0\0" + noise(64))
            assert read_to_end(sock) == b""
    assert sorted(pair.receiver.datastore.rglob("*")) == before
    with ExitStack() as stack:
        for _ in range(SESSIONS_PER_PEER):
            stack.enter_context(me.session())


def test_replayed_initiation_does_not_use_up_the_invitation(pair: Pair, sender: Sender) -> None:
    line = pair.receiver.invite(name="replayed")
    offered = decode_invitation(line)
    initiator = Initiator(
        Identity().private,
        offered.public,
        pair_psk(offered.secret),
        secrets.token_bytes(32),
        offered.id,
    )
    message = initiator.initiation()
    for _ in range(2):
        with dial(pair.receiver.address) as sock:
            sock.sendall(message)
            read_exactly(sock, RESPONSE_SIZE)
    sender.join(line).expect(0)


def test_half_open_flood_is_limited_and_ends_and_a_sender_gets_in(
    pair: Pair, vm: str, tmp_path: Path
) -> None:
    disk = make_disk(tmp_path / "disk", 2 * MIB)
    with ExitStack() as stack:
        flood = []
        for number in range(FLOOD):
            address = f"127.0.{1 + number // 200}.{2 + number % 200}"
            sock = stack.enter_context(dial(pair.receiver.address, address))
            sock.sendall(b"FLTS\x01\x01\x00\xb0"[: number % 9])
            flood.append(sock)
        wait_until(lambda: still_open(flood) <= MAX_PENDING, "flood limited")
        wait_until(
            lambda: pair.send(disk, vm=vm).exit_code == 0, "sender gets in", HANDSHAKE_DEADLINE + 5
        )
        wait_until(lambda: still_open(flood) == 0, "flood closed", HANDSHAKE_DEADLINE + 5)
    assert same_content(disk, pair.receiver.flat(vm), 2 * MIB)


def test_half_open_connections_of_one_address_leave_the_others_room(me: RawSender, vm: str) -> None:
    with ExitStack() as stack:
        flood = [stack.enter_context(dial(me.address, "127.0.0.66")) for _ in range(FLOOD)]
        wait_until(lambda: still_open(flood) <= MAX_PENDING_PER_ADDRESS, "flood limited")
        with me.session() as wire:
            assert send_disk(wire, vm, PAGES).published


def still_open(socks: list[socket.socket]) -> int:
    """How many of them the other end has not closed."""
    count = 0
    for sock in socks:
        sock.setblocking(False)
        try:
            sock.recv(1)
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


# HELLO and sessions


@pytest.mark.parametrize(
    "first", [opening("x", MIB), Goodbye(last=True), Ping(1)], ids=["open", "goodbye", "ping"]
)
def test_whoever_does_not_say_hello_is_closed(me: RawSender, first: Message) -> None:
    with me.handshake() as wire:
        wire.send(first)
        assert wire.rest() == SILENT


def test_long_hello_is_refused_before_it_is_read(me: RawSender) -> None:
    with me.handshake() as wire:
        wire.sock.settimeout(HANDSHAKE_DEADLINE / 2)
        wire.send_raw((MAX_CIPHERTEXT).to_bytes(4, "big") + b"\x01\0\0\0")
        assert wire.rest() == SILENT


def test_second_hello_ends_the_connection(me: RawSender) -> None:
    with me.session() as wire:
        wire.send(hello(secrets.token_bytes(16), 1))
        assert wire.rest() == [Error(ErrorCode.UNEXPECTED_MESSAGE)]


def test_peers_that_reset_after_hello_leave_no_session_behind(me: RawSender) -> None:
    for _ in range(3 * SESSIONS_PER_PEER):
        with dial(me.address) as sock:
            wire = shake_hands(sock, me.receiver, me.identity)
            wire.send(hello(secrets.token_bytes(16)))
            reset(sock)
    wait_until(lambda: gets_in(me), "a session ends")


def gets_in(me: RawSender) -> bool:
    """Whether the peer may have all its sessions at once."""
    try:
        with ExitStack() as stack:
            for _ in range(SESSIONS_PER_PEER):
                wire = stack.enter_context(me.handshake())
                wire.send(hello(secrets.token_bytes(16)))
                if not isinstance(wire.receive(), HelloOk):
                    return False
    except Ended:
        return False
    return True


def test_older_epoch_is_refused(me: RawSender) -> None:
    session = secrets.token_bytes(16)
    with me.session(session, epoch=5), me.handshake(epoch=4) as wire:
        wire.send(hello(session, 1))
        assert wire.rest() == [Error(ErrorCode.STALE_EPOCH)]


def test_ended_epoch_is_refused(me: RawSender) -> None:
    session = secrets.token_bytes(16)
    with me.session(session, epoch=5) as wire:
        wire.send(Goodbye(last=True))
        assert wire.rest() == SILENT
    with me.handshake(epoch=5) as wire:
        wire.send(hello(session))
        assert wire.rest() == [Error(ErrorCode.STALE_EPOCH)]


def test_higher_epoch_takes_over_and_gets_the_disk(me: RawSender, pair: Pair, vm: str) -> None:
    session = secrets.token_bytes(16)
    data = noise(MIB)
    with me.session(session, epoch=1) as old, me.session(session, epoch=1, index=1) as second:
        old.send(opening(vm, MIB))
        old.expect(DiskOpened)
        with me.session(session, epoch=2) as new:
            assert old.rest() == [Error(ErrorCode.STALE_EPOCH)]
            assert second.rest() == [Error(ErrorCode.STALE_EPOCH)]
            assert send_disk(new, vm, data).published
    assert pair.receiver.flat(vm).read_bytes() == data


def test_seventeenth_connection_is_refused(me: RawSender) -> None:
    session = secrets.token_bytes(16)
    with ExitStack() as stack:
        for index in range(CONNECTIONS_PER_SESSION):
            stack.enter_context(me.session(session, index=index))
        with me.handshake() as wire:
            wire.send(hello(session, CONNECTIONS_PER_SESSION))
            assert wire.rest() == [Error(ErrorCode.TOO_MANY_CONNECTIONS)]


def test_connection_index_that_is_taken_is_refused(me: RawSender) -> None:
    session = secrets.token_bytes(16)
    with me.session(session), me.handshake() as wire:
        wire.send(hello(session))
        assert wire.rest() == [Error(ErrorCode.TOO_MANY_CONNECTIONS)]


def test_fifth_session_is_refused(me: RawSender) -> None:
    with ExitStack() as stack:
        for _ in range(SESSIONS_PER_PEER):
            stack.enter_context(me.session())
        with me.handshake() as wire:
            wire.send(hello(secrets.token_bytes(16)))
            assert wire.rest() == [Error(ErrorCode.TOO_MANY_SESSIONS)]


# What may not be said


def keep() -> Message:
    return segmented(Segment(SegmentKind.KEEP, 256))


def copy() -> Message:
    return segmented(Segment(SegmentKind.COPY, 256, image=1))


def frame_of(content_size: int, window_log: int = 20) -> bytes:
    """A zstd frame header that says so, and one empty last block."""
    header = bytes([0xC0, (window_log - 10) << 3]) + content_size.to_bytes(8, "little")
    return b"\x28\xb5\x2f\xfd" + header + b"\x01\0\0"


PAGES: Final = noise(MIB)
ZEROS: Final = bytes(MIB)

OFFENCES: Final[dict[str, tuple[Message, ErrorCode]]] = {
    "chunk of an unknown disk": (chunk(PAGES, disk=9), ErrorCode.UNEXPECTED_MESSAGE),
    "zeros of an unknown disk": (zero(0, MIB, disk=9), ErrorCode.UNEXPECTED_MESSAGE),
    "end of an unknown disk": (end_pass(PAGES, 1, disk=9), ErrorCode.UNEXPECTED_MESSAGE),
    "chunk of another pass": (chunk(PAGES, pass_number=2), ErrorCode.UNEXPECTED_MESSAGE),
    "disk opened twice": (opening("again", MIB), ErrorCode.UNEXPECTED_MESSAGE),
    "chunk off the grid": (chunk(PAGES, 512), ErrorCode.MALFORMED),
    "chunk past the end": (chunk(PAGES, 1 << 40), ErrorCode.MALFORMED),
    "chunk at the last offset there is": (chunk(PAGES, (1 << 64) - MIB), ErrorCode.MALFORMED),
    "chunk too short": (chunk(PAGES[:512]), ErrorCode.MALFORMED),
    "chunk of odd length": (chunk(PAGES[:700]), ErrorCode.MALFORMED),
    "raw length lies": (chunk(PAGES, literal_length=512), ErrorCode.MALFORMED),
    "zeros off the grid": (zero(512, MIB), ErrorCode.MALFORMED),
    "zeros past the end": (zero(0, 1 << 40), ErrorCode.MALFORMED),
    "zeros past all ends": (zero(0, (1 << 64) - 512), ErrorCode.MALFORMED),
    "no zeros": (zero(0, 0), ErrorCode.MALFORMED),
    "segment kept": (keep(), ErrorCode.UNSUPPORTED),
    "segment copied": (copy(), ErrorCode.UNSUPPORTED),
    "segments too long": (segmented(Segment(SegmentKind.ZERO, 257)), ErrorCode.MALFORMED),
    "segments too short": (segmented(Segment(SegmentKind.ZERO, 255)), ErrorCode.MALFORMED),
    "zstd garbage": (compressed(noise(999), PAGES), ErrorCode.MALFORMED),
    "zstd cut": (compressed(zstd(ZEROS)[:-1], ZEROS), ErrorCode.MALFORMED),
    "zstd bomb": (compressed(zstd(bytes(512 << 20)), ZEROS), ErrorCode.MALFORMED),
    "zstd content size too small": (compressed(zstd(ZEROS[:512]), ZEROS), ErrorCode.MALFORMED),
    "zstd content size lies": (compressed(frame_of(MIB), ZEROS), ErrorCode.MALFORMED),
    "zstd window huge": (compressed(frame_of(MIB, 31), ZEROS), ErrorCode.MALFORMED),
    "zstd two frames": (compressed(zstd(ZEROS) * 2, ZEROS), ErrorCode.MALFORMED),
    "zstd trailing byte": (compressed(zstd(ZEROS) + b"\0", ZEROS), ErrorCode.MALFORMED),
    "zstd skippable frame": (
        compressed(b"\x50\x2a\x4d\x18\x01\0\0\0x" + zstd(ZEROS), ZEROS),
        ErrorCode.MALFORMED,
    ),
    "a receiver's stored": (Stored(0, PASS, ((0, MIB),)), ErrorCode.UNEXPECTED_MESSAGE),
    "a receiver's opened": (
        DiskOpened(0, PASS, bytes(16), MIB, 0),
        ErrorCode.UNEXPECTED_MESSAGE,
    ),
    "a receiver's proven": (
        DiskProven(0, PASS, 0, bytes(32), published=True),
        ErrorCode.UNEXPECTED_MESSAGE,
    ),
    "a receiver's failed": (DiskFailed(0, PASS, ErrorCode.INTERNAL), ErrorCode.UNEXPECTED_MESSAGE),
    "a receiver's credit": (Credit(1 << 40), ErrorCode.UNEXPECTED_MESSAGE),
    "a receiver's hello": (
        HelloOk(Capability(0), 1, 1, 1, "x"),
        ErrorCode.UNEXPECTED_MESSAGE,
    ),
}


@pytest.mark.parametrize("offence", OFFENCES)
def test_offence_ends_the_connection(me: RawSender, pair: Pair, vm: str, offence: str) -> None:
    message, code = OFFENCES[offence]
    with me.session() as wire:
        wire.send(opening(vm, 2 * MIB))
        wire.expect(DiskOpened)
        wire.send(message)
        assert [m for m in wire.rest() if isinstance(m, Error)] == [Error(code)]
    wait_until(lambda: pair.receiver.files(vm) == [], "files removed")


def plaintext(message: Message) -> bytearray:
    return bytearray(encode(message, 1))


def with_type(number: int) -> bytes:
    data = plaintext(Ping(1))
    data[0] = number
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        with_type(0x7F),
        with_type(0x00),
        bytes(24),
        bytes(plaintext(Ping(1)) + bytes(4096)),
        bytes(plaintext(Ping(1)) + b"\x01"),
        bytes(plaintext(Ping(1))[:-1]),
        noise(5000),
        bytes(plaintext(zero(0, MIB))[:2] + b"\xff\xff" + plaintext(zero(0, MIB))[4:]),
        bytes(plaintext(opening("x", MIB))[:-1] + b"\xff"),
    ],
    ids=["type", "zero", "empty", "padding", "dirty", "cut", "random", "no disk", "not utf-8"],
)
def test_plaintext_that_is_no_message_ends_the_connection(me: RawSender, data: bytes) -> None:
    with me.session() as wire:
        wire.send_plaintext(data)
        assert wire.rest() == [Error(ErrorCode.MALFORMED)]


@pytest.mark.parametrize("message", [zero(0, MIB), chunk(PAGES), end_pass(PAGES, 1)])
def test_message_of_another_epoch_ends_the_connection(
    me: RawSender, vm: str, message: Message
) -> None:
    with me.session(epoch=3) as wire:
        wire.send(opening(vm, MIB))
        wire.expect(DiskOpened)
        wire.send(message, epoch=2)
        assert wire.rest() == [Error(ErrorCode.STALE_EPOCH)]


def test_chunk_before_the_disk_is_open_ends_the_connection(me: RawSender, vm: str) -> None:
    with me.session() as wire:
        both = (opening(vm, 512), chunk(noise(512)))
        wire.send_raw(b"".join(wire.sealer.seal(encode(message, 1)) for message in both))
        assert wire.rest()[-1] == Error(ErrorCode.UNEXPECTED_MESSAGE)


def test_chunk_after_the_disk_is_proven_ends_the_connection(
    me: RawSender, pair: Pair, vm: str
) -> None:
    data = noise(MIB)
    with me.session() as wire:
        assert send_disk(wire, vm, data).published
        wire.send(chunk(noise(MIB, 8)))
        assert wire.rest() == [Error(ErrorCode.UNEXPECTED_MESSAGE)]
    assert pair.receiver.flat(vm).read_bytes() == data


def test_second_end_of_pass_ends_the_connection(me: RawSender, vm: str) -> None:
    with me.session() as wire:
        wire.send(opening(vm, MIB))
        wire.expect(DiskOpened)
        wire.send(end_pass(PAGES, 1), end_pass(PAGES, 1))
        assert wire.rest() == [Error(ErrorCode.UNEXPECTED_MESSAGE)]


# Records


@pytest.mark.parametrize(
    "header",
    [
        b"\0\0\0\0\x01\0\0\0",
        (39).to_bytes(4, "big") + b"\x01\0\0\0",
        (MAX_CIPHERTEXT + 1).to_bytes(4, "big") + b"\x01\0\0\0",
        b"\xff\xff\xff\xff\x01\0\0\0",
        (64).to_bytes(4, "big") + b"\x02\0\0\0",
        (64).to_bytes(4, "big") + b"\x01\x01\0\0",
        (64).to_bytes(4, "big") + b"\x01\0\0\x01",
    ],
    ids=["0", "39", "limit + 1", "most", "version", "byte", "word"],
)
def test_record_header_that_lies_ends_the_connection(me: RawSender, header: bytes) -> None:
    with me.session() as wire:
        wire.send_raw(header)
        assert wire.rest() == [Error(ErrorCode.MALFORMED)]


@pytest.mark.parametrize("bit", [8 * 8, 20 * 8 + 3, -1])
def test_record_with_a_flipped_bit_ends_the_connection_silently(me: RawSender, bit: int) -> None:
    with me.session() as wire:
        record = bytearray(wire.sealer.seal(encode(Ping(1), 1)))
        record[bit // 8 if bit >= 0 else -1] ^= 1 << (bit % 8)
        wire.send_raw(bytes(record))
        assert wire.rest() == SILENT


def test_record_sent_twice_ends_the_connection_silently(me: RawSender) -> None:
    with me.session() as wire:
        record = wire.sealer.seal(encode(Ping(1), 1))
        wire.send_raw(record * 2)
        assert wire.rest() == [Pong(1)]


def test_record_of_another_connection_ends_the_connection_silently(me: RawSender) -> None:
    session = secrets.token_bytes(16)
    with me.session(session) as one, me.session(session, index=1) as other:
        other.send_raw(one.sealer.seal(encode(Ping(1), 1)))
        assert other.rest() == SILENT


# Disks


def test_wrong_digest_fails_its_disk_and_no_other(me: RawSender, pair: Pair, vm: str) -> None:
    with me.session() as wire:
        wire.send(opening(f"{vm}-bad", 2 * MIB, 7))
        wire.expect(DiskOpened)
        wire.send(chunk(PAGES, MIB, disk=7, digest=bytes(32)))
        failed = wire.expect(DiskFailed)
        assert (failed.code, failed.numbers) == (ErrorCode.DIGEST_MISMATCH, (MIB, 0))
        wire.send(chunk(PAGES, 0, disk=7))  # still on its way: discarded
        assert send_disk(wire, vm, PAGES).published
    assert pair.receiver.files(f"{vm}-bad") == []


def test_duplicate_chunk_is_acknowledged_again(me: RawSender, pair: Pair, vm: str) -> None:
    data = noise(2 * MIB)
    with me.session() as wire:
        wire.send(opening(vm, 2 * MIB))
        wire.expect(DiskOpened)
        wire.send(chunk(data[:MIB]))
        assert wire.expect(Stored).ranges == ((0, MIB),)
        wire.send(chunk(data[:MIB]))
        assert wire.expect(Stored).ranges == ((0, MIB),)
        wire.send(chunk(data[MIB:], MIB), chunk(data[MIB:], MIB), end_pass(data, 2))
        assert wire.expect(DiskProven).published
    assert pair.receiver.flat(vm).read_bytes() == data


@pytest.mark.parametrize(
    "pair_of",
    [
        (chunk(PAGES), chunk(noise(MIB, 8))),
        (chunk(PAGES), zero(0, MIB)),
        (zero(0, MIB), chunk(PAGES)),
        (zero(0, 2 * MIB), chunk(PAGES, MIB)),
        (chunk(PAGES, MIB), zero(0, 2 * MIB)),
    ],
    ids=["chunk-chunk", "chunk-zero", "zero-chunk", "zeros-chunk", "chunk-zeros"],
)
def test_duplicate_that_differs_fails_the_disk(
    me: RawSender, pair: Pair, vm: str, pair_of: tuple[Message, Message]
) -> None:
    with me.session() as wire:
        wire.send(opening(vm, 2 * MIB))
        wire.expect(DiskOpened)
        wire.send(*pair_of)
        assert wire.expect(DiskFailed).code is ErrorCode.DUPLICATE_DIFFERS
        assert send_disk(wire, f"{vm}-other", PAGES, disk=1).published
    assert pair.receiver.files(vm) == []


def test_end_of_pass_with_parts_missing_waits_and_is_freed_by_closing(
    me: RawSender, pair: Pair, vm: str
) -> None:
    with me.session() as wire:
        wire.send(opening(vm, 2 * MIB))
        wire.expect(DiskOpened)
        wire.send(chunk(PAGES), end_pass(PAGES * 2, 2))
        wire.expect(Stored)
        wire.send(Ping(5))
        assert wire.receive() == Pong(5)
        assert not is_let_go(me, vm)
    wait_until(lambda: is_let_go(me, vm), "disk let go")
    assert pair.receiver.files(vm) == []


def test_end_of_pass_may_overtake_chunks(me: RawSender, vm: str) -> None:
    with me.session() as wire:
        wire.send(opening(vm, 2 * MIB))
        wire.expect(DiskOpened)
        wire.send(end_pass(PAGES * 2, 2), chunk(PAGES, MIB), chunk(PAGES))
        assert wire.expect(DiskProven).published


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (EndPass(0, PASS, 2, root_of(PAGES)), ErrorCode.PASS_INCOMPLETE),
        (EndPass(0, PASS, 0, root_of(PAGES)), ErrorCode.PASS_INCOMPLETE),
        (EndPass(0, PASS, (1 << 64) - 1, root_of(PAGES)), ErrorCode.PASS_INCOMPLETE),
        (EndPass(0, PASS, 1, bytes(32)), ErrorCode.ROOT_MISMATCH),
    ],
    ids=["more", "less", "most", "root"],
)
def test_end_of_pass_that_does_not_fit_fails_the_disk(
    me: RawSender, pair: Pair, vm: str, end: EndPass, code: ErrorCode
) -> None:
    with me.session() as wire:
        wire.send(opening(vm, MIB))
        wire.expect(DiskOpened)
        wire.send(chunk(PAGES), end)
        assert wire.expect(DiskFailed).code is code
        wire.send(Ping(5))
        assert wire.receive() == Pong(5)
    wait_until(lambda: pair.receiver.files(vm) == [], "files removed")


def test_abandon_that_crosses_the_refusal_is_passed_over(me: RawSender, vm: str) -> None:
    with me.session() as wire:
        wire.send(opening(vm, MIB, datastore="elsewhere"), Abandon(0, PASS, ErrorCode.CANCELLED))
        assert wire.expect(DiskFailed).code is ErrorCode.DATASTORE_UNKNOWN
        assert send_disk(wire, vm, PAGES, disk=1).published


BAD_NAMES: Final = [
    "../evil",
    "..",
    ".",
    "",
    "/etc/evil",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\x1b[31mb",
    ".hidden",
    "x" * 81,
    "x-flat",
    "x-000001",
    "näme",
    "\u202egpj",
]


@pytest.mark.parametrize("field", ["vm", "name"])
def test_names_that_are_paths_or_worse_are_refused(
    me: RawSender, pair: Pair, vm: str, field: str
) -> None:
    before = sorted(pair.receiver.folder.rglob("*"))
    with me.session() as wire:
        for disk, name in enumerate(BAD_NAMES):
            wire.send(opening(vm, MIB, disk, **{field: name}))
            assert wire.expect(DiskFailed).code is ErrorCode.NAME_REFUSED, name
    assert sorted(pair.receiver.folder.rglob("*")) == before
    assert "\x1b" not in pair.receiver.log


@pytest.mark.parametrize(
    ("size", "fields", "code"),
    [
        (0, {}, ErrorCode.SIZE_REFUSED),
        (MAX_DISK_SIZE + 512, {}, ErrorCode.SIZE_REFUSED),
        (1 << 53, {}, ErrorCode.SIZE_REFUSED),
        ((1 << 64) - 512, {}, ErrorCode.SIZE_REFUSED),
        (MAX_DISK_SIZE, {"reserve": MAX_DISK_SIZE}, ErrorCode.DATASTORE_FULL),
        (4 << 40, {"hardware_version": 9}, ErrorCode.SIZE_REFUSED),
        (MIB, {"datastore": "elsewhere"}, ErrorCode.DATASTORE_UNKNOWN),
        (MIB, {"datastore": "../ds"}, ErrorCode.DATASTORE_UNKNOWN),
    ],
)
def test_opening_that_cannot_be_is_refused(
    me: RawSender, pair: Pair, vm: str, size: int, fields: dict[str, Any], code: ErrorCode
) -> None:
    with me.session() as wire:
        wire.send(opening(vm, size, **fields))
        assert wire.expect(DiskFailed).code is code
        assert send_disk(wire, f"{vm}-2", PAGES, disk=1).published
    assert pair.receiver.files(vm) == []


@pytest.mark.parametrize(
    ("size", "fields"),
    [(1000, {}), (MIB, {"reserve": 2 * MIB}), (MIB, {"hardware_version": 99})],
)
def test_opening_that_contradicts_itself_ends_the_connection(
    me: RawSender, vm: str, size: int, fields: dict[str, Any]
) -> None:
    with me.session() as wire:
        wire.send(opening(vm, size, **fields))
        assert wire.rest() == [Error(ErrorCode.MALFORMED)]


@pytest.mark.parametrize(
    ("line", "fields", "code"),
    [
        ('disks="web-*"', {}, ErrorCode.NOT_PERMITTED),
        ('datastore="fast"', {}, ErrorCode.NOT_PERMITTED),
        ('datastore="fast"', {"datastore": "ds"}, ErrorCode.NOT_PERMITTED),
        ("max-bytes=1M", {"size": 2 * MIB}, ErrorCode.QUOTA_EXCEEDED),
    ],
)
def test_what_the_peers_line_does_not_allow_is_refused(
    authorised: Callable[..., RawSender],
    pair: Pair,
    vm: str,
    line: str,
    fields: dict[str, Any],
    code: ErrorCode,
) -> None:
    with authorised(line).session() as wire:
        wire.send(opening(vm, MIB, **fields))
        assert wire.expect(DiskFailed).code is code
    assert pair.receiver.files(vm) == []


def test_peer_from_another_network_is_closed_without_a_byte(
    authorised: Callable[..., RawSender],
) -> None:
    me = authorised('from="10.0.0.0/8"')
    with dial(me.address) as sock:
        sock.sendall(initiation(me))
        assert read_to_end(sock) == b""


# Too much of something


def test_more_disks_than_a_session_may_have_end_the_connection(me: RawSender, vm: str) -> None:
    with me.session() as wire:
        for disk in range(MAX_DISKS):
            kind = {"dry_run": True} if disk % 2 else {"datastore": "elsewhere"}
            wire.send(opening(vm, MIB, disk, **kind))
            assert isinstance(wire.receive(), DiskOpened | DiskFailed)
        wire.send(opening(vm, MIB, MAX_DISKS))
        assert isinstance(wire.rest()[-1], Error)


def test_chunks_all_over_a_huge_disk_do_not_fill_the_memory(
    me: RawSender, pair: Pair, vm: str
) -> None:
    stride = SEGMENT_CHUNKS * CHUNK_SIZE
    data = zstd(ZEROS)
    with me.session() as wire:
        wire.send(opening(vm, 2 * MAX_OPEN_SEGMENTS * stride))
        wire.expect(DiskOpened)
        stored, answer = 0, None
        for number in range(2 * MAX_OPEN_SEGMENTS):
            wire.send(compressed(data, ZEROS, number * stride))
            # Within the credit for bytes: it is the segments that are too many.
            while number - stored > 128 and not isinstance(answer, DiskFailed):
                answer = wire.receive()
                if isinstance(answer, Stored):
                    stored += sum(length for _, length in answer.ranges) // CHUNK_SIZE
        if not isinstance(answer, DiskFailed):
            answer = wire.expect(DiskFailed)
        assert answer.code is ErrorCode.CREDIT_EXCEEDED
    wait_until(lambda: pair.receiver.files(vm) == [], "files removed")


def test_records_that_never_end_do_not_keep_others_out(
    authorised: Callable[..., RawSender], vm: str
) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            session, me = secrets.token_bytes(16), authorised()
            for index in range(CONNECTIONS_PER_SESSION):
                wire = stack.enter_context(me.session(session, index=index))
                wire.send_raw((MAX_CIPHERTEXT).to_bytes(4, "big") + b"\x01\0\0\0" + bytes(1000))
        with authorised().session() as wire:
            assert send_disk(wire, vm, PAGES).published


def ping_without_end(wire: Wire) -> None:
    for token in count():
        wire.sock.sendall(wire.sealer.seal(encode(Ping(token), 1)))


def test_peer_that_does_not_read_answers_is_not_buffered_for(
    authorised: Callable[..., RawSender], vm: str
) -> None:
    with authorised().session() as deaf:
        deaf.sock.settimeout(1.0)
        with pytest.raises(TimeoutError):
            ping_without_end(deaf)
        with authorised().session() as wire:
            assert send_disk(wire, vm, PAGES).published


@needs_strace
def test_credit_exceeded_ends_the_connection(me: RawSender, pair: Pair, vm: str) -> None:
    """Slow syncs keep chunks unacknowledged, until the sender has sent more than its credit."""
    pid = pair.receiver.process.pid
    with injected(pid, "fdatasync", "delay_enter=2s"), me.session() as wire:
        wire.send(opening(vm, 1 << 40))
        wire.expect(DiskOpened)
        data = zstd(ZEROS)
        for number in range((BOUND + FIRST) // MIB):
            wire.send(compressed(data, ZEROS, number * MIB))
        assert wire.rest()[-1] == Error(ErrorCode.CREDIT_EXCEEDED)
    wait_until(lambda: pair.receiver.files(vm) == [], "files removed")


# Streams with history


@contextmanager
def with_history(me: RawSender, vm: str, *disks: int) -> Iterator[Wire]:
    """A connection that may carry a stream, with disks of 4 MiB opened."""
    with me.handshake() as wire:
        wire.send(hello(secrets.token_bytes(16), capabilities=Capability.HISTORY))
        answer = wire.expect(HelloOk)
        assert answer.capabilities == Capability.HISTORY
        assert (answer.history_window, answer.history_streams) == (25, STREAMS)
        for disk in disks:
            wire.send(opening(f"{vm}-{disk}" if disk else vm, 4 * MIB, disk))
            wire.expect(DiskOpened)
        yield wire


def streamed(payload: bytes, data: bytes, offset: int = 0, **fields: Any) -> Message:
    """A CHUNK whose payload claims to be ``data`` as the next blocks of a stream."""
    return chunk(data, offset, codec=Codec.HISTORY, payload=memoryview(payload), **fields)


def begun(data: bytes, level: int = 1, window_log: int = 25) -> bytes:
    """The first payload of an honest stream."""
    return HistoryEncoder(level, window_log).encode(data)


BOMB: Final = ((128 << 10) << 3 | 2).to_bytes(3, "little") + b"\0"  # a block of 128 KiB of zeros
FRAME_START: Final = b"\x28\xb5\x2f\xfd\0\x78"

STREAM_OFFENCES: Final[dict[str, Message]] = {
    "no begin": streamed(begun(ZEROS), ZEROS),
    "garbage": streamed(noise(999), ZEROS, begin=True),
    "cut": streamed(begun(ZEROS)[:-1], ZEROS, begin=True),
    "trailing byte": streamed(begun(ZEROS) + b"\0", ZEROS, begin=True),
    "frame that is ended": streamed(begun(ZEROS) + b"\x01\0\0", ZEROS, begin=True),
    "two frames": streamed(begun(ZEROS[: MIB // 2]) * 2, ZEROS, begin=True),
    "bomb": streamed(FRAME_START + BOMB * 4096, ZEROS, begin=True),
    "too little": streamed(FRAME_START + BOMB * 7, ZEROS, begin=True),
    "too many blocks": streamed(FRAME_START + b"\0\0\0" * 5000 + BOMB * 8, ZEROS, begin=True),
    "window beyond the announced": streamed(begun(ZEROS, 1, 26), ZEROS, begin=True),
    "window huge": streamed(b"\x28\xb5\x2f\xfd\0\xa8" + BOMB * 8, ZEROS, begin=True),
    "dictionary": streamed(b"\x28\xb5\x2f\xfd\x01\x78\x07" + BOMB * 8, ZEROS, begin=True),
    "content size": streamed(
        b"\x28\xb5\x2f\xfd\x80\x78" + MIB.to_bytes(4, "little") + BOMB * 8, ZEROS, begin=True
    ),
}


@pytest.mark.parametrize("offence", STREAM_OFFENCES)
def test_offence_against_a_stream_ends_its_connection(
    me: RawSender, pair: Pair, vm: str, offence: str
) -> None:
    with with_history(me, vm, 0) as wire:
        wire.send(STREAM_OFFENCES[offence])
        assert [m for m in wire.rest() if not isinstance(m, Stored)] == [Error(ErrorCode.MALFORMED)]
    wait_until(lambda: pair.receiver.files(vm) == [], "files removed")


def test_stream_goes_on_whatever_becomes_of_its_chunks(me: RawSender, pair: Pair, vm: str) -> None:
    """Repeated, of a disk that is closed, of one that does not want it, and raw ones between."""
    parts = [noise(MIB, seed) for seed in range(4)]
    encoder = HistoryEncoder(3, 25)
    with with_history(me, vm, 0, 1) as wire:
        wire.send(streamed(encoder.encode(parts[0]), parts[0], begin=True))
        wire.send(streamed(encoder.encode(parts[0]), parts[0]))  # which is a repetition
        wire.send(Abandon(1, PASS, ErrorCode.CANCELLED))
        wire.send(streamed(encoder.encode(parts[1]), parts[1], disk=1))  # whose disk is closed
        wire.send(chunk(parts[2], 2 * MIB))
        again = encoder.encode(parts[1])
        assert len(again) < 4096  # nothing without those before it
        wire.send(streamed(again, parts[1], MIB))
        encoder.restart()
        wire.send(streamed(encoder.encode(parts[3]), parts[3], 3 * MIB, begin=True))
        data = b"".join(parts)
        wire.send(end_pass(data, 4))
        while not isinstance(message := wire.receive(), DiskProven):
            assert isinstance(message, Stored | Proving) or message.disk == 1  # type: ignore[union-attr]
        assert message.root_digest == root_of(data)
        wire.send(Goodbye(last=True))


def test_stream_that_is_one_too_many_ends_its_connection_and_no_other(
    me: RawSender, vm: str
) -> None:
    session = secrets.token_bytes(16)
    data = noise(MIB)
    with with_session_of_history(me, session) as wires:
        wires[0].send(opening(vm, 4 * MIB))
        wires[0].expect(DiskOpened)
        for index, wire in enumerate(wires[:STREAMS]):
            wire.send(streamed(begun(data), data, index * MIB, begin=True))
            wire.send(Ping(index))
            assert until_pong(wire) == Pong(index)
        wires[STREAMS].send(streamed(begun(data), data, 2 * MIB, begin=True))
        assert wires[STREAMS].rest()[-1] == Error(ErrorCode.UNSUPPORTED)
        wires[0].send(Goodbye(last=False))
        wires[0].rest()  # and with its connection the stream has ended
        wires[3].send(streamed(begun(data), data, 3 * MIB, begin=True), Ping(3))
        assert until_pong(wires[3]) == Pong(3)
        wires[3].send(Goodbye(last=True))


@contextmanager
def with_session_of_history(me: RawSender, session: bytes) -> Iterator[list[Wire]]:
    """Four connections of a session."""
    with ExitStack() as stack:
        wires = []
        for index in range(4):
            wire = stack.enter_context(me.handshake())
            wire.send(hello(session, index, capabilities=Capability.HISTORY))
            assert wire.expect(HelloOk).history_streams == STREAMS
            wires.append(wire)
        yield wires


def until_pong(wire: Wire) -> Message:
    while isinstance(message := wire.receive(), Stored):
        pass
    return message


def test_windows_are_granted_while_there_is_memory_and_come_back(
    me: RawSender, authorised: Callable[..., RawSender]
) -> None:
    def answered(sender: RawSender, stack: ExitStack) -> object:
        wire = stack.enter_context(sender.handshake())
        wire.send(hello(secrets.token_bytes(16), capabilities=Capability.HISTORY))
        return wire.receive()

    def granted(sender: RawSender, stack: ExitStack) -> int:
        answer = answered(sender, stack)
        assert isinstance(answer, HelloOk), answer
        return answer.history_window

    with ExitStack() as stack:
        assert [granted(me, stack) for _ in range(4)] == [25, 23, 23, 0]
        assert granted(authorised(), stack) == 0

    def comes_back() -> bool:
        with ExitStack() as stack:
            answer = answered(me, stack)  # too many sessions, until those of before have ended
            return isinstance(answer, HelloOk) and answer.history_window == 25

    wait_until(comes_back, "windows given back")


def test_without_the_capability_a_stream_ends_the_connection(me: RawSender, vm: str) -> None:
    with me.session() as wire:
        wire.send(opening(vm, MIB))
        wire.expect(DiskOpened)
        wire.send(streamed(begun(ZEROS), ZEROS, begin=True))
        assert wire.rest() == [Error(ErrorCode.UNSUPPORTED)]
