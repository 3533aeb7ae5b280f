"""For how long at least one of several things has been under way."""

import time
from types import TracebackType


class Occupied:
    """A context that may be entered many times over; overlapping stays count once.

    Use it on one thread.
    """

    def __init__(self) -> None:
        self._inside = 0
        self._since = 0.0
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """The sum so far, a stay that goes on included."""
        return self._seconds + (time.monotonic() - self._since if self._inside else 0.0)

    def __enter__(self) -> None:
        if not self._inside:
            self._since = time.monotonic()
        self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inside -= 1
        if not self._inside:
            self._seconds += time.monotonic() - self._since
