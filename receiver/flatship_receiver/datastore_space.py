"""How much room a datastore has, asked so that one that hangs holds up nobody."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from flatship_protocol.errors import DatastoreError

SPACE_FRESH: Final = 1.0  # seconds for which an answer about space is not asked again
SPACE_PATIENCE: Final = 0.25  # seconds that a scrape waits for an answer, once a question
SPACE_STALE: Final = 60.0  # seconds after which an answer without a successor is void


@dataclass(frozen=True, slots=True)
class SpaceSample:
    """A datastore's space, in bytes; ``reserved`` is promised to disks being written."""

    size: int
    free: int
    reserved: int


class Space:
    """The space of one datastore: asked in a thread, since statvfs(2) may never return."""

    def __init__(self, ask: Callable[[], SpaceSample], monotonic: Callable[[], float]) -> None:
        self._ask = ask
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._question: threading.Thread | None = None
        self._answer: SpaceSample | None = None
        self._answered = float("-inf")

    def sample(self, patience: float = SPACE_PATIENCE) -> SpaceSample | None:
        """What is known of the space; None if the datastore is missing or hangs.

        Args:
            patience: Seconds to wait for an answer, once a question.
        """
        with self._lock:
            open_question = self._question is not None and self._question.is_alive()
            if not open_question and self._age() >= SPACE_FRESH:
                # A daemon thread: one that hangs must not keep the process from ending.
                self._question = threading.Thread(target=self._update, daemon=True)
                self._question.start()
                self._question.join(patience)
            return self._answer if self._age() < SPACE_STALE else None

    def _update(self) -> None:
        try:
            self._answer = self._ask()
        except (DatastoreError, OSError):
            self._answer = None
        self._answered = self._monotonic()

    def _age(self) -> float:
        return self._monotonic() - self._answered
