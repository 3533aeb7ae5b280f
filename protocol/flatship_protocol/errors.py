"""Error codes of the wire and the tree of exceptions.

One class a remedy. ``exit_code`` is what a command ends with when the error
reaches the operator; ``code`` is what a peer is told.
"""

from enum import IntEnum
from typing import ClassVar


class ErrorCode(IntEnum):
    """Codes of ERROR, DISK_FAILED and ABANDON; see SPEC.md, "Error codes"."""

    MALFORMED = 1
    UNEXPECTED_MESSAGE = 2
    STALE_EPOCH = 3
    TOO_MANY_CONNECTIONS = 4
    TOO_MANY_SESSIONS = 5
    CREDIT_EXCEEDED = 6
    UNSUPPORTED = 7
    SHUTTING_DOWN = 8
    IDLE = 9
    TOO_SLOW = 10
    INTERNAL = 11
    CONNECTION_EXPIRED = 12

    NAME_REFUSED = 32
    DATASTORE_UNKNOWN = 33
    DATASTORE_MISSING = 34
    DATASTORE_READ_ONLY = 35
    DATASTORE_FULL = 36
    DISK_EXISTS = 37
    DISK_BUSY = 38
    DISK_LOCKED = 39
    FOREIGN_FILE = 40
    SIZE_REFUSED = 41
    NOT_PERMITTED = 42
    QUOTA_EXCEEDED = 43
    WRITE_FAILED = 44
    DIGEST_MISMATCH = 45
    ROOT_MISMATCH = 46
    PROOF_FAILED = 47
    DUPLICATE_DIFFERS = 48
    PASS_INCOMPLETE = 49
    SOURCE_FAILED = 50
    CANCELLED = 51


class TransferError(Exception):
    """Root of everything that Flatship itself reports to an operator."""

    code: ErrorCode = ErrorCode.INTERNAL
    exit_code: ClassVar[int] = 1


class UsageError(TransferError):
    """The operator asked for something that cannot be done; change the command."""

    exit_code = 2


class SourceError(TransferError):
    """The source cannot be read as asked."""

    code = ErrorCode.SOURCE_FAILED


class SourceMissing(SourceError):
    """There is no such source."""

    exit_code = 10


class SourceUnsuitable(SourceError):
    """The source exists and cannot be a disk: a folder, empty, a broken sector, too large."""

    exit_code = 2


class SourceBusy(SourceError):
    """Somebody else may write to the source while it is read."""

    exit_code = 11


class SourceReadError(SourceError):
    """The device failed, or the file shrank, while it was read."""


class DiskError(TransferError):
    """One disk cannot go on; the session and its other disks can.

    Args:
        message: What the receiver's own operator reads.
        code: What the peer is told.
        numbers: Two integers that SPEC.md defines for the code.
    """

    def __init__(self, message: str, code: ErrorCode, numbers: tuple[int, int] = (0, 0)) -> None:
        super().__init__(message)
        self.code = code
        self.numbers = numbers


class DatastoreError(DiskError):
    """The datastore did not do what was asked."""


class NameRefused(DiskError):
    """What was given cannot be a name; change the command.

    Args:
        name: As much of it as is to be shown.
        problem: The end of a sentence about it.
    """

    exit_code = 2

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(
            f"name {name!r} is refused: it {problem}; choose another name", ErrorCode.NAME_REFUSED
        )
        self.name = name


class ConnectionLost(TransferError):
    """The other end is gone or unreachable; trying again may help."""

    exit_code = 5


class ConnectionClosed(ConnectionLost):
    """The other end closed the connection in an orderly way."""


class PeerError(TransferError):
    """The other end broke the protocol; the connection is finished."""

    code = ErrorCode.MALFORMED


class MalformedMessage(PeerError):
    """Bytes that no message of SPEC.md encodes to."""


class UnexpectedMessage(PeerError):
    """A message that the transition tables do not allow in this state."""

    code = ErrorCode.UNEXPECTED_MESSAGE


class StaleEpoch(PeerError):
    """A message of an incarnation of the session that a newer one has replaced."""

    code = ErrorCode.STALE_EPOCH


class CreditExceeded(PeerError):
    """More bytes of chunks are unacknowledged than the receiver allows."""

    code = ErrorCode.CREDIT_EXCEEDED


class HandshakeFailed(PeerError):
    """The handshake did not complete; nothing about the peer is known."""


class ProtocolVersionMismatch(HandshakeFailed):
    """The peer speaks another version of the protocol.

    Args:
        theirs: The version byte that the peer sent.
    """

    def __init__(self, theirs: int) -> None:
        super().__init__(f"the peer speaks protocol version {theirs}")
        self.theirs = theirs


class RecordNotAuthentic(PeerError):
    """A record failed AEAD verification. The connection is finished.

    Args:
        sequence: The record's number on its connection, from 0.
    """

    def __init__(self, sequence: int) -> None:
        super().__init__(f"record {sequence}: authentication tag mismatch")
        self.sequence = sequence


class CodecError(PeerError):
    """A payload does not decode to exactly the bytes it promised."""


class DigestMismatch(PeerError):
    """A chunk's bytes do not have the digest that came with them.

    Args:
        offset: Bytes from the start of the disk.
    """

    code = ErrorCode.DIGEST_MISMATCH

    def __init__(self, offset: int) -> None:
        super().__init__(f"chunk at byte {offset}: digest mismatch")
        self.offset = offset


class DuplicateDiffers(PeerError):
    """A chunk came twice in one pass, with two digests.

    Args:
        offset: Bytes from the start of the disk.
    """

    code = ErrorCode.DUPLICATE_DIFFERS

    def __init__(self, offset: int) -> None:
        super().__init__(f"chunk at byte {offset}: came twice with different digests")
        self.offset = offset
