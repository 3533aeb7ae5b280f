"""Where the two ends of a transfer run: both here, or one of them beyond a link."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Way:
    """How the sender's end reaches the receiver's.

    ``host`` is the receiver's address, as the sender knows it and as the receiver listens to it.
    ``beyond`` are the words before a command that have it run at the receiver's end.
    """

    host: str = "127.0.0.1"
    beyond: tuple[str, ...] = ()


LOOPBACK = Way()
