"""Who may say what when: transition tables of both ends, epochs, credit, duplicates.

Pure: messages go in, decisions come out. The tables are the specification
(SPEC.md, "Disk states"); a missing entry is an UnexpectedMessage.

The receiver may send messages about one disk on any connection of the session,
and so they may overtake each other. That is why some states accept, and
ignore, what was said before they were reached.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias, TypeVar

from flatship_protocol.constants import CHUNK_SIZE, NO_DISK
from flatship_protocol.errors import (
    CreditExceeded,
    DiskError,
    ErrorCode,
    MalformedMessage,
    StaleEpoch,
    UnexpectedMessage,
)
from flatship_protocol.extents import ExtentSet
from flatship_protocol.messages import (
    Abandon,
    Chunk,
    DiskFailed,
    DiskOpened,
    DiskProven,
    EndPass,
    Held,
    OpenDisk,
    Proving,
    SegmentKind,
    Stored,
    Want,
    Zero,
)

NOT_SENT: Final = -1.0  # in place of a clock reading


class SenderState(Enum):
    """A disk as its sender sees it."""

    OPENING = "opening"
    STREAMING = "streaming"
    ENDING = "ending"
    PROVEN = "proven"
    FAILED = "failed"
    ABANDONED = "abandoned"


class ReceiverState(Enum):
    """A disk as its receiver sees it."""

    OPENING = "opening"
    STREAMING = "streaming"
    ENDING = "ending"
    PROVEN = "proven"
    CLOSED = "closed"


S = TypeVar("S", SenderState, ReceiverState)
ToReceiver: TypeAlias = Chunk | Zero | EndPass | Abandon
ToSender: TypeAlias = DiskOpened | Held | Stored | Want | Proving | DiskProven | DiskFailed

SENDER_SENDS: Final[Mapping[SenderState, Mapping[type, SenderState]]] = {
    SenderState.OPENING: {Abandon: SenderState.ABANDONED},
    SenderState.STREAMING: {
        Chunk: SenderState.STREAMING,
        Zero: SenderState.STREAMING,
        EndPass: SenderState.ENDING,
        Abandon: SenderState.ABANDONED,
    },
    SenderState.ENDING: {Abandon: SenderState.ABANDONED},
    SenderState.PROVEN: {},
    SenderState.FAILED: {},
    SenderState.ABANDONED: {},
}

SENDER_RECEIVES: Final[Mapping[SenderState, Mapping[type, SenderState]]] = {
    SenderState.OPENING: {
        DiskOpened: SenderState.STREAMING,
        DiskFailed: SenderState.FAILED,
    },
    SenderState.STREAMING: {
        Held: SenderState.STREAMING,
        Stored: SenderState.STREAMING,
        Want: SenderState.STREAMING,
        DiskFailed: SenderState.FAILED,
    },
    SenderState.ENDING: {
        Stored: SenderState.ENDING,
        Proving: SenderState.ENDING,
        DiskProven: SenderState.PROVEN,
        DiskFailed: SenderState.FAILED,
    },
    SenderState.PROVEN: {
        Stored: SenderState.PROVEN,
        Proving: SenderState.PROVEN,
    },
    SenderState.FAILED: {
        DiskOpened: SenderState.FAILED,
        Held: SenderState.FAILED,
        Stored: SenderState.FAILED,
        Want: SenderState.FAILED,
        Proving: SenderState.FAILED,
    },
    SenderState.ABANDONED: {
        DiskOpened: SenderState.ABANDONED,
        Held: SenderState.ABANDONED,
        Stored: SenderState.ABANDONED,
        Want: SenderState.ABANDONED,
        Proving: SenderState.ABANDONED,
        DiskProven: SenderState.ABANDONED,
        DiskFailed: SenderState.ABANDONED,
    },
}

RECEIVER_RECEIVES: Final[Mapping[ReceiverState, Mapping[type, ReceiverState]]] = {
    ReceiverState.OPENING: {Abandon: ReceiverState.CLOSED},
    ReceiverState.STREAMING: {
        Chunk: ReceiverState.STREAMING,
        Zero: ReceiverState.STREAMING,
        EndPass: ReceiverState.ENDING,
        Abandon: ReceiverState.CLOSED,
    },
    ReceiverState.ENDING: {
        Chunk: ReceiverState.ENDING,
        Zero: ReceiverState.ENDING,
        Abandon: ReceiverState.CLOSED,
    },
    ReceiverState.PROVEN: {Abandon: ReceiverState.PROVEN},
    ReceiverState.CLOSED: {
        Chunk: ReceiverState.CLOSED,
        Zero: ReceiverState.CLOSED,
        EndPass: ReceiverState.CLOSED,
        Abandon: ReceiverState.CLOSED,
    },
}


class Verdict(Enum):
    """What the receiver does with a message about a disk."""

    ACT = "act"
    DISCARD = "discard"
    ACKNOWLEDGE_AGAIN = "acknowledge again"


@dataclass(slots=True)
class Acknowledged:
    """What one STORED, or DISK_PROVEN, released.

    ``chunk_bytes`` and ``zero_bytes`` had not been acknowledged before.
    ``offsets`` and ``sent_at`` say of its chunks where they are and when they had been sent.
    """

    chunk_bytes: int = 0
    zero_bytes: int = 0
    offsets: list[int] = field(default_factory=list)
    sent_at: list[float] = field(default_factory=list)


@dataclass(slots=True)
class SenderDisk:
    """The sender's account of one disk."""

    pass_number: int
    size: int
    state: SenderState = SenderState.OPENING
    chunks: dict[int, tuple[int, float]] = field(default_factory=dict)  # offset: length, sent at
    keeping: set[int] = field(default_factory=set)  # those of them that have KEEP segments
    zeros: ExtentSet = field(default_factory=ExtentSet)


