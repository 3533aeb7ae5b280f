"""SenderSession against a plainer model, and HeldChunks against a dictionary.

A receiver's error ends a sender's session, so a script ends with its first one.
"""

from dataclasses import dataclass, field, replace
from struct import Struct
from typing import Final

import pytest

from flatship_protocol.constants import DIGEST_SIZE, MAX_DISK_SIZE, MAX_HELD
from flatship_protocol.errors import ErrorCode, PeerError, StaleEpoch, UnexpectedMessage
from flatship_protocol.messages import (
    Abandon,
    Chunk,
    Codec,
    DiskFailed,
    DiskOpened,
    DiskProven,
    EndPass,
    Held,
    Proving,
    Segment,
    SegmentKind,
    Stored,
    Want,
    Zero,
)
from flatship_protocol.session import Acknowledged, SenderSession
from flatship_sender.held import HeldChunks
from fuzz.scripts import (
    CHUNK,
    CREDIT,
    EPOCH,
    SIZES,
    Step,
    opening,
    script,
    steps,
    transitions,
)
from fuzz.target import Target

SENDS: Final = transitions("What a sender sends")
RECEIVES: Final = transitions("What a sender receives")
NOTHING: Final = memoryview(b"")
SECTOR: Final = 512  # bytes
GUESSES: Final = ((), (Segment(SegmentKind.KEEP, 1),), (Segment(SegmentKind.COPY, 1),))

MAX_MESSAGES: Final = 8
HELD_MESSAGE: Final = Struct(">BB4xQQ")  # flags, byte of the digests, first, count

ToReceiver = Chunk | Zero | EndPass | Abandon
ToSender = DiskOpened | Held | Stored | Want | Proving | DiskProven | DiskFailed


