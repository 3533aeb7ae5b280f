"""The sender as a daemon, put together: a queue, workers that send, metrics.

It reads no disk itself. What is reached through it is started in ``serve`` with the ``Queue``, and
closed before workers leave.
"""

import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from flatship_protocol.endpoint import Endpoint
from flatship_sender.control.server import ControlServer
from flatship_sender.metrics import SenderMetrics
from flatship_sender.progress import FINAL_STATES
from flatship_sender.queue.model import Job, JobState
from flatship_sender.queue.process import Locks
from flatship_sender.queue.queue import Queue
from flatship_sender.queue.record import Record
from flatship_sender.queue.sizes import Sizes
from flatship_sender.queue.store import FOLDER, AsyncStore
from flatship_sender.queue.supervisor import Supervisor
from flatship_sender.snapshot import restore
from flatship_sender.worker_reports import Report
from flatship_service.errors import ConfigError
from flatship_service.http import HttpEndpoint
from flatship_service.notify import Notifier
from flatship_service.signals import on_hangup, stop_on_signal

TELL: Final = 2.0  # seconds between two looks for a change of the line that systemd shows

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Settings:
    """What the daemon runs with.

    ``config`` is the configuration file that workers read, None for the system's; ``http`` is
    where metrics are served, ``jobs`` how many run at once, ``socket`` where it is controlled.
    """

    state: Path
    config: Path | None
    http: Endpoint
    jobs: int
    socket: Path


async def serve(settings: Settings, version: str) -> None:
    """Run the queue of a state folder until SIGTERM or SIGINT, or until it is drained.

    Raises:
        QueueInUse: Another daemon has it.
        QueueError: It cannot be used.
        ConfigError: Metrics, or the control interface, cannot be served where asked.
    """
    async with AsyncExitStack() as cleanup:
        store = await AsyncStore.open(settings.state)
        cleanup.push_async_callback(store.close)
        record = Record(store)
        await record.load()
        locks = Locks(settings.state / FOLDER)
        locks.tidy(record.live)
        metrics = SenderMetrics(version)
        supervisor = Supervisor(
            record, settings.state, settings.config, settings.jobs, locks, Watching(metrics)
        )
        sizes = Sizes(record)
        for job in record.live.values():
            if job.size is None:
                sizes.measure(job)
        queue = Queue(record, store, supervisor, sizes)
        metrics.watch_queue(lambda: {str(state): sums for state, sums in queue.counts().items()})
        loop = asyncio.get_running_loop()
        stop = cleanup.enter_context(stop_on_signal(loop))
        cleanup.enter_context(on_hangup(loop, supervisor.read_again, stop.set))
        cleanup.push_async_callback(supervisor.stop)
        # From here on what is entered is closed before workers have to leave.
        endpoint = HttpEndpoint(
            render=lambda: metrics.render()[0], health=lambda: (True, f"ok: {_standing(queue)}")
        )
        http = await _start_http(endpoint, settings.http)
        cleanup.push_async_callback(endpoint.stop)
        control = ControlServer(queue, settings.state, version)
        await cleanup.enter_async_context(control.serve(settings.socket))
        _announce(http, settings.state)
        notifier = Notifier.from_environment()
        notifier.ready(_standing(queue))
        tasks = {
            loop.create_task(stop.wait()),
            loop.create_task(queue.drained()),
            loop.create_task(supervisor.run()),
            loop.create_task(_tell(notifier, queue)),
        }
        ended, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        queue.close()
        notifier.stopping("workers are leaving")
        log.info("stopping", running=supervisor.running)
        for task in left:
            task.cancel()
        await asyncio.wait(left)
        for task in ended:
            task.result()


class Watching:
    """Feeds what workers report to the metrics; see ``Watcher``.

    Args:
        metrics: The daemon's.
    """

    def __init__(self, metrics: SenderMetrics) -> None:
        self._metrics = metrics
        self._labels: dict[int, str] = {}  # of jobs that run
        self._reported: dict[int, Report] = {}  # the last one, by job

    def began(self, job: Job) -> None:
        """See ``Watcher``."""
        name = job.spec.vm
        if name in self._labels.values():
            name = f"{name} to {job.spec.receiver}"
        self._labels[job.id] = name

    def reported(self, job: Job, report: Report) -> None:
        """See ``Watcher``."""
        before = self._reported.get(job.id, Report())
        for reason, count in report.errors.items():
            self._metrics.errors(reason, count - before.errors.get(reason, 0))
        if report.snapshot is not None:
            progress = restore(report.snapshot, time.monotonic())
            if before.snapshot is None:
                self._metrics.watch(progress, self._labels[job.id])
            else:
                self._metrics.follow(progress, self._labels[job.id])
        self._reported[job.id] = report

    def left(self, job: Job) -> None:
        """See ``Watcher``: what ended keeps its series for a while, what did not has none."""
        name, report = self._labels.pop(job.id, None), self._reported.pop(job.id, None)
        if name is None or report is None or report.snapshot is None:
            return
        if not all(disk.state in FINAL_STATES for disk in report.snapshot.disks):
            self._metrics.drop(name)


def _standing(queue: Queue) -> str:
    """How the queue stands, on one line."""
    counts = queue.counts()
    return ", ".join(
        f"{counts[state][0]} {state.value}" for state in JobState if _is_told(state, counts)
    )


def _is_told(state: JobState, counts: Mapping[JobState, tuple[int, int]]) -> bool:
    return state in (JobState.RUNNING, JobState.QUEUED) or counts[state][0] > 0


async def _tell(notifier: Notifier, queue: Queue) -> None:
    """Keep the line that systemd shows up to date, until cancelled."""
    told = _standing(queue)
    while True:
        await asyncio.sleep(TELL)
        if (now := _standing(queue)) != told:
            notifier.status(told := now)


async def _start_http(endpoint: HttpEndpoint, address: Endpoint) -> Endpoint:
    try:
        return Endpoint(*await endpoint.start(address.host, address.port))
    except OSError as error:
        raise ConfigError(
            f"cannot serve metrics on {address}: {error.strerror or error};"
            " choose another with --http"
        ) from error


def _announce(http: Endpoint, state: Path) -> None:
    """One line, for people and for whoever started the daemon and waits for it."""
    print(
        f"flatship-sender listening, metrics on http://{http}/metrics, state in {state}",
        file=sys.stderr,
        flush=True,
    )
