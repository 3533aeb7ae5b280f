"""What the daemon's metrics make of its workers' reports."""

import pytest
from msgspec.structs import replace
from queue_stage import spec

from flatship_sender.metrics import SenderMetrics
from flatship_sender.page import SenderPage
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState
from flatship_sender.queue.model import Job, JobState
from flatship_sender.serve import Watching
from flatship_sender.shown_jobs import ShownJobs
from flatship_sender.snapshot import take
from flatship_sender.worker_reports import Report


def job(number: int = 1, receiver: str = "esx") -> Job:
    return Job(
        id=number,
        spec=replace(spec("web"), receiver=receiver),
        priority=0,
        not_before=None,
        key=None,
        state=JobState.RUNNING,
        attempts=1,
        submitted=0.0,
        started=0.0,
        ended=None,
        by_uid=0,
    )


def report(
    wire: int, state: TransferState = TransferState.SENDING, receiver: str = "esx", **errors: int
) -> Report:
    disk = DiskProgress("/dev/vg0/web", "web/web.vmdk", 1 << 20, wire=wire, state=state)
    return Report(snapshot=take(TransferProgress(receiver, "web", [disk]), 0.0, 0.0), errors=errors)


class Watched:
    """The metrics of a daemon, and what feeds them."""

    def __init__(self) -> None:
        self._metrics = SenderMetrics("1")
        shown = ShownJobs(list)
        self.page = SenderPage(shown.transfers, "1", "kvm1", jobs=shown.jobs)
        self.watching = Watching(self._metrics, shown, self.page)

    def __contains__(self, sample: str) -> bool:
        return f"flatship_sender_{sample}\n" in self._metrics.render()[0].decode()


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_later_report_of_a_worker_takes_the_place_of_the_earlier_one(watched: Watched) -> None:
    watched.watching.began(job())
    for wire in (10, 20, 30):
        watched.watching.reported(job(), report(wire))
    assert 'wire_bytes_total{receiver="esx"} 30.0' in watched


def test_what_a_second_attempt_sends_comes_on_top(watched: Watched) -> None:
    for wire in (30, 5):
        watched.watching.began(job())
        watched.watching.reported(job(), report(wire))
        watched.watching.left(job())
    assert 'wire_bytes_total{receiver="esx"} 35.0' in watched


def test_errors_of_all_workers_are_counted_once_each(watched: Watched) -> None:
    watched.watching.began(job(1))
    watched.watching.began(job(2))
    for number, count in ((1, 1), (2, 1), (1, 1), (1, 3)):
        watched.watching.reported(job(number), report(0, datastore_full=count))
    assert 'errors_total{reason="datastore_full"} 4.0' in watched


def test_two_jobs_that_send_a_machine_to_two_receivers_are_two_transfers(watched: Watched) -> None:
    for number, receiver in ((1, "esx"), (2, "other")):
        watched.watching.began(job(number, receiver))
        watched.watching.reported(job(number, receiver), report(number, receiver=receiver))
    assert 'disk_size_bytes{disk="web/web.vmdk",transfer="web"} 1.048576e+06' in watched
    assert 'disk_size_bytes{disk="web/web.vmdk",transfer="web to other"} 1.048576e+06' in watched


def test_a_transfer_that_was_left_unfinished_has_no_series_and_its_bytes_stay_counted(
    watched: Watched,
) -> None:
    for number, state in ((1, TransferState.SENDING), (2, TransferState.PUBLISHED)):
        watched.watching.began(job(number))
        watched.watching.reported(job(number), report(10, state))
        watched.watching.left(job(number))
        published = 'transfer_state{disk="web/web.vmdk",state="published",transfer="web"} 1.0'
        assert (published in watched) is (state is TransferState.PUBLISHED)
    assert 'wire_bytes_total{receiver="esx"} 20.0' in watched


def test_a_worker_that_leaves_without_a_word_leaves_nothing(watched: Watched) -> None:
    watched.watching.began(job())
    watched.watching.left(job())
    assert 'errors_total{reason="internal"} 0.0' in watched


def test_page_shows_what_workers_report_and_why_a_job_failed(watched: Watched) -> None:
    watched.watching.began(job())
    watched.watching.reported(job(), report(10))
    watched.page.look(1.0)
    assert [disk.state for disk in watched.page.view(1.0).disks] == ["sending"]

    failed = replace(job(), state=JobState.FAILED, message="no such source", exit_code=10)
    watched.watching.left(failed)
    watched.page.look(2.0)
    (problem,) = watched.page.view(2.0).problems
    assert (problem.subject, problem.message) == ("job 1, web", "no such source")
    assert "Check the name" in problem.advice
