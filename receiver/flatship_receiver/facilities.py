"""What all sessions and disks of a receiver share."""

from dataclasses import dataclass, field, replace

from flatship_receiver.authorized_senders import AuthorizedSenders
from flatship_receiver.board import Board
from flatship_receiver.datastores.base import Datastore
from flatship_receiver.frame_shares import Frames
from flatship_receiver.journal import AsyncJournal
from flatship_receiver.metrics import DatastoreMetrics, ReceiverMetrics
from flatship_receiver.reservations import Reservations
from flatship_receiver.windows import Windows
from flatship_service.workers import Workers


@dataclass(frozen=True, slots=True)
class Store:
    """A datastore with what the receiver knows about it.

    ``workers`` and ``slow_workers`` are threads of its own, as those of ``Facilities``: one
    that hangs keeps them, and no other's. Without them it shares those of all.
    """

    datastore: Datastore
    reservations: Reservations
    metrics: DatastoreMetrics
    workers: Workers | None = None
    slow_workers: Workers | None = None


@dataclass(frozen=True, slots=True)
class Facilities:
    """One of each for the whole receiver.

    ``workers`` decode and write chunks; ``slow_workers`` do what may take
    minutes and must not keep chunks waiting: create, flush, prove, publish.
    ``prove`` is False only in benchmarks of the data path: disks are then
    published without being re-read.
    """

    journal: AsyncJournal
    workers: Workers
    slow_workers: Workers
    frames: Frames
    metrics: ReceiverMetrics
    senders: AuthorizedSenders
    prove: bool
    windows: Windows = field(default_factory=Windows)
    board: Board = field(default_factory=Board)

    def at(self, store: Store) -> "Facilities":
        """The same for disks at a datastore, with its threads."""
        return replace(
            self,
            workers=store.workers or self.workers,
            slow_workers=store.slow_workers or self.slow_workers,
        )
