"""The sender put together: the one place that names concrete sources."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flatship_protocol.endpoint import Endpoint
from flatship_protocol.errors import TransferError, UsageError
from flatship_protocol.extents import ExtentKind
from flatship_protocol.handshake import pair_psk, standing_psk
from flatship_protocol.invitation import Invitation
from flatship_protocol.messages import Adapter, DiskFormat, Goodbye, OpenDisk, Provisioning, encode
from flatship_protocol.names import check_name
from flatship_sender.claims import SESSION_ID_SIZE, Claim, claim
from flatship_sender.client import Client, Lifetime
from flatship_sender.compression import CompressionController, Policy
from flatship_sender.config import Config, configure
from flatship_sender.connecting import Credentials, SessionName, connect, dial_tcp
from flatship_sender.disk_memory import DiskMemory
from flatship_sender.display import Display, following
from flatship_sender.downtimes import Disk, Downtimes
from flatship_sender.incarnations import Incarnations
from flatship_sender.job import FIRST_PASS, Job
from flatship_sender.limits import Limiter
from flatship_sender.observer import Unobserved
from flatship_sender.page_indexes import DEFAULT_LIMIT, PageIndexes, Place
from flatship_sender.passes import Passes
from flatship_sender.persistence import DEFAULT_PATIENCE
from flatship_sender.pipeline import Transfer
from flatship_sender.progress import DiskProgress, TransferProgress
from flatship_sender.receivers import Receiver, Receivers
from flatship_sender.shares import Table
from flatship_sender.sharing import Precedence
from flatship_sender.sources.base import BlockSource
from flatship_sender.sources.raw import open_source
from flatship_sender.throttle import Throttle
from flatship_service.cli import INTERRUPTED, tell
from flatship_service.errors import ConfigError
from flatship_service.http import HttpEndpoint
from flatship_service.keys import Identity
from flatship_service.leaving import leave_without_threads
from flatship_service.signals import on_hangup, stop_on_signal
from flatship_service.workers import Workers

if TYPE_CHECKING:
    from flatship_sender.metrics import SenderMetrics

DEFAULT_CONNECTIONS: Final = 4
WORTH_A_CONNECTION: Final = 64 << 10  # bytes per second; a limit makes no thinner ones
MAX_DISKS: Final = 256  # of a machine in vSphere, and in a session at the receiver
STOP_TIMEOUT: Final = 5.0  # seconds an interrupted transfer gets to say goodbye
LEAVE_TIMEOUT: Final = 2.0  # seconds after that for reads of sources to return


@dataclass(frozen=True, slots=True)
class Target:
    """What the disks become at the receiver."""

    vm: str
    datastore: str
    format: DiskFormat
    provisioning: Provisioning
    adapter: Adapter
    hardware_version: int
    replace: bool


@dataclass(frozen=True, slots=True)
class SendOptions:
    """How disks are sent.

    ``limit`` is in bytes per second on the wire, over all connections, ``disk_limit``
    likewise, for each disk. ``patience`` is how many seconds without progress a lost
    session is tried again; 0 for not at all. ``index_limit`` is how many bytes what is
    known of pages may take, of all disks. ``until_downtime`` is how many seconds the final pass may
    take: live passes are made until it does; None for a single one. ``congestion_control``
    is TCP's, None for the file's. ``precedence`` is how the disks share the link.
    """

    connections: int
    compression: Policy
    limit: int | None
    live: bool
    dry_run: bool
    http: Endpoint | None
    lifetime: Lifetime = field(default_factory=Lifetime)
    patience: float = DEFAULT_PATIENCE
    index_limit: int = DEFAULT_LIMIT
    disk_limit: int | None = None
    until_downtime: float | None = None
    congestion_control: str | None = None
    precedence: Precedence = Precedence.FAIR


def disk_names(vm: str, count: int) -> list[str]:
    """Base names of a VM's disks, as the machine expects them: vm, vm_1, vm_2 …"""
    return [vm if number == 0 else f"{vm}_{number}" for number in range(count)]


