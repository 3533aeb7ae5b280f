"""What all sessions and disks of a receiver share."""

from dataclasses import dataclass, field

from flatship_protocol.connection import FramePool
from flatship_receiver.authorized_senders import AuthorizedSenders
from flatship_receiver.datastores.base import Datastore
from flatship_receiver.journal import AsyncJournal
from flatship_receiver.metrics import DatastoreMetrics, ReceiverMetrics
from flatship_receiver.reservations import Reservations
from flatship_receiver.windows import Windows
from flatship_service.workers import Workers


@dataclass(frozen=True, slots=True)
class Store:
    """A datastore with what the receiver knows about it."""

    datastore: Datastore
    reservations: Reservations
    metrics: DatastoreMetrics


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
    frames: FramePool
    metrics: ReceiverMetrics
    senders: AuthorizedSenders
    prove: bool
    windows: Windows = field(default_factory=Windows)
