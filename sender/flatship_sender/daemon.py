"""The sender put together: the one place that names concrete sources."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

from flatship_protocol.endpoint import Endpoint
from flatship_protocol.errors import TransferError
from flatship_protocol.extents import ExtentKind
from flatship_protocol.messages import OpenDisk
from flatship_sender.claims import Claim, claim
from flatship_sender.client import Client
from flatship_sender.compression import CompressionController
from flatship_sender.config import Config, configure
from flatship_sender.connecting import Credentials, SessionName, dial_tcp
from flatship_sender.disk_memory import DiskMemory
from flatship_sender.display import Display, following
from flatship_sender.downtimes import Disk, Downtimes
from flatship_sender.forecast.hindsight import judge
from flatship_sender.incarnations import Incarnations
from flatship_sender.job import FIRST_PASS, Job
from flatship_sender.limits import Limiter, limits_kept, worthwhile
from flatship_sender.observer import Observer, Unobserved
from flatship_sender.order import Order, Outcome, Source, check_names, disk_names, distinct
from flatship_sender.page_indexes import PageIndexes, Place
from flatship_sender.passes import Passes
from flatship_sender.pipeline import Transfer
from flatship_sender.progress import DiskProgress, TransferProgress
from flatship_sender.receivers import Receivers
from flatship_sender.shares import Table
from flatship_sender.snapshot_watch import (
    finish_in_peace,
    interruptible,
    remove_leftovers,
    renew,
    watched,
)
from flatship_sender.sources.base import BlockSource
from flatship_sender.sources.lvm.volume_snapshots import VolumeSnapshots, snapshot_notes
from flatship_sender.sources.lvm.volumes import Lvm
from flatship_sender.sources.opening import open_source
from flatship_sender.throttle import Throttle
from flatship_service.cli import INTERRUPTED, tell
from flatship_service.http import HttpEndpoint
from flatship_service.http_access import HttpAccess, protection
from flatship_service.leaving import leave_without_threads
from flatship_service.signals import stop_on_signal
from flatship_service.workers import Workers

if TYPE_CHECKING:
    from flatship_sender.metrics import SenderMetrics
    from flatship_service.page.viewers import Viewers

STOP_TIMEOUT: Final = 5.0  # seconds an interrupted transfer gets to say goodbye
LEAVE_TIMEOUT: Final = 2.0  # seconds after that for reads of sources to return


def send(order: Order, display: Display, version: str, observer: Observer | None = None) -> Outcome:
    """Send disks to a receiver and wait until each is published or failed.

    Args:
        order: What to send, where and how.
        display: Shows it.
        version: Of the software.
        observer: Told what happens, unless the order asks for metrics here.

    Raises:
        UsageError: There are too many disks, or one is named twice.
        NameRefused: VM or datastore cannot be called that; nothing was opened.
        SourceError: A source cannot be sent; nothing was started.
        AlreadySending: Another run is at it.
        EpochNotNoted: The state folder cannot be written.
        ConfigError: The configuration is wrong, or metrics cannot be served where asked.
        SharesNotNoted: A limit cannot be shared with other runs.
    """
    import uvloop  # noqa: PLC0415  # only those who send wait for it

    config = configure(order.config)
    begun = time.monotonic()
    check_names(order)
    _check_limited(order, config)
    snapshots = VolumeSnapshots(Lvm(), snapshot_notes())
    with ExitStack() as cleanup:
        if order.options.snapshot:
            cleanup.enter_context(interruptible())
        remove_leftovers(snapshots)
        sources = [_open(source, order, snapshots, cleanup) for source in distinct(order.sources)]
        held = cleanup.enter_context(claim(order.state, order.receiver.name, order.target.vm))
        jobs = _jobs(sources, order, cleanup)
        workers = Workers(max(2, os.cpu_count() or 1), "flatship-worker")
        cleanup.callback(workers.close)
        table = Table(order.state)
        cleanup.callback(table.close)
        observer = observer or Unobserved()
        command = _Command(order, config, table, jobs, held, workers, begun, observer)
        if order.options.snapshot:
            cleanup.callback(finish_in_peace)
        return uvloop.run(_send(command, display, version))


@dataclass(frozen=True, slots=True)
class _Command:
    """What a command has taken hold of until its end. ``begun`` is on the monotonic clock."""

    order: Order
    config: Config
    table: Table
    jobs: Sequence[Job]
    held: Claim
    workers: Workers
    begun: float
    observer: Observer


async def _send(command: _Command, display: Display, version: str) -> Outcome:
    order, config, workers = command.order, command.config, command.workers
    options = order.options
    progress = TransferProgress(
        order.receiver.name, order.target.vm, [job.progress for job in command.jobs]
    )
    metrics = None if options.http is None else _metrics(progress, version)
    controller = CompressionController(options.compression, workers.count)
    throttle = Throttle()
    limiter = Limiter(
        config,
        lambda: configure(order.config),
        throttle,
        progress,
        command.table,
        workers,
        command=options.limit or inf,
        a_disk=options.disk_limit or inf,
        told=_nobody if metrics is None else metrics.config_read,
    )
    await limiter.look()
    congestion_control = options.congestion_control or config.congestion_control

    def begin(
        jobs: Sequence[Job], session: SessionName, on_open: Callable[[], None]
    ) -> tuple[Transfer, Client]:
        observer = metrics or command.observer
        transfer = Transfer(
            jobs,
            progress,
            controller,
            observer,
            workers,
            session.epoch,
            disk_limit=options.disk_limit,
            precedence=options.precedence,
        )
        client = Client(
            order.receiver,
            Credentials(order.identity.private, order.receiver.psk),
            session,
            transfer.dispatch,
            lifetime=options.lifetime,
            throttle=throttle,
            dial=partial(dial_tcp, congestion_control=congestion_control),
            on_open=on_open,
        )
        return transfer, client

    incarnations = Incarnations(
        command.jobs,
        progress,
        command.held,
        begin,
        connections=worthwhile(options.connections, limiter.ceiling),
        patience=options.patience,
        command=order.command,
    )
    async with AsyncExitStack() as cleanup:
        if options.http is not None and metrics is not None:
            viewers = _page(progress, version)
            served = _http_served(metrics, progress, viewers, options.http, config.http_access)
            await cleanup.enter_async_context(served)
            await cleanup.enter_async_context(viewers.kept_up())
        stop = cleanup.enter_context(stop_on_signal(asyncio.get_running_loop()))
        await cleanup.enter_async_context(limits_kept(limiter, stop))
        await cleanup.enter_async_context(watched(command.jobs, workers))
        await cleanup.enter_async_context(following(display, progress))
        passes = _passes(command, incarnations, progress)
        running = asyncio.create_task(passes.run())
        failure = await _finish(running, incarnations, stop, display)
        progress.forecast = judge(order.state, progress, _disks(command), time.time(), _warn)
    if incarnations.shortfall is not None:
        tell(f"warning: fewer connections than asked for: {incarnations.shortfall}")
    return Outcome(progress, failure)


def _passes(
    command: _Command, incarnations: Incarnations, progress: TransferProgress
) -> Passes | Incarnations:
    """What makes the command's passes; a dry run makes none."""
    order, options = command.order, command.order.options
    if options.dry_run:
        return incarnations
    return Passes(
        incarnations,
        progress,
        Downtimes(
            order.state,
            order.receiver.name,
            order.target.vm,
            _disks(command),
            _warn,
        ),
        live=options.live,
        budget=options.until_downtime,
        workers=command.workers.count,
        begun=command.begun,
        renew=partial(renew, command.jobs, command.workers),
    )


