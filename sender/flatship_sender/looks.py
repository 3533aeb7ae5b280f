"""What the compression controller is shown of a transfer, stretch by stretch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """What happened in a stretch of time.

    Attributes:
        seconds: How long it was.
        wire: Bytes that went onto the wire.
        sent: Bytes of the disk that they were.
        held_up: Seconds in which the link kept at least one chunk waiting.
        compressing: Seconds that workers spent in compression, all together.
        working: And in all that they do.
        used: Processor seconds of this process; None: unknown.
        cores: How many were used or idle; a receiver on the same machine leaves fewer. Where raw
            is in force, that is what there is to compress with. None: unknown.
    """

    seconds: float
    wire: int
    sent: int
    held_up: float
    compressing: float = 0.0
    working: float = 0.0
    used: float | None = None
    cores: float | None = None


@dataclass(slots=True)
class Look:
    """Windows that are looked at together; see Window."""

    seconds: float = 0.0
    wire: int = 0
    sent: int = 0
    held_up: float = 0.0
    compressing: float = 0.0
    working: float = 0.0
    used: float | None = None
    coding: float = 0.0  # processor seconds of compression

    def add(self, window: Window) -> None:
        """Look at one more window."""
        self.seconds += window.seconds
        self.wire += window.wire
        self.sent += window.sent
        self.held_up += window.held_up
        self.compressing += window.compressing
        self.working += window.working
        if window.used is not None:
            self.used = (self.used or 0.0) + window.used
