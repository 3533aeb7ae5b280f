"""What an operator at the receiver's end does about an error, by its code."""

from collections.abc import Mapping
from typing import Final

from flatship_protocol.errors import ErrorCode

_LOG: Final = "See the receiver's log, and report it if it says no more."
_PEERS: Final = "Both ends should be of the same version; upgrade the older one."
_AGAIN: Final = "Nothing: the sender goes on with it when it connects again."
_STORAGE: Final = "Check the storage under the datastore, then have the disk sent again."
_MEMORY: Final = "Have it sent again; if that recurs, check the memory of both machines."

ADVICE: Final[Mapping[ErrorCode, str]] = {
    ErrorCode.MALFORMED: _PEERS,
    ErrorCode.UNEXPECTED_MESSAGE: _PEERS,
    ErrorCode.STALE_EPOCH: "Nothing: a newer run of the same transfer has taken over.",
    ErrorCode.TOO_MANY_CONNECTIONS: "Have the sender use fewer with --connections.",
    ErrorCode.TOO_MANY_SESSIONS: "Let some of that sender's transfers end first.",
    ErrorCode.CREDIT_EXCEEDED: _PEERS,
    ErrorCode.UNSUPPORTED: "Upgrade the receiver.",
    ErrorCode.SHUTTING_DOWN: _AGAIN,
    ErrorCode.IDLE: _AGAIN,
    ErrorCode.TOO_SLOW: "Check the link to that sender.",
    ErrorCode.INTERNAL: _LOG,
    ErrorCode.CONNECTION_EXPIRED: _AGAIN,
    ErrorCode.NAME_REFUSED: "Have it sent under another --vm; names are letters, digits, blanks"
    " and . _ - ( ).",
    ErrorCode.DATASTORE_UNKNOWN: "Configure that datastore here, or have another named with"
    " --datastore.",
    ErrorCode.DATASTORE_MISSING: "Mount the datastore; then have the disk sent again.",
    ErrorCode.DATASTORE_READ_ONLY: "Mount the datastore writable; then have the disk sent again.",
    ErrorCode.DATASTORE_FULL: "Make room on the datastore, or discard what is incomplete with"
    " flatship-receiver discard; the sender then goes on where it was.",
    ErrorCode.DISK_EXISTS: "Have it sent with --replace, or under another --vm.",
    ErrorCode.DISK_BUSY: "Let the other transfer of that disk end first.",
    ErrorCode.DISK_LOCKED: "Power off the VM that uses the disk.",
    ErrorCode.FOREIGN_FILE: "Move the file that the log names out of the way.",
    ErrorCode.SIZE_REFUSED: "VMware takes no disk of that size.",
    ErrorCode.NOT_PERMITTED: "Change that sender's line in authorized_senders, if it may.",
    ErrorCode.QUOTA_EXCEEDED: "Raise that sender's limit in authorized_senders, if it may.",
    ErrorCode.WRITE_FAILED: _STORAGE,
    ErrorCode.DIGEST_MISMATCH: _MEMORY,
    ErrorCode.ROOT_MISMATCH: _MEMORY,
    ErrorCode.PROOF_FAILED: _STORAGE,
    ErrorCode.DUPLICATE_DIFFERS: "Have it sent again, while nobody writes to the source.",
    ErrorCode.PASS_INCOMPLETE: "Have it sent again.",
    ErrorCode.SOURCE_FAILED: "See the sender's log: it could not read the source.",
    ErrorCode.CANCELLED: "Nothing: the sender's end has given it up, or the link has gone. What"
    " came stays, and the same command goes on with it.",
}
