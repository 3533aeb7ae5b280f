"""What a receiver accepts, discards, or calls an error."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.errors import (
    CreditExceeded,
    DiskError,
    ErrorCode,
    MalformedMessage,
    UnexpectedMessage,
)
from flatship_protocol.extents import ExtentSet
from flatship_protocol.messages import Chunk, EndPass, OpenDisk, Zero
from flatship_protocol.session.tables import (
    RECEIVER_RECEIVES,
    ReceiverState,
    ToReceiver,
    check_epoch,
    follow,
)


class Verdict(Enum):
    """What the receiver does with a message about a disk."""

    ACT = "act"
    DISCARD = "discard"
    ACKNOWLEDGE_AGAIN = "acknowledge again"


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
        check_epoch(self.epoch, epoch)
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
        check_epoch(self.epoch, epoch)
        disk = self.disks.get(message.disk)
        if disk is None or message.pass_number != disk.pass_number:
            raise UnexpectedMessage(f"{type(message).__name__} about an unknown disk or pass")
        following = follow(RECEIVER_RECEIVES[disk.state], disk.state, message)
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
        """A chunk kept or copied what is not there: it has not come, until it comes whole.

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


def _differs(offset: int) -> DiskError:
    return DiskError(
        f"chunk at byte {offset} came twice with different content",
        ErrorCode.DUPLICATE_DIFFERS,
        (offset, 0),
    )
