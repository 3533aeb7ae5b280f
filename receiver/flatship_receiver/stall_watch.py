"""Tells the log and the metrics when a disk does not get on, and what it waits for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from flatship_receiver.metrics import ReceiverMetrics
from flatship_receiver.stalls import DiskStalls, WaitsFor

log = structlog.get_logger()


class StallWatch:
    """Watches one disk.

    Args:
        vm: Name of its machine.
        disk: Base name of the disk.
        metrics: Told where it stands.
    """

    def __init__(self, vm: str, disk: str, metrics: ReceiverMetrics) -> None:
        self._vm = vm
        self._disk = disk
        self._metrics = metrics
        self._stalls = DiskStalls(time.monotonic())
        self._step: str | None = None  # what the storage is to do, beside storing chunks
        self._over = False
        self._log = log.bind(vm=vm, disk=disk)

    @property
    def stalls(self) -> DiskStalls:
        """What is known of it."""
        return self._stalls

    def got_on(self) -> None:
        """Something of the disk came, was written, flushed or read again."""
        self._stalls.got_on(time.monotonic())

    @contextmanager
    def at_storage(self, step: str) -> Iterator[None]:
        """In the block the storage is to do a step, by which the log names it."""
        before, self._step = self._step, step
        self.got_on()
        try:
            yield
        finally:
            self._step = before
            self.got_on()

    def look(self, *, storing: bool) -> None:
        """Say what has changed; ``storing`` is whether chunks are being stored."""
        if self._over:
            return
        at_storage = self._step is not None or storing
        change = self._stalls.look(time.monotonic(), at_storage=at_storage)
        waits_for = self._stalls.waits_for
        self._metrics.disk_progress(self._vm, self._disk, self._stalls.got_on_at, waits_for)
        if change is None:
            return
        seconds = round(change.seconds)
        if change.waits_for is WaitsFor.STORAGE:
            step = self._step or "write"
            self._log.warning("the storage does not get on", step=step, seconds=seconds)
        elif change.waits_for is WaitsFor.SENDER:
            self._log.info("nothing comes for this disk", seconds=seconds)
        else:
            self._log.info("the disk gets on again", after=seconds)

    def end(self) -> None:
        """Nothing is expected of the disk any more."""
        self._over = True
