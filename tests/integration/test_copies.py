"""Chunks that are copied at the receiver, sent by hand: from where, by whom, and what if not.

Whatever becomes of a copy, a disk that is published is its source.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from processes import Pair, wait_until
from raw_peer import (
    PASS,
    RawSender,
    Wire,
    chunk,
    end_pass,
    hello,
    opening,
    root_of,
)

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.digest import chunk_digest
from flatship_protocol.errors import ErrorCode
from flatship_protocol.messages import (
    Abandon,
    Capability,
    Chunk,
    Codec,
    DiskOpened,
    DiskProven,
    Error,
    Goodbye,
    Held,
    HelloOk,
    ImageReference,
    Message,
    Ping,
    Pong,
    Proving,
    Segment,
    SegmentKind,
    Stored,
    Want,
)

MIB = CHUNK_SIZE
PAGES = MIB // PAGE_SIZE
DATA = Random(11).randbytes(3 * MIB)
CAPABILITIES = Capability.KNOWN | Capability.RESUME


@contextmanager
def session(
    me: RawSender,
    session_id: bytes | None = None,
    index: int = 0,
    capabilities: Capability = CAPABILITIES,
) -> Iterator[Wire]:
    with me.handshake() as wire:
        wire.send(hello(session_id or secrets.token_bytes(16), index, capabilities))
        assert wire.expect(HelloOk).capabilities == capabilities
        yield wire


def opened(wire: Wire, vm: str, size: int = len(DATA), disk: int = 0, **fields: object) -> bytes:
    """Open a disk and hear what is held of it; returns its image's uuid."""
    wire.send(opening(vm, size, disk, **fields))
    uuid = wire.expect(DiskOpened).image_uuid
    while not wire.expect(Held).last:
        pass
    return uuid


def send_all(wire: Wire, data: bytes = DATA, disk: int = 0) -> None:
    """All chunks of a disk, until all are stored."""
    for at in range(0, len(data), MIB):
        wire.send(chunk(data[at : at + MIB], at, disk))
        assert isinstance(wire.receive(), Stored)


def publish(wire: Wire, data: bytes, disk: int = 0, chunks: int = 3) -> None:
    wire.send(end_pass(data, chunks, disk))
    while not isinstance(message := wire.receive(), DiskProven):
        assert isinstance(message, Stored | Proving)
    assert message.root_digest == root_of(data)


