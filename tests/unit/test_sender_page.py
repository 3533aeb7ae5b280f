"""What the sender's page says of transfers and of the queue."""

from typing import Any

import pytest

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.errors import ErrorCode
from flatship_sender.page import SenderPage
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState, Waiting
from flatship_sender.queue.model import Job, JobSpec, JobState
from flatship_sender.shown_jobs import MAX_ENDED, ShownJobs
from flatship_sender.snapshot import restore, take
from flatship_sender.stalls import Stall, WaitsFor
from flatship_service.disk_map import MapState
from flatship_service.page.view import MAX_DISKS, MAX_JOBS, MAX_PROBLEMS, Tone

MIB = 1 << 20


def transfer(*states: TransferState, size: int = 100 * MIB) -> TransferProgress:
    disks = [
        DiskProgress(f"/dev/vg0/d{number}", f"web01/web01-{number}.vmdk", size, state)
        for number, state in enumerate(states)
    ]
    return TransferProgress("esx", "web01", disks)


def page(*progresses: TransferProgress, **options: Any) -> SenderPage:
    named = [(str(number), progress) for number, progress in enumerate(progresses)]
    return SenderPage(lambda: named, "1.0", "kvm1", wall=lambda: 1e9, **options)


def job(number: int, state: JobState = JobState.QUEUED, **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "id": number,
        "spec": JobSpec(sources=["/dev/vg0/a", "/dev/vg0/b"], receiver="esx", vm="web01"),
        "priority": 0,
        "not_before": None,
        "key": None,
        "state": state,
        "attempts": 0,
        "submitted": 0.0,
        "started": None,
        "ended": None,
        "by_uid": 0,
    }
    return Job(**(fields | changes))


def test_transfer_is_shown_with_rate_limit_level_and_time_left() -> None:
    progress = transfer(TransferState.SENDING)
    (disk,) = progress.disks
    shown = page(progress)
    samples = []
    for second in range(20):
        disk.acked += 4 * MIB
        disk.sent += 4 * MIB
        disk.payload["zstd"] += 2 * MIB
        disk.wire += 2_000_000
        disk.level, progress.limit = 7, 3e6
        samples.append(shown.look(100.0 + second))
    view = shown.view(120.0)

    assert samples[0].rate == 0
    assert samples[-1].rate == pytest.approx(2_000_000)
    assert (samples[-1].limit, samples[-1].level) == (3e6, 7)
    assert view.rate == pytest.approx(2_000_000)
    assert view.left == pytest.approx(20 / 4)
    assert (view.ratio, view.compression) == (2.0, "zstd level 7")
    assert view.disks[0].done == 80 * MIB
    assert (view.disks[0].vm, view.disks[0].disk) == ("web01", "web01-0")


def test_rate_goes_on_when_one_transfer_ends_and_another_begins() -> None:
    running = {"1": transfer(TransferState.SENDING)}
    shown = SenderPage(running.items, "1.0", "kvm1")
    for second in range(10):
        if second == 5:
            running.clear()
            running["2"] = transfer(TransferState.SENDING)
        for progress in running.values():
            progress.disks[0].wire += 1000
        sample = shown.look(10.0 + second)

    assert sample.rate == 1000
    assert shown.view(20.0).rate == pytest.approx(1000)


def test_failure_is_a_problem_once_with_what_to_do() -> None:
    progress = transfer(TransferState.FAILED, TransferState.PUBLISHED)
    disk = progress.disks[0]
    disk.error, disk.error_code, disk.exit_code = "no\nroom", ErrorCode.DATASTORE_FULL, 5
    shown = page(progress)
    for second in range(3):
        shown.look(float(second))
    view = shown.view(3.0)

    assert [problem.message for problem in view.problems] == [r"no\nroom"]
    assert "later" in view.problems[0].advice
    assert (view.state, view.tone) == ("1 of 2 failed", Tone.BAD)
    assert view.disks[0].tone is Tone.BAD
    assert view.disks[1].tone is Tone.GOOD


def test_problems_are_bounded() -> None:
    progress = transfer(TransferState.FAILED)
    shown = page(progress)
    for number in range(20 * MAX_PROBLEMS):
        progress.disks[0].error = f"error {number}"
        shown.look(float(number))

    assert len(shown.view(0.0).problems) == MAX_PROBLEMS
    assert shown.view(0.0).problems[0].message == f"error {20 * MAX_PROBLEMS - 1}"


