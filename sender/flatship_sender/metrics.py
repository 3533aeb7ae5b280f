"""Prometheus metrics of the sender; the only module of it that knows ``prometheus_client``.

Counts are read from the progress objects when somebody scrapes, so the path of a
chunk pays nothing for being watched. Only the latency histogram is told anything.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import prometheus_client as prom
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from flatship_protocol.constants import PROTOCOL_VERSION
from flatship_protocol.errors import ErrorCode, TransferError
from flatship_sender.progress import (
    FINAL_STATES,
    STAGES,
    DiskProgress,
    TransferProgress,
    TransferState,
)
from flatship_sender.stalls import WaitsFor
from flatship_service.config_metrics import ConfigMetrics
from flatship_service.http_login import REASONS as LOGIN_REASONS
from flatship_service.printable import printable

PREFIX: Final = "flatship_sender_"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"  # what generate_latest writes
RETENTION: Final = 3600.0  # seconds that the series of a finished transfer remain
MAX_LABEL: Final = 200  # characters of a label's value
ACK_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_DISK: Final = ("transfer", "disk")


class SenderMetrics:
    """Everything `/metrics` says of a sender. Use it on the event loop's thread.

    Args:
        version: Of the software, for ``build_info``.
        monotonic: The clock that stamps progress objects, in seconds.
        wall: Seconds since 1970.
    """

    def __init__(
        self,
        version: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        # client_python would add a `_created` gauge to each histogram, in every process alike.
        prom.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._monotonic = monotonic
        self._registry = prom.CollectorRegistry()
        self._transfers = _Transfers(monotonic, wall)
        prom.ProcessCollector(registry=self._registry)
        prom.Gauge(
            f"{PREFIX}build_info",
            "What is running; the value is always 1.",
            ("version", "protocol"),
            registry=self._registry,
        ).labels(version, str(PROTOCOL_VERSION)).set(1)
        self._ack_latency = prom.Histogram(
            f"{PREFIX}ack_latency_seconds",
            "From a chunk's sealing to the receiver's word that it is on stable storage.",
            buckets=ACK_BUCKETS,
            registry=self._registry,
        )
        self._errors = prom.Counter(
            f"{PREFIX}errors_total",
            "Errors that ended a disk or a connection, by wire error code.",
            ("reason",),
            registry=self._registry,
        )
        for code in ErrorCode:  # from 0, or increase() would miss the first one
            self._errors.labels(code.name.lower())
        self._auth_failures = prom.Counter(
            f"{PREFIX}auth_failures_total",
            "Logins that failed, by reason.",
            ("reason",),
            registry=self._registry,
        )
        for reason in LOGIN_REASONS:
            self._auth_failures.labels(reason)
        self.config_read = ConfigMetrics(self._registry, PREFIX, wall).read
        self._registry.register(self._transfers)

    def auth_failure(self, reason: str) -> None:
        """Count a login that failed; ``reason`` is one of those of ``http_login``."""
        self._auth_failures.labels(reason).inc()

    def watch(self, progress: TransferProgress, transfer: str | None = None) -> None:
        """Export a transfer from now on.

        Args:
            progress: Read at each scrape.
            transfer: Value of the label; the virtual machine's name if absent.
                A transfer watched earlier under the same name gives way,
                its counts stay in the totals.
        """
        self._transfers.watch(transfer or progress.vm, progress)

    def follow(self, progress: TransferProgress, transfer: str) -> None:
        """Have a later state of a transfer that is watched take the place of the earlier one."""
        self._transfers.follow(transfer, progress)

    def drop(self, transfer: str) -> None:
        """Drop the series of a transfer; totals keep what it moved."""
        self._transfers.drop(transfer)

    def watch_queue(self, counts: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        """Export a queue: how many jobs are in each state, and how many bytes that is."""
        self._registry.register(_Queue(counts))

    def forget(self, now: float | None = None, retention: float = RETENTION) -> None:
        """Drop the series of transfers seen finished ``retention`` seconds ago or earlier.

        Totals by receiver keep what they moved. ``render`` does this too.
        """
        self._transfers.forget(self._monotonic() if now is None else now, retention)

    def observe_ack(self, seconds: float) -> None:
        """Count one acknowledged chunk."""
        self._ack_latency.observe(seconds)

    def error(self, error: BaseException) -> None:
        """Count an error under its wire code; what is not ours is ``internal``."""
        code = error.code if isinstance(error, TransferError) else ErrorCode.INTERNAL
        self.errors(code.name.lower(), 1)

    def errors(self, reason: str, count: int) -> None:
        """Count errors that somebody else has seen; ``reason`` is a wire error code's name."""
        self._errors.labels(reason).inc(count)

    def render(self) -> tuple[bytes, str]:
        """One scrape: the body and its content type."""
        self.forget()
        return prom.generate_latest(self._registry), CONTENT_TYPE


