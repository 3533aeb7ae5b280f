import shutil
import subprocess
from typing import Any

import pytest

from flatship_protocol.errors import ErrorCode, SourceBusy
from flatship_sender.metrics import CONTENT_TYPE, MAX_LABEL, RETENTION, SenderMetrics
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState
from flatship_sender.stalls import Stall, WaitsFor

HOSTILE = 'a"b\\c\nd\x1b[31m{}é\udcff\u202e'
WALL = 1_700_000_000.0


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def metrics(clock: Clock) -> SenderMetrics:
    return SenderMetrics("0.1.0", monotonic=clock, wall=lambda: WALL)


def disk(target: str = "root", **counts: Any) -> DiskProgress:
    return DiskProgress("/dev/vg0/x", target, 1000, **counts)


def transfer(*disks: DiskProgress, receiver: str = "esx1", vm: str = "web01") -> TransferProgress:
    return TransferProgress(receiver, vm, list(disks))


def samples(metrics: SenderMetrics) -> dict[str, float]:
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


def test_promtool_accepts_everything_with_hostile_names(metrics: SenderMetrics) -> None:
    progress = transfer(
        disk(HOSTILE, state=TransferState.SENDING, last_progress=5.0, level=3),
        disk(HOSTILE),
        disk("x" * 1000),
        receiver=HOSTILE,
        vm=HOSTILE,
    )
    progress.disks[0].payload["zstd"] += 5
    metrics.watch(progress)
    metrics.observe_ack(0.2)
    metrics.error(SourceBusy("busy"))
    check_with_promtool(metrics.render()[0])


def test_promtool_accepts_a_sender_without_transfers(metrics: SenderMetrics) -> None:
    check_with_promtool(metrics.render()[0])


def test_counts_of_a_disk_at_work(metrics: SenderMetrics) -> None:
    metrics.watch(
        transfer(
            disk(
                state=TransferState.SENDING,
                skipped_hole=100,
                skipped_zero=50,
                acked=250,
                level=7,
                last_progress=990.0,
            )
        )
    )
    shown = samples(metrics)
    labels = '{disk="root",transfer="web01"}'
    assert shown[f"flatship_sender_disk_size_bytes{labels}"] == 1000
    assert shown[f"flatship_sender_disk_remaining_bytes{labels}"] == 600
    assert shown[f"flatship_sender_acked_bytes_total{labels}"] == 250
    assert shown[f"flatship_sender_compression_level{labels}"] == 7
    assert shown[f"flatship_sender_last_progress_timestamp_seconds{labels}"] == WALL - 10


def test_a_disk_without_progress_has_no_time_of_progress(metrics: SenderMetrics) -> None:
    metrics.watch(transfer(disk()))
    shown = samples(metrics)
    assert not [series for series in shown if "last_progress" in series]
    assert not [series for series in shown if "compression_level" in series]


def test_exactly_one_state_of_a_disk_is_1(metrics: SenderMetrics) -> None:
    progress = transfer(disk(state=TransferState.PROVING))
    metrics.watch(progress)
    for state in TransferState:
        progress.disks[0].state = state
        shown = {
            series: value
            for series, value in samples(metrics).items()
            if series.startswith("flatship_sender_transfer_state")
        }
        assert len(shown) == len(TransferState)
        assert [series for series, value in shown.items() if value] == [
            f'flatship_sender_transfer_state{{disk="root",state="{state}",transfer="web01"}}'
        ]


def test_totals_add_up_over_disks_and_transfers(metrics: SenderMetrics) -> None:
    one = transfer(disk("a", read=10, skipped_hole=1, skipped_zero=2, wire=7), disk("b", read=20))
    one.disks[0].payload["zstd"] += 4
    one.disks[1].payload["raw"] += 5
    one.disks[1].stage_seconds["read"] += 0.5
    two = transfer(disk("a", read=100, wire=3), vm="db", receiver="esx2")
    two.session_wire = 9
    metrics.watch(one)
    metrics.watch(two)
    shown = samples(metrics)
    assert shown["flatship_sender_read_bytes_total"] == 130
    assert shown['flatship_sender_skipped_bytes_total{method="hole"}'] == 1
    assert shown['flatship_sender_skipped_bytes_total{method="zero"}'] == 2
    assert shown['flatship_sender_payload_bytes_total{codec="zstd",receiver="esx1"}'] == 4
    assert shown['flatship_sender_payload_bytes_total{codec="raw",receiver="esx1"}'] == 5
    assert shown['flatship_sender_wire_bytes_total{receiver="esx1"}'] == 7
    assert shown['flatship_sender_wire_bytes_total{receiver="esx2"}'] == 9
    assert shown['flatship_sender_stage_busy_seconds_total{stage="read"}'] == 0.5
    assert shown['flatship_sender_stage_busy_seconds_total{stage="seal"}'] == 0


def test_a_limit_is_told_of_transfers_that_have_one(metrics: SenderMetrics) -> None:
    limited = transfer(disk(), receiver="esx1")
    limited.limit = 2_500_000
    metrics.watch(limited)
    metrics.watch(transfer(disk(), vm="db", receiver="esx2"))
    told = {series: value for series, value in samples(metrics).items() if "link_limit" in series}
    assert told == {
        'flatship_sender_link_limit_bytes_per_second{receiver="esx1",transfer="web01"}': 2_500_000
    }


