"""The session's tables, message by message, and the accounts of credit at both ends."""

import time
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.errors import (
    CreditExceeded,
    DiskError,
    ErrorCode,
    MalformedMessage,
    StaleEpoch,
    UnexpectedMessage,
)
from flatship_protocol.messages import (
    Abandon,
    Adapter,
    Chunk,
    Codec,
    DiskFailed,
    DiskFormat,
    DiskOpened,
    DiskProven,
    EndPass,
    Held,
    OpenDisk,
    Proving,
    Provisioning,
    Segment,
    SegmentKind,
    Stored,
    Want,
    Zero,
)
from flatship_protocol.session import (
    RECEIVER_RECEIVES,
    SENDER_RECEIVES,
    SENDER_SENDS,
    ReceiverSession,
    ReceiverState,
    SenderSession,
    SenderState,
    ToReceiver,
    ToSender,
    Verdict,
)

MIB = CHUNK_SIZE
EPOCH = 7
DISK = 3
PASS = 1
TAIL = 1536  # bytes of the disk's last chunk
SIZE = 8 * MIB + TAIL
CAPACITY = -(-SIZE // MIB) * MIB
U64 = (1 << 64) - 1
DIGEST = bytes([1]) * 32
OTHER = bytes([2]) * 32


def opening(disk: int = DISK, size: int = SIZE) -> OpenDisk:
    return OpenDisk(
        disk,
        PASS,
        size,
        0,
        bytes(32),
        DiskFormat.VMFS,
        Provisioning.THIN,
        Adapter.LSILOGIC,
        21,
        "",
        "web",
        "web",
    )


def chunk(index: int = 0, digest: bytes = DIGEST, disk: int = DISK, length: int = 0) -> Chunk:
    offset = index * MIB
    length = length or min(MIB, SIZE - offset)
    return Chunk(disk, PASS, offset, length, Codec.RAW, length, digest, (), memoryview(b""))


def patch(index: int = 0) -> Chunk:
    """A chunk of which the receiver keeps all but a page."""
    segments = (Segment(SegmentKind.LITERAL, 1), Segment(SegmentKind.KEEP, 255))
    return replace(chunk(index), literal_length=4096, segments=segments)


def zero(first: int = 0, length: int = MIB, disk: int = DISK) -> Zero:
    return Zero(disk, PASS, first * MIB, length, hole=False)


def stored(*ranges: tuple[int, int], disk: int = DISK) -> Stored:
    return Stored(disk, PASS, ranges)


SENDER_SAYS: dict[type, ToReceiver] = {
    Chunk: chunk(),
    Zero: zero(),
    EndPass: EndPass(DISK, PASS, 0, DIGEST),
    Abandon: Abandon(DISK, PASS, ErrorCode.CANCELLED),
}
RECEIVER_SAYS: dict[type, ToSender] = {
    DiskOpened: DiskOpened(DISK, PASS, bytes(16), CAPACITY, 0),
    Held: Held(DISK, PASS, 0, 1, DIGEST, last=True),
    Stored: stored((0, MIB)),
    Want: Want(DISK, PASS, ((0, MIB),)),
    Proving: Proving(DISK, PASS, 0, 0),
    DiskProven: DiskProven(DISK, PASS, 0, DIGEST, published=True),
    DiskFailed: DiskFailed(DISK, PASS, ErrorCode.DATASTORE_FULL, (0, 0)),
}


def unknown(_: int) -> bytes | None:
    return None


def sender(credit: int = 4 * MIB, state: SenderState = SenderState.STREAMING) -> SenderSession:
    session = SenderSession(EPOCH, credit)
    session.open(opening())
    session.disks[DISK].state = state
    return session


def send_chunks(session: SenderSession, *indices: int, now: float = 1.0) -> None:
    for index in indices:
        message = chunk(index)
        session.reserve(DISK, message.offset, message.length)
        session.send(message, now)


def receiver(
    credit: int = 4 * MIB, state: ReceiverState = ReceiverState.STREAMING
) -> ReceiverSession:
    session = ReceiverSession(EPOCH, credit)
    session.open(EPOCH, opening())
    session.disks[DISK].state = state
    return session


@pytest.mark.parametrize(
    ("table", "states"),
    [
        (SENDER_SENDS, SenderState),
        (SENDER_RECEIVES, SenderState),
        (RECEIVER_RECEIVES, ReceiverState),
    ],
)
def test_every_state_has_a_row(
    table: Mapping[object, object], states: type[SenderState] | type[ReceiverState]
) -> None:
    assert set(table) == set(states)


def test_what_the_receiver_accepts_is_what_the_sender_may_send() -> None:
    sends = {kind for row in SENDER_SENDS.values() for kind in row}
    assert sends == {kind for row in RECEIVER_RECEIVES.values() for kind in row} == set(SENDER_SAYS)
    assert {kind for row in SENDER_RECEIVES.values() for kind in row} == set(RECEIVER_SAYS)


@pytest.mark.parametrize("kind", SENDER_SAYS)
@pytest.mark.parametrize("state", SenderState)
def test_the_sender_sends_what_its_table_allows_and_nothing_else(
    state: SenderState, kind: type
) -> None:
    session = sender(state=state)
    session.reserve(DISK, 0, MIB)
    if kind in SENDER_SENDS[state]:
        session.send(SENDER_SAYS[kind], 1.0)
        assert session.disks[DISK].state is SENDER_SENDS[state][kind]
    else:
        with pytest.raises(ValueError, match="cannot be sent"):
            session.send(SENDER_SAYS[kind], 1.0)
        assert session.disks[DISK].state is state


@pytest.mark.parametrize("kind", RECEIVER_SAYS)
@pytest.mark.parametrize("state", SenderState)
def test_the_sender_takes_what_its_table_allows_and_nothing_else(
    state: SenderState, kind: type
) -> None:
    session = sender(state=state)
    session.disks[DISK].chunks[0] = (MIB, 1.0)
    session.disks[DISK].guessed.add(0)
    if kind in SENDER_RECEIVES[state]:
        session.receive(EPOCH, RECEIVER_SAYS[kind])
        assert session.disks[DISK].state is SENDER_RECEIVES[state][kind]
    else:
        with pytest.raises(UnexpectedMessage):
            session.receive(EPOCH, RECEIVER_SAYS[kind])
        assert session.disks[DISK].state is state


@pytest.mark.parametrize("kind", SENDER_SAYS)
@pytest.mark.parametrize("state", ReceiverState)
def test_the_receiver_takes_what_its_table_allows_and_nothing_else(
    state: ReceiverState, kind: type
) -> None:
    session = receiver(state=state)
    if kind in RECEIVER_RECEIVES[state]:
        verdict = session.receive(EPOCH, SENDER_SAYS[kind], unknown)
        closed = state is ReceiverState.CLOSED
        assert verdict is (Verdict.DISCARD if closed else Verdict.ACT)
        assert session.disks[DISK].state is RECEIVER_RECEIVES[state][kind]
    else:
        with pytest.raises(UnexpectedMessage):
            session.receive(EPOCH, SENDER_SAYS[kind], unknown)
        assert session.disks[DISK].state is state
    assert session.outstanding in (0, MIB)


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
def test_another_epoch_is_stale_at_both_ends(epoch: int) -> None:
    for message in RECEIVER_SAYS.values():
        with pytest.raises(StaleEpoch):
            sender().receive(epoch, message)
    for said in SENDER_SAYS.values():
        with pytest.raises(StaleEpoch):
            receiver().receive(epoch, said, unknown)
    with pytest.raises(StaleEpoch):
        ReceiverSession(EPOCH, 0).open(epoch, opening())


def test_another_disk_or_pass_is_unexpected_at_both_ends() -> None:
    for disk, pass_number in ((DISK + 1, PASS), (DISK, PASS + 1)):
        with pytest.raises(UnexpectedMessage):
            sender().receive(EPOCH, Stored(disk, pass_number, ((0, MIB),)))
        with pytest.raises(UnexpectedMessage):
            receiver().receive(EPOCH, EndPass(disk, pass_number, 0, DIGEST), unknown)


def test_a_handle_is_used_once_in_a_session() -> None:
    with pytest.raises(ValueError, match="taken"):
        sender().open(opening())
    with pytest.raises(UnexpectedMessage, match="taken"):
        receiver().open(EPOCH, opening())


def test_a_disk_abandoned_while_it_was_opened_stays_closed() -> None:
    session = receiver(state=ReceiverState.OPENING)
    session.receive(EPOCH, SENDER_SAYS[Abandon], unknown)
    assert not session.opened(DISK)
    assert session.disks[DISK].state is ReceiverState.CLOSED


# Credit at the sender


def test_credit_is_taken_before_a_chunk_is_read_and_freed_by_its_acknowledgement() -> None:
    session = sender(credit=2 * MIB)
    send_chunks(session, 0, 1)
    assert not session.has_credit(1)
    with pytest.raises(ValueError, match="credit exceeded"):
        session.reserve(DISK, 2 * MIB, MIB)
    released = session.receive(EPOCH, stored((0, MIB)))
    assert released is not None
    assert (released.chunk_bytes, released.sent_at) == (MIB, [1.0])
    assert session.outstanding == MIB
    assert session.has_credit(MIB)


def test_a_chunk_needs_a_reservation() -> None:
    session = sender()
    with pytest.raises(ValueError, match="no credit was reserved"):
        session.send(chunk(), 1.0)


def test_a_chunk_that_is_zero_after_all_gives_its_credit_back_once() -> None:
    session = sender()
    session.reserve(DISK, 0, MIB)
    session.unreserve(DISK, 0)
    session.unreserve(DISK, 0)
    assert session.outstanding == 0


@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_a_disk_that_ends_early_frees_all_its_credit_once(who: str) -> None:
    session = sender()
    session.open(opening(DISK + 1))
    session.disks[DISK + 1].state = SenderState.STREAMING
    send_chunks(session, 0, 1)
    session.reserve(DISK, 2 * MIB, MIB)
    session.reserve(DISK + 1, 0, MIB)
    if who == "sender":
        session.send(SENDER_SAYS[Abandon], 2.0)
    session.receive(EPOCH, RECEIVER_SAYS[DiskFailed])
    assert session.outstanding == MIB  # the other disk's
    session.unreserve(DISK, 2 * MIB)
    session.receive(EPOCH, stored((0, 2 * MIB)))  # was on its way
    assert session.outstanding == MIB


def test_an_acknowledgement_said_twice_frees_credit_once() -> None:
    session = sender()
    send_chunks(session, 0, 1)
    session.receive(EPOCH, stored((0, MIB), (0, MIB)))
    released = session.receive(EPOCH, stored((0, MIB)))
    assert released is not None
    assert released.chunk_bytes == 0
    assert session.outstanding == MIB


def test_one_range_acknowledges_chunks_zeros_and_the_short_tail() -> None:
    session = sender()
    send_chunks(session, 6, 8)
    session.send(zero(7), 1.0)
    released = session.receive(EPOCH, stored((6 * MIB, 2 * MIB + TAIL)))
    assert released is not None
    assert released.chunk_bytes == MIB + TAIL
    assert released.zero_bytes == MIB
    assert session.outstanding == 0


@pytest.mark.parametrize(
    "part",
    [(0, MIB - 512), (0, 512), (512, MIB - 512), (512, MIB), (512, 4 * MIB), (8 * MIB, TAIL - 512)],
)
def test_an_acknowledgement_of_part_of_a_chunk_is_unexpected(part: tuple[int, int]) -> None:
    session = sender()
    send_chunks(session, 0, 1, 8)
    with pytest.raises(UnexpectedMessage):
        session.receive(EPOCH, stored(part))


def test_an_acknowledgement_of_a_chunk_that_is_still_being_read_is_unexpected() -> None:
    session = sender()
    session.reserve(DISK, 0, MIB)
    with pytest.raises(UnexpectedMessage, match="not sent"):
        session.receive(EPOCH, stored((0, MIB)))


def test_ranges_as_large_as_the_wire_allows_are_refused_at_once() -> None:
    session = sender(credit=256 * MIB)
    for index in range(2):
        send_chunks(session, index)
    started = time.process_time()
    for each in ((0, U64 - U64 % MIB), (U64 - MIB + 1, U64)):
        with pytest.raises(UnexpectedMessage):
            session.receive(EPOCH, stored(each))
    assert time.process_time() - started < 0.5
    assert session.outstanding == 2 * MIB


def test_another_capacity_than_the_disks_is_refused() -> None:
    session = SenderSession(EPOCH, MIB)
    session.open(opening())
    with pytest.raises(UnexpectedMessage):
        session.receive(EPOCH, DiskOpened(DISK, PASS, bytes(16), CAPACITY + MIB, 0))


# Credit, coverage, duplicates at the receiver


def test_more_than_the_credit_is_refused_and_changes_nothing() -> None:
    session = receiver(credit=2 * MIB)
    session.receive(EPOCH, chunk(0), unknown)
    session.receive(EPOCH, chunk(1), unknown)
    with pytest.raises(CreditExceeded):
        session.receive(EPOCH, chunk(2), unknown)
    assert session.outstanding == 2 * MIB
    assert not session.disks[DISK].chunks.overlaps(2 * MIB, MIB)
    session.stored(DISK, 0)
    assert session.receive(EPOCH, chunk(2), unknown) is Verdict.ACT


def test_credit_is_shared_by_all_disks_of_a_session() -> None:
    session = receiver(credit=MIB)
    session.open(EPOCH, opening(DISK + 1))
    session.opened(DISK + 1)
    session.receive(EPOCH, chunk(0), unknown)
    with pytest.raises(CreditExceeded):
        session.receive(EPOCH, chunk(0, disk=DISK + 1), unknown)


def test_a_chunk_stored_twice_frees_credit_once() -> None:
    session = receiver()
    session.receive(EPOCH, chunk(0), unknown)
    session.stored(DISK, 0)
    session.stored(DISK, 0)
    assert session.outstanding == 0


@pytest.mark.parametrize("how", ["abandoned", "closed"])
def test_a_disk_that_ends_early_frees_its_credit_and_discards_what_comes(how: str) -> None:
    session = receiver()
    session.receive(EPOCH, chunk(0), unknown)
    session.receive(EPOCH, chunk(1), unknown)
    if how == "abandoned":
        session.receive(EPOCH, SENDER_SAYS[Abandon], unknown)
    else:
        session.close(DISK)
    assert session.outstanding == 0
    assert session.receive(EPOCH, chunk(2), unknown) is Verdict.DISCARD
    session.stored(DISK, 0)
    assert session.outstanding == 0


def test_a_duplicate_is_discarded_while_it_is_stored_and_acknowledged_again_after() -> None:
    session = receiver()
    assert session.receive(EPOCH, chunk(0), unknown) is Verdict.ACT
    assert session.receive(EPOCH, chunk(0), unknown) is Verdict.DISCARD
    session.stored(DISK, 0)
    again = session.receive(EPOCH, chunk(0), lambda _: DIGEST)
    assert again is Verdict.ACKNOWLEDGE_AGAIN
    assert session.outstanding == 0
    assert session.disks[DISK].chunk_count == 1


@pytest.mark.parametrize("durable", [False, True])
def test_a_duplicate_with_another_digest_ends_the_disk(durable: bool) -> None:
    session = receiver()
    session.receive(EPOCH, chunk(0), unknown)
    if durable:
        session.stored(DISK, 0)
    with pytest.raises(DiskError) as error:
        session.receive(EPOCH, chunk(0, OTHER), lambda _: DIGEST)
    assert error.value.code is ErrorCode.DUPLICATE_DIFFERS
    assert error.value.numbers == (0, 0)


def test_a_duplicate_whose_digest_is_no_longer_known_is_acknowledged_again() -> None:
    session = receiver()
    session.receive(EPOCH, chunk(0), unknown)
    session.stored(DISK, 0)
    assert session.receive(EPOCH, chunk(0, OTHER), unknown) is Verdict.ACKNOWLEDGE_AGAIN


def test_zeros_and_chunks_must_not_overlap() -> None:
    session = receiver()
    session.receive(EPOCH, chunk(1), unknown)
    session.receive(EPOCH, zero(3, 2 * MIB), unknown)
    for message in (zero(1), zero(0, 2 * MIB), zero(0, 8 * MIB), chunk(3), chunk(4)):
        with pytest.raises(DiskError) as error:
            session.receive(EPOCH, message, unknown)
        assert error.value.code is ErrorCode.DUPLICATE_DIFFERS
    assert session.receive(EPOCH, zero(2), unknown) is Verdict.ACT


def test_repeated_zeros_are_acknowledged_again_only_once_they_are_durable() -> None:
    session = receiver()
    assert session.receive(EPOCH, zero(0, 2 * MIB), unknown) is Verdict.ACT
    assert session.receive(EPOCH, zero(0, 2 * MIB), unknown) is Verdict.DISCARD
    assert session.receive(EPOCH, zero(1), unknown) is Verdict.DISCARD
    session.zeroed(DISK, 0, 2 * MIB)
    assert session.receive(EPOCH, zero(1), unknown) is Verdict.ACKNOWLEDGE_AGAIN


def test_zeros_that_overlap_others_in_part_are_made_again() -> None:
    session = receiver()
    session.receive(EPOCH, zero(0, 2 * MIB), unknown)
    assert session.receive(EPOCH, zero(1, 2 * MIB), unknown) is Verdict.ACT
    assert session.disks[DISK].zeros.total == 3 * MIB


@pytest.mark.parametrize(
    ("first", "length"),
    [
        (0, 512),
        (0, MIB + 512),
        (8, TAIL + 512),
        (8, TAIL - 512),
        (9, MIB),
        (0, U64),
        (1 << 43, 512),
    ],
)
def test_zeros_that_do_not_fit_the_disk_are_malformed(first: int, length: int) -> None:
    session = receiver()
    with pytest.raises(MalformedMessage):
        session.receive(EPOCH, zero(first, length), unknown)
    assert session.disks[DISK].zeros.total == 0


def test_zeros_may_end_with_the_disk() -> None:
    assert receiver().receive(EPOCH, zero(0, SIZE), unknown) is Verdict.ACT


@pytest.mark.parametrize(
    "message",
    [
        chunk(0, length=MIB - 512),
        chunk(8, length=MIB),
        chunk(8, length=TAIL - 512),
        chunk(9, length=MIB),
        chunk((1 << 44) - 1, length=MIB),
    ],
)
def test_a_chunk_that_does_not_fit_the_disk_is_malformed(message: Chunk) -> None:
    session = receiver()
    with pytest.raises(MalformedMessage):
        session.receive(EPOCH, message, unknown)
    assert session.outstanding == 0


def test_a_disk_is_complete_when_all_of_it_came_and_is_durable() -> None:
    session = receiver(credit=SIZE)
    disk = session.disks[DISK]
    session.receive(EPOCH, zero(0, 7 * MIB), unknown)
    session.receive(EPOCH, chunk(8), unknown)
    session.zeroed(DISK, 0, 7 * MIB)
    session.stored(DISK, 8 * MIB)
    assert not disk.complete
    session.receive(EPOCH, chunk(7), unknown)
    assert not disk.complete
    session.stored(DISK, 7 * MIB)
    assert disk.complete


def test_a_chunk_in_the_place_of_what_is_held_is_waited_for_when_the_end_overtakes_it() -> None:
    session = ReceiverSession(EPOCH, 4 * MIB)
    session.open(EPOCH, opening())
    disk = session.disks[DISK]
    session.holds(DISK, 0, disk.size)
    assert session.opened(DISK)
    session.receive(EPOCH, EndPass(DISK, PASS, 1, bytes(32)), unknown)
    assert not disk.complete
    session.receive(EPOCH, chunk(), unknown)
    session.stored(DISK, 0)
    assert disk.complete


def test_zeros_that_are_not_durable_keep_a_disk_incomplete() -> None:
    session = receiver()
    session.receive(EPOCH, zero(0, SIZE), unknown)
    assert not session.disks[DISK].complete
    session.zeroed(DISK, 0, SIZE)
    assert session.disks[DISK].complete


class BothEnds(RuleBasedStateMachine):
    """Two accounts of one session, fed with what a legal sender and receiver do.

    The model is the set of chunks that are reserved, under way, or durable and not
    yet acknowledged, by disk.
    """

    CREDIT = 4 * MIB + TAIL

    @initialize()
    def begin(self) -> None:
        self.sender = SenderSession(EPOCH, self.CREDIT)
        self.receiver = ReceiverSession(EPOCH, self.CREDIT)
        self.reserved: dict[int, set[int]] = {}
        self.sent: dict[int, set[int]] = {}
        self.arrived: dict[int, set[int]] = {}
        self.durable: dict[int, set[int]] = {}
        self.done: dict[int, set[int]] = {}

    def live(self, states: tuple[SenderState, ...] = (SenderState.STREAMING,)) -> list[int]:
        return [handle for handle, disk in self.sender.disks.items() if disk.state in states]

    @precondition(lambda self: len(self.live()) < 3)
    @rule()
    def open(self) -> None:
        handle = len(self.sender.disks)
        self.sender.open(opening(handle))
        self.receiver.open(EPOCH, opening(handle))
        assert self.receiver.opened(handle)
        self.sender.receive(EPOCH, DiskOpened(handle, PASS, bytes(16), CAPACITY, 0))
        for of in (self.reserved, self.sent, self.arrived, self.durable, self.done):
            of[handle] = set()

    @precondition(lambda self: self.live())
    @rule(data=st.data(), index=st.integers(0, 8))
    def reserve(self, data: st.DataObject, index: int) -> None:
        handle = data.draw(st.sampled_from(self.live()))
        message = chunk(index, disk=handle)
        taken = self.reserved[handle] | self.sent[handle] | self.arrived[handle]
        if index in taken | self.durable[handle] | self.done[handle]:
            return
        if self.sender.has_credit(message.length):
            self.sender.reserve(handle, message.offset, message.length)
            self.reserved[handle].add(index)

    @precondition(lambda self: any(self.reserved[handle] for handle in self.live()))
    @rule(data=st.data(), is_zero=st.booleans())
    def read(self, data: st.DataObject, is_zero: bool) -> None:
        handle = data.draw(st.sampled_from([h for h in self.live() if self.reserved[h]]))
        index = data.draw(st.sampled_from(sorted(self.reserved[handle])))
        self.reserved[handle].discard(index)
        if is_zero:
            self.sender.unreserve(handle, index * MIB)
        else:
            self.sender.send(chunk(index, disk=handle), 1.0)
            self.sent[handle].add(index)

    @precondition(lambda self: any(self.sent.values()))
    @rule(data=st.data(), twice=st.booleans())
    def arrive(self, data: st.DataObject, twice: bool) -> None:
        handle = data.draw(st.sampled_from([h for h in self.sent if self.sent[h]]))
        index = data.draw(st.sampled_from(sorted(self.sent[handle])))
        self.sent[handle].discard(index)
        closed = self.receiver.disks[handle].state is ReceiverState.CLOSED
        for attempt in range(1 + twice):
            verdict = self.receiver.receive(EPOCH, chunk(index, disk=handle), unknown)
            assert verdict is (Verdict.DISCARD if closed or attempt else Verdict.ACT)
        if not closed:
            self.arrived[handle].add(index)

    @precondition(lambda self: any(self.arrived.values()))
    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from([h for h in self.arrived if self.arrived[h]]))
        for index in self.arrived[handle]:
            self.receiver.stored(handle, index * MIB)
        self.durable[handle] |= self.arrived[handle]
        self.arrived[handle].clear()

    @precondition(lambda self: any(self.durable.values()))
    @rule(data=st.data(), twice=st.booleans())
    def acknowledge(self, data: st.DataObject, twice: bool) -> None:
        handle = data.draw(st.sampled_from([h for h in self.durable if self.durable[h]]))
        ranges = tuple((i * MIB, min(MIB, SIZE - i * MIB)) for i in sorted(self.durable[handle]))
        for _ in range(1 + twice):
            self.sender.receive(EPOCH, Stored(handle, PASS, ranges))
        self.done[handle] |= self.durable[handle]
        self.durable[handle].clear()

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.live()))
        message = Abandon(handle, PASS, ErrorCode.CANCELLED)
        self.sender.send(message, 1.0)
        self.receiver.receive(EPOCH, message, unknown)
        self.sender.receive(EPOCH, DiskFailed(handle, PASS, ErrorCode.CANCELLED, (0, 0)))
        self.reserved[handle].clear()
        self.arrived[handle].clear()

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.live()))
        self.receiver.close(handle)
        self.sender.receive(EPOCH, DiskFailed(handle, PASS, ErrorCode.DATASTORE_FULL, (0, 0)))
        self.reserved[handle].clear()
        self.arrived[handle].clear()

    @invariant()
    def outstanding_is_the_sum_of_what_is_unacknowledged(self) -> None:
        if not hasattr(self, "sender"):
            return

        def total(*sets: dict[int, set[int]], only: list[int]) -> int:
            indices = [index for of in sets for handle in only for index in of[handle]]
            return sum(min(MIB, SIZE - index * MIB) for index in indices)

        live = self.live()
        at_sender = total(self.reserved, self.sent, self.arrived, self.durable, only=live)
        assert self.sender.outstanding == at_sender <= self.CREDIT
        assert self.receiver.outstanding == total(self.arrived, only=list(self.arrived))


