"""Who is told what happens in a transfer."""

from typing import Protocol


class Observer(Protocol):
    """Whoever counts what happens."""

    def observe_ack(self, seconds: float) -> None:
        """A chunk was acknowledged so long after it was sent."""

    def error(self, error: BaseException) -> None:
        """A disk failed."""


class Unobserved:
    """An Observer for transfers that nobody scrapes."""

    def observe_ack(self, seconds: float) -> None:
        """See Observer."""

    def error(self, error: BaseException) -> None:
        """See Observer."""
