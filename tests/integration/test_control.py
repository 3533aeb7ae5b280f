"""Work is given to a real daemon at its socket, by commands and by strangers."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from disks import MIB, make_data_disk
from processes import SENDER, Argument, CompletedRun, Pair, Running, run_program, wait_until
from sending_daemon import SendingDaemon, sending_daemon

from conftest import serving_pair
from flatship_sender.control.client import Daemon

SIZE = 24 * MIB
SLOWLY = ("--limit", "1MB")  # so that there is time to interfere
GOODBYE = 10.0  # seconds in which a worker has left


@dataclass(frozen=True)
class Served:
    """A pair, and the sender's daemon; each test sends VMs of its own name."""

    pair: Pair
    daemon: SendingDaemon
    source: Path

    @property
    def socket(self) -> Path:
        return self.daemon.state / "control.sock"

    def run(self, *arguments: Argument) -> CompletedRun:
        return self.pair.sender.run(*arguments)

    def submit(self, vm: str, *options: Argument, source: Argument = "") -> CompletedRun:
        path = source or self.source
        return self.run("submit", path, "--to", "esx", "--vm", vm, "--json", *options)

    def job(self, vm: str, *options: Argument) -> int:
        """Submit a job; returns its number."""
        number: int = self.submit(vm, *options).expect(0).json["job"]["id"]
        return number

    def state(self, number: int) -> str:
        state: str = self.show(number)["job"]["state"]
        return state

    def show(self, number: int) -> Any:
        return json.loads(Daemon(self.socket).ask("GET", f"/v1/jobs/{number}"))

    def wait_sending(self, number: int) -> None:
        """Wait until a job has bytes on their way."""

        def sending() -> bool:
            snapshot = self.show(number)["snapshot"]
            return snapshot is not None and snapshot["disks"][0]["sent"] > 0

        wait_until(sending, "a part is sent")

    def wait_state(self, number: int, state: str) -> None:
        wait_until(lambda: self.state(number) == state, f"job {number} is {state}")

    def start_send(self, vm: str, *options: Argument) -> Running:
        return self.pair.start_send(self.source, vm=vm, options=options)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    source = make_data_disk(folder / "disk.raw", SIZE)
    with serving_pair(folder) as pair, sending_daemon(pair.sender.state, folder) as daemon:
        daemon.start("--jobs", "3")
        yield Served(pair, daemon, source)


def test_what_is_submitted_is_followed_to_its_publication(served: Served, vm: str) -> None:
    relative = os.path.relpath(served.source)
    submitted = served.submit(vm, source=relative).expect(0).json
    assert submitted["schema_version"] == 1
    assert submitted["job"]["spec"]["sources"] == [str(served.source)]
    number = submitted["job"]["id"]
    followed = served.run("show", str(number), "--follow").expect(0)
    assert followed.stdout.startswith(f"job {number}: done\n")
    assert "published" in followed.stdout
    served.pair.receiver.verify(vm, "", "--against", served.source).expect(0)
    assert f"{number}  done" in served.run("jobs", "--all").expect(0).stdout
    assert vm not in served.run("jobs").expect(0).stdout


def test_the_same_key_is_the_same_job_and_with_other_contents_a_conflict(
    served: Served, vm: str
) -> None:
    options = ("--not-before", "2030-01-01T00:00", "--key", vm)
    first = served.submit(vm, *options).expect(0).json["job"]
    again = served.submit(vm, *options).expect(0).json["job"]
    assert first["id"] == again["id"]
    refused = served.submit(f"{vm}-x", *options).expect(11)
    assert f"job {first['id']}" in refused.error
    served.run("cancel", str(first["id"])).expect(0)


def test_jobs_are_paused_resumed_and_cancelled(served: Served, vm: str) -> None:
    number = str(served.job(vm, "--not-before", "1d"))
    assert served.run("pause", number).expect(0).stdout == f"job {number} paused\n"
    shown = served.run("show", number).expect(0).stdout
    assert f"run: flatship-sender resume {number}" in shown
    assert served.run("resume", number).expect(0).stdout == f"job {number} queued\n"
    served.run("cancel", number).expect(0)
    served.wait_state(int(number), "cancelled")
    refused = served.run("pause", number, "999999").expect(10)
    assert f"job {number} is cancelled" in refused.stderr
    assert "there is no job 999999" in refused.error


def test_a_running_job_is_paused_and_goes_on_with_what_the_receiver_has(
    served: Served, vm: str
) -> None:
    number = served.job(vm, *SLOWLY)
    served.wait_sending(number)
    served.run("pause", str(number)).expect(0)
    served.wait_state(number, "paused")
    served.run("cancel", str(number)).expect(0)
    again = served.job(vm)
    served.run("show", str(again), "--follow").expect(0)
    served.pair.receiver.verify(vm, "", "--against", served.source).expect(0)


def test_what_cannot_be_sent_is_refused_when_it_is_submitted(served: Served, vm: str) -> None:
    missing = served.source.with_name("missing")
    assert str(missing) in served.submit(vm, source=missing).expect(10).error
    later = served.submit(vm, "--not-before", "1d", source=missing).expect(0).json["job"]
    served.run("cancel", str(later["id"])).expect(0)
    command = ("submit", served.source, "--vm", vm, "--to", "nobody")
    assert "there is no receiver nobody" in served.run(*command).expect(10).error
    assert "choose another name" in served.submit("a/b").expect(2).error
    served.submit(vm, "--key", "").expect(2)