def test_stall_and_lost_connection_are_said_with_what_is_waited_for() -> None:
    stalled, lost = transfer(TransferState.SENDING), transfer(TransferState.WAITING)
    stalled.stall = Stall(0.0, WaitsFor.STORAGE)
    lost.waiting = Waiting("reset", None, 130.0, 700.0)
    shown = page(stalled, lost)
    shown.look(100.0)
    ours, theirs = shown.view(100.0).disks

    assert "its storage does not get on" in (ours.note or "")
    assert "next try in 30s" in (theirs.note or "")
    assert ours.tone is theirs.tone is Tone.WARN


def test_page_of_another_process_shows_the_same() -> None:
    progress = transfer(TransferState.PROVING)
    disk = progress.disks[0]
    disk.map.move(0, 30 * CHUNK_SIZE, MapState.UNREAD, MapState.STORED)
    disk.acked, disk.proved, disk.to_prove = 30 * MIB, 10 * MIB, 20 * MIB
    views = []
    for each in (progress, restore(take(progress, 50.0), 50.0)):
        shown = page(each)
        shown.look(50.0)
        views.append(shown.view(50.0))

    assert views[0] == views[1]
    assert views[0].disks[0].proof == 0.5
    assert views[0].disks[0].map == "d" * 30 + "u" * 70


def test_only_so_many_disks_and_jobs_are_shown_and_the_rest_is_counted() -> None:
    progresses = [transfer(*[TransferState.WAITING] * 40) for _ in range(3)]
    jobs = [job(number) for number in range(MAX_JOBS + 50)]
    shown = page(*progresses, jobs=lambda: (jobs, 1000))
    shown.look(0.0)
    view = shown.view(0.0)

    assert (len(view.disks), view.more_disks) == (MAX_DISKS, 120 - MAX_DISKS)
    assert (len(view.queue or []), view.more_jobs) == (MAX_JOBS, 1000 - MAX_JOBS)
    assert len({disk.id for disk in view.disks}) == MAX_DISKS


def test_queue_says_why_a_job_waits() -> None:
    waiting = job(3, JobState.WAITING, attempts=2, not_before=2e9, message="no\x1bmount")
    shown = page(jobs=lambda: ([job(2, JobState.RUNNING), waiting], 2))
    shown.look(0.0)
    view = shown.view(0.0)
    running, waits = view.queue or []

    assert (running.tone, running.disks) == (Tone.BUSY, 2)
    assert (waits.state, waits.note, waits.not_before) == ("waiting", r"no\x1bmount", 2e9)
    assert (view.state, view.disks) == ("idle", [])


def test_map_begins_anew_with_every_session() -> None:
    (disk,) = transfer(TransferState.SENDING).disks
    disk.map.move(0, 50 * MIB, MapState.UNREAD, MapState.SENT)
    disk.begin_again()

    assert disk.map.text() == "u" * 100


def test_jobs_come_in_the_order_in_which_they_matter() -> None:
    live = [
        job(1, JobState.PAUSED),
        job(2),
        job(3, priority=5),
        job(4, JobState.WAITING),
        job(5, JobState.RUNNING),
    ]

    jobs, count = ShownJobs(lambda: live).jobs()
    assert [each.id for each in jobs] == [5, 4, 3, 2, 1]
    assert count == 5


def test_disks_of_a_job_that_left_are_shown_for_a_while_and_no_longer() -> None:
    shown = ShownJobs(list)
    for number in range(3 * MAX_ENDED):
        progress = transfer(TransferState.PUBLISHED)
        progress.stall = Stall(0.0, WaitsFor.LINK)
        shown.reported(number, progress)
        shown.left(number)
    shown.reported(3 * MAX_ENDED - 1, running := transfer(TransferState.SENDING))
    transfers = dict(shown.transfers())

    assert len(transfers) == MAX_ENDED
    assert transfers[str(3 * MAX_ENDED - 1)] is running
    assert all(each.stall is None for each in transfers.values())
    shown.left(10_000)  # was never heard of