TestBothEnds = BothEnds.TestCase
TestBothEnds.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_held_past_the_end_of_the_disk_is_a_peer_error() -> None:
    session = sender()
    chunks = -(-session.disks[DISK].size // MIB)
    assert session.receive(EPOCH, Held(DISK, PASS, 0, chunks, b"")) is None
    with pytest.raises(UnexpectedMessage, match="HELD names"):
        session.receive(EPOCH, Held(DISK, PASS, 1, chunks, b""))


def test_what_is_held_counts_as_come_until_it_is_sent_anew() -> None:
    session = ReceiverSession(EPOCH, 4 * MIB)
    session.open(EPOCH, opening())
    disk = session.disks[DISK]
    session.holds(DISK, 0, disk.size)
    assert session.opened(DISK)
    assert disk.complete
    session.receive(EPOCH, chunk(), unknown)
    assert not disk.complete
    session.stored(DISK, 0)
    assert disk.complete
    assert disk.chunk_count == 1
    session.receive(EPOCH, Zero(DISK, PASS, MIB, MIB, hole=True), unknown)
    assert not disk.complete
    session.zeroed(DISK, MIB, MIB)
    assert disk.complete


def test_an_end_that_overtakes_what_replaces_held_chunks_waits_for_it() -> None:
    session = ReceiverSession(EPOCH, 4 * MIB)
    session.open(EPOCH, opening())
    disk = session.disks[DISK]
    session.holds(DISK, 0, disk.size)
    assert session.opened(DISK)
    session.receive(EPOCH, EndPass(DISK, PASS, 2, DIGEST), unknown)
    assert not disk.complete
    for index in (5, 0):
        session.receive(EPOCH, chunk(index), unknown)
        session.stored(DISK, index * MIB)
        assert disk.complete == (index == 0)


# WANT


def test_a_chunk_that_is_wanted_whole_is_as_if_it_had_not_been_sent() -> None:
    session = sender()
    for message in (patch(0), patch(1), chunk(2)):
        session.reserve(DISK, message.offset, message.length)
        session.send(message, 1.0)
    session.receive(EPOCH, Want(DISK, PASS, ((0, MIB),)))
    assert session.outstanding == 2 * MIB
    send_chunks(session, 0)
    released = session.receive(EPOCH, stored((0, 3 * MIB)))
    assert released is not None
    assert sorted(released.offsets) == [0, MIB, 2 * MIB]
    assert session.outstanding == 0


@pytest.mark.parametrize(
    "range_", [(0, MIB), (2 * MIB, MIB), (MIB, 2 * MIB), (MIB, 512), (MIB + 512, MIB), (0, 1 << 62)]
)
def test_only_what_was_sent_to_keep_can_be_wanted_whole(range_: tuple[int, int]) -> None:
    session = sender()
    for message in (chunk(0), patch(1)):
        session.reserve(DISK, message.offset, message.length)
        session.send(message, 1.0)
    session.reserve(DISK, 2 * MIB, MIB)
    with pytest.raises(UnexpectedMessage, match="WANT"):
        session.receive(EPOCH, Want(DISK, PASS, (range_,)))
    assert session.outstanding == 3 * MIB


def test_nothing_is_wanted_twice() -> None:
    session = sender()
    session.reserve(DISK, 0, MIB)
    session.send(patch(), 1.0)
    with pytest.raises(UnexpectedMessage, match="WANT"):
        session.receive(EPOCH, Want(DISK, PASS, ((0, MIB), (0, MIB))))


@pytest.mark.parametrize("answer", ["stored", "wanted"])
def test_a_pass_does_not_end_before_what_was_sent_to_keep_is_answered(answer: str) -> None:
    session = sender()
    session.reserve(DISK, 0, MIB)
    session.send(patch(), 1.0)
    with pytest.raises(ValueError, match="not answered"):
        session.send(SENDER_SAYS[EndPass], 2.0)
    assert session.disks[DISK].state is SenderState.STREAMING
    answers = {"stored": stored((0, MIB)), "wanted": Want(DISK, PASS, ((0, MIB),))}
    session.receive(EPOCH, answers[answer])
    session.send(SENDER_SAYS[EndPass], 3.0)


def test_a_chunk_wanted_whole_gives_its_credit_back_and_may_be_another_then() -> None:
    session = receiver()
    session.holds(DISK, 0, MIB)
    assert session.receive(EPOCH, patch(), unknown) is Verdict.ACT
    assert session.wanted(DISK, 0)
    account = session.disks[DISK]
    assert (session.outstanding, account.chunk_count, account.complete) == (0, 0, False)
    assert (account.held.total, account.chunks.total) == (0, 0)
    assert session.receive(EPOCH, chunk(digest=bytes(32)), unknown) is Verdict.ACT
    assert (session.outstanding, account.chunk_count) == (MIB, 1)


def test_zeros_may_come_in_the_place_of_a_chunk_that_was_wanted_whole() -> None:
    session = receiver()
    session.receive(EPOCH, patch(), unknown)
    session.wanted(DISK, 0)
    assert session.receive(EPOCH, zero(), unknown) is Verdict.ACT


@pytest.mark.parametrize("end", [EndPass, Abandon])
def test_nothing_is_wanted_once_the_pass_or_the_disk_is_over(end: type) -> None:
    session = receiver()
    session.receive(EPOCH, patch(), unknown)
    session.receive(EPOCH, SENDER_SAYS[end], unknown)
    assert not session.wanted(DISK, 0)


@pytest.mark.parametrize("kind", [SegmentKind.KEEP, SegmentKind.COPY])
def test_a_pass_ends_when_each_chunk_that_guesses_is_answered(kind: SegmentKind) -> None:
    session = sender(state=SenderState.STREAMING)
    segments = (Segment(kind, 255), Segment(SegmentKind.ZERO, 1))
    guess = replace(chunk(), codec=Codec.RAW, literal_length=0, segments=segments)
    end = SENDER_SAYS[EndPass]
    session.reserve(DISK, guess.offset, guess.length)
    session.send(guess, 1.0)
    with pytest.raises(ValueError, match="not answered"):
        session.send(end, 2.0)
    want = Want(DISK, PASS, ((guess.offset, guess.length),))
    session.receive(EPOCH, want)
    assert session.outstanding == 0
    session.reserve(DISK, guess.offset, guess.length)
    session.send(replace(guess, segments=(Segment(SegmentKind.ZERO, 256),)), 3.0)
    with pytest.raises(UnexpectedMessage, match="sent whole"):
        session.receive(EPOCH, want)
    session.send(end, 4.0)
