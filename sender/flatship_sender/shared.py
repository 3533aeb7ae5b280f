"""What the disks of a session share."""

from collections.abc import Callable
from typing import Protocol

from flatship_protocol.connection import Connection, FramePool
from flatship_protocol.session import SenderSession
from flatship_sender.client import Client
from flatship_sender.compression import CompressionController
from flatship_sender.lanes import Lanes
from flatship_sender.observer import Observer
from flatship_sender.occupied import Occupied
from flatship_sender.plan import ReadChunk
from flatship_sender.references import References
from flatship_service.workers import Workers


class Shared(Protocol):
    """A session as each of its disks sees it; ``Transfer`` is that."""

    session: SenderSession
    controller: CompressionController
    observer: Observer
    workers: Workers
    frames: FramePool
    resumes: bool
    deltas: bool
    lanes: Lanes | None
    link: Occupied
    knows: bool
    references: References

    @property
    def client(self) -> Client:
        """The session's connections."""
        ...

    async def reserve(self, disk: int, work: ReadChunk, wanted: Callable[[], bool]) -> bool:
        """Wait until a chunk has credit and a frame; False if it is not ``wanted`` any more.

        ``carried`` is to follow.
        """
        ...

    def carried(self, disk: int) -> None:
        """A chunk has been sent, or is not to be, and its frame is free."""
        ...

    def finished(self, disk: int) -> None:
        """A disk has no more chunks to carry."""
        ...

    def rank(self, disk: int, size: int) -> float:
        """The place of so many bytes of a disk among those that wait for the link."""
        ...

    def has_turn(self, rank: float) -> None:
        """What had that place waits no more."""
        ...

    async def borrow(self, disk: int, size: int) -> Connection:
        """Wait for a connection for so many bytes of a disk; to be given back to the client."""
        ...

    async def zeros_stored(self, disk: int, wanted: Callable[[], bool]) -> None:
        """Wait until no zeros of a disk are unacknowledged, or it is not ``wanted`` any more."""
        ...

    def wake(self) -> None:
        """Let those who wait for credit, or for an acknowledgement, look again."""
        ...
