"""The sender as a daemon, put together: a queue, workers that send, metrics, the page.

It reads no disk itself. What is reached through it is started in ``serve`` with the ``Queue``, and
closed before workers leave.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from flatship_protocol.endpoint import Endpoint
from flatship_sender.config import Config, configure
from flatship_sender.control.server import ControlServer
from flatship_sender.metrics import SenderMetrics
from flatship_sender.page import SenderPage
from flatship_sender.progress import FINAL_STATES
from flatship_sender.queue.model import Job, JobState
from flatship_sender.queue.process import Locks
from flatship_sender.queue.queue import Queue
from flatship_sender.queue.record import Record
from flatship_sender.queue.sizes import Sizes
from flatship_sender.queue.store import FOLDER, AsyncStore
from flatship_sender.queue.supervisor import Supervisor
from flatship_sender.shown_jobs import ShownJobs
from flatship_sender.snapshot import restore
from flatship_sender.worker_reports import Report
from flatship_service import logs
from flatship_service.http import HttpEndpoint
from flatship_service.http_access import protection, succeeding
from flatship_service.notify import Notifier, watched
from flatship_service.page.routes import routes
from flatship_service.page.viewers import Viewers
from flatship_service.reload import Reload, reloading
from flatship_service.signals import stop_on_signal

SERVING: Final = "serving the queue"
TELL: Final = 2.0  # seconds between two looks for a change of the line that systemd shows

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Settings:
    """What the daemon runs with.

    ``file`` is the configuration file, None for the system's, and ``config`` what it said at the
    start. ``socket`` is where the daemon is controlled. ``http``, where metrics are served, and
    ``jobs``, how many run at once, win over the file if they are given.
    """

    state: Path
    file: Path | None
    config: Config
    socket: Path
    http: Endpoint | None = None
    jobs: int | None = None

    def at_once(self, config: Config) -> int:
        """How many jobs run at once."""
        return self.jobs or config.jobs


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
        shown = ShownJobs(record.live.values)
        page = SenderPage(shown.transfers, version, socket.gethostname(), jobs=shown.jobs)
        watching = Watching(metrics, shown, page)
        supervisor = Supervisor(
            record,
            settings.state,
            settings.file,
            settings.at_once(settings.config),
            locks,
            watching,
        )
        sizes = Sizes(record)
        for job in record.live.values():
            if job.size is None:
                sizes.measure(job)
        queue = Queue(record, store, supervisor, sizes)
        metrics.watch_queue(lambda: {str(state): sums for state, sums in queue.counts().items()})
        loop = asyncio.get_running_loop()
        stop = cleanup.enter_context(stop_on_signal(loop))
        cleanup.push_async_callback(supervisor.stop)
        # From here on what is entered is closed before workers have to leave.
        viewers = Viewers(page)
        endpoint = HttpEndpoint(
            render=lambda: metrics.render()[0],
            health=lambda: (True, f"ok: {_standing(queue)}"),
            protection=protection(settings.config.http_access),
            refused=lambda reason, _address: metrics.auth_failure(reason),
            routes=routes(viewers),
        )
        address = settings.http or settings.config.http
        http = Endpoint(*await endpoint.start_at(address, _warn_exposed))
        cleanup.push_async_callback(endpoint.stop)
        await cleanup.enter_async_context(viewers.kept_up())
        control = ControlServer(queue, settings.state, version)
        await cleanup.enter_async_context(control.serve(settings.socket))
        notifier = Notifier.from_environment()
        await cleanup.enter_async_context(watched(notifier))

        async def apply(new: Config) -> Sequence[str]:
            offered = await asyncio.to_thread(protection, new.http_access)
            held_to, waiting = succeeding(endpoint.protection, offered)
            endpoint.protect(held_to)
            logs.set_level(new.log_level)
            supervisor.at_once = settings.at_once(new)
            supervisor.read_again()
            return waiting

        reload = Reload(
            settings.config, lambda: configure(settings.file), apply, ("http",), metrics.config_read
        )
        await cleanup.enter_async_context(reloading(reload, notifier, stop.set, SERVING))
        _announce(f"{endpoint.scheme}://{http}/metrics", settings.state)
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
    """Feeds what workers report to the metrics and to the page; see ``Watcher``.

    Args:
        metrics: The daemon's.
        shown: What the page shows of jobs.
        page: Told of those that fail.
    """

    def __init__(self, metrics: SenderMetrics, shown: ShownJobs, page: SenderPage) -> None:
        self._metrics = metrics
        self._shown = shown
        self._page = page
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
            self._shown.reported(job.id, progress)
            if before.snapshot is None:
                self._metrics.watch(progress, self._labels[job.id])
            else:
                self._metrics.follow(progress, self._labels[job.id])
        self._reported[job.id] = report

    def left(self, job: Job) -> None:
        """See ``Watcher``: what ended keeps its series for a while, what did not has none."""
        self._shown.left(job.id)
        if job.state is JobState.FAILED:
            self._page.failed(job)
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


def _warn_exposed(told: str) -> None:
    log.warning("metrics are not protected", reason=told)


def _announce(metrics: str, state: Path) -> None:
    """One line, for people and for whoever started the daemon and waits for it."""
    print(
        f"flatship-sender listening, metrics on {metrics}, state in {state}",
        file=sys.stderr,
        flush=True,
    )
