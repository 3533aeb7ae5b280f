import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_receiver import metrics as module
from flatship_receiver.datastore_space import SPACE_FRESH, SPACE_STALE, SpaceSample
from flatship_receiver.metrics import (
    AUTH_REASONS,
    CONTENT_TYPE,
    REJECT_REASONS,
    RETENTION,
    ReceiverMetrics,
)
from flatship_receiver.stalls import WaitsFor

HOSTILE = 'a"b\\c\nd\x1b[31m{}é\udcff\u202e'
WALL = 1_700_000_000.0
SPACE = SpaceSample(size=100, free=40, reserved=10)


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def metrics(clock: Clock) -> ReceiverMetrics:
    return ReceiverMetrics("0.1.0", monotonic=clock, wall=lambda: WALL)


def samples(metrics: ReceiverMetrics) -> dict[str, float]:
    body, content_type = metrics.render()
    assert content_type == CONTENT_TYPE
    lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
    values = dict(line.rsplit(" ", 1) for line in lines)
    assert len(values) == len(lines), "a series occurs twice"
    return {series: float(value) for series, value in values.items()}


def check_with_promtool(body: bytes) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "install the prometheus package: promtool is what proves the output"
    done = subprocess.run(
        [promtool, "check", "metrics"], input=body, capture_output=True, check=False, timeout=60
    )
    complaints = done.stdout.decode() + done.stderr.decode()
    assert (done.returncode, complaints) == (0, "")