def test_send_has_the_daemon_do_it_and_says_the_same(served: Served, vm: str) -> None:
    through = served.pair.send(served.source, vm=vm).expect(0)
    alone = served.pair.send(served.source, vm=f"{vm}-2", options=["--alone"]).expect(0)
    assert through.disk["published"]
    assert through.json.keys() == alone.json.keys()
    assert through.disk["root"] == alone.disk["root"]
    jobs = served.run("jobs", "--all", "--json").expect(0).json["jobs"]
    assert [job["spec"]["vm"] for job in jobs if job["spec"]["vm"].startswith(vm)] == [vm]
    served.pair.receiver.verify(vm, "", "--against", served.source).expect(0)
    refused = served.pair.send(served.source, vm=vm).expect(11)
    refused_alone = served.pair.send(served.source, vm=vm, options=["--alone"]).expect(11)
    assert refused.disk["error"] == refused_alone.disk["error"]


def test_an_interrupted_send_cancels_its_job_and_the_same_command_goes_on(
    served: Served, vm: str
) -> None:
    sending = served.start_send(vm, *SLOWLY)
    part = served.pair.receiver.flat(vm).with_name(f"{vm}-flat.vmdk.flatship-part")
    wait_until(part.exists, "it is being received")
    sending.signal(signal.SIGINT)
    run = sending.wait(GOODBYE).expect(130)
    assert "to go on where it stopped, run:" in run.stderr
    jobs = served.run("jobs", "--all", "--json").expect(0).json["jobs"]
    assert [job["state"] for job in jobs if job["spec"]["vm"] == vm] == ["cancelled"]
    served.pair.send(served.source, vm=vm).expect(0)
    served.pair.receiver.verify(vm, "", "--against", served.source).expect(0)


def ask(path: Path, raw: bytes) -> bytes:
    """Send something raw; returns all that is answered."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        with suppress(BrokenPipeError):  # it answers without having read all
            connection.sendall(raw)
        answer = b""
        # What it has not read makes its end a reset, which comes behind the answer.
        with suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                answer += piece
    return answer


def test_a_body_of_100_megabytes_is_refused_and_not_read(served: Served) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(served.socket))
        connection.sendall(head + b"Content-Length: 100000000\r\n\r\n")
        taken, piece = 0, b" " * 65536
        try:
            while taken < 100_000_000:
                taken += connection.send(piece)
        except OSError:
            pass  # it has closed
        assert b" 413 " in connection.recv(65536).split(b"\r\n")[0]
    assert taken < 4 * MIB


@pytest.mark.parametrize(
    "raw",
    [os.urandom(5000) + b"\r\n\r\n", b"GET /v1/status HTTP/1.1\r\n" + b"X: y\r\n" * 100_000],
    ids=["garbage", "headers"],
)
def test_garbage_and_floods_of_headers_are_refused(served: Served, raw: bytes) -> None:
    assert b" 400 " in ask(served.socket, raw).split(b"\r\n")[0]
    served.run("jobs").expect(0)


def test_followers_that_never_read_hold_up_nothing(served: Served, vm: str) -> None:
    number = served.job(vm, "--limit", "8MB")
    with ExitStack() as deaf:
        for _ in range(20):
            connection = deaf.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(str(served.socket))
            connection.sendall(f"GET /v1/jobs/{number}/changes HTTP/1.0\r\n\r\n".encode())
        served.run("jobs").expect(0)
        served.run("show", str(number), "--follow").expect(0)


def test_a_drained_daemon_leaves_and_send_does_without_it(served: Served, vm: str) -> None:
    number = served.job(vm, *SLOWLY)
    served.wait_sending(number)
    assert "running jobs have ended: 1" in served.run("drain").expect(0).stdout
    waiting = served.job(f"{vm}-2")
    assert "started again" in served.show(waiting)["waits_for"]
    own = served.pair.send(served.source, vm=f"{vm}-3").expect(0)
    assert "this command does the work itself" in own.stderr
    served.run("cancel", str(number)).expect(0)
    wait_until(lambda: served.daemon.process.ended, "the daemon leaves")
    served.daemon.process.wait().expect(0)
    assert not served.socket.exists()
    gone = served.run("jobs").expect(5)
    assert "start one with flatship-sender serve" in gone.error
    served.daemon.close()
    served.daemon.start()
    served.run("show", str(waiting), "--follow").expect(0)


def test_a_socket_that_a_crash_left_is_replaced_and_a_live_one_is_not(
    served: Served, tmp_path: Path
) -> None:
    served.daemon.kill()
    assert served.socket.exists()
    assert "left by one that is gone" in served.run("jobs").expect(5).error
    wait_until(lambda: not served.daemon.workers(), "workers leave")
    served.daemon.start()
    served.run("jobs").expect(0)
    other = run_program(
        *SENDER, "serve", "--state", tmp_path, "--http", "127.0.0.1:0", "--socket", served.socket
    )
    assert other.exit_code == 11
    assert "another daemon answers" in other.error
    assert served.run("jobs", "--json").expect(0).json["schema_version"] == 1