@dataclass(slots=True)
class Disk:
    """What is known of a disk; chunks by number."""

    pass_number: int
    size: int
    state: str = "opening"
    sent: dict[int, bool] = field(default_factory=dict)  # of chunks with credit: whether they are
    keeping: set[int] = field(default_factory=set)  # of chunks sent: those to be kept in part
    zeros: set[tuple[int, int]] = field(default_factory=set)  # pieces

    def length(self, number: int) -> int:
        """Bytes of a chunk of this disk."""
        return min(CHUNK, self.size - number * CHUNK)

    def pieces(self, offset: int, length: int) -> set[tuple[int, int]]:
        """Offset and length of a range's first sectors and the rests of its chunks.

        All ranges of a script begin with a chunk, and end with one or a sector
        behind one.
        """
        end = offset + length
        first = {(at, SECTOR) for at in range(offset, end, CHUNK)}
        rest = {(at + SECTOR, self.length(at // CHUNK) - SECTOR) for at, _ in first}
        return first | {(at, size) for at, size in rest if size and at < end}

    @property
    def outstanding(self) -> int:
        """Bytes of chunks that have credit."""
        return sum(map(self.length, self.sent))


class Script:
    """A session and its model, step by step."""

    def __init__(self) -> None:
        self.session = SenderSession(EPOCH, CREDIT)
        self.disks: dict[int, Disk] = {}

    def run(self, step: Step) -> None:
        """Do one step, and compare.

        Raises:
            AssertionError: Session and model disagree.
            PeerError: The model agrees that this is an error of the receiver's.
        """
        act = step.act % 16
        disk = self.disks.get(step.handle)
        if act == 0 or (disk is None and act < 8):
            self._open(step)
        elif act >= 8:
            self._receive(step, act, disk)
        elif disk is not None:
            (self._reserve if act <= 2 else self._send)(step, disk)
        self._compare(step.handle)

    def _open(self, step: Step) -> None:
        size = SIZES[step.how % len(SIZES)]
        message = opening(step.handle, step.pass_number, size)
        if step.handle in self.disks:
            with pytest.raises(ValueError, match="taken"):
                self.session.open(message)
            return
        self.session.open(message)
        self.disks[step.handle] = Disk(step.pass_number, size)

    def _reserve(self, step: Step, disk: Disk) -> None:
        number = step.offset // CHUNK
        if step.offset >= disk.size or disk.state == "failed":
            return  # no sender does
        if step.how & 1 and disk.sent.get(number) is False:
            self.session.unreserve(step.handle, step.offset)
            del disk.sent[number]
        elif number not in disk.sent:
            length = disk.length(number)
            fits = self._outstanding() + length <= CREDIT
            assert self.session.has_credit(length) == fits
            if fits:
                self.session.reserve(step.handle, step.offset, length)
                disk.sent[number] = False

    def _send(self, step: Step, disk: Disk) -> None:
        act = step.act % 16
        number = step.offset // CHUNK
        about = (step.handle, disk.pass_number)
        message: ToReceiver
        if act <= 4:
            length = disk.length(number) if step.offset < disk.size else CHUNK
            guess = GUESSES[(step.how >> 1 & 1) << (step.how >> 2 & 1)]
            message = Chunk(
                *about, step.offset, length, Codec.RAW, length, bytes(32), guess, NOTHING
            )
        elif act == 5:
            run = min(step.run_within(disk.size), max(disk.size - step.offset, 0))
            if not run or step.how >= 0xF0:
                return  # no sender does
            message = Zero(*about, step.offset, run, hole=False)
        else:
            message = EndPass(*about, 1, bytes(32)) if act == 6 else Abandon(*about, ErrorCode.IDLE)
        following = SENDS[disk.state].get(message.TYPE.name)
        unreserved = isinstance(message, Chunk) and number not in disk.sent
        unanswered = isinstance(message, EndPass) and disk.keeping
        if following is None or unreserved or unanswered:
            with pytest.raises(ValueError, match=r"cannot be sent|no credit|not answered"):
                self.session.send(message, 1.0)
            return
        self.session.send(message, 1.0)
        disk.state = following
        if isinstance(message, Chunk):
            disk.sent[number] = True
            if message.segments:
                disk.keeping.add(number)
        elif isinstance(message, Zero):
            disk.zeros |= disk.pieces(message.offset, message.length)

    def _receive(self, step: Step, act: int, disk: Disk | None) -> None:
        size = disk.size if disk is not None else CHUNK
        about = (step.handle, step.pass_number)
        message: ToSender
        if act <= 9:
            capacity = -(-size // CHUNK) * CHUNK + (CHUNK if step.how >= 0xF0 else 0)
            message = DiskOpened(*about, bytes(16), capacity, 0)
        elif act == 10:
            message = Held(*about, step.offset // CHUNK, step.how % 5, b"", last=True)
        elif act <= 12:
            kind = Want if act == 12 and step.how & 4 else Stored
            message = kind(*about, ((step.offset, step.run_within(size)),) * (1 + step.how // 128))
        elif act == 13:
            message = Proving(*about, 0, 0)
        elif act == 14:
            message = DiskProven(*about, 0, bytes(32), published=True)
        else:
            message = DiskFailed(*about, ErrorCode.WRITE_FAILED)
        expected = self._expected(step.epoch, message, disk)
        try:
            found: object = self.session.receive(step.epoch, message)
        except PeerError as error:
            assert type(error) is expected, f"{error!r}, {expected} by the model, of {message}"
            raise
        if isinstance(found, Acknowledged):
            assert found.sent_at.count(1.0) == len(found.sent_at)
            found = (found.chunk_bytes, found.zero_bytes)
        assert found == expected, f"{found}, {expected} by the model, of {message}"

    def _expected(self, epoch: int, message: ToSender, disk: Disk | None) -> object:
        """What SPEC.md says of a message; the model is as it will be after it."""
        if epoch != EPOCH:
            return StaleEpoch
        if disk is None or message.pass_number != disk.pass_number:
            return UnexpectedMessage
        following = RECEIVES[disk.state].get(message.TYPE.name)
        if following is None:
            return UnexpectedMessage
        disk.state = following
        chunks = -(-disk.size // CHUNK)
        if isinstance(message, DiskOpened):
            return None if message.capacity == chunks * CHUNK else UnexpectedMessage
        if isinstance(message, Held):
            return None if message.first + message.count <= chunks else UnexpectedMessage
        if isinstance(message, DiskProven) and following == "proven":
            return self._acknowledged(disk, ((0, disk.size),))
        if isinstance(message, Stored) and following in ("streaming", "ending"):
            return self._acknowledged(disk, message.ranges)
        if isinstance(message, Want) and following == "streaming":
            return self._taken_back(disk, message.ranges)
        if isinstance(message, DiskFailed | DiskProven):
            disk.sent.clear()
            disk.keeping.clear()
        return None

    @staticmethod
    def _taken_back(disk: Disk, ranges: tuple[tuple[int, int], ...]) -> object:
        """Nothing is said of chunks that are not sent any more; all must have been to keep."""
        for offset, length in ranges:
            end = offset + length
            whole = end <= disk.size and (end % CHUNK == 0 or end == disk.size)
            numbers = set(range(offset // CHUNK, -(-end // CHUNK))) if whole else set()
            if not numbers or not numbers <= disk.keeping:
                return UnexpectedMessage
            disk.keeping -= numbers
            for number in numbers:
                del disk.sent[number]
        return None

    @staticmethod
    def _acknowledged(disk: Disk, ranges: tuple[tuple[int, int], ...]) -> object:
        """Bytes of chunks and of zeros that were not acknowledged before."""
        chunk_bytes = zero_bytes = 0
        for offset, length in ranges:
            end = offset + length
            if end > disk.size:
                return UnexpectedMessage
            zeros = disk.pieces(offset, length) & disk.zeros
            disk.zeros -= zeros
            zero_bytes += sum(size for _, size in zeros)
            for number in range(offset // CHUNK, -(-end // CHUNK)):
                if number in disk.sent:
                    whole = number * CHUNK + disk.length(number) <= end
                    if not whole or not disk.sent.pop(number):
                        return UnexpectedMessage
                    disk.keeping.discard(number)
                    chunk_bytes += disk.length(number)
        return chunk_bytes, zero_bytes

    def _outstanding(self) -> int:
        return sum(disk.outstanding for disk in self.disks.values())

    def _compare(self, handle: int) -> None:
        assert self.session.outstanding == self._outstanding() <= CREDIT
        if (disk := self.disks.get(handle)) is not None:
            account = self.session.disks[handle]
            assert account.state.value == disk.state
            assert account.chunks.keys() == {number * CHUNK for number in disk.sent}
            assert account.guessed == {number * CHUNK for number in disk.keeping}
            assert account.zeros.total == sum(size for _, size in disk.zeros)


def play(data: bytes) -> None:
    """Every step has the outcome that SPEC.md gives it.

    Raises:
        PeerError: The last step's was an error of the receiver's.
    """
    played = Script()
    for step in steps(data):
        played.run(step)


def take_held(data: bytes) -> None:
    """What HELD messages say is found again; memory does not grow with the disk.

    The largest disk there is. The digests of a message are all the same.
    """
    session = SenderSession(EPOCH, CREDIT)
    session.open(opening(0, 1, MAX_DISK_SIZE))
    session.receive(EPOCH, DiskOpened(0, 1, bytes(16), MAX_DISK_SIZE, 0))
    held = HeldChunks()
    size = HELD_MESSAGE.size
    digests: dict[int, bytes] = {}
    zeros: list[range] = []
    try:
        for at in range(0, min(len(data), MAX_MESSAGES * size) - size + 1, size):
            flags, kind, first, count = HELD_MESSAGE.unpack_from(data, at)
            if not flags & 2:
                count %= MAX_HELD + 1
            message = Held(0, 1, first, count, b"", last=bool(flags & 1))
            if not flags & 2:
                message = replace(message, digests=bytes([kind]) * DIGEST_SIZE * count)
            session.receive(EPOCH, message)
            held.take(message)
            numbers = range(first, first + count)
            assert held.complete == message.last
            if message.zeros:
                zeros.append(numbers)
            else:
                digests.update(dict.fromkeys(numbers, bytes([kind]) * DIGEST_SIZE))
        for number in (*list(digests)[:4], *list(digests)[-4:]):
            assert held.digest(number) == digests[number]
        for numbers in zeros:
            assert held.are_zeros(numbers[0] * CHUNK, len(numbers) * CHUNK)
            assert held.digest(numbers[-1]) == digests.get(numbers[-1])
    finally:
        held.close()


def _held(*messages: tuple[int, int, int, int]) -> bytes:
    return b"".join(HELD_MESSAGE.pack(*message) for message in messages)


SEEDS: Final = (
    script(
        (0, 0, 0, 2),
        (8, 0, 0, 0),
        (10, 0, 0, 2),
        (1, 0, 0, 0),
        (3, 0, 0, 0),
        (1, 0, 1, 0),
        (3, 0, 1, 0),
        (5, 0, 2, 0),
        (11, 0, 0, 2),
        (6, 0, 0, 0),
        (11, 0, 2, 0),
        (13, 0, 0, 0),
        (14, 0, 0, 0),
        (11, 0, 0, 2),
    ),
    script(
        (0, 1, 0, 3),
        (8, 1, 0, 0),
        (1, 1, 5, 0),
        (1, 1, 5, 1),
        (1, 1, 4, 0),
        (4, 1, 4, 0),
        (7, 1, 0, 0),
        (11, 1, 4, 0),
        (15, 1, 0, 0),
    ),
    script((0, 2, 0, 4), (8, 2, 0, 0), (1, 2, 0, 0), (3, 2, 0, 0), (15, 2, 0, 0), (11, 2, 0, 0)),
    script((0, 0, 0, 0), (8, 0, 0, 0), (5, 0, 0, 0), (11, 0, 0, 0), (6, 0, 0, 0), (14, 0, 0, 0)),
)
LAST_CHUNK: Final = MAX_DISK_SIZE // CHUNK - 1

TARGETS: Final = (
    Target("session-sender", play, (PeerError,), SEEDS),
    Target(
        "held-chunks",
        take_held,
        (PeerError,),
        (
            _held((0, 7, 0, 2), (2, 0, 2, 9), (0, 9, 11, 512), (1, 0, 0, 0)),
            _held((2, 0, 0, 4), (0, 5, 3, 3), (0, 6, 4, 1)),
            _held((0, 1, LAST_CHUNK, 1), (2, 0, 0, LAST_CHUNK), (1, 0, 0, 0)),
        ),
        memory=16 << 20,
    ),
)
