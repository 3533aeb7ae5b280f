"""Which message takes a disk from which state to which, at either end; a missing entry is an error.

The receiver may send messages about one disk on any connection of the session,
and so they may overtake each other. That is why some states accept, and
ignore, what was said before they were reached.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeAlias, TypeVar

from flatship_protocol.errors import StaleEpoch, UnexpectedMessage
from flatship_protocol.messages import (
    Abandon,
    Chunk,
    DiskFailed,
    DiskOpened,
    DiskProven,
    EndPass,
    Held,
    Proving,
    Stored,
    Want,
    Zero,
)


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


def check_epoch(ours: int, theirs: int) -> None:
    """Raise StaleEpoch unless a message about a disk is of the session's incarnation."""
    if theirs != ours:
        raise StaleEpoch(f"epoch {theirs} where the session is at {ours}")


def follow(row: Mapping[type, S], state: S, message: object) -> S:
    """The state that ``message`` leads to by ``row``, that of ``state``.

    Raises:
        UnexpectedMessage: The row has no such message.
    """
    following = row.get(type(message))
    if following is None:
        raise UnexpectedMessage(f"{type(message).__name__} while {state.value}")
    return following
