"""Prometheus metrics of the receiver; the only module of it that knows ``prometheus_client``.

``ReceiverMetrics`` may be used from any thread, and a scrape does not wait for a datastore
that hangs: one on a dead NFS server would hold up every disk on the event loop.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import prometheus_client as prom
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from flatship_protocol.constants import PROTOCOL_VERSION
from flatship_receiver.admission import Refusal
from flatship_receiver.datastore_space import Space, SpaceSample
from flatship_receiver.stalls import WaitsFor
from flatship_service.config_metrics import ConfigMetrics
from flatship_service.http_login import REASONS as LOGIN_REASONS
from flatship_service.printable import printable

PREFIX: Final = "flatship_receiver_"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"  # what generate_latest writes
RETENTION: Final = 3600.0  # seconds that the series of a finished disk remain
MAX_DISKS: Final = 4096  # disks with series of their own; the oldest give way
MAX_LABEL: Final = 200  # characters of a label's value
LATENCY_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 30)

FINAL_DISK_STATES: Final = frozenset({"complete", "unpublished", "failed"})
OTHER: Final = "other"  # the reason of whatever is not listed below
AUTH_REASONS: Final[tuple[str, ...]] = (
    "preface",
    "version",
    "handshake",
    "unknown_key",
    "invitation",
    "hello",
    "not_permitted",
    *(refusal.value for refusal in Refusal),
    *LOGIN_REASONS,
    OTHER,
)
REJECT_REASONS: Final = (
    "not_authentic",
    "malformed",
    "unexpected",
    "stale_epoch",
    "credit_exceeded",
    "codec",
    "digest_mismatch",
    "kept_differs",
    "duplicate_differs",
    OTHER,
)


class DatastoreMetrics:
    """The series of one datastore, looked up once."""

    __slots__ = ("_copied", "_fsync", "_kept", "_skipped", "_write", "_written")

    def __init__(self, families: "_DatastoreFamilies", name: str) -> None:
        self._written = families.written.labels(name)
        self._skipped = families.skipped.labels(name)
        self._kept = families.kept.labels(name)
        self._copied = families.copied.labels(name)
        self._write = families.write.labels(name)
        self._fsync = families.fsync.labels(name)

    def written(self, count: int) -> None:
        """Count bytes written to images."""
        self._written.inc(count)

    def skipped(self, count: int) -> None:
        """Count bytes of images that are zeros and were not written."""
        self._skipped.inc(count)

    def kept(self, count: int) -> None:
        """Count bytes of chunks that came anew and were left as they stood."""
        self._kept.inc(count)

    def copied(self, count: int) -> None:
        """Count bytes of chunks that were copied from a disk that holds them."""
        self._copied.inc(count)

    def write_seconds(self, seconds: float) -> None:
        """Observe one write."""
        self._write.observe(seconds)

    def fsync_seconds(self, seconds: float) -> None:
        """Observe one flush to stable storage."""
        self._fsync.observe(seconds)


class ReceiverMetrics:
    """Everything `/metrics` says of a receiver. Thread-safe.

    Args:
        version: Of the software, for ``build_info``.
        monotonic: Seconds; measures the age of answers and of finished disks.
        wall: Seconds since 1970.
    """

    def __init__(
        self,
        version: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        # client_python would add a `_created` gauge to each series, in every process alike.
        prom.disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = prom.CollectorRegistry()
        self._monotonic = monotonic
        prom.ProcessCollector(registry=registry)
        prom.Gauge(
            f"{PREFIX}build_info",
            "What is running; the value is always 1.",
            ("version", "protocol"),
            registry=registry,
        ).labels(version, str(PROTOCOL_VERSION)).set(1)
        self._families = _DatastoreFamilies(registry)
        self._inflight = _gauge(registry, "inflight_bytes", "Received and not yet acknowledged.")
        self._connections = _gauge(
            registry, "active_connections", "Connections past their handshake."
        )
        self._verified = _counter(registry, "verified_bytes_total", "Bytes re-read to prove disks.")
        self._verify_failures = _counter(
            registry, "verify_failures_total", "Disks whose re-read did not equal the source."
        )
        self._auth_failures = _Reasons(
            _counter(registry, "auth_failures_total", "Peers turned away, by reason.", "reason"),
            AUTH_REASONS,
        )
        self._rejected = _Reasons(
            _counter(registry, "records_rejected_total", "Records refused, by reason.", "reason"),
            REJECT_REASONS,
        )
        self.config_read = ConfigMetrics(registry, PREFIX, wall).read
        self._spaces = _Spaces(monotonic)
        self._disks = _DiskStates(monotonic, wall)
        registry.register(self._spaces)
        registry.register(self._disks)

    def datastore(
        self, name: str, space: Callable[[], SpaceSample] | None = None
    ) -> DatastoreMetrics:
        """The series of a datastore.

        Args:
            name: As the configuration calls it.
            space: Asked at scrapes in a thread of its own, at most once a
                second and never twice at once. If it raises DatastoreError
                or OSError, or does not return for a minute, ``datastore_up``
                is 0 and the sizes are absent. Without it neither is exported.
        """
        name = label(name)
        if space is not None:
            self._spaces.add(name, space)
        return DatastoreMetrics(self._families, name)

    @property
    def spaces(self) -> Mapping[str, Space]:
        """The room of the datastores that were given one to ask, by name."""
        return self._spaces.spaces

    def auth_failure(self, reason: str) -> None:
        """Count a peer turned away; ``reason`` is one of AUTH_REASONS, else ``other``."""
        self._auth_failures.count(reason)

    def record_rejected(self, reason: str) -> None:
        """Count a record refused; ``reason`` is one of REJECT_REASONS, else ``other``."""
        self._rejected.count(reason)

    def connections(self, delta: int) -> None:
        """Count connections that came (positive) or went (negative)."""
        self._connections.inc(delta)

    def inflight(self, delta: int) -> None:
        """Count bytes received (positive) and acknowledged or dropped (negative)."""
        self._inflight.inc(delta)

    def disk_state(self, vm: str, disk: str, state: str) -> None:
        """Say where a disk stands; states of FINAL_DISK_STATES start its retention."""
        self._disks.set((label(vm), label(disk)), label(state), self._monotonic())

    def disk_progress(
        self, vm: str, disk: str, got_on_at: float, waits_for: WaitsFor | None
    ) -> None:
        """Say when a disk that is being received last got on, and what it waits for, if it does.

        Args:
            vm: Its machine.
            disk: Its name.
            got_on_at: A reading of ``monotonic``.
            waits_for: None while it gets on.
        """
        self._disks.set_progress((label(vm), label(disk)), got_on_at, waits_for)

    def verified(self, count: int) -> None:
        """Count bytes re-read."""
        self._verified.inc(count)

    def verify_failed(self) -> None:
        """Count a disk whose proof failed."""
        self._verify_failures.inc()

    def forget(self, now: float | None = None, retention: float = RETENTION) -> None:
        """Drop the series of disks that ended ``retention`` seconds ago or earlier.

        ``render`` does this too.
        """
        self._disks.forget(self._monotonic() if now is None else now, retention)

    def render(self) -> tuple[bytes, str]:
        """One scrape: the body and its content type."""
        self.forget()
        return prom.generate_latest(self._registry), CONTENT_TYPE


class _DatastoreFamilies:
    """What is counted by datastore."""

    def __init__(self, registry: prom.CollectorRegistry) -> None:
        self.written = _counter(
            registry, "written_bytes_total", "Bytes written to images.", "datastore"
        )
        self.skipped = _counter(
            registry, "skipped_bytes_total", "Bytes that are zeros, not written.", "datastore"
        )
        self.kept = _counter(
            registry,
            "kept_bytes_total",
            "Bytes of changed chunks, left as they stood.",
            "datastore",
        )
        self.copied = _counter(
            registry,
            "copied_bytes_total",
            "Bytes written that were copied from a disk that holds them.",
            "datastore",
        )
        self.write, self.fsync = (
            prom.Histogram(
                f"{PREFIX}{name}_duration_seconds",
                documentation,
                ("datastore",),
                buckets=LATENCY_BUCKETS,
                registry=registry,
            )
            for name, documentation in (
                ("write", "One write to an image."),
                ("fsync", "One flush of an image to stable storage."),
            )
        )


class _Reasons:
    """A counter by reason, each of which exists from 0, or increase() would miss the first."""

    def __init__(self, counter: prom.Counter, reasons: tuple[str, ...]) -> None:
        self._children = {reason: counter.labels(reason) for reason in reasons}

    def count(self, reason: str) -> None:
        self._children.get(reason, self._children[OTHER]).inc()


class _Spaces(Collector):
    """Sizes of the datastores, asked at scrapes."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.spaces: dict[str, Space] = {}

    def add(self, name: str, ask: Callable[[], SpaceSample]) -> None:
        self.spaces[name] = Space(ask, self._monotonic)

    def collect(self) -> Iterator[Metric]:
        """Sizes of the datastores that answer, and which ones do."""
        up = _family("datastore_up", "1 if the datastore answers.", ("datastore",))
        size = _family("datastore_size_bytes", "Size of its file system.", ("datastore",))
        free = _family("datastore_free_bytes", "Free space of its file system.", ("datastore",))
        reserved = _family(
            "datastore_reserved_bytes", "Promised to disks being written.", ("datastore",)
        )
        for name, space in list(self.spaces.items()):
            sample = space.sample()
            up.add_metric((name,), sample is not None)
            if sample is not None:
                size.add_metric((name,), sample.size)
                free.add_metric((name,), sample.free)
                reserved.add_metric((name,), sample.reserved)
        yield from (up, size, free, reserved)


