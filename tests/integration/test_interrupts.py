"""One end stops half way, politely or not: nothing half done is visible, and trying again works."""

import signal
import socket
import time
from pathlib import Path

import pytest
from disks import MIB, make_data_disk, make_disk
from processes import Pair, Running, wait_until

SIZE = 40 * MIB
VM = "web01"
SLOWLY = ("--limit", "16MB")
INCOMPLETE = ".flatship-part"
PUBLISHED = [f"{VM}-flat.vmdk", f"{VM}.vmdk"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_data_disk(tmp_path / "disk.raw", SIZE)


def half_way(pair: Pair, source: Path, *options: str) -> Running:
    """Start to send ``source`` slowly, and return when a part of it has been written."""
    return pair.start_until(SIZE // 2, source, vm=VM, options=(*SLOWLY, *options))


def nothing_visible(pair: Pair) -> None:
    assert pair.receiver.files(VM) == [f"{VM}-flat.vmdk{INCOMPLETE}", f"{VM}.vmdk{INCOMPLETE}"]


def same_command_goes_on(pair: Pair, source: Path) -> None:
    run = pair.send(source, vm=VM).expect(0)
    assert run.disk["published"]
    bytes_ = run.disk["bytes"]
    assert bytes_["held"] > 0
    assert bytes_["held"] + bytes_["sent"] + sum(bytes_["skipped"].values()) == SIZE
    assert pair.receiver.files(VM) == PUBLISHED
    pair.receiver.verify(VM, "", "--against", source).expect(0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sender_goes_on_later(
    paired: Pair, source: Path, number: signal.Signals
) -> None:
    sending = half_way(paired, source)
    asked = time.monotonic()
    sending.signal(number)
    run = sending.wait(10).expect(130)
    assert time.monotonic() - asked < 7
    assert run.disk["state"] == "cancelled"
    assert "interrupted; nothing was published" in run.stderr
    assert "no progress" not in run.stderr
    nothing_visible(paired)
    same_command_goes_on(paired, source)


def test_a_second_signal_ends_the_sender_at_once(paired: Pair, source: Path) -> None:
    sending = half_way(paired, source)
    sending.signal(signal.SIGINT)
    time.sleep(0.1)  # two signals of one number that are both pending are one
    sending.signal(signal.SIGINT)
    assert sending.wait(5).exit_code in (130, -signal.SIGINT)
    nothing_visible(paired)
    same_command_goes_on(paired, source)


def test_a_sender_that_waits_for_an_answer_can_be_interrupted(paired: Pair, source: Path) -> None:
    """Something listens where the receiver was, and says nothing."""
    paired.receiver.stop()
    host, _, port = paired.receiver.address.rpartition(":")
    with socket.create_server((host, int(port))) as silent:
        silent.settimeout(20)
        sending = paired.start_send(source, vm=VM)
        caller, _ = silent.accept()
        with caller:
            sending.signal(signal.SIGINT)
            assert sending.wait(10).expect(130).disk["state"] == "cancelled"


def test_an_interruption_during_the_proof_publishes_nothing_or_all(
    paired: Pair, tmp_path: Path
) -> None:
    source = make_disk(tmp_path / "disk.raw", SIZE)
    sending = paired.start_send(source, vm=VM)
    wait_until(lambda: "proving" in sending.stderr or sending.ended, "the proof begins")
    sending.signal(signal.SIGTERM)
    run = sending.wait(10)
    assert run.exit_code in (0, 130)
    wait_until(lambda: _is_all_or_nothing(paired.receiver.files(VM)), "all or nothing is there")
    if run.exit_code == 0:
        assert paired.receiver.files(VM) == PUBLISHED


def _is_all_or_nothing(files: list[str]) -> bool:
    return files == PUBLISHED or all(name.endswith(INCOMPLETE) for name in files)


def test_a_receiver_that_is_stopped_says_so_and_goes_on_later(paired: Pair, source: Path) -> None:
    sending = half_way(paired, source)
    paired.receiver.stop()
    run = sending.wait(10).expect(3)
    assert "shutting down" in run.error
    assert run.disk["state"] == "failed"
    nothing_visible(paired)
    paired.receiver.start()
    same_command_goes_on(paired, source)


def test_what_a_killed_sender_left_is_gone_on_with(paired: Pair, source: Path) -> None:
    sending = half_way(paired, source)
    sending.kill()
    nothing_visible(paired)
    same_command_goes_on(paired, source)


def test_a_sender_that_is_killed_makes_way_for_the_next_at_once(paired: Pair, source: Path) -> None:
    half_way(paired, source).kill()
    same_command_goes_on(paired, source)


def test_a_receiver_that_is_killed_takes_the_disk_when_it_is_back(
    paired: Pair, source: Path
) -> None:
    sending = half_way(paired, source)
    paired.receiver.kill()
    run = sending.wait(10).expect(3)
    assert run.error
    assert not paired.receiver.descriptor(VM).exists()
    paired.receiver.start()
    same_command_goes_on(paired, source)


def test_a_stopped_sender_is_not_taken_for_a_finished_one(paired: Pair, source: Path) -> None:
    """SIGSTOP and SIGCONT, as when a laptop sleeps: the transfer goes on."""
    sending = half_way(paired, source)
    sending.signal(signal.SIGSTOP)
    time.sleep(1)  # long enough for everything in flight to arrive
    assert not paired.receiver.descriptor(VM).exists()
    sending.signal(signal.SIGCONT)
    sending.wait().expect(0)
    paired.receiver.verify(VM, "", "--against", source).expect(0)


def test_a_receiver_stops_while_nothing_goes_on(paired: Pair) -> None:
    started = time.monotonic()
    stopped = paired.receiver.stop()
    assert stopped
    assert time.monotonic() - started < 5
    assert "Traceback" not in stopped.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_receiver_obeys_either_signal(paired: Pair, number: signal.Signals) -> None:
    paired.receiver.process.signal(number)
    paired.receiver.wait_stopped()


def test_what_is_incomplete_is_listed_and_can_be_given_up(paired: Pair, source: Path) -> None:
    sending = half_way(paired, source)
    disk = paired.receiver.descriptor(VM)
    busy = paired.receiver.run("discard", disk).expect(11)
    assert "being written by another transfer" in busy.error
    sending.signal(signal.SIGINT)
    sending.wait(10).expect(130)
    listed = paired.receiver.run("list").expect(0).stdout
    assert f"{VM}/{VM}.vmdk  incomplete" in listed
    assert "MiB missing" in listed
    wait_until(lambda: not paired.receiver.run("discard", disk).exit_code, "it is let go")
    assert paired.receiver.files(VM) == []
    paired.receiver.run("discard", disk).expect(10)
    run = paired.send(source, vm=VM).expect(0)
    assert run.disk["bytes"]["held"] == 0
    paired.receiver.run("discard", disk).expect(10)
    assert paired.receiver.files(VM) == PUBLISHED
    known = paired.receiver.run("list", "--json").expect(0).json
    assert (known["state"], known["held"], known["vm"]) == ("complete", SIZE, VM)
