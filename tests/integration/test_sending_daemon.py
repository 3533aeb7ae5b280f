"""The daemon with real workers, a real receiver and small disks."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import MIB, make_disk, same_content
from processes import SENDER, Pair, run_program, scrape, wait_until
from queue_play import Play
from sending_daemon import SendingDaemon, sending_daemon
from stages import stage

from flatship_sender.queue.model import JobSpec


@pytest.fixture
def daemon(paired: Pair, tmp_path: Path) -> Iterator[SendingDaemon]:
    with sending_daemon(paired.sender.state, tmp_path) as daemon:
        yield daemon


def spec(path: Path, vm: str, **more: object) -> JobSpec:
    return JobSpec(sources=[str(path)], receiver="esx", vm=vm, patience=0, **more)  # type: ignore[arg-type]


def test_jobs_are_sent_and_one_whose_source_is_missing_fails_and_holds_up_no_other(
    daemon: SendingDaemon, paired: Pair, tmp_path: Path
) -> None:
    disk = make_disk(tmp_path / "web.raw", 8 * MIB)
    missing, sent = daemon.put(spec(tmp_path / "gone.raw", "gone"), spec(disk, "web"))
    daemon.start("--jobs", "1")
    wait_until(lambda: {job.state for job in daemon.jobs().values()} <= {"done", "failed"}, "ends")
    jobs = daemon.jobs()
    assert jobs[missing].state == "failed"
    assert jobs[missing].exit_code == 10
    assert "gone.raw does not exist" in (jobs[missing].message or "")
    assert (jobs[sent].state, jobs[sent].results) == ("done", 1)
    assert same_content(disk, paired.receiver.flat("web"), 8 * MIB)
    metrics = scrape(daemon.metrics_url)
    assert metrics.value("flatship_sender_queue_transfers", state="done") == 1
    assert metrics.value("flatship_sender_transfer_state", transfer="web", state="published") == 1
    assert metrics.value("flatship_sender_wire_bytes_total", receiver="esx") > 0
    daemon.stop()


def test_a_killed_daemon_loses_no_job_and_no_job_is_sent_by_two(tmp_path: Path) -> None:
    with stage(tmp_path) as on:
        playing = Play(on, seed=1, jobs=5, kills=5)
        assert playing.run() == 5
        assert playing.attempts >= 5


def test_a_second_daemon_on_a_state_folder_is_refused_by_name_of_the_first(
    daemon: SendingDaemon,
) -> None:
    daemon.start()
    second = run_program(*SENDER, "serve", "--state", daemon.state, "--http", "127.0.0.1:0")
    assert f"in use by another flatship-sender serve (pid {daemon.process.pid})" in second.error
    second.expect(11)


def test_a_daemon_that_is_told_to_leave_queues_what_ran_and_the_next_one_ends_it(
    daemon: SendingDaemon, paired: Pair, tmp_path: Path
) -> None:
    disk = make_disk(tmp_path / "web.raw", 64 * MIB)
    (job,) = daemon.put(spec(disk, "web", limit=1 * MIB))
    daemon.before = ("env", f"NOTIFY_SOCKET={tmp_path / 'notify'}")
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.settimeout(10)
    manager.bind(str(tmp_path / "notify"))
    daemon.start()
    assert manager.recv(4096) == b"READY=1\nSTATUS=1 queued, 0 running"
    assert manager.recv(4096) == b"STATUS=0 queued, 1 running"
    part = paired.receiver.flat("web").with_name("web-flat.vmdk.flatship-part")
    wait_until(part.exists, "the disk is begun")
    daemon.stop()
    assert daemon.jobs()[job].state == "queued"
    assert not daemon.workers()
    assert manager.recv(4096).startswith(b"STOPPING=1\n")
    manager.close()
