"""Memory for streams with history: one budget for all sessions, granted when a session begins.

What is granted is memory that a sender may make this receiver take, whether it
does or not: a grant is held until its session ends. See SPEC.md, "Streams with history".
"""

from typing import Final

from flatship_protocol.codec import HistoryDecoder

BUDGET: Final = 96 << 20  # bytes of windows over all sessions
STREAMS: Final = 2  # of one session: two keep two processors of a sender busy
# Base-2 logarithms, the best first. A smaller window costs a sender little: it is the
# session that got none whose lines carry a tenth more.
WINDOW_LOGS: Final = (25, 23)


class Windows:
    """The windows of a whole receiver.

    Args:
        budget: Bytes that all of them may take together.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._free = budget

    def grant(self) -> "Streams | None":
        """Windows for a new session, smaller ones if need be; None if nothing is left."""
        for window_log in WINDOW_LOGS:
            size = STREAMS << window_log
            if size <= self._free:
                self._free -= size
                return Streams(window_log, STREAMS, self)
        return None

    def take_back(self, size: int) -> None:
        """Let others have ``size`` bytes that were granted."""
        self._free += size


class Streams:
    """The streams that one session may have, each on a connection of its own.

    Args:
        window_log: Base-2 logarithm of the largest window, in bytes.
        count: Connections that may carry a stream at once.
        windows: Where the memory goes back to.
    """

    def __init__(self, window_log: int, count: int, windows: Windows) -> None:
        self.window_log = window_log
        self.count = count
        self._open = 0
        self._windows: Windows | None = windows

    def open(self) -> HistoryDecoder | None:
        """A decoder for a connection, which must ``close`` it; None if all are in use."""
        if self._open == self.count:
            return None
        self._open += 1
        return HistoryDecoder(self.window_log)

    def close(self) -> None:
        """A connection's stream is over, and its decoder is used no more."""
        self._open -= 1

    def release(self) -> None:
        """The session is over, and its connections are. Idempotent."""
        windows, self._windows = self._windows, None
        if windows is not None:
            windows.take_back(self.count << self.window_log)
