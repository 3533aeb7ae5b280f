"""The receiver put together: the one place that names concrete datastores."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import Final

import structlog

from flatship_protocol.connection import FramePool
from flatship_protocol.endpoint import Endpoint
from flatship_protocol.errors import ErrorCode
from flatship_receiver.admission import Admission
from flatship_receiver.authorized_senders import AuthorizedSenders
from flatship_receiver.config import Config
from flatship_receiver.datastore_space import SpaceSample
from flatship_receiver.datastores.base import Datastore
from flatship_receiver.datastores.local import LocalDatastore
from flatship_receiver.facilities import Facilities, Store
from flatship_receiver.images import stands
from flatship_receiver.invitations import Invitations
from flatship_receiver.journal import AsyncJournal, ImageState, Journal
from flatship_receiver.listener import BACKLOG, Listener
from flatship_receiver.metrics import ReceiverMetrics
from flatship_receiver.page import ReceiverPage
from flatship_receiver.reconfigure import FIXED, Running
from flatship_receiver.reservations import Reservations
from flatship_receiver.sessions import Sessions
from flatship_service.abandonable import in_time
from flatship_service.congestion import use_congestion_control
from flatship_service.errors import ConfigError
from flatship_service.http import HttpEndpoint
from flatship_service.http_access import protection
from flatship_service.keys import load_or_create_identity
from flatship_service.leaving import leave_without_threads
from flatship_service.notify import Notifier, watched
from flatship_service.page.routes import routes
from flatship_service.page.viewers import Viewers
from flatship_service.reload import Reload, reloading
from flatship_service.signals import stop_on_signal
from flatship_service.workers import Workers

FRAMES: Final = 32
FAILED: Final = 1
LISTENING: Final = "listening"
OPEN_TIMEOUT: Final = 30.0  # seconds for a datastore that comes while others are in use
STOP_TIMEOUT: Final = 10.0  # seconds that disks get to let go of their files
SLOW_WORKERS: Final = 8  # threads that wait for storage: flushes, proofs, allocations

log = structlog.get_logger()


async def serve(config: Config, version: str, read: Callable[[], Config]) -> None:
    """Run a receiver until SIGTERM or SIGINT.

    Args:
        config: What to begin with.
        version: Of the software.
        read: Reads the configuration again, at SIGHUP.

    Raises:
        ConfigError: It cannot start as configured.
        JournalError: Its state folder is in use or damaged.
    """
    if not config.datastores:
        raise ConfigError(
            "no datastore is configured; pass --datastore NAME=PATH or set it in the file"
        )
    async with AsyncExitStack() as cleanup:
        identity = load_or_create_identity(config.state)
        metrics = ReceiverMetrics(version)
        journal = await AsyncJournal.open(config.state)
        cleanup.push_async_callback(journal.close)
        workers = _threads(max(2, os.cpu_count() or 1), "flatship-worker", cleanup)
        slow_workers = _threads(SLOW_WORKERS, "flatship-slow-worker", cleanup)

        def adopt(datastore: Datastore) -> Store:
            return _with_threads(_store(datastore, metrics), cleanup)

        stores = {
            name: adopt(LocalDatastore(name, str(path))) for name, path in config.datastores.items()
        }
        for store in stores.values():
            await _recover(store.datastore, slow_workers)
        datastores = {name: store.datastore for name, store in stores.items()}
        await _settle(journal, datastores, slow_workers)
        senders = AuthorizedSenders(config.state)
        facilities = Facilities(
            journal, workers, slow_workers, FramePool(FRAMES), metrics, senders, prove=config.prove
        )
        sessions = Sessions(stores, facilities)
        listener = Listener(
            identity,
            senders,
            Invitations(config.state),
            Admission(SystemRandom()),
            sessions,
            metrics,
        )
        sock = _listen(config.listen, config.congestion_control)
        cleanup.callback(sock.close)
        viewers = Viewers(
            ReceiverPage(
                facilities.board,
                lambda: sessions.received,
                metrics.spaces,
                version,
                socket.gethostname(),
            )
        )
        endpoint = HttpEndpoint(
            render=lambda: metrics.render()[0],
            health=lambda: (True, f"ok: {sessions.count} sessions"),
            protection=protection(config.http_access),
            refused=partial(_login_failed, metrics),
            routes=routes(viewers),
        )
        http = Endpoint(*await endpoint.start_at(config.http, _warn_exposed))
        cleanup.push_async_callback(endpoint.stop)
        await cleanup.enter_async_context(viewers.kept_up())

        async def open_further(name: str, path: Path) -> Datastore:
            datastore = await in_time(partial(_sound, name, path), OPEN_TIMEOUT)
            await _recover(datastore, slow_workers)
            await _settle(journal, {name: datastore}, slow_workers)
            return datastore

        running = Running(stores, dict(config.datastores), sock, endpoint, open_further, adopt)
        if not config.prove:
            log.warning("disks are published without being re-read; this is for benchmarks only")
        stop = cleanup.enter_context(stop_on_signal(asyncio.get_running_loop()))
        notifier = Notifier.from_environment()
        await cleanup.enter_async_context(watched(notifier))
        reload = Reload(config, read, running.apply, FIXED, metrics.config_read)
        await cleanup.enter_async_context(reloading(reload, notifier, stop.set, LISTENING))
        _announce(sock, f"{endpoint.scheme}://{http}", stores)
        accepting = asyncio.create_task(listener.serve(sock))
        notifier.ready(LISTENING)
        await _either(stop, accepting)
        notifier.stopping("closing sessions")
        accepting.cancel()
        log.info("stopping", sessions=sessions.count)
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await sessions.close(ErrorCode.SHUTTING_DOWN)
                await listener.close()
        except TimeoutError:
            # What was acknowledged is on stable storage; the rest comes again.
            leave_without_threads(
                f"a datastore does not answer; stopped without it after {STOP_TIMEOUT:.0f} s",
                FAILED,
            )


def _sound(name: str, path: Path) -> Datastore:
    """A datastore that answers."""
    datastore = LocalDatastore(name, str(path))
    datastore.space()
    return datastore


def _login_failed(metrics: ReceiverMetrics, reason: str, address: str) -> None:
    metrics.auth_failure(reason)
    log.warning("login failed", address=address, kind=reason)


def _store(datastore: Datastore, metrics: ReceiverMetrics) -> Store:
    reservations = Reservations(datastore.name)

    def sample() -> SpaceSample:
        space = datastore.space()
        return SpaceSample(size=space.size, free=space.free, reserved=reservations.total)

    return Store(datastore, reservations, metrics.datastore(datastore.name, sample))


def _with_threads(store: Store, cleanup: AsyncExitStack) -> Store:
    name = store.datastore.name
    return replace(
        store,
        workers=_threads(max(2, os.cpu_count() or 1), f"{name}-worker", cleanup),
        slow_workers=_threads(SLOW_WORKERS, f"{name}-slow-worker", cleanup),
    )


def _threads(count: int, name: str, cleanup: AsyncExitStack) -> Workers:
    workers = Workers(count, name)
    cleanup.callback(workers.close)
    return workers


async def _recover(datastore: Datastore, workers: Workers) -> None:
    recovery = await workers.run(datastore.recover)
    for vm, disk in recovery.finished:
        log.info("publication finished after a crash", vm=vm, disk=disk)
    for error in recovery.failed:
        log.error("publication could not be finished", reason=str(error))


async def _settle(
    journal: AsyncJournal, datastores: Mapping[str, Datastore], workers: Workers
) -> None:
    """Say in the journal what became of publications that a crash cut off from their record.

    One that does not stand under its name may still be finished by a later
    start, and keeps its record.
    """
    for image in await journal.run(Journal.images):
        datastore = datastores.get(image.datastore)
        if image.state is not ImageState.PUBLISHING or datastore is None:
            continue
        if not await workers.run(stands, datastore, image):
            continue
        state = ImageState.COMPLETE
        await journal.run(Journal.set_state, image.uuid, state, when=time.time(), root=image.root)
        log.info("publication settled", vm=image.vm, disk=image.disk, state=state.value)


async def _either(stop: asyncio.Event, accepting: "asyncio.Task[None]") -> None:
    """Wait until the daemon is asked to stop, or cannot go on.

    Raises:
        Whatever ended ``accepting``.
    """
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, accepting}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if accepting.done():
        await accepting


def _listen(endpoint: Endpoint, congestion_control: str | None = None) -> socket.socket:
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        use_congestion_control(sock, congestion_control)
        sock.bind((endpoint.host, endpoint.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {endpoint}: {error.strerror or error}; choose another with --listen"
        ) from error
    sock.setblocking(False)
    return sock


def _warn_exposed(told: str) -> None:
    log.warning("metrics are not protected", reason=told)


def _announce(sock: socket.socket, http: str, stores: Mapping[str, Store]) -> None:
    """One line, for people and for whoever started the daemon and waits for it."""
    listening = Endpoint(*sock.getsockname()[:2])
    print(
        f"flatship-receiver listening on {listening}, metrics on {http}/metrics,"
        f" datastores: {', '.join(stores)}",
        file=sys.stderr,
        flush=True,
    )