class SenderSession:
    """The sender's side of a session: states of its disks and what is unacknowledged.

    Args:
        epoch: The incarnation; goes into every message.
        credit: Bytes of chunks that may be unacknowledged, over all disks.
    """

    def __init__(self, epoch: int, credit: int) -> None:
        self.epoch = epoch
        self.credit = credit
        self.outstanding = 0  # bytes of chunks sent and not acknowledged
        self.disks: dict[int, SenderDisk] = {}

    def open(self, message: OpenDisk) -> None:
        """Note that OPEN_DISK goes out.

        Raises:
            ValueError: The handle is taken.
        """
        if message.disk in self.disks or message.disk == NO_DISK:
            raise ValueError(f"disk handle {message.disk} is taken")
        self.disks[message.disk] = SenderDisk(message.pass_number, message.size)

    @property
    def awaits_stored(self) -> bool:
        """Whether a chunk was sent that is not acknowledged."""
        return any(
            sent_at != NOT_SENT
            for disk in self.disks.values()
            for _, sent_at in disk.chunks.values()
        )

    def has_credit(self, length: int) -> bool:
        """Whether a chunk of ``length`` bytes may be sent now."""
        return self.outstanding + length <= self.credit

    def send(self, message: ToReceiver, now: float) -> None:
        """Note that ``message`` goes out at ``now`` (seconds, any steady clock).

        Raises:
            ValueError: The tables forbid it; a chunk without ``reserve``; the end of a pass
                before every chunk with KEEP segments was answered.
        """
        disk = self.disks[message.disk]
        following = SENDER_SENDS[disk.state].get(type(message))
        if following is None:
            raise ValueError(f"{type(message).__name__} cannot be sent while {disk.state.value}")
        if isinstance(message, Chunk):
            if message.offset not in disk.chunks:
                raise ValueError(f"no credit was reserved for the chunk at {message.offset}")
            disk.chunks[message.offset] = (message.length, now)
            if any(segment.kind is SegmentKind.KEEP for segment in message.segments):
                disk.keeping.add(message.offset)
        elif isinstance(message, Zero):
            disk.zeros.add(message.offset, message.length)
        elif isinstance(message, EndPass) and disk.keeping:
            raise ValueError(f"{len(disk.keeping)} chunks with KEEP segments are not answered")
        disk.state = following

    def reserve(self, handle: int, offset: int, length: int) -> None:
        """Take credit for the chunk at ``offset``, which may be sent once it is read.

        Raises:
            ValueError: There is not enough credit; ask ``has_credit`` first.
        """
        if not self.has_credit(length):
            raise ValueError("credit exceeded")
        self.outstanding += length
        self.disks[handle].chunks[offset] = (length, NOT_SENT)

    def unreserve(self, handle: int, offset: int) -> None:
        """Give back the credit of a chunk that is not sent as a chunk after all."""
        entry = self.disks[handle].chunks.pop(offset, None)
        if entry is not None:
            self.outstanding -= entry[0]

    def receive(self, epoch: int, message: ToSender) -> Acknowledged | None:
        """Take a message about a disk; returns what it acknowledged, None for what never does.

        Raises:
            StaleEpoch: Another epoch than this session's.
            UnexpectedMessage: The tables do not allow it, it acknowledges what was
                never sent, or it wants what was sent whole.
        """
        _check_epoch(self.epoch, epoch)
        disk = self.disks.get(message.disk)
        if disk is None or message.pass_number != disk.pass_number:
            raise UnexpectedMessage(f"{type(message).__name__} about an unknown disk or pass")
        disk.state = _follow(SENDER_RECEIVES[disk.state], disk.state, message)
        if isinstance(message, DiskOpened) and message.capacity != _rounded(disk.size):
            raise UnexpectedMessage(f"capacity {message.capacity} for a disk of {disk.size}")
        if isinstance(message, Held):
            _check_held(message, disk.size)
        if isinstance(message, DiskProven) and disk.state is SenderState.PROVEN:
            # It may have overtaken the last STORED, which is then no news.
            return self._acknowledge(disk, ((0, disk.size),))
        if isinstance(message, DiskFailed | DiskProven):
            self._release(disk)  # of what was on its way when the disk was given up
        if isinstance(message, Stored) and disk.state in (
            SenderState.STREAMING,
            SenderState.ENDING,
        ):
            return self._acknowledge(disk, message.ranges)
        if isinstance(message, Want) and disk.state is SenderState.STREAMING:
            self._take_back(disk, message.ranges)
        return None

    def _acknowledge(self, disk: SenderDisk, ranges: Iterable[tuple[int, int]]) -> Acknowledged:
        released = Acknowledged()
        for offset, length in ranges:
            if offset % CHUNK_SIZE or offset + length > disk.size:
                raise UnexpectedMessage(f"STORED names {length} bytes at {offset} of {disk.size}")
            zeros_before = disk.zeros.total
            disk.zeros.discard(offset, length)
            released.zero_bytes += zeros_before - disk.zeros.total
            for start in _chunk_starts(offset, length, disk.chunks):
                size, sent_at = disk.chunks[start]
                if sent_at == NOT_SENT or start + size > offset + length:
                    raise UnexpectedMessage(f"STORED names byte {start}, which was not sent so")
                del disk.chunks[start]
                disk.keeping.discard(start)
                released.chunk_bytes += size
                released.offsets.append(start)
                released.sent_at.append(sent_at)
        self.outstanding -= released.chunk_bytes
        return released

    def _take_back(self, disk: SenderDisk, ranges: Iterable[tuple[int, int]]) -> None:
        """Count chunks as not sent, with their credit."""
        for offset, length in ranges:
            starts = _chunk_starts(offset, length, disk.keeping)
            if sum(disk.chunks[start][0] for start in starts) != length or offset not in starts:
                raise UnexpectedMessage(f"WANT names {length} bytes at {offset}, not sent to keep")
            for start in starts:
                self.outstanding -= disk.chunks.pop(start)[0]
                disk.keeping.discard(start)

    def _release(self, disk: SenderDisk) -> None:
        self.outstanding -= sum(length for length, _ in disk.chunks.values())
        disk.chunks.clear()
        disk.keeping.clear()


