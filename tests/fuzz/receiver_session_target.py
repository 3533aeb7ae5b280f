"""ReceiverSession against a model that is slower and plainer: sets of chunks, SPEC.md's tables.

Whatever one connection does wrong, the session goes on for its others: so a
script goes on after an error, and every step is judged.
"""

from dataclasses import dataclass, field
from typing import Final

from flatship_protocol.errors import (
    CreditExceeded,
    DiskError,
    ErrorCode,
    MalformedMessage,
    PeerError,
    StaleEpoch,
    UnexpectedMessage,
)
from flatship_protocol.messages import (
    Abandon,
    Chunk,
    Codec,
    EndPass,
    Zero,
)
from flatship_protocol.session import ReceiverSession, Verdict
from fuzz.scripts import CHUNK, CREDIT, EPOCH, SIZES, Step, opening, script, steps, transitions
from fuzz.target import Target

RECEIVES: Final = transitions("What a receiver receives")
NOTHING: Final = memoryview(b"")


@dataclass(slots=True)
class Disk:
    """What is known of a disk; chunks by number."""

    pass_number: int
    size: int
    state: str = "opening"
    digests: dict[int, bytes] = field(default_factory=dict)
    in_flight: dict[int, int] = field(default_factory=dict)  # chunk: bytes
    zeros: set[int] = field(default_factory=set)
    zeroing: set[int] = field(default_factory=set)
    held: set[int] = field(default_factory=set)
    promised: int = 0  # chunks that END_PASS has counted

    def chunks(self, offset: int, length: int) -> set[int]:
        """Those of a range that ends within the disk."""
        return set(range(offset // CHUNK, -(-(offset + length) // CHUNK)))

    @property
    def complete(self) -> bool:
        """Whether every chunk has come, now or earlier, and is durable.

        What is held may be on its way anew, if END_PASS has counted more chunks than came.
        """
        known = self.digests.keys() | self.zeros | self.held
        if len(known) != -(-self.size // CHUNK) or self.in_flight or self.zeroing:
            return False
        return not self.held or len(self.digests) >= self.promised


class Script:
    """A session and its model, step by step."""

    def __init__(self) -> None:
        self.session = ReceiverSession(EPOCH, CREDIT)
        self.disks: dict[int, Disk] = {}
        self.errors = 0

    def run(self, step: Step) -> None:
        """Do one step, and compare.

        Raises:
            AssertionError: Session and model disagree.
        """
        act = step.act % 16
        disk = self.disks.get(step.handle)
        if act == 0:
            self._open(step)
        elif act <= 9:
            self._receive(step, act)
        elif disk is not None:
            self._tell(step, act, disk)
        self._compare(step.handle)

    def _open(self, step: Step) -> None:
        size = SIZES[step.how % len(SIZES)]
        message = opening(step.handle, step.pass_number, size)
        expected: object = None
        if step.epoch != EPOCH:
            expected = StaleEpoch
        elif step.handle in self.disks:
            expected = UnexpectedMessage
        try:
            self.session.open(step.epoch, message)
        except PeerError as error:
            self.errors += 1
            assert type(error) is expected
            return
        assert expected is None
        self.disks[step.handle] = Disk(step.pass_number, size)

    def _receive(self, step: Step, act: int) -> None:
        disk = self.disks.get(step.handle)
        size = disk.size if disk is not None else CHUNK
        about = (step.handle, step.pass_number)
        message: Chunk | Zero | EndPass | Abandon
        if act <= 5:
            length, digest = step.length_within(size), bytes([step.how & 1]) * 32
            message = Chunk(*about, step.offset, length, Codec.RAW, length, digest, (), NOTHING)
        elif act <= 7:
            message = Zero(*about, step.offset, step.run_within(size), hole=False)
        elif act == 8:
            message = EndPass(*about, 1, bytes(32))
        else:
            message = Abandon(*about, ErrorCode.CANCELLED)
        at_hand = disk.digests if disk is not None and not step.how & 4 else {}
        expected = self._expected(step.epoch, message, disk, at_hand.get(step.offset // CHUNK))
        try:
            found: object = self.session.receive(
                step.epoch, message, lambda offset: at_hand.get(offset // CHUNK)
            )
        except (PeerError, DiskError) as error:
            self.errors += 1
            found = type(error)
            if found is DiskError:
                assert error.code is ErrorCode.DUPLICATE_DIFFERS
        assert found is expected, f"{found}, {expected} by the model, of {message}"

    def _expected(
        self,
        epoch: int,
        message: Chunk | Zero | EndPass | Abandon,
        disk: Disk | None,
        digest: bytes | None,
    ) -> object:
        """What SPEC.md says of a message; the model is as it will be after it."""
        if epoch != EPOCH:
            return StaleEpoch
        if disk is None or message.pass_number != disk.pass_number:
            return UnexpectedMessage
        following = RECEIVES[disk.state].get(message.TYPE.name)
        if following is None:
            return UnexpectedMessage
        if disk.state == "closed":
            return Verdict.DISCARD
        if isinstance(message, Chunk):
            return self._expected_of_chunk(message, disk, digest)
        if isinstance(message, Zero):
            return self._expected_of_zeros(message, disk)
        if isinstance(message, Abandon):
            disk.in_flight.clear()
        else:
            disk.promised = message.chunks
        disk.state = following
        return Verdict.ACT

    def _expected_of_chunk(self, message: Chunk, disk: Disk, digest: bytes | None) -> object:
        number = message.offset // CHUNK
        if message.offset >= disk.size or message.length != min(CHUNK, disk.size - message.offset):
            return MalformedMessage
        if number in disk.zeros:
            return DiskError
        if number in disk.digests:
            first = disk.digests[number] if number in disk.in_flight else digest
            if first not in (None, message.digest):
                return DiskError
            return Verdict.DISCARD if number in disk.in_flight else Verdict.ACKNOWLEDGE_AGAIN
        if self._outstanding() + message.length > CREDIT:
            return CreditExceeded
        disk.digests[number] = message.digest
        disk.in_flight[number] = message.length
        disk.held.discard(number)
        return Verdict.ACT

    def _expected_of_zeros(self, message: Zero, disk: Disk) -> object:
        end = message.offset + message.length
        if end > disk.size or (end % CHUNK and end != disk.size):
            return MalformedMessage
        numbers = disk.chunks(message.offset, message.length)
        if numbers & disk.digests.keys():
            return DiskError
        if numbers <= disk.zeros:
            return Verdict.DISCARD if numbers & disk.zeroing else Verdict.ACKNOWLEDGE_AGAIN
        disk.zeros |= numbers
        disk.zeroing |= numbers
        disk.held -= numbers
        return Verdict.ACT

    def _tell(self, step: Step, act: int, disk: Disk) -> None:
        """Tell the session what the receiver did."""
        number, length = step.offset // CHUNK, step.run_within(disk.size)
        within = step.offset + length <= disk.size and step.how < 0xF0  # whole chunks
        if act == 10:
            assert self.session.opened(step.handle) == (disk.state == "opening")
            disk.state = "streaming" if disk.state == "opening" else disk.state
        elif act == 12 and step.how & 2 and (number in disk.in_flight or disk.state != "streaming"):
            assert self.session.wanted(step.handle, step.offset) == (disk.state == "streaming")
            if disk.state == "streaming":
                del disk.in_flight[number], disk.digests[number]
        elif act in (11, 12):
            self.session.stored(step.handle, step.offset)
            disk.in_flight.pop(number, None)
        elif act == 13 and within:
            self.session.zeroed(step.handle, step.offset, length)
            disk.zeroing -= disk.chunks(step.offset, length)
        elif act == 14 and within and disk.state == "opening":
            self.session.holds(step.handle, step.offset, length)
            disk.held |= disk.chunks(step.offset, length)
        elif act == 15 and disk.state == "ending" and step.how & 1:
            self.session.proven(step.handle)
            disk.state = "proven"
        elif act == 15 and step.how >= 0xC0:
            self.session.close(step.handle)
            disk.state = "closed"
            disk.in_flight.clear()

    def _outstanding(self) -> int:
        return sum(sum(disk.in_flight.values()) for disk in self.disks.values())

    def _compare(self, handle: int) -> None:
        assert self.session.outstanding == self._outstanding() <= CREDIT
        if (disk := self.disks.get(handle)) is not None:
            account = self.session.disks[handle]
            assert account.state.value == disk.state
            assert account.in_flight.keys() == {number * CHUNK for number in disk.in_flight}
            assert account.complete == disk.complete
            assert account.chunk_count == len(disk.digests)
            assert account.zeros.total <= disk.size


class Erred(Exception):
    """A script whose peer did something wrong."""


def play(data: bytes) -> None:
    """Every step has the outcome that SPEC.md gives it.

    Raises:
        Erred: At least one was an error of the peer's.
    """
    played = Script()
    for step in steps(data):
        played.run(step)
    if played.errors:
        raise Erred


SEEDS: Final = (
    script(
        (0, 0, 0, 2),
        (10, 0, 0, 0),
        (1, 0, 0, 0),
        (1, 0, 1, 1),
        (11, 0, 0, 0),
        (11, 0, 1, 0),
        (6, 0, 2, 0),
        (13, 0, 2, 0),
        (8, 0, 0, 0),
        (15, 0, 0, 1),
        (9, 0, 0, 0),
    ),
    script(
        (0, 1, 0, 3),
        (14, 1, 0, 1),
        (10, 1, 0, 0),
        (1, 1, 0, 0),
        (1, 1, 0, 0),
        (1, 1, 1, 0),
        (1, 1, 2, 0),
        (1, 1, 3, 0),
        (11, 1, 0, 0),
        (1, 1, 4, 0),
        (6, 1, 5, 0),
        (9, 1, 0, 0),
        (1, 1, 5, 0),
    ),
    script((0, 2, 0, 4), (10, 2, 0, 0), (6, 2, 0, 1), (6, 2, 0, 3), (13, 2, 0, 3), (6, 2, 0, 3)),
    script((0, 0, 0, 0), (10, 0, 0, 0), (1, 0, 0, 0), (15, 0, 0, 0xC0), (1, 0, 0, 1)),
)

TARGETS: Final = (Target("session-receiver", play, (Erred,), SEEDS),)
