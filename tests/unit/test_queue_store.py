import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace
from queue_stage import DONE, asked

from flatship_sender.queue.model import JobState
from flatship_sender.queue.refusals import (
    KeyTaken,
    NoSuchJob,
    QueueDamaged,
    QueueInUse,
    QueueNotWritable,
    QueueVersionRefused,
)
from flatship_sender.queue.states import FINAL
from flatship_sender.queue.store import Store

NOW = 1000.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store.open(tmp_path)) as store:
        yield store


def end(store: Store, number: int, state: JobState = JobState.DONE, when: float = NOW) -> None:
    job = store.job(number)
    result = DONE.result if state is JobState.DONE else None
    store.put(replace(job, state=state, ended=when, result=result), job.state)


def test_what_was_added_is_there_after_the_next_start(tmp_path: Path) -> None:
    with closing(Store.open(tmp_path)) as store:
        job, new = store.add(asked(priority=3, not_before=5.0, key="k"), 1000, NOW)
    assert new
    assert (job.state, job.attempts, job.by_uid, job.submitted) == ("queued", 0, 1000, NOW)
    with closing(Store.open(tmp_path)) as store:
        assert store.live() == [job]
        assert store.job(job.id) == job


def test_the_same_key_and_contents_are_the_same_job_even_after_its_end(store: Store) -> None:
    job, _ = store.add(asked(key="k"), 0, NOW)
    assert store.add(asked(key="k"), 0, NOW + 1) == (job, False)
    assert store.known(asked(key="k")) == job
    assert store.known(asked(key="another")) is None
    assert store.known(asked()) is None
    end(store, job.id)
    again, new = store.add(asked(key="k"), 0, NOW + 2)
    assert (again.id, again.state, new) == (job.id, JobState.DONE, False)


@pytest.mark.parametrize("other", [asked("db", key="k"), asked(priority=1, key="k")])
def test_the_same_key_with_other_contents_is_refused_and_names_its_job(
    store: Store, other: object
) -> None:
    job, _ = store.add(asked(key="k"), 0, NOW)
    with pytest.raises(KeyTaken):
        store.known(other)  # type: ignore[arg-type]
    with pytest.raises(KeyTaken, match=f"job {job.id}") as refused:
        store.add(other, 0, NOW)  # type: ignore[arg-type]
    assert refused.value.exit_code == 11
    assert len(store.live()) == 1


def test_a_job_ends_once_whoever_says_otherwise_later(store: Store) -> None:
    job, _ = store.add(asked(), 0, NOW)
    end(store, job.id)
    for state in (JobState.FAILED, JobState.QUEUED):
        with pytest.raises(QueueDamaged):
            store.put(replace(job, state=state), JobState.QUEUED)
    assert store.job(job.id).state is JobState.DONE


def test_a_result_comes_with_its_job_and_never_with_a_list(store: Store) -> None:
    job, _ = store.add(asked(), 0, NOW)
    end(store, job.id)
    assert store.job(job.id).result == DONE.result
    read: list[str] = []
    store._connection.set_trace_callback(read.append)
    (listed,) = store.jobs(tuple(JobState), 0, 10)
    assert listed.result is None
    assert len(read) == 1
    assert "result" not in read[0]


def test_what_a_daemon_left_running_is_queued_again_or_as_was_wanted(store: Store) -> None:
    numbers = []
    for wanted in (None, JobState.PAUSED, JobState.CANCELLED):
        job, _ = store.add(asked(f"vm{wanted}"), 0, NOW)
        running = replace(job, state=JobState.RUNNING, attempts=1, wanted=wanted)
        store.put(running, JobState.QUEUED)
        numbers.append(job.id)
    end(store, store.add(asked("done"), 0, NOW)[0].id)
    store.recover(NOW + 7)
    queued, paused, cancelled = (store.job(number) for number in numbers)
    assert (queued.state, queued.attempts, queued.ended) == (JobState.QUEUED, 1, None)
    assert (paused.state, paused.wanted, paused.ended) == (JobState.PAUSED, None, None)
    assert (cancelled.state, cancelled.ended, cancelled.exit_code) == ("cancelled", NOW + 7, 130)


def test_history_is_bounded_and_loses_the_oldest_with_its_result(store: Store) -> None:
    numbers = [store.add(asked(f"vm{index}"), 0, NOW)[0].id for index in range(5)]
    for when, number in enumerate(reversed(numbers[:4])):
        end(store, number, when=NOW + when)
    store.prune(2)
    assert [job.id for job in store.jobs(tuple(JobState), 0, 10)] == [*numbers[:2], numbers[4]]
    with pytest.raises(NoSuchJob):
        store.job(numbers[3])
    (left,) = store._connection.execute("SELECT count(*) FROM result").fetchone()
    assert left == 2
    assert store.ended() == {JobState.DONE: (2, 0)}


def test_a_list_goes_on_where_the_last_one_ended(store: Store) -> None:
    numbers = [store.add(asked(f"vm{index}"), 0, NOW)[0].id for index in range(5)]
    first = store.jobs(tuple(JobState), 0, 3)
    second = store.jobs(tuple(JobState), first[-1].id, 3)
    assert [job.id for job in first + second] == numbers
    assert store.jobs(tuple(FINAL), 0, 10) == []
    assert store.jobs((), 0, 10) == []


def test_a_second_daemon_is_refused_by_name_of_the_first(store: Store, tmp_path: Path) -> None:
    with pytest.raises(QueueInUse, match="in use by another flatship-sender serve") as refused:
        Store.open(tmp_path)
    assert refused.value.exit_code == 11


def test_the_queue_of_a_newer_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    path = tmp_path / "queue" / "queue.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(QueueVersionRefused, match="format 9"):
        Store.open(tmp_path)


def test_what_is_no_database_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "queue.db").write_bytes(b"garbage " * 1000)
    with pytest.raises(QueueDamaged, match="move it away"):
        Store.open(tmp_path)


@pytest.mark.parametrize("column", ["submission", "state"])
def test_a_record_that_nobody_wrote_is_told_as_damage(store: Store, column: str) -> None:
    job, _ = store.add(asked(), 0, NOW)
    store._connection.execute(f"UPDATE job SET {column} = 'x'")
    with pytest.raises(QueueDamaged, match="is damaged"):
        store.job(job.id)


@dataclass
class _Full:
    """A limit on the size of files, which SQLite meets as it would a full disk."""

    size: int

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def test_a_queue_that_cannot_be_written_refuses_and_goes_on_when_it_can(
    store: Store, tmp_path: Path
) -> None:
    first, _ = store.add(asked("first"), 0, NOW)
    size = (tmp_path / "queue" / "queue.db-wal").stat().st_size
    with _Full(size), pytest.raises(QueueNotWritable) as refused:
        store.add(asked("second"), 0, NOW)
    assert refused.value.exit_code == 5
    assert store.live() == [first]
    after, _ = store.add(asked("after"), 0, NOW)
    assert store.live() == [first, after]