def _disks(command: _Command) -> list[Disk]:
    return [Disk(job.source.identity.hex(), job.source.size) for job in command.jobs]


def _warn(text: str) -> None:
    tell(f"warning: {text}")


async def _finish(
    running: asyncio.Task[None], incarnations: Incarnations, stop: asyncio.Event, display: Display
) -> TransferError | None:
    """Wait for the transfer; when asked to stop, let it say goodbye, but not for long.

    While there is no session nobody is there to hear it, and it ends at once.
    """
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        if incarnations.stop():
            await asyncio.wait({running}, timeout=STOP_TIMEOUT)
        running.cancel()
        await asyncio.wait({running}, timeout=LEAVE_TIMEOUT)
        if not running.done():
            with suppress(OSError):  # a terminal that is gone
                display.close()
            leave_without_threads("a source does not answer; stopped without it", INTERRUPTED)
    stopping.cancel()
    try:
        await running
    except TransferError as error:
        return error
    except asyncio.CancelledError:
        return None  # each disk says what became of it
    return None


def _metrics(progress: TransferProgress, version: str) -> "SenderMetrics":
    from flatship_sender.metrics import SenderMetrics  # noqa: PLC0415  # 20 ms that few need

    metrics = SenderMetrics(version)
    metrics.watch(progress)
    return metrics