@dataclass(slots=True)
class _Totals:
    """Sums over transfers, kept when their series go."""

    read: int = 0
    skipped: Counter[str] = field(
        default_factory=lambda: Counter(hole=0, zero=0, unchanged=0, kept=0, known=0)
    )
    literal: Counter[str] = field(default_factory=Counter)
    payload: Counter[tuple[str, str]] = field(default_factory=Counter)
    wire: Counter[str] = field(default_factory=Counter)
    resent: Counter[tuple[str, str]] = field(default_factory=Counter)  # by reason and receiver
    wanted: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(STAGES, 0)))
    link_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, progress: TransferProgress) -> None:
        receiver = label(progress.receiver)
        self.wire[receiver] += progress.wire
        self.link_seconds[receiver] += progress.link_seconds
        for disk in progress.disks:
            self.resent["lost", receiver] += disk.resent
            self.resent["changed", receiver] += disk.changed
            self.read += disk.read
            self.skipped["hole"] += disk.skipped_hole
            self.skipped["zero"] += disk.skipped_zero
            self.skipped["unchanged"] += disk.held
            self.skipped["kept"] += disk.kept
            self.skipped["known"] += disk.known
            self.wanted[receiver] += disk.wanted
            self.literal[receiver] += disk.literal
            self.stages.update(disk.stage_seconds)
            for codec, count in disk.payload.items():
                self.payload[codec, receiver] += count

    def copy(self) -> "_Totals":
        return _Totals(
            self.read,
            self.skipped.copy(),
            self.literal.copy(),
            self.payload.copy(),
            self.wire.copy(),
            self.resent.copy(),
            self.wanted.copy(),
            self.stages.copy(),
            self.link_seconds.copy(),
        )


@dataclass(slots=True)
class _Watched:
    progress: TransferProgress
    finished: float | None = None  # monotonic; when it was first seen finished


