"""Space that disks under way have been promised and have not used yet. Pure."""

from collections.abc import Hashable

from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_service.units import format_size


class Reservations:
    """Promises against the free space of one datastore, in bytes.

    Args:
        datastore: Its name, for messages.
    """

    def __init__(self, datastore: str) -> None:
        self._datastore = datastore
        self._promised: dict[Hashable, int] = {}

    @property
    def total(self) -> int:
        """Bytes promised and not used."""
        return sum(self._promised.values())

    def available(self, free: int) -> int:
        """What is left of ``free`` bytes when every promise is kept."""
        return max(0, free - self.total)

    def take(self, key: Hashable, needed: int, free: int) -> None:
        """Promise ``needed`` bytes out of ``free``.

        Raises:
            DatastoreError: DATASTORE_FULL, with needed and available bytes.
        """
        available = self.available(free)
        if needed > available:
            raise DatastoreError(
                f"datastore {self._datastore}: {format_size(needed)} needed,"
                f" {format_size(available)} free beyond what other disks were promised",
                ErrorCode.DATASTORE_FULL,
                (needed, available),
            )
        self._promised[key] = needed

    def used(self, key: Hashable, written: int) -> None:
        """So many bytes of a promise have been written: the file system counts them now."""
        if key in self._promised:
            self._promised[key] = max(0, self._promised[key] - written)

    def release(self, key: Hashable) -> None:
        """Drop a promise, kept or not."""
        self._promised.pop(key, None)