def _page(progress: TransferProgress, version: str) -> "Viewers":
    from flatship_sender.page import SenderPage  # noqa: PLC0415  # likewise
    from flatship_service.page.viewers import Viewers  # noqa: PLC0415

    return Viewers(SenderPage(lambda: [("", progress)], version, socket.gethostname()))


@asynccontextmanager
async def _http_served(
    metrics: "SenderMetrics",
    progress: TransferProgress,
    viewers: "Viewers",
    address: Endpoint,
    access: HttpAccess,
) -> AsyncIterator[None]:
    from flatship_service.page.routes import routes  # noqa: PLC0415

    endpoint = HttpEndpoint(
        render=lambda: metrics.render()[0],
        health=lambda: (True, _health(progress)),
        protection=protection(access),
        refused=lambda reason, _address: metrics.auth_failure(reason),
        routes=routes(viewers),
    )
    host, port = await endpoint.start_at(
        address, lambda told: tell(f"warning: metrics on {address} are not protected: {told}")
    )
    tell(f"metrics on {endpoint.scheme}://{Endpoint(host, port)}/metrics")
    try:
        yield
    finally:
        await endpoint.stop()


def _health(progress: TransferProgress) -> str:
    return "sending" if progress.waiting is None else "waiting for the receiver"


def _check_limited(order: Order, config: Config) -> None:
    """Say so if a receiver is limited that nobody has paired with: it may be a slip."""
    known = Receivers(order.state).names()
    for name in config.limits.receivers:
        if name not in known:
            names = ", ".join(known)
            tell(f"warning: limits.receivers.{name}: there is no such receiver; known: {names}")


def _open(
    named: Source, order: Order, snapshots: VolumeSnapshots, cleanup: ExitStack
) -> BlockSource:
    path, options = named.path, order.options
    source = open_source(
        path,
        live=options.live,
        source_format=named.format,
        snapshots=snapshots if options.snapshot and not options.dry_run else None,
        room=options.snapshot_size,
    )
    cleanup.callback(source.close)
    if source.unseen_processes:
        advice = "; run as root to be sure that nobody writes to it" if os.geteuid() else ""
        tell(
            f"warning: {path}: processes that could not be looked at for having it open:"
            f" {source.unseen_processes}{advice}"
        )
    for remark in source.remarks:
        tell(f"warning: {path}: {remark}")
    return source


def _jobs(sources: Sequence[BlockSource], order: Order, cleanup: ExitStack) -> list[Job]:
    target = order.target
    names = disk_names(target.vm, len(sources))
    indexes = PageIndexes(order.state, order.options.index_limit)
    cleanup.callback(indexes.close)
    jobs = [
        _job(number, source, name, order, indexes)
        for number, (source, name) in enumerate(zip(sources, names, strict=True))
    ]
    for job in jobs:
        if job.memory is not None:
            cleanup.callback(job.memory.close)
    return jobs


def _job(number: int, source: BlockSource, name: str, order: Order, indexes: PageIndexes) -> Job:
    target, options = order.target, order.options
    opening = OpenDisk(
        disk=number,
        pass_number=FIRST_PASS,
        size=source.size,
        reserve=_reserve(source),
        source_id=source.identity,
        format=target.format,
        provisioning=target.provisioning,
        adapter=target.adapter,
        hardware_version=target.hardware_version,
        datastore=target.datastore,
        vm=target.vm,
        name=name,
        replace=target.replace,
        live=options.live,
        dry_run=options.dry_run,
        in_doubt=options.in_doubt,
    )
    progress = DiskProgress(source.name, f"{target.vm}/{name}.vmdk", source.size)
    place = Place(order.receiver.public, target.datastore, target.vm, name)
    return Job(source, opening, progress, DiskMemory(indexes, place, source.size))


def _reserve(source: BlockSource) -> int:
    """Bytes that a thin copy will surely need, as far as the source can tell without being read.

    A source that calls itself all data may be mostly zeros, as block devices
    do: it cannot tell.
    """
    data = sum(
        extent.length for extent in source.extents(0, source.size) if extent.kind is ExtentKind.DATA
    )
    return data if data < source.size else 0


def _nobody(_successful: bool) -> None:
    """Told how it went to read the configuration again, where there are no metrics."""
