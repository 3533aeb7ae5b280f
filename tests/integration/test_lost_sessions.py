"""A receiver that goes away and comes back, while one command of the sender goes on."""

import re
import shlex
import signal
import time
from pathlib import Path

import pytest
from disks import MIB, make_data_disk, same_content
from processes import Pair, Running, run_program, wait_until

SIZE = 24 * MIB
VM = "web01"
SLOWLY = ("--limit", "8MB", "--patience", "10m")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_data_disk(tmp_path / "disk.raw", SIZE)


def half_way(pair: Pair, source: Path, *options: str) -> Running:
    """Start to send ``source`` slowly, and return when a part of it has been written."""
    return pair.start_until(SIZE // 8, source, vm=VM, options=(*SLOWLY, *options))


def until_it_waits(sending: Running) -> None:
    wait_until(lambda: "waiting for receiver esx: connection lost (" in sending.stderr, "it waits")


def test_a_command_outlives_a_receiver_that_is_killed_and_started_again(
    paired: Pair, source: Path
) -> None:
    sending = half_way(paired, source)
    paired.receiver.kill()
    until_it_waits(sending)
    assert re.search(
        r"next try in \d+s, giving up in (10m|9m \d\ds)|trying now, giving up", sending.stderr
    )
    assert not sending.ended
    paired.receiver.start()
    run = sending.wait().expect(0)
    assert run.disk["published"]
    assert run.json["reconnections"] == 1
    assert "esx: connected again" in run.stderr
    assert "vmdk: failed" not in run.stderr
    assert same_content(source, paired.receiver.flat(VM), SIZE)
    paired.receiver.verify(VM, "", "--against", source).expect(0)


def test_a_command_outlives_a_receiver_that_is_restarted_in_good_order(
    paired: Pair, source: Path
) -> None:
    sending = half_way(paired, source)
    paired.receiver.stop()
    until_it_waits(sending)
    assert "shutting down" in sending.stderr
    paired.receiver.start()
    run = sending.wait().expect(0)
    assert same_content(source, paired.receiver.flat(VM), SIZE)
    assert run.disk["published"]


def test_a_command_outlives_more_than_one_loss(paired: Pair, source: Path) -> None:
    sending = half_way(paired, source)
    paired.receiver.kill()
    until_it_waits(sending)
    paired.receiver.start()
    wait_until(lambda: "esx: connected again" in sending.stderr, "it is connected again")
    paired.receiver.kill()
    wait_until(lambda: sending.stderr.count("waiting for receiver") >= 2, "it waits again")
    paired.receiver.start()
    run = sending.wait().expect(0)
    assert run.json["reconnections"] == 2
    assert same_content(source, paired.receiver.flat(VM), SIZE)


def test_a_disk_that_is_published_before_the_loss_is_not_sent_again(
    paired: Pair, tmp_path: Path, source: Path
) -> None:
    small = make_data_disk(tmp_path / "small.raw", MIB, seed=2)
    sending = paired.start_send(small, source, vm=VM, options=SLOWLY)
    wait_until(lambda: paired.receiver.descriptor(VM).exists(), "the small disk is published")
    inode = paired.receiver.flat(VM).stat().st_ino
    wait_until(lambda: re.search(rf"{VM}/{VM}\.vmdk: published", sending.stderr), "it is told")
    paired.receiver.kill()
    until_it_waits(sending)
    paired.receiver.start()
    run = sending.wait().expect(0)
    assert all(disk["published"] for disk in run.disks)
    assert run.disks[0]["bytes"]["sent"] == MIB
    assert paired.receiver.flat(VM).stat().st_ino == inode
    assert same_content(source, paired.receiver.flat(VM, f"{VM}_1"), SIZE)


def test_when_patience_ends_the_command_that_goes_on_is_told_and_does(
    paired: Pair, source: Path
) -> None:
    sending = half_way(paired, source, "--patience", "2s")
    paired.receiver.kill()
    run = sending.wait(20).expect(3)
    assert run.disk["error"]["exit_code"] == 3
    assert re.search(r"nothing got on for \ds; missing: \S+ MiB of 24\.0 MiB of web01", run.error)
    again = shlex.split(run.error.split("run: ")[1])
    assert again == list(run.command)
    paired.receiver.start()
    assert run_program(*again).expect(0).disk["published"]
    assert same_content(source, paired.receiver.flat(VM), SIZE)


def test_without_patience_a_loss_is_the_end(paired: Pair, source: Path) -> None:
    sending = half_way(paired, source, "--patience", "0")
    paired.receiver.kill()
    run = sending.wait(10).expect(3)
    assert "waiting for receiver" not in run.stderr
    assert run.disk["state"] == "failed"


def test_a_first_connection_that_cannot_be_made_is_not_waited_for(
    paired: Pair, source: Path
) -> None:
    paired.receiver.stop()
    started = time.monotonic()
    run = paired.send(source, vm=VM).expect(5)
    assert time.monotonic() - started < 5
    assert "cannot be reached" in run.error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_waits_is_interrupted_at_once(
    paired: Pair, source: Path, number: signal.Signals
) -> None:
    sending = half_way(paired, source)
    paired.receiver.kill()
    until_it_waits(sending)
    asked = time.monotonic()
    sending.signal(number)
    run = sending.wait(5).expect(130)
    assert time.monotonic() - asked < 2
    assert run.disk["state"] == "cancelled"
    assert "to go on where it stopped, run: " in run.stderr