def test_literal_bytes_are_those_that_compression_gets(
    metrics: SenderMetrics, clock: Clock
) -> None:
    done = TransferState.PUBLISHED
    metrics.watch(transfer(disk(sent=100, kept=30, state=done), disk("b", sent=5, state=done)))
    series = 'flatship_sender_literal_bytes_total{receiver="esx1"}'
    assert samples(metrics)[series] == 75
    clock.now += RETENTION
    assert samples(metrics)[series] == 75


def test_series_of_a_finished_transfer_go_and_totals_stay(
    metrics: SenderMetrics, clock: Clock
) -> None:
    metrics.watch(transfer(disk(state=TransferState.PUBLISHED, read=10, wire=7)))
    assert 'flatship_sender_disk_size_bytes{disk="root",transfer="web01"}' in samples(metrics)
    clock.now += RETENTION - 1
    assert 'flatship_sender_disk_size_bytes{disk="root",transfer="web01"}' in samples(metrics)
    clock.now += 1
    shown = samples(metrics)
    assert not [series for series in shown if "transfer=" in series]
    assert shown["flatship_sender_read_bytes_total"] == 10
    assert shown['flatship_sender_wire_bytes_total{receiver="esx1"}'] == 7


def test_series_of_a_transfer_with_one_unfinished_disk_stay(
    metrics: SenderMetrics, clock: Clock
) -> None:
    metrics.watch(
        transfer(
            disk("a", state=TransferState.FAILED),
            disk("b", state=TransferState.SENDING),
        )
    )
    samples(metrics)
    clock.now += 10 * RETENTION
    assert 'flatship_sender_disk_size_bytes{disk="a",transfer="web01"}' in samples(metrics)


def test_a_second_transfer_of_the_same_name_replaces_the_series_and_adds_to_totals(
    metrics: SenderMetrics,
) -> None:
    metrics.watch(transfer(disk(read=10, acked=10)))
    metrics.watch(transfer(disk(read=1, acked=1)))
    shown = samples(metrics)
    assert shown['flatship_sender_acked_bytes_total{disk="root",transfer="web01"}'] == 1
    assert shown["flatship_sender_read_bytes_total"] == 11


def test_a_stall_is_told_by_its_length_and_what_is_waited_for(
    metrics: SenderMetrics, clock: Clock
) -> None:
    progress = transfer(disk())
    metrics.watch(progress)

    def stalled() -> dict[str, float]:
        return {
            waits_for: samples(metrics)[
                f'flatship_sender_stalled_seconds{{transfer="web01",waits_for="{waits_for}"}}'
            ]
            for waits_for in ("receiver", "storage", "link", "source")
        }

    quiet = {"receiver": 0, "storage": 0, "link": 0, "source": 0}
    assert stalled() == quiet
    progress.stall = Stall(clock.now - 12.5, WaitsFor.STORAGE)
    assert stalled() == quiet | {"storage": 12.5}
    progress.stall = None
    assert stalled() == quiet


def test_what_is_sent_again_is_counted_by_its_reason(metrics: SenderMetrics) -> None:
    metrics.watch(transfer(disk(resent=30, changed=5), disk("b", changed=2)))
    found = samples(metrics)
    name = "flatship_sender_resent_bytes_total"
    assert found[f'{name}{{reason="lost",receiver="esx1"}}'] == 30
    assert found[f'{name}{{reason="changed",receiver="esx1"}}'] == 7


def test_errors_are_counted_by_wire_code_and_start_from_0(metrics: SenderMetrics) -> None:
    shown = samples(metrics)
    assert {series for series in shown if series.startswith("flatship_sender_errors_total")} == {
        f'flatship_sender_errors_total{{reason="{code.name.lower()}"}}' for code in ErrorCode
    }
    metrics.error(SourceBusy("busy"))
    metrics.error(OSError("no such device"))
    shown = samples(metrics)
    assert shown['flatship_sender_errors_total{reason="source_failed"}'] == 1
    assert shown['flatship_sender_errors_total{reason="internal"}'] == 1


def test_acknowledgements_fall_into_the_histogram(metrics: SenderMetrics) -> None:
    metrics.observe_ack(0.03)
    shown = samples(metrics)
    assert shown['flatship_sender_ack_latency_seconds_bucket{le="0.025"}'] == 0
    assert shown['flatship_sender_ack_latency_seconds_bucket{le="0.05"}'] == 1
    assert not [series for series in shown if "_created" in series]


def test_build_and_process_are_told(metrics: SenderMetrics) -> None:
    shown = samples(metrics)
    assert shown['flatship_sender_build_info{protocol="1",version="0.1.0"}'] == 1
    assert shown["process_resident_memory_bytes"] > 0
    assert "process_cpu_seconds_total" in shown


def test_labels_are_bounded_and_never_those_that_prometheus_renames(
    metrics: SenderMetrics,
) -> None:
    metrics.watch(transfer(disk("x" * 1000)))
    body = metrics.render()[0].decode()
    assert f'disk="{"x" * MAX_LABEL}"' in body
    assert "job=" not in body
    assert "instance=" not in body


def test_two_senders_in_one_process_share_nothing() -> None:
    one, two = SenderMetrics("1"), SenderMetrics("1")
    one.error(OSError())
    assert samples(two)['flatship_sender_errors_total{reason="internal"}'] == 0
