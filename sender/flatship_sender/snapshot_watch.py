"""Snapshots of volumes over one command: looked after while they are read, and left to nobody."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from flatship_sender.job import Cancelled, Job
from flatship_sender.sources.lvm.snapshot_source import SnapshotSource
from flatship_sender.sources.lvm.tools import ToolFailed
from flatship_sender.sources.lvm.volume_snapshots import VolumeSnapshots
from flatship_service.cli import tell
from flatship_service.signals import STOP_SIGNALS
from flatship_service.workers import Workers

INTERVAL: Final = 1.0  # seconds between two looks at how much room is left


def remove_leftovers(snapshots: VolumeSnapshots) -> None:
    """Remove what runs that were killed have left, and say so; whether it works or not."""
    try:
        for name in snapshots.remove_leftovers():
            tell(f"removed the snapshot {name}, which a run that was killed had left")
    except (ToolFailed, OSError) as error:
        tell(f"warning: a snapshot that a run has left cannot be removed: {error}")


@contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGTERM end the block as SIGINT does, so that whatever it has entered is left again.

    Main thread only.

    Raises:
        Cancelled: One of them came.
    """
    before = [(number, signal.getsignal(number)) for number in STOP_SIGNALS]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise Cancelled from None
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def finish_in_peace() -> None:
    """Have no signal but SIGKILL keep this process from removing its snapshots at its end."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@asynccontextmanager
async def watched(
    jobs: Sequence[Job], workers: Workers, interval: float = INTERVAL
) -> AsyncIterator[None]:
    """Give up, during the block, snapshots for which room runs out."""
    watching = asyncio.create_task(_watch(_snapshots(jobs), workers, interval))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def _watch(sources: Sequence[SnapshotSource], workers: Workers, interval: float) -> None:
    while sources:
        await asyncio.sleep(interval)
        for source in sources:
            await workers.run(source.look)


async def renew(jobs: Sequence[Job], workers: Workers) -> None:
    """Take new snapshots for another pass.

    Raises:
        SourceError: One cannot be had.
    """
    for source in _snapshots(jobs):
        await workers.run(source.renew)


def _snapshots(jobs: Sequence[Job]) -> list[SnapshotSource]:
    sources = [job.source for job in jobs]
    return [source for source in sources if isinstance(source, SnapshotSource)]