def copied(
    data: bytes, offset: int = 0, disk: int = 0, *, reference: int = 5, source: int | None = None
) -> Chunk:
    """A chunk all of which is copied, from the same place of the source if nothing else is said."""
    length = len(data)
    place = offset if source is None else source
    segments = (Segment(SegmentKind.COPY, length // PAGE_SIZE, reference, place),)
    fields = (disk, PASS, offset, length, Codec.RAW, 0, chunk_digest(data))
    return Chunk(*fields, segments, memoryview(b""))


def answer(wire: Wire, message: Message) -> type:
    """Whether a chunk is stored or wanted."""
    wire.send(message)
    return type(wire.receive())


@pytest.fixture
def source(me: RawSender, vm: str) -> bytes:
    """The uuid of a disk of mine that is published."""
    with session(me) as wire:
        uuid = opened(wire, f"{vm}-source"[-70:])
        send_all(wire)
        publish(wire, DATA)
        wire.send(Goodbye(last=True))
        wire.rest()
    return uuid


def test_published_disk_is_copied_from(me: RawSender, pair: Pair, vm: str, source: bytes) -> None:
    swapped = DATA[MIB : 2 * MIB] + DATA[:MIB] + DATA[2 * MIB :]
    with session(me) as wire:
        opened(wire, vm)
        wire.send(ImageReference(5, source))
        assert answer(wire, copied(swapped[:MIB], 0, source=MIB)) is Stored
        assert answer(wire, copied(swapped[MIB : 2 * MIB], MIB, source=0)) is Stored
        assert answer(wire, copied(swapped[2 * MIB :], 2 * MIB)) is Stored
        publish(wire, swapped)
        wire.send(Goodbye(last=True))
    assert pair.receiver.flat(vm).read_bytes() == swapped


def test_disk_that_is_being_received_is_copied_from_by_itself_and_by_another_session(
    me: RawSender, pair: Pair, vm: str
) -> None:
    data = DATA[:MIB] * 3
    with session(me) as first, session(me) as second:
        uuid = opened(first, vm)
        assert answer(first, chunk(data[:MIB])) is Stored
        first.send(ImageReference(5, uuid))
        assert answer(first, copied(data[:MIB], MIB, source=0)) is Stored
        opened(second, f"{vm}-2")
        second.send(ImageReference(9, uuid))
        for at in range(0, 3 * MIB, MIB):
            assert answer(second, copied(data[:MIB], at, reference=9, source=MIB)) is Stored
        publish(second, data)
        assert answer(first, copied(data[:MIB], 2 * MIB, source=0)) is Stored
        publish(first, data)
        for wire in (first, second):
            wire.send(Goodbye(last=True))
    assert pair.receiver.flat(vm).read_bytes() == data
    assert pair.receiver.flat(f"{vm}-2").read_bytes() == data


def test_incomplete_disk_is_copied_from_between_its_sessions(me: RawSender, vm: str) -> None:
    with session(me) as wire:
        uuid = opened(wire, f"{vm}-cut")
        send_all(wire)

    def let_go() -> bool:
        with session(me) as wire:
            wire.send(opening(f"{vm}-cut", len(DATA), source_id=b"?" * 32, dry_run=True))
            return isinstance(wire.receive(), DiskOpened)

    wait_until(let_go, "files let go of")
    with session(me) as wire:
        opened(wire, vm)
        wire.send(ImageReference(5, uuid))
        for at in range(0, len(DATA), MIB):
            assert answer(wire, copied(DATA[at : at + MIB], at)) is Stored
        publish(wire, DATA)
        wire.send(Goodbye(last=True))


def test_parts_of_a_chunk_are_copied_among_others(me: RawSender, vm: str, source: bytes) -> None:
    fresh = Random(5).randbytes(2 * PAGE_SIZE + 512)
    a, b = DATA[MIB : MIB + 3 * PAGE_SIZE], DATA[7 * PAGE_SIZE : 8 * PAGE_SIZE]
    whole = a + fresh[: 2 * PAGE_SIZE] + bytes(PAGE_SIZE) + b + fresh[2 * PAGE_SIZE :]
    segments = (
        Segment(SegmentKind.COPY, 3, 0, MIB),
        Segment(SegmentKind.LITERAL, 2),
        Segment(SegmentKind.ZERO, 1),
        Segment(SegmentKind.COPY, 1, 0, 7 * PAGE_SIZE),
        Segment(SegmentKind.LITERAL, 1),
    )
    fields = (0, PASS, 0, len(whole), Codec.RAW, len(fresh), chunk_digest(whole))
    with session(me) as wire:
        opened(wire, vm, len(whole))
        wire.send(ImageReference(0, source))
        assert answer(wire, Chunk(*fields, segments, memoryview(fresh))) is Stored
        publish(wire, whole, chunks=1)
        wire.send(Goodbye(last=True))


def test_what_is_not_there_is_wanted_whole(
    me: RawSender, authorised: Callable[..., RawSender], pair: Pair, vm: str, source: bytes
) -> None:
    """Unknown, another sender's, other bytes, past the end: all alike, and nothing is written."""
    data, part = DATA[:MIB], DATA[MIB : 2 * MIB]
    other = authorised()
    with session(other) as theirs:
        foreign = opened(theirs, f"{vm}-theirs")
        send_all(theirs)
        with session(me) as wire:
            opened(wire, vm, 2 * MIB)
            wire.send(ImageReference(5, source), ImageReference(6, secrets.token_bytes(16)))
            wire.send(ImageReference(7, foreign))
            for attempt in (
                copied(data, reference=6),
                copied(data, reference=7),
                copied(data, source=2 * MIB),
                copied(data, source=3 * MIB - PAGE_SIZE),
                copied(data, source=1 << 62),
            ):
                assert answer(wire, attempt) is Want
            assert pair.receiver.flat(vm).with_suffix(".vmdk.flatship-part").read_bytes() == bytes(
                2 * MIB
            )
            wire.send(ImageReference(7, source))  # bound anew
            assert answer(wire, copied(data, reference=7)) is Stored
            assert answer(wire, chunk(part, MIB)) is Stored
            publish(wire, data + part, chunks=2)
            wire.send(Goodbye(last=True))
        with session(other) as wire:  # and the other way round
            opened(wire, f"{vm}-3", MIB)
            wire.send(ImageReference(5, source))
            assert answer(wire, copied(data)) is Want


def test_published_disk_that_a_guest_has_changed_gives_what_is_still_there(
    me: RawSender, pair: Pair, vm: str, source: bytes
) -> None:
    with pair.receiver.flat(f"{vm}-source"[-70:]).open("r+b") as flat:
        flat.seek(MIB + 5)
        flat.write(b"changed")
    with session(me) as wire:
        opened(wire, vm)
        wire.send(ImageReference(5, source))
        assert answer(wire, copied(DATA[:MIB])) is Stored
        assert answer(wire, copied(DATA[MIB : 2 * MIB], MIB)) is Want
        assert answer(wire, chunk(DATA[MIB : 2 * MIB], MIB)) is Stored
        assert answer(wire, copied(DATA[2 * MIB :], 2 * MIB)) is Stored
        publish(wire, DATA)
        wire.send(Goodbye(last=True))


def test_source_may_be_replaced_while_it_is_copied_from(
    me: RawSender, pair: Pair, vm: str, source: bytes
) -> None:
    name = f"{vm}-source"[-70:]
    with session(me) as wire, session(me) as other:
        opened(wire, vm)
        wire.send(ImageReference(5, source))
        assert answer(wire, copied(DATA[:MIB])) is Stored
        opened(other, name, replace=True)
        send_all(other, DATA[::-1])
        publish(other, DATA[::-1])
        other.send(Goodbye(last=True))
        other.rest()
        assert pair.receiver.flat(name).read_bytes() == DATA[::-1]
        for at in (MIB, 2 * MIB):  # still open, or gone: either will do
            if answer(wire, copied(DATA[at : at + MIB], at)) is Want:
                assert answer(wire, chunk(DATA[at : at + MIB], at)) is Stored
        publish(wire, DATA)
        wire.send(Goodbye(last=True))


def test_reference_is_of_its_connection(me: RawSender, vm: str, source: bytes) -> None:
    name = secrets.token_bytes(16)
    with session(me, name) as first, session(me, name, 1) as second:
        opened(first, vm)
        first.send(ImageReference(5, source), Ping(1))
        assert first.receive() == Pong(1)
        second.send(copied(DATA[:MIB]))
        assert second.rest() == [Error(ErrorCode.UNEXPECTED_MESSAGE)]
        assert answer(first, copied(DATA[:MIB])) is Stored
        first.send(Abandon(0, PASS, ErrorCode.CANCELLED), Goodbye(last=True))


@pytest.mark.parametrize(
    "message", [ImageReference(0, bytes(16)), copied(DATA[:MIB])], ids=["IMAGE", "CHUNK"]
)
def test_without_the_capability_copies_end_the_connection(
    me: RawSender, vm: str, message: Message
) -> None:
    with session(me, capabilities=Capability.RESUME | Capability.DELTA) as wire:
        opened(wire, vm)
        wire.send(message)
        assert wire.rest() == [Error(ErrorCode.UNSUPPORTED)]


def test_receiver_holds_no_file_of_a_source_when_the_sessions_are_over(
    me: RawSender, pair: Pair, vm: str, source: bytes
) -> None:
    with session(me) as wire:
        opened(wire, vm)
        wire.send(ImageReference(5, source))
        assert answer(wire, copied(DATA[:MIB])) is Stored
        assert held_open(pair, f"{vm}-source"[-70:])
        wire.send(Goodbye(last=True))
    wait_until(lambda: not held_open(pair, f"{vm}-source"[-70:]), "source let go of")


def held_open(pair: Pair, vm: str) -> bool:
    flat = pair.receiver.flat(vm).stat()
    for entry in Path(f"/proc/{pair.receiver.process.pid}/fd").iterdir():
        try:
            status = entry.stat()
        except OSError:
            continue
        if (status.st_dev, status.st_ino) == (flat.st_dev, flat.st_ino):
            return True
    return False