@dataclass(slots=True)
class ReceiverDisk:
    """The receiver's account of one disk in this pass."""

    pass_number: int
    size: int
    state: ReceiverState = ReceiverState.OPENING
    in_flight: dict[int, tuple[int, bytes]] = field(default_factory=dict)  # offset: length, digest
    chunks: ExtentSet = field(default_factory=ExtentSet)
    zeros: ExtentSet = field(default_factory=ExtentSet)
    zeroing: ExtentSet = field(default_factory=ExtentSet)  # of ``zeros``, what is not durable
    held: ExtentSet = field(default_factory=ExtentSet)  # from an earlier session, and not sent anew
    chunk_count: int = 0
    end: EndPass | None = None

    @property
    def complete(self) -> bool:
        """Whether every byte of the disk has come, now or earlier, and is durable.

        END_PASS may overtake chunks, and those may take the place of what is held.
        """
        covered = self.chunks.total + self.zeros.total + self.held.total
        if covered != self.size or self.in_flight or self.zeroing.total:
            return False
        return self.end is None or not self.held.total or self.chunk_count >= self.end.chunks


class ReceiverSession:
    """The receiver's side of a session: what it accepts, discards, or calls an error.

    Args:
        epoch: The incarnation, as claimed by HELLO.
        credit: Bytes of chunks the sender may have unacknowledged.
    """

    def __init__(self, epoch: int, credit: int) -> None:
        self.epoch = epoch
        self.credit = credit
        self.outstanding = 0
        self.disks: dict[int, ReceiverDisk] = {}

    def open(self, epoch: int, message: OpenDisk) -> ReceiverDisk:
        """Take OPEN_DISK.

        Raises:
            StaleEpoch: Another epoch than this session's.
            UnexpectedMessage: The handle has been used in this session.
        """
        _check_epoch(self.epoch, epoch)
        if message.disk in self.disks:
            raise UnexpectedMessage(f"disk handle {message.disk} is taken")
        disk = ReceiverDisk(message.pass_number, message.size)
        self.disks[message.disk] = disk
        return disk

    def holds(self, handle: int, offset: int, length: int) -> None:
        """A range is on stable storage since an earlier session; before ``opened``."""
        self.disks[handle].held.add(offset, length)

    def opened(self, handle: int) -> bool:
        """The image exists; chunks may come. False if it was abandoned meanwhile."""
        disk = self.disks[handle]
        if disk.state is not ReceiverState.OPENING:
            return False
        disk.state = ReceiverState.STREAMING
        return True

    def receive(
        self, epoch: int, message: ToReceiver, digest_of: Callable[[int], bytes | None]
    ) -> Verdict:
        """Decide on a message about an open disk.

        Args:
            epoch: The epoch that came with it.
            message: What came.
            digest_of: The digest of the chunk at an offset, if it is stored
                and at hand; asked only for what comes twice. Where it is not,
                nothing is compared, and the root digest decides.

        Raises:
            StaleEpoch: Another epoch than this session's.
            UnexpectedMessage: The tables do not allow it, or the disk is unknown.
            MalformedMessage: It does not fit the disk's size.
            CreditExceeded: Too much is unacknowledged.
            DiskError: DUPLICATE_DIFFERS; the disk cannot go on.
        """
        _check_epoch(self.epoch, epoch)
        disk = self.disks.get(message.disk)
        if disk is None or message.pass_number != disk.pass_number:
            raise UnexpectedMessage(f"{type(message).__name__} about an unknown disk or pass")
        following = _follow(RECEIVER_RECEIVES[disk.state], disk.state, message)
        if disk.state is ReceiverState.CLOSED:
            return Verdict.DISCARD
        verdict = Verdict.ACT
        if isinstance(message, Chunk):
            verdict = self._accept_chunk(disk, message, digest_of)
        elif isinstance(message, Zero):
            verdict = self._accept_zero(disk, message)
        elif isinstance(message, EndPass):
            disk.end = message
        else:
            self._release(disk)
        disk.state = following
        return verdict

    def stored(self, handle: int, offset: int) -> None:
        """The chunk at ``offset`` is durable: its credit is free again."""
        disk = self.disks[handle]
        entry = disk.in_flight.pop(offset, None)
        if entry is not None:
            self.outstanding -= entry[0]

    def wanted(self, handle: int, offset: int) -> bool:
        """The chunk at ``offset`` kept what is not there: it has not come, until it comes whole.

        Returns:
            Whether it may still come; not after the end of the pass, nor of the disk.
        """
        disk = self.disks[handle]
        if disk.state is not ReceiverState.STREAMING:
            return False
        length, _ = disk.in_flight.pop(offset)
        self.outstanding -= length
        disk.chunks.discard(offset, length)
        disk.chunk_count -= 1
        return True

    def zeroed(self, handle: int, offset: int, length: int) -> None:
        """Zeros that ``receive`` accepted are durable."""
        self.disks[handle].zeroing.discard(offset, length)

    def proven(self, handle: int) -> None:
        """The disk was re-read and equals the source."""
        self.disks[handle].state = ReceiverState.PROVEN

    def close(self, handle: int) -> None:
        """The disk failed here; what is still on its way will be discarded."""
        disk = self.disks[handle]
        disk.state = ReceiverState.CLOSED
        self._release(disk)

    def _accept_chunk(
        self, disk: ReceiverDisk, message: Chunk, digest_of: Callable[[int], bytes | None]
    ) -> Verdict:
        if message.length != min(CHUNK_SIZE, disk.size - message.offset):
            raise MalformedMessage(
                f"chunk of {message.length} bytes at byte {message.offset} on a disk of {disk.size}"
            )
        if disk.zeros.overlaps(message.offset, message.length):
            raise _differs(message.offset)
        if disk.chunks.covers(message.offset, message.length):
            in_flight = disk.in_flight.get(message.offset)
            known = in_flight[1] if in_flight else digest_of(message.offset)
            if known is not None and known != message.digest:
                raise _differs(message.offset)
            return Verdict.DISCARD if in_flight else Verdict.ACKNOWLEDGE_AGAIN
        if self.outstanding + message.length > self.credit:
            raise CreditExceeded(f"credit is {self.credit} bytes, {self.outstanding} are taken")
        self.outstanding += message.length
        disk.in_flight[message.offset] = (message.length, message.digest)
        disk.chunks.add(message.offset, message.length)
        disk.held.discard(message.offset, message.length)
        disk.chunk_count += 1
        return Verdict.ACT

    def _accept_zero(self, disk: ReceiverDisk, message: Zero) -> Verdict:
        end = message.offset + message.length
        if end > disk.size or (end % CHUNK_SIZE and end != disk.size):
            raise MalformedMessage(f"zeros end at byte {end} on a disk of {disk.size}")
        if disk.chunks.overlaps(message.offset, message.length):
            raise _differs(message.offset)
        if disk.zeros.covers(message.offset, message.length):
            if disk.zeroing.overlaps(message.offset, message.length):
                return Verdict.DISCARD
            return Verdict.ACKNOWLEDGE_AGAIN
        disk.zeros.add(message.offset, message.length)
        disk.held.discard(message.offset, message.length)
        disk.zeroing.add(message.offset, message.length)
        return Verdict.ACT

    def _release(self, disk: ReceiverDisk) -> None:
        self.outstanding -= sum(length for length, _ in disk.in_flight.values())
        disk.in_flight.clear()