class Shelf:
    """A datastore whose space can be changed, missing, or never told."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: SpaceSample | Exception = SPACE
        self._goes_on = threading.Event()
        self._goes_on.set()

    def __call__(self) -> SpaceSample:
        self.asked += 1
        self._goes_on.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    @contextmanager
    def hanging(self) -> Iterator[None]:
        self._goes_on.clear()
        try:
            yield
        finally:
            self._goes_on.set()


def test_promtool_accepts_everything_with_hostile_names(metrics: ReceiverMetrics) -> None:
    store = metrics.datastore(HOSTILE, lambda: SPACE)
    store.written(5)
    store.skipped(6)
    store.write_seconds(0.1)
    store.fsync_seconds(0.2)
    metrics.disk_state(HOSTILE, HOSTILE, "receiving")
    metrics.auth_failure(HOSTILE)
    metrics.record_rejected("codec")
    metrics.verified(1)
    metrics.verify_failed()
    check_with_promtool(metrics.render()[0])


def test_promtool_accepts_a_receiver_at_rest(metrics: ReceiverMetrics) -> None:
    check_with_promtool(metrics.render()[0])


def test_a_datastore_tells_its_space(metrics: ReceiverMetrics) -> None:
    metrics.datastore("nfs1", lambda: SPACE)
    shown = samples(metrics)
    assert shown['flatship_receiver_datastore_up{datastore="nfs1"}'] == 1
    assert shown['flatship_receiver_datastore_size_bytes{datastore="nfs1"}'] == 100
    assert shown['flatship_receiver_datastore_free_bytes{datastore="nfs1"}'] == 40
    assert shown['flatship_receiver_datastore_reserved_bytes{datastore="nfs1"}'] == 10


@pytest.mark.parametrize(
    "error", [DatastoreError("gone", ErrorCode.DATASTORE_MISSING), OSError("stale handle")]
)
def test_a_missing_datastore_is_down_and_does_not_hide_the_others(
    metrics: ReceiverMetrics, error: Exception
) -> None:
    lost = Shelf()
    lost.answer = error
    metrics.datastore("lost", lost)
    metrics.datastore("nfs1", lambda: SPACE)
    shown = samples(metrics)
    assert shown['flatship_receiver_datastore_up{datastore="lost"}'] == 0
    assert 'flatship_receiver_datastore_size_bytes{datastore="lost"}' not in shown
    assert shown['flatship_receiver_datastore_free_bytes{datastore="nfs1"}'] == 40


def test_space_is_asked_at_most_once_a_second(metrics: ReceiverMetrics, clock: Clock) -> None:
    shelf = Shelf()
    metrics.datastore("nfs1", shelf)
    samples(metrics)
    shelf.answer = SpaceSample(100, 39, 10)
    assert samples(metrics)['flatship_receiver_datastore_free_bytes{datastore="nfs1"}'] == 40
    assert shelf.asked == 1
    clock.now += SPACE_FRESH
    assert samples(metrics)['flatship_receiver_datastore_free_bytes{datastore="nfs1"}'] == 39


def test_a_hanging_datastore_is_asked_once_and_its_last_answer_ages(
    metrics: ReceiverMetrics, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatship_receiver.datastore_space.SPACE_PATIENCE", 0.01)
    shelf = Shelf()
    metrics.datastore("nfs1", shelf)
    up = 'flatship_receiver_datastore_up{datastore="nfs1"}'
    assert samples(metrics)[up] == 1
    with shelf.hanging():
        clock.now += SPACE_FRESH
        assert samples(metrics)[up] == 1
        clock.now += SPACE_STALE - SPACE_FRESH - 1
        assert samples(metrics)[up] == 1
        clock.now += 1
        assert samples(metrics)[up] == 0
        assert shelf.asked == 2  # the first, and the one that hangs


def test_counts_by_datastore(metrics: ReceiverMetrics) -> None:
    one, two = metrics.datastore("one"), metrics.datastore("two")
    one.written(5)
    one.skipped(7)
    one.write_seconds(0.002)
    one.fsync_seconds(3)
    metrics.datastore("one").written(1)
    two.written(100)
    shown = samples(metrics)
    assert shown['flatship_receiver_written_bytes_total{datastore="one"}'] == 6
    assert shown['flatship_receiver_written_bytes_total{datastore="two"}'] == 100
    assert shown['flatship_receiver_skipped_bytes_total{datastore="one"}'] == 7
    write = "flatship_receiver_write_duration_seconds_bucket"
    assert shown[f'{write}{{datastore="one",le="0.001"}}'] == 0
    assert shown[f'{write}{{datastore="one",le="0.0025"}}'] == 1
    assert shown['flatship_receiver_fsync_duration_seconds_sum{datastore="one"}'] == 3
    assert not [series for series in shown if "_created" in series]


def test_gauges_go_up_and_down(metrics: ReceiverMetrics) -> None:
    metrics.connections(2)
    metrics.connections(-1)
    metrics.inflight(1000)
    metrics.inflight(-400)
    shown = samples(metrics)
    assert shown["flatship_receiver_active_connections"] == 1
    assert shown["flatship_receiver_inflight_bytes"] == 600


def test_proofs_are_counted(metrics: ReceiverMetrics) -> None:
    metrics.verified(10)
    metrics.verified(5)
    metrics.verify_failed()
    shown = samples(metrics)
    assert shown["flatship_receiver_verified_bytes_total"] == 15
    assert shown["flatship_receiver_verify_failures_total"] == 1


@pytest.mark.parametrize(
    ("name", "count", "reasons"),
    [
        ("auth_failures_total", ReceiverMetrics.auth_failure, AUTH_REASONS),
        ("records_rejected_total", ReceiverMetrics.record_rejected, REJECT_REASONS),
    ],
)
def test_reasons_start_from_0_and_unknown_ones_are_other(
    metrics: ReceiverMetrics,
    name: str,
    count: Callable[[ReceiverMetrics, str], None],
    reasons: tuple[str, ...],
) -> None:
    def shown() -> dict[str, float]:
        return {s: v for s, v in samples(metrics).items() if name in s}

    series = f'flatship_receiver_{name}{{reason="%s"}}'
    assert shown() == {series % reason: 0 for reason in reasons}
    count(metrics, reasons[0])
    count(metrics, "something an attacker chose")
    assert {s: v for s, v in shown().items() if v} == {
        series % reasons[0]: 1,
        series % "other": 1,
    }


def state(name: str, disk: str = "root") -> str:
    return f'flatship_receiver_disk_state{{disk="{disk}",state="{name}",vm="web01"}}'


def test_a_disk_s_state_is_1_and_those_it_has_left_are_0(metrics: ReceiverMetrics) -> None:
    metrics.disk_state("web01", "root", "receiving")
    assert samples(metrics)[state("receiving")] == 1
    metrics.disk_state("web01", "root", "proving")
    shown = samples(metrics)
    assert (shown[state("receiving")], shown[state("proving")]) == (0, 1)


def test_a_disk_that_does_not_get_on_is_told_until_it_ends(
    metrics: ReceiverMetrics, clock: Clock
) -> None:
    def told() -> dict[str, float]:
        return {
            series.partition("{")[0].removeprefix("flatship_receiver_")
            + series.partition("waits_for=")[2].rstrip("}"): value
            for series, value in samples(metrics).items()
            if "stalled" in series or "last_progress" in series
        }

    metrics.disk_progress("web", "web", clock.now, None)  # nobody knows it
    assert told() == {}
    metrics.disk_state("web", "web", "receiving")
    metrics.disk_progress("web", "web", clock.now - 12.5, WaitsFor.STORAGE)
    assert told() == {
        "last_progress_timestamp_seconds": WALL - 12.5,
        'stalled_seconds"storage"': 12.5,
        'stalled_seconds"sender"': 0,
    }
    metrics.disk_progress("web", "web", clock.now, None)
    assert set(told().values()) == {WALL, 0}
    metrics.disk_state("web", "web", "complete")
    assert told() == {}


def test_series_of_a_disk_that_ended_go_and_of_one_at_work_stay(
    metrics: ReceiverMetrics, clock: Clock
) -> None:
    metrics.disk_state("web01", "root", "complete")
    metrics.disk_state("web01", "data", "receiving")
    clock.now += RETENTION - 1
    assert samples(metrics)[state("complete")] == 1
    clock.now += 1
    shown = samples(metrics)
    assert [series for series in shown if "disk_state" in series] == [state("receiving", "data")]


def test_a_disk_that_begins_again_is_not_forgotten(metrics: ReceiverMetrics, clock: Clock) -> None:
    metrics.disk_state("web01", "root", "failed")
    metrics.disk_state("web01", "root", "receiving")
    metrics.forget(clock.now + 10 * RETENTION)
    assert samples(metrics)[state("receiving")] == 1


def test_the_number_of_disks_with_series_is_bounded(
    metrics: ReceiverMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_DISKS", 3)
    for number in range(5):
        metrics.disk_state("web01", f"d{number}", "receiving")
    shown = [series for series in samples(metrics) if "disk_state" in series]
    assert shown == [state("receiving", f"d{number}") for number in (2, 3, 4)]


def test_build_and_process_are_told(metrics: ReceiverMetrics) -> None:
    shown = samples(metrics)
    assert shown['flatship_receiver_build_info{protocol="1",version="0.1.0"}'] == 1
    assert shown["process_resident_memory_bytes"] > 0