def worthwhile(connections: int, limit: float) -> int:
    """How many connections to use, of so many, for ``limit`` bytes per second in all."""
    if limit == inf:
        return connections
    return min(connections, max(1, int(limit // WORTH_A_CONNECTION)))


@dataclass(frozen=True, slots=True)
class Order:
    """One command's work: which disks go where, how, and as whom.

    ``command`` is the command line for a shell, told to whoever has to repeat it.
    ``config`` is the configuration file, None for the system's.
    """

    paths: tuple[str, ...]
    receiver: Receiver
    identity: Identity
    state: Path
    target: Target
    options: SendOptions
    command: str = "the same command"
    config: Path | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the disks, and what ended the session early, if anything did."""

    progress: TransferProgress
    failure: TransferError | None

    @property
    def exit_code(self) -> int:
        """That of the first disk that failed, or of the session; 0 if all went well."""
        codes = [disk.exit_code for disk in self.progress.disks if disk.exit_code]
        if self.failure is not None:
            codes.append(self.failure.exit_code)
        return codes[0] if codes else 0


def send(order: Order, display: Display, version: str) -> Outcome:
    """Send disks to a receiver and wait until each is published or failed.

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
    _check_names(order)
    _check_limited(order, config)
    with ExitStack() as cleanup:
        sources = [_open(path, order, cleanup) for path in _distinct(order.paths)]
        held = cleanup.enter_context(claim(order.state, order.receiver.name, order.target.vm))
        jobs = _jobs(sources, order, cleanup)
        workers = Workers(max(2, os.cpu_count() or 1), "flatship-worker")
        cleanup.callback(workers.close)
        table = Table(order.state)
        cleanup.callback(table.close)
        return uvloop.run(_send(order, config, table, jobs, held, workers, display, version, begun))


async def pair(
    invitation: Invitation, name: str, identity: Identity, receivers: Receivers
) -> Receiver:
    """Pair with the receiver that made ``invitation`` and keep it under ``name``.

    Raises:
        TransferError: The receiver did not accept it; nothing was kept.
    """
    receivers.check_free(name, invitation.public)
    receiver = Receiver(
        name, invitation.endpoint, invitation.public, standing_psk(invitation.secret)
    )
    credentials = Credentials(identity.private, pair_psk(invitation.secret), invitation.id)
    session = SessionName(secrets.token_bytes(SESSION_ID_SIZE), 1)
    connection, _ = await connect(receiver, credentials, session, 0)
    receivers.save(receiver)
    await connection.send(encode(Goodbye(last=True), session.epoch))
    connection.close()
    return receiver


async def _send(
    order: Order,
    config: Config,
    table: Table,
    jobs: Sequence[Job],
    held: Claim,
    workers: Workers,
    display: Display,
    version: str,
    begun: float,
) -> Outcome:
    options = order.options
    progress = TransferProgress(
        order.receiver.name, order.target.vm, [job.progress for job in jobs]
    )
    metrics = None if options.http is None else _metrics(progress, version)
    controller = CompressionController(options.compression, workers.count)
    throttle = Throttle()
    limiter = Limiter(
        config,
        lambda: configure(order.config),
        throttle,
        progress,
        table,
        workers,
        command=options.limit or inf,
        a_disk=options.disk_limit or inf,
    )
    await limiter.look()
    congestion_control = options.congestion_control or config.congestion_control

    def begin(
        jobs: Sequence[Job], session: SessionName, on_open: Callable[[], None]
    ) -> tuple[Transfer, Client]:
        observer = metrics or Unobserved()
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
        jobs,
        progress,
        held,
        begin,
        connections=worthwhile(options.connections, limiter.ceiling),
        patience=options.patience,
        command=order.command,
    )
    async with AsyncExitStack() as cleanup:
        if options.http is not None and metrics is not None:
            await cleanup.enter_async_context(_metrics_served(metrics, progress, options.http))
        stop = cleanup.enter_context(stop_on_signal(asyncio.get_running_loop()))
        await cleanup.enter_async_context(_limits_kept(limiter, stop))
        await cleanup.enter_async_context(following(display, progress))
        passes = _passes(order, jobs, incarnations, progress, workers, begun)
        running = asyncio.create_task(passes.run())
        failure = await _finish(running, incarnations, stop, display)
    if incarnations.shortfall is not None:
        tell(f"warning: fewer connections than asked for: {incarnations.shortfall}")
    return Outcome(progress, failure)


def _passes(
    order: Order,
    jobs: Sequence[Job],
    incarnations: Incarnations,
    progress: TransferProgress,
    workers: Workers,
    begun: float,
) -> Passes | Incarnations:
    """What makes the command's passes; a dry run makes none."""
    options = order.options
    if options.dry_run:
        return incarnations
    disks = [Disk(job.source.identity.hex(), job.source.size) for job in jobs]
    return Passes(
        incarnations,
        progress,
        Downtimes(
            order.state,
            order.receiver.name,
            order.target.vm,
            disks,
            lambda text: tell(f"warning: {text}"),
        ),
        live=options.live,
        budget=options.until_downtime,
        workers=workers.count,
        begun=begun,
    )


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


@asynccontextmanager
async def _limits_kept(limiter: Limiter, stop: asyncio.Event) -> AsyncIterator[None]:
    """Have limits follow the clock and the other runs, and SIGHUP read them again."""
    loop = asyncio.get_running_loop()
    tasks = {loop.create_task(limiter.run())}

    def read_again() -> None:
        task = loop.create_task(limiter.read_again())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    with on_hangup(loop, read_again, stop.set):
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def _metrics(progress: TransferProgress, version: str) -> "SenderMetrics":
    from flatship_sender.metrics import SenderMetrics  # noqa: PLC0415  # 20 ms that few need

    metrics = SenderMetrics(version)
    metrics.watch(progress)
    return metrics


@asynccontextmanager
async def _metrics_served(
    metrics: "SenderMetrics", progress: TransferProgress, address: Endpoint
) -> AsyncIterator[None]:
    endpoint = HttpEndpoint(
        render=lambda: metrics.render()[0], health=lambda: (True, _health(progress))
    )
    try:
        host, port = await endpoint.start(address.host, address.port)
    except OSError as error:
        raise ConfigError(
            f"cannot serve metrics on {address}: {error.strerror or error};"
            " choose another with --http"
        ) from error
    tell(f"metrics on http://{Endpoint(host, port)}/metrics")
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


def _check_names(order: Order) -> None:
    target = order.target
    if len(order.paths) > MAX_DISKS:
        raise UsageError(
            f"{len(order.paths)} disks are more than a virtual machine can have, {MAX_DISKS};"
            " send those of each machine by a command of its own"
        )
    for name in disk_names(target.vm, len(order.paths)):
        check_name(name)
    if target.datastore:
        check_name(target.datastore)


def _distinct(paths: Sequence[str]) -> Sequence[str]:
    """Refuse one disk named twice, which is a slip and would be sent as two."""
    seen: dict[tuple[int, int], str] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue  # whoever opens it says why
        disk = (0, status.st_rdev) if status.st_rdev else (status.st_dev, status.st_ino)
        if disk in seen:
            raise UsageError(f"{path} and {seen[disk]} are the same disk; name it once")
        seen[disk] = path
    return paths


def _open(path: str, order: Order, cleanup: ExitStack) -> BlockSource:
    source = open_source(path, live=order.options.live)
    cleanup.callback(source.close)
    if source.unseen_processes:
        advice = "; run as root to be sure that nobody writes to it" if os.geteuid() else ""
        tell(
            f"warning: {path}: processes that could not be looked at for having it open:"
            f" {source.unseen_processes}{advice}"
        )
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
