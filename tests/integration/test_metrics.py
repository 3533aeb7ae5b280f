"""Both ends scraped during a transfer: what operations need is there, and moves."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import MIB, make_data_disk, make_disk
from processes import Metrics, Pair, Running, fetch, scrape, wait_until

SIZE = 40 * MIB
VM = "web01"

SENDER_METRICS = (
    *("build_info", "disk_size_bytes", "disk_remaining_bytes", "acked_bytes_total"),
    *("last_progress_timestamp_seconds", "transfer_state", "read_bytes_total"),
    *("skipped_bytes_total", "payload_bytes_total", "wire_bytes_total"),
    *("ack_latency_seconds_count", "stage_busy_seconds_total"),
)
RECEIVER_METRICS = (
    *("build_info", "datastore_size_bytes", "datastore_free_bytes", "datastore_reserved_bytes"),
    *("written_bytes_total", "skipped_bytes_total", "write_duration_seconds_count"),
    *("fsync_duration_seconds_count", "inflight_bytes", "active_connections", "disk_state"),
    *("verified_bytes_total", "verify_failures_total", "auth_failures_total"),
    "records_rejected_total",
)


def sender_metrics_url(sending: Running) -> str:
    """Where a sender that was started with ``--http`` serves its metrics."""
    wait_until(lambda: "metrics on " in sending.stderr, "the sender serves metrics")
    found = re.search(r"metrics on (\S+)", sending.stderr)
    assert found
    return found[1]


def moves(look: Callable[[], float]) -> None:
    first = look()
    wait_until(lambda: look() > first, "it grows", timeout=10)


def promtool_accepts(metrics: Metrics) -> None:
    """Let Prometheus' own linter judge names, help and types."""
    checked = subprocess.run(
        ("promtool", "check", "metrics"),
        input=metrics.text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.fixture
def sending(paired: Pair, tmp_path: Path) -> Running:
    """A slow transfer of data that does not compress, under way."""
    source = make_data_disk(tmp_path / "disk.raw", SIZE)
    options = ("--limit", "6MB", "--http", "127.0.0.1:0")
    return paired.start_send(source, vm=VM, options=options)


def test_both_ends_tell_of_a_transfer_while_it_runs(paired: Pair, sending: Running) -> None:
    url = sender_metrics_url(sending)
    moves(lambda: scrape(url).value("flatship_sender_wire_bytes_total"))
    moves(lambda: scrape(url).value("flatship_sender_acked_bytes_total"))
    moves(lambda: -scrape(url).value("flatship_sender_disk_remaining_bytes"))
    moves(lambda: paired.receiver.metrics().value("flatship_receiver_written_bytes_total"))

    ours, theirs = scrape(url), paired.receiver.metrics()
    for metrics in (ours, theirs):
        promtool_accepts(metrics)
    missing = {f"flatship_sender_{name}" for name in SENDER_METRICS} - ours.names
    missing |= {f"flatship_receiver_{name}" for name in RECEIVER_METRICS} - theirs.names
    assert not missing
    assert ours.value("flatship_sender_disk_size_bytes") == SIZE
    assert ours.value("flatship_sender_transfer_state", state="sending") == 1
    assert ours.value("flatship_sender_ack_latency_seconds_count") > 0
    assert theirs.value("flatship_receiver_active_connections") == 4
    assert theirs.value("flatship_receiver_disk_state", vm=VM, state="receiving") == 1
    for metrics in (ours, theirs):
        assert not {"job", "instance"} & {
            label for _, labels, _ in metrics.samples for label in labels
        }

    assert fetch(url.replace("/metrics", "/healthz"))
    assert fetch(paired.receiver.metrics_url.replace("/metrics", "/healthz")).startswith("ok")
    sending.wait().expect(0)

    after = paired.receiver.metrics()
    assert after.value("flatship_receiver_written_bytes_total") == SIZE
    assert after.value("flatship_receiver_verified_bytes_total") == SIZE
    assert after.value("flatship_receiver_inflight_bytes") == 0
    assert after.value("flatship_receiver_datastore_reserved_bytes") == 0
    assert after.value("flatship_receiver_disk_state", vm=VM, state="complete") == 1
    wait_until(
        lambda: paired.receiver.metrics().value("flatship_receiver_active_connections") == 0,
        "connections are counted down",
    )


def test_what_is_skipped_is_counted_at_both_ends(paired: Pair, tmp_path: Path) -> None:
    run = paired.send(make_disk(tmp_path / "disk.raw", SIZE), vm=VM).expect(0)
    skipped = run.disk["bytes"]["skipped"]
    theirs = paired.receiver.metrics()
    assert theirs.value("flatship_receiver_skipped_bytes_total") >= sum(skipped.values())
    assert theirs.value("flatship_receiver_written_bytes_total") <= run.disk["bytes"]["sent"]


def test_after_interrupted_transfers_nothing_is_in_flight(paired: Pair, sending: Running) -> None:
    moves(lambda: paired.receiver.metrics().value("flatship_receiver_written_bytes_total"))
    sending.kill()
    wait_until(
        lambda: paired.receiver.metrics().value("flatship_receiver_active_connections") == 0,
        "connections are counted down",
    )
    after = paired.receiver.metrics()
    assert after.value("flatship_receiver_inflight_bytes") == 0
    assert after.value("flatship_receiver_datastore_reserved_bytes") == 0


def test_metrics_of_a_receiver_that_has_done_nothing(paired: Pair) -> None:
    metrics = paired.receiver.metrics()
    promtool_accepts(metrics)
    assert metrics.value("flatship_receiver_datastore_free_bytes", datastore="ds") > 0


def fingerprint_of(pair: Pair) -> str:
    """The sender's, as the receiver lists it."""
    (sender,) = (pair.receiver.run("senders", "list").expect(0)).stdout.splitlines()
    return sender.split()[0]
