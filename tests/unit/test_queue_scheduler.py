from flatship_sender.queue.model import JobSpec
from flatship_sender.queue.scheduler import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    Candidate,
    Claim,
    claims,
    pause,
    startable,
)


def job(number: int, priority: int = 0, *uses: str, **times: float) -> Candidate:
    own: frozenset[Claim] = frozenset((use,) for use in uses or (f"own {number}",))
    return Candidate(number, priority, own, **times)


def start(*candidates: Candidate, free: int = 9, taken: tuple[Claim, ...] = ()) -> list[int]:
    return startable(candidates, taken, free, wall=1000.0, monotonic=50.0)


def test_no_more_start_than_there_is_room_for_and_the_older_ones_first() -> None:
    assert start(job(3), job(1), job(2), free=2) == [1, 2]
    assert start(job(1), free=0) == []


def test_a_larger_priority_goes_before_age() -> None:
    assert start(job(1), job(2, -5), job(3, 7), free=2) == [3, 1]


def test_two_jobs_that_use_the_same_never_start_together_and_let_others_pass() -> None:
    assert start(job(1, 0, "a"), job(2, 0, "a", "b"), job(3, 0, "b"), free=3) == [1, 3]
    assert start(job(1, 0, "a"), job(2), taken=(("a",),)) == [2]


def test_a_date_follows_the_wall_clock_and_a_pause_the_steady_one() -> None:
    assert start(job(1, not_before=1000.0), job(2, not_before=1000.1)) == [1]
    assert start(job(1, retry_at=50.0), job(2, retry_at=50.1)) == [1]


def test_a_job_uses_its_sources_by_whatever_spelling_and_its_machine() -> None:
    one = JobSpec(sources=["/dev/vg0/../vg0/web"], receiver="esx", vm="a")
    other = JobSpec(sources=["/dev/vg0/web"], receiver="esx", vm="b")
    same_machine = JobSpec(sources=["/dev/vg0/db"], receiver="esx", vm="b")
    elsewhere = JobSpec(sources=["/dev/vg0/log"], receiver="other", vm="b")
    two_slashes = JobSpec(sources=["//dev//vg0/web"], receiver="esx", vm="c")
    assert claims(one) & claims(other)
    assert claims(two_slashes) & claims(other)
    assert claims(other) & claims(same_machine)
    assert not claims(one) & claims(same_machine)
    assert not claims(same_machine) & claims(elsewhere)


def test_pauses_grow_to_their_bound_and_keep_to_the_upper_half_of_their_length() -> None:
    assert [pause(failures, 1.0) for failures in (1, 2, 3)] == [10.0, 20.0, 40.0]
    assert pause(1, 0.0) == FIRST_PAUSE / 2
    assert pause(10**9, 1.0) == LONGEST_PAUSE
