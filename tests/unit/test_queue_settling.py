import pytest

from flatship_sender.queue.model import JobState
from flatship_sender.queue.settling import MAX_DEATHS, Settled, settle
from flatship_sender.worker_reports import WorkerOutcome


def outcome(exit_code: int, *, again: bool = False) -> WorkerOutcome:
    return WorkerOutcome(exit_code=exit_code, again=again, message="why", result=None)


def settled(
    result: WorkerOutcome | None,
    died_of: str | None = None,
    wanted: JobState | None = None,
    leaving: bool = False,
    deaths: int = 1,
) -> Settled:
    return settle(result, died_of, wanted=wanted, leaving=leaving, deaths=deaths)


@pytest.mark.parametrize("wanted", [None, JobState.PAUSED, JobState.CANCELLED])
def test_what_was_brought_to_its_end_is_done_whatever_was_wanted_meanwhile(
    wanted: JobState | None,
) -> None:
    assert settled(outcome(0), wanted=wanted) == Settled(JobState.DONE, None, 0)


def test_what_may_do_better_later_waits_and_what_may_not_fails_with_its_code() -> None:
    assert settled(outcome(5, again=True)) == Settled(JobState.WAITING, "why")
    assert settled(outcome(10)) == Settled(JobState.FAILED, "why", 10)


@pytest.mark.parametrize("result", [None, outcome(130), outcome(5, again=True), outcome(1)])
def test_a_job_becomes_what_was_wanted_of_it_when_its_worker_has_left(
    result: WorkerOutcome | None,
) -> None:
    assert settled(result, wanted=JobState.PAUSED) == Settled(JobState.PAUSED)
    assert settled(result, wanted=JobState.CANCELLED) == Settled(JobState.CANCELLED, None, 130)


@pytest.mark.parametrize("result", [None, outcome(130)])
def test_a_job_whose_daemon_leaves_is_queued_again(result: WorkerOutcome | None) -> None:
    assert settled(result, "signal 9 (SIGKILL)", leaving=True) == Settled(JobState.QUEUED)


def test_a_worker_that_was_interrupted_by_a_stranger_ends_no_job() -> None:
    assert settled(outcome(130)).state is JobState.WAITING


def test_a_job_that_workers_die_of_is_given_up_after_some_and_says_so() -> None:
    once = settled(None, "signal 9 (SIGKILL)")
    assert once.state is JobState.WAITING
    assert once.message == "its worker died by signal 9 (SIGKILL); see the daemon's log"
    given_up = settled(None, "signal 9 (SIGKILL)", deaths=MAX_DEATHS)
    assert (given_up.state, given_up.exit_code) == (JobState.FAILED, 1)
    assert "as did 4 before it" in (given_up.message or "")
