"""What people are told of jobs: the table, one job in full, what it waits for."""

import subprocess
import sys

import pytest
from fake_queue import job

from flatship_sender.control.answers import JobView
from flatship_sender.control.details import render as details
from flatship_sender.control.job_table import WIDTH, Row, Spec, render
from flatship_sender.control.waiting import waits_for
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState, Waiting
from flatship_sender.queue.model import Job, JobSpec, JobState
from flatship_sender.snapshot import take


def row(number: int = 1, vm: str = "web01", receiver: str = "esx", **other: object) -> Row:
    given: dict[str, object] = {"state": "queued", "priority": 0, "submitted": 100.0, **other}
    return Row(number, spec=Spec(vm, receiver, ["/a", "/b"]), **given)  # type: ignore[arg-type]


def test_a_table_has_a_line_a_job() -> None:
    table = render([row(7), row(12, state="running", priority=-5)], 400.0)
    assert table.splitlines() == [
        "ID  STATE    PRIO  DISKS     AGE  TO   VM",
        " 7  queued      0      2  5m 00s  esx  web01",
        "12  running    -5      2  5m 00s  esx  web01",
    ]


def test_no_jobs_are_said_to_be_none() -> None:
    assert render([], 0.0) == "no jobs"


def test_a_job_that_is_to_stop_is_stopping() -> None:
    assert "stopping" in render([row(state="running", wanted="paused")], 0.0)


@pytest.mark.parametrize("receiver", ["esx", "r" * 20, "r" * 63])
@pytest.mark.parametrize("vm", ["web01", "v" * 40, "v" * 80])
@pytest.mark.parametrize("number", [1, 10**15])
def test_a_table_fits_80_columns_and_shows_something_of_every_name(
    receiver: str, vm: str, number: int
) -> None:
    table = render([row(number, vm, receiver, state="cancelled", priority=-100)], 9e8)
    for line in table.splitlines():
        assert len(line) <= WIDTH
    cells = table.splitlines()[1].split()
    assert cells[-1].startswith(vm[:5])
    assert cells[-2].startswith(receiver[:3])


def test_names_from_strangers_do_not_reach_the_terminal_as_they_are() -> None:
    assert "\x1b" not in render([row(vm="a\x1b[2J")], 0.0)


def reason(subject: Job, *running: Job, places: int = 2, draining: bool = False) -> str | None:
    return waits_for(subject, running, places=places, draining=draining, now=2000.0)


def other(number: int, state: JobState, source: str = "/x", vm: str = "x") -> Job:
    return job(number, state, spec=JobSpec(sources=[source], receiver="esx", vm=vm))


def test_a_job_waits_for_the_one_that_has_its_source_or_its_machine() -> None:
    same_source = other(2, JobState.RUNNING, source="/dev/vg0/../vg0/web01")
    assert reason(job(1), same_source) == "job 2, which reads /dev/vg0/web01"
    same_machine = other(2, JobState.RUNNING, vm="web01")
    assert reason(job(1), same_machine) == "job 2, which sends web01 to esx"


def test_a_job_waits_for_a_place() -> None:
    running = other(2, JobState.RUNNING)
    assert reason(job(1), running, places=2) == "its turn, which comes at once"
    assert "1 jobs run at once" in str(reason(job(1), running, places=1))


def test_a_job_waits_for_its_time_or_for_whoever_paused_it() -> None:
    assert str(reason(job(1, not_before=3000.0))).startswith("its time, 1970-01-01")
    assert reason(job(1, JobState.PAUSED)) == "you; run: flatship-sender resume 1"
    again = job(1, JobState.WAITING, not_before=3000.0, message="no route to host")
    assert "its next try" in str(reason(again))
    assert "(no route to host); for one now run: flatship-sender resume 1" in str(reason(again))
    assert "started again" in str(reason(job(1), draining=True))


@pytest.mark.parametrize("state", [JobState.RUNNING, JobState.DONE, JobState.FAILED])
def test_a_job_that_runs_or_has_ended_waits_for_nothing(state: JobState) -> None:
    assert reason(job(1, state)) is None


def test_a_running_job_that_is_to_be_paused_waits_for_its_worker() -> None:
    stopping = job(1, JobState.RUNNING, wanted=JobState.PAUSED)
    assert reason(stopping) == "its worker, to leave and be paused"


def test_a_job_in_full_says_what_it_is_and_what_it_waits_for() -> None:
    view = JobView(job=job(3, JobState.PAUSED, key="nightly"), waits_for="you")
    lines = details(view, 0.0).splitlines()
    assert lines[0] == "job 3: paused"
    assert "  waits for  you" in lines
    assert "  VM         web01 to esx" in lines
    assert "  sources    /dev/vg0/web01" in lines
    assert "  with       priority 0, key nightly" in lines


def test_a_job_in_full_says_how_far_it_is_and_that_its_receiver_is_waited_for() -> None:
    disk = DiskProgress("/d", "web01/web01.vmdk", 1 << 20, state=TransferState.SENDING)
    progress = TransferProgress("esx", "web01", [disk])
    progress.waiting = Waiting("reset", None, 12.0, 60.0)
    view = JobView(job=job(3, JobState.RUNNING), snapshot=take(progress, 5.0))
    shown = details(view, 5.0)
    assert "web01/web01.vmdk: sending 0% of 1.0 MiB" in shown
    assert "connection lost (reset); next try in 7s, giving up in 55s" in shown


def test_a_job_that_failed_says_why() -> None:
    view = JobView(job=job(3, JobState.FAILED, message="the datastore is full", exit_code=5))
    shown = details(view, 0.0)
    assert "  because    the datastore is full" in shown
    assert "  exit code  5" in shown


@pytest.mark.parametrize("module", ["jobs", "steering"])
def test_commands_that_people_wait_for_import_little(module: str) -> None:
    code = (
        f"import sys, flatship_sender.cli, flatship_sender.commands.{module};"
        "print([name for name in ('asyncio', 'aiohttp', 'numpy', 'http.client', 'rich',"
        " 'zstandard', 'flatship_sender.queue.model') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"
