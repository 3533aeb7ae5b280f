"""What a sender has sent, and what of it is not acknowledged yet."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE, NO_DISK
from flatship_protocol.errors import UnexpectedMessage
from flatship_protocol.extents import ExtentSet
from flatship_protocol.messages import (
    Chunk,
    DiskFailed,
    DiskOpened,
    DiskProven,
    EndPass,
    Held,
    OpenDisk,
    Stored,
    Want,
    Zero,
)
from flatship_protocol.session.tables import (
    SENDER_RECEIVES,
    SENDER_SENDS,
    SenderState,
    ToReceiver,
    ToSender,
    check_epoch,
    follow,
)

NOT_SENT: Final = -1.0  # in place of a clock reading


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
    guessed: set[int] = field(default_factory=set)  # those of them with KEEP or COPY segments
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
                before every chunk with KEEP or COPY segments was answered.
        """
        disk = self.disks[message.disk]
        following = SENDER_SENDS[disk.state].get(type(message))
        if following is None:
            raise ValueError(f"{type(message).__name__} cannot be sent while {disk.state.value}")
        if isinstance(message, Chunk):
            if message.offset not in disk.chunks:
                raise ValueError(f"no credit was reserved for the chunk at {message.offset}")
            disk.chunks[message.offset] = (message.length, now)
            if message.guesses:
                disk.guessed.add(message.offset)
        elif isinstance(message, Zero):
            disk.zeros.add(message.offset, message.length)
        elif isinstance(message, EndPass) and disk.guessed:
            raise ValueError(
                f"{len(disk.guessed)} chunks with KEEP or COPY segments are not answered"
            )
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
        check_epoch(self.epoch, epoch)
        disk = self.disks.get(message.disk)
        if disk is None or message.pass_number != disk.pass_number:
            raise UnexpectedMessage(f"{type(message).__name__} about an unknown disk or pass")
        disk.state = follow(SENDER_RECEIVES[disk.state], disk.state, message)
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
                disk.guessed.discard(start)
                released.chunk_bytes += size
                released.offsets.append(start)
                released.sent_at.append(sent_at)
        self.outstanding -= released.chunk_bytes
        return released

    def _take_back(self, disk: SenderDisk, ranges: Iterable[tuple[int, int]]) -> None:
        """Count chunks as not sent, with their credit."""
        for offset, length in ranges:
            starts = _chunk_starts(offset, length, disk.guessed)
            if sum(disk.chunks[start][0] for start in starts) != length or offset not in starts:
                raise UnexpectedMessage(f"WANT names {length} bytes at {offset}, sent whole")
            for start in starts:
                self.outstanding -= disk.chunks.pop(start)[0]
                disk.guessed.discard(start)

    def _release(self, disk: SenderDisk) -> None:
        self.outstanding -= sum(length for length, _ in disk.chunks.values())
        disk.chunks.clear()
        disk.guessed.clear()


def _check_held(message: Held, size: int) -> None:
    if message.first + message.count > -(-size // CHUNK_SIZE):
        raise UnexpectedMessage(
            f"HELD names {message.count} chunks from chunk {message.first} on a disk of {size}"
        )


def _rounded(size: int) -> int:
    """The capacity of a disk of ``size`` bytes."""
    return -(-size // CHUNK_SIZE) * CHUNK_SIZE


def _chunk_starts(offset: int, length: int, sent: Collection[int]) -> list[int]:
    if length // CHUNK_SIZE > len(sent):
        return [start for start in sent if offset <= start < offset + length]
    return [start for start in range(offset, offset + length, CHUNK_SIZE) if start in sent]