def _check_held(message: Held, size: int) -> None:
    if message.first + message.count > -(-size // CHUNK_SIZE):
        raise UnexpectedMessage(
            f"HELD names {message.count} chunks from chunk {message.first} on a disk of {size}"
        )


def _rounded(size: int) -> int:
    """The capacity of a disk of ``size`` bytes."""
    return -(-size // CHUNK_SIZE) * CHUNK_SIZE


def _check_epoch(ours: int, theirs: int) -> None:
    if theirs != ours:
        raise StaleEpoch(f"epoch {theirs} where the session is at {ours}")


def _follow(row: Mapping[type, S], state: S, message: object) -> S:
    following = row.get(type(message))
    if following is None:
        raise UnexpectedMessage(f"{type(message).__name__} while {state.value}")
    return following


def _chunk_starts(offset: int, length: int, sent: Collection[int]) -> list[int]:
    if length // CHUNK_SIZE > len(sent):
        return [start for start in sent if offset <= start < offset + length]
    return [start for start in range(offset, offset + length, CHUNK_SIZE) if start in sent]


def _differs(offset: int) -> DiskError:
    return DiskError(
        f"chunk at byte {offset} came twice with different content",
        ErrorCode.DUPLICATE_DIFFERS,
        (offset, 0),
    )