class _Transfers(Collector):
    """Turns progress objects into samples."""

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._watched: dict[str, _Watched] = {}
        self._retired = _Totals()

    def watch(self, name: str, progress: TransferProgress) -> None:
        name = label(name)
        self._retire(name)
        self._watched[name] = _Watched(progress)

    def follow(self, name: str, progress: TransferProgress) -> None:
        self._watched[label(name)].progress = progress

    def drop(self, name: str) -> None:
        self._retire(label(name))

    def forget(self, now: float, retention: float) -> None:
        for name, watched in list(self._watched.items()):
            if not all(disk.state in FINAL_STATES for disk in watched.progress.disks):
                watched.finished = None
            elif watched.finished is None:
                watched.finished = now
            elif now - watched.finished >= retention:
                self._retire(name)

    def _retire(self, name: str) -> None:
        gone = self._watched.pop(name, None)
        if gone is not None:
            self._retired.add(gone.progress)

    def collect(self) -> Iterator[Metric]:
        """All samples of this moment."""
        yield from self._collect_disks()
        yield self._stalled()
        yield self._limits()
        yield self._forecasts()
        yield from self._collect_totals()

    def _disks(self) -> dict[tuple[str, str], DiskProgress]:
        # A mapping, since Prometheus rejects a scrape in which a series occurs twice.
        return {
            (name, label(disk.target)): disk
            for name, watched in self._watched.items()
            for disk in watched.progress.disks
        }

    def _collect_disks(self) -> Iterator[Metric]:
        size = _gauge("disk_size_bytes", "Size of the disk.", _DISK)
        remaining = _gauge(
            "disk_remaining_bytes", "Neither skipped nor on the receiver's stable storage.", _DISK
        )
        acked = _counter(
            "acked_bytes_total", "Bytes of chunks on the receiver's stable storage.", _DISK
        )
        last = _gauge(
            "last_progress_timestamp_seconds", "When the disk last got on, since 1970.", _DISK
        )
        level = _gauge("compression_level", "The zstd level in use.", _DISK)
        history = _gauge(
            "compression_history", "Whether chunks are coded with those before them at hand.", _DISK
        )
        states = _gauge("transfer_state", "1 for the state the disk is in.", (*_DISK, "state"))
        to_wall = self._wall() - self._monotonic()
        for key, disk in self._disks().items():
            size.add_metric(key, disk.size)
            remaining.add_metric(key, disk.remaining)
            acked.add_metric(key, disk.acked)
            if disk.last_progress:
                last.add_metric(key, round(disk.last_progress + to_wall, 3))
            if disk.level is not None:
                level.add_metric(key, disk.level)
                history.add_metric(key, disk.history)
            for state in TransferState:
                states.add_metric((*key, state.value), state is disk.state)
        yield from (size, remaining, acked, last, level, history, states)

    def _stalled(self) -> Metric:
        stalled = _gauge(
            "stalled_seconds",
            "How long nothing has got on, by what is waited for; 0 while it does.",
            ("transfer", "waits_for"),
        )
        now = self._monotonic()
        for name, watched in self._watched.items():
            stall = watched.progress.stall
            for cause in WaitsFor:
                waited = now - stall.since if stall and stall.waits_for is cause else 0.0
                stalled.add_metric((name, cause.value), round(waited, 3))
        return stalled

    def _limits(self) -> Metric:
        limits = _gauge(
            "link_limit_bytes_per_second",
            "The limit in force, in bytes on the wire; none of it while there is no limit.",
            ("transfer", "receiver"),
        )
        for name, watched in self._watched.items():
            if (limit := watched.progress.limit) is not None:
                limits.add_metric((name, label(watched.progress.receiver)), limit)
        return limits

    def _forecasts(self) -> Metric:
        ratios = _gauge(
            "forecast_ratio",
            "What a transfer took in terms of what plan had foreseen; none without a forecast.",
            ("transfer", "receiver"),
        )
        for name, watched in self._watched.items():
            if (judged := watched.progress.forecast) is not None:
                key = (name, label(watched.progress.receiver))
                ratios.add_metric(key, round(judged.ratio, 4))
        return ratios

    def _collect_totals(self) -> Iterator[Metric]:
        totals = self._retired.copy()
        for watched in self._watched.values():
            totals.add(watched.progress)
        read = _counter("read_bytes_total", "Bytes read from sources.", ())
        read.add_metric((), totals.read)
        skipped = _counter("skipped_bytes_total", "Bytes of disks not sent, and why.", ("method",))
        for method, count in totals.skipped.items():
            skipped.add_metric((method,), count)
        literal = _counter(
            "literal_bytes_total",
            "Bytes of chunks before compression, without what the receiver has.",
            ("receiver",),
        )
        for receiver, count in totals.literal.items():
            literal.add_metric((receiver,), count)
        payload = _counter(
            "payload_bytes_total", "Bytes of chunks after compression.", ("codec", "receiver")
        )
        for codec_and_receiver, count in totals.payload.items():
            payload.add_metric(codec_and_receiver, count)
        wire = _counter("wire_bytes_total", "Bytes put on the wire, all overhead.", ("receiver",))
        for receiver, count in totals.wire.items():
            wire.add_metric((receiver,), count)
        resent = _counter(
            "resent_bytes_total",
            "Bytes of chunks sent again: lost with a session, or changed since they were sent.",
            ("reason", "receiver"),
        )
        for reason_and_receiver, count in totals.resent.items():
            resent.add_metric(reason_and_receiver, count)
        wanted = _counter(
            "wanted_chunks_total",
            "Chunks that the receiver wanted whole: what it was to keep was not what it had.",
            ("receiver",),
        )
        for receiver, count in totals.wanted.items():
            wanted.add_metric((receiver,), count)
        busy = _counter(
            "stage_busy_seconds_total", "Time that workers spent in a stage.", ("stage",)
        )
        for stage, seconds in totals.stages.items():
            busy.add_metric((stage,), seconds)
        link = _counter(
            "link_busy_seconds_total", "Time in which the link kept chunks waiting.", ("receiver",)
        )
        for receiver, busy_for in totals.link_seconds.items():
            link.add_metric((receiver,), busy_for)
        yield from (read, skipped, literal, payload, wire, resent, wanted, busy, link)


class _Queue(Collector):
    """Turns a queue's counts into samples."""

    def __init__(self, counts: Callable[[], Mapping[str, tuple[int, int]]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """All samples of this moment."""
        transfers = _gauge("queue_transfers", "Jobs of the queue, by state.", ("state",))
        size = _gauge("queue_bytes", "Bytes of their sources, as far as known.", ("state",))
        for state, (jobs, total) in self._counts().items():
            transfers.add_metric((state,), jobs)
            size.add_metric((state,), total)
        yield from (transfers, size)


def label(value: str) -> str:
    """A label's value that every scrape and dashboard can carry, of bounded length."""
    return printable(value)[:MAX_LABEL]


def _gauge(name: str, documentation: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, documentation, labels=labels)


def _counter(name: str, documentation: str, labels: tuple[str, ...]) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, documentation, labels=labels)
