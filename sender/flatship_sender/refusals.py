"""What the receiver's refusals mean to the operator: a sentence and an exit code for each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flatship_protocol.errors import ErrorCode, TransferError
from flatship_service.units import format_size

FAILED: Final = 1
TRY_AGAIN: Final = 5
NOT_FOUND: Final = 10
BUSY: Final = 11
NOT_AUTHORISED: Final = 12


@dataclass(frozen=True, slots=True)
class Refusal:
    """``text`` may use {a} and {b}, the code's numbers as sizes, and {offset}, the first one."""

    exit_code: int
    text: str


REFUSALS: Final[Mapping[ErrorCode, Refusal]] = {
    ErrorCode.MALFORMED: Refusal(FAILED, "the receiver could not understand this sender"),
    ErrorCode.UNEXPECTED_MESSAGE: Refusal(FAILED, "the receiver did not expect that message now"),
    ErrorCode.STALE_EPOCH: Refusal(
        BUSY, "a newer run of this transfer has taken over; let that one finish"
    ),
    ErrorCode.TOO_MANY_CONNECTIONS: Refusal(
        TRY_AGAIN, "the receiver allows no more connections in this session; use --connections"
    ),
    ErrorCode.TOO_MANY_SESSIONS: Refusal(
        TRY_AGAIN, "this sender has too many transfers to that receiver at once; try again later"
    ),
    ErrorCode.CREDIT_EXCEEDED: Refusal(FAILED, "more was sent than the receiver allowed"),
    ErrorCode.UNSUPPORTED: Refusal(FAILED, "the receiver cannot do that; upgrade it"),
    ErrorCode.SHUTTING_DOWN: Refusal(TRY_AGAIN, "the receiver is shutting down; run it again"),
    ErrorCode.IDLE: Refusal(TRY_AGAIN, "the receiver heard nothing for too long"),
    ErrorCode.TOO_SLOW: Refusal(TRY_AGAIN, "the link is slower than the receiver tolerates"),
    ErrorCode.INTERNAL: Refusal(FAILED, "the receiver failed internally; see its log"),
    ErrorCode.CONNECTION_EXPIRED: Refusal(TRY_AGAIN, "the connection was used for too long"),
    ErrorCode.NAME_REFUSED: Refusal(
        2,
        "the receiver refuses the name of the VM or disk; use letters, digits, blanks"
        " and . _ - ( ), at most 80 characters",
    ),
    ErrorCode.DATASTORE_UNKNOWN: Refusal(
        NOT_FOUND, "the receiver has no datastore of that name; name one with --datastore"
    ),
    ErrorCode.DATASTORE_MISSING: Refusal(
        TRY_AGAIN, "the datastore's path is missing at the receiver; is it mounted there?"
    ),
    ErrorCode.DATASTORE_READ_ONLY: Refusal(FAILED, "the datastore is read-only at the receiver"),
    ErrorCode.DATASTORE_FULL: Refusal(
        TRY_AGAIN, "the datastore is full: {a} needed, {b} free; make room there and run it again"
    ),
    ErrorCode.DISK_EXISTS: Refusal(
        BUSY, "the datastore already holds a disk of that name; pass --replace to replace it"
    ),
    ErrorCode.DISK_BUSY: Refusal(BUSY, "another transfer is writing that disk"),
    ErrorCode.DISK_LOCKED: Refusal(
        BUSY, "a host has that disk open (there is a lock file beside it); power its VM off"
    ),
    ErrorCode.FOREIGN_FILE: Refusal(
        BUSY,
        "something foreign stands in the way at the datastore; see the receiver's log",
    ),
    ErrorCode.SIZE_REFUSED: Refusal(2, "the receiver refuses a disk of {a}; the limit is {b}"),
    ErrorCode.NOT_PERMITTED: Refusal(
        NOT_AUTHORISED, "this sender may not write that disk there; see authorized_senders"
    ),
    ErrorCode.QUOTA_EXCEEDED: Refusal(
        NOT_AUTHORISED, "the disk of {a} exceeds what this sender may use, {b}"
    ),
    ErrorCode.WRITE_FAILED: Refusal(
        FAILED, "the datastore failed to write; see the receiver's log"
    ),
    ErrorCode.DIGEST_MISMATCH: Refusal(
        FAILED, "the chunk at byte {offset} arrived other than it was read; run it again"
    ),
    ErrorCode.ROOT_MISMATCH: Refusal(FAILED, "the digests of source and target differ"),
    ErrorCode.PROOF_FAILED: Refusal(
        FAILED,
        "the target, read again, differs from the source at byte {offset};"
        " the datastore's storage is not to be trusted",
    ),
    ErrorCode.DUPLICATE_DIFFERS: Refusal(
        FAILED, "the chunk at byte {offset} was sent twice with different content"
    ),
    ErrorCode.PASS_INCOMPLETE: Refusal(FAILED, "the receiver misses parts of the disk"),
    ErrorCode.SOURCE_FAILED: Refusal(FAILED, "the source failed"),
    ErrorCode.CANCELLED: Refusal(130, "cancelled"),
}


class RefusedByReceiver(TransferError):
    """The receiver said no, and why.

    Args:
        code: Its error code.
        numbers: The two numbers that came with it.
    """

    def __init__(self, code: ErrorCode, numbers: tuple[int, int]) -> None:
        refusal = REFUSALS[code]
        a, b = numbers
        super().__init__(refusal.text.format(a=format_size(a), b=format_size(b), offset=a))
        self.code = code
        self._exit_code = refusal.exit_code

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # as the code says, not the class
        """What the command ends with."""
        return self._exit_code


class NotAuthorised(TransferError):
    """The receiver closed during the handshake, which it does without a word.

    Args:
        receiver: Its name and address.
        pairing: Whether an invitation was used.
    """

    exit_code = NOT_AUTHORISED

    def __init__(self, receiver: str, *, pairing: bool) -> None:
        if pairing:
            advice = (
                "the invitation has expired, was used before, or is not from that receiver;"
                " make a new one there with flatship-receiver invite"
            )
        else:
            advice = (
                "it does not accept this sender's key (or it is overloaded);"
                " pair again with flatship-receiver invite there and flatship-sender join here"
            )
        super().__init__(f"{receiver} closed the connection during the handshake: {advice}")