@dataclass(slots=True)
class _Disk:
    state: str = ""
    seen: set[str] = field(default_factory=set)  # states it has been in
    ended: float | None = None
    got_on_at: float | None = None
    waits_for: WaitsFor | None = None


class _DiskStates(Collector):
    """Where each disk stands, 1 for its state, 0 for those it has left; and whether it gets on."""

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._lock = threading.Lock()
        self._disks: dict[tuple[str, str], _Disk] = {}

    def set(self, key: tuple[str, str], state: str, now: float) -> None:
        with self._lock:
            disk = self._disks.setdefault(key, _Disk())
            disk.state = state
            disk.seen.add(state)
            disk.ended = now if state in FINAL_DISK_STATES else None
            if len(self._disks) > MAX_DISKS:
                del self._disks[next(iter(self._disks))]

    def set_progress(
        self, key: tuple[str, str], got_on_at: float, waits_for: WaitsFor | None
    ) -> None:
        with self._lock:
            disk = self._disks.get(key)
            if disk is not None:
                disk.got_on_at, disk.waits_for = got_on_at, waits_for

    def forget(self, now: float, retention: float) -> None:
        with self._lock:
            self._disks = {
                key: disk
                for key, disk in self._disks.items()
                if disk.ended is None or now - disk.ended < retention
            }

    def collect(self) -> Iterator[Metric]:
        """A sample for each state that a disk has been in; its progress until it ends."""
        family = _family(
            "disk_state", "1 for the state the disk is in, 0 once left.", ("vm", "disk", "state")
        )
        last = _family(
            "last_progress_timestamp_seconds",
            "When the disk last got on, since 1970.",
            ("vm", "disk"),
        )
        stalled = _family(
            "stalled_seconds",
            "How long the disk has not got on, by what it waits for; 0 while it does.",
            ("vm", "disk", "waits_for"),
        )
        now, to_wall = self._monotonic(), self._wall() - self._monotonic()
        with self._lock:
            for key, disk in self._disks.items():
                for state in sorted(disk.seen):
                    family.add_metric((*key, state), state == disk.state)
                if disk.got_on_at is None or disk.ended is not None:
                    continue
                last.add_metric(key, round(disk.got_on_at + to_wall, 3))
                for cause in WaitsFor:
                    waited = now - disk.got_on_at if disk.waits_for is cause else 0.0
                    stalled.add_metric((*key, cause.value), round(waited, 3))
        yield from (family, last, stalled)


def label(value: str) -> str:
    """A label's value that every scrape and dashboard can carry, of bounded length."""
    return printable(value)[:MAX_LABEL]


def _gauge(registry: prom.CollectorRegistry, name: str, documentation: str) -> prom.Gauge:
    return prom.Gauge(PREFIX + name, documentation, registry=registry)


def _counter(
    registry: prom.CollectorRegistry, name: str, documentation: str, *labels: str
) -> prom.Counter:
    return prom.Counter(PREFIX + name, documentation, labels, registry=registry)


def _family(name: str, documentation: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, documentation, labels=labels)
