"""The queue of a daemon whose workers are in the test's hand."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from queue_stage import DONE, Clocks, QueueStage, asked, queue_stage, snapshot, spec

from flatship_sender.queue.model import Job, JobState, Submission
from flatship_sender.queue.refusals import NoSuchJob, NotTaken, QueueFull, QueueNotWritable
from flatship_sender.queue.settling import MAX_DEATHS
from flatship_sender.queue.states import WrongState
from flatship_sender.queue.store import Store
from flatship_sender.snapshot import Snapshot
from flatship_sender.worker_reports import Report, WorkerOutcome

LATER = WorkerOutcome(exit_code=5, again=True, message="the datastore is full", result=None)
NEVER = WorkerOutcome(exit_code=10, again=False, message="no such source", result=None)

Play = Callable[[QueueStage], Awaitable[None]]


def play(state: Path, what: Play, at_once: int = 2, clocks: Clocks | None = None) -> None:
    async def main() -> None:
        async with queue_stage(state, at_once=at_once, clocks=clocks) as stage:
            await what(stage)

    asyncio.run(main())


def test_a_job_is_started_and_its_end_is_on_record_with_its_result(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        job, _ = await stage.queue.submit(asked(), 1000)
        worker = await stage.worker()
        assert await stage.state(job.id) is JobState.RUNNING
        assert (worker.task.spec, worker.task.in_doubt) == (job.spec, False)
        worker.end(DONE)
        await stage.until_state(job.id, JobState.DONE)
        done = await stage.queue.job(job.id)
        assert (done.attempts, done.exit_code, done.result) == (1, 0, DONE.result)
        await stage.until(lambda: stage.queue.counts()[JobState.DONE][0] == 1)

    play(tmp_path, main)


def test_no_more_run_at_once_than_may_and_the_next_starts_when_one_ends(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        for vm in ("a", "b", "c"):
            await stage.queue.submit(asked(vm), 0)
        await stage.worker(count=2)
        await stage.until_state(3, JobState.QUEUED)
        assert stage.supervisor.running == 2
        stage.started[0].end(DONE)
        await stage.worker(count=3)
        assert stage.jobs_started == [1, 2, 3]

    play(tmp_path, main)


def test_a_date_is_looked_at_again_after_the_clock_was_set(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        job, _ = await stage.queue.submit(asked(not_before=stage.clocks.wall + 3600), 0)
        await stage.until_state(job.id, JobState.QUEUED)
        assert not stage.started
        stage.clocks.wall += 3601
        await stage.worker()

    play(tmp_path, main)


def test_what_is_worth_it_is_tried_again_after_a_pause_that_no_clock_setter_changes(
    tmp_path: Path,
) -> None:
    async def main(stage: QueueStage) -> None:
        job, _ = await stage.queue.submit(asked(), 0)
        (await stage.worker()).end(LATER)
        await stage.until_state(job.id, JobState.WAITING)
        waiting = await stage.queue.job(job.id)
        assert waiting.message == "the datastore is full"
        assert waiting.not_before == stage.clocks.wall + 10
        stage.clocks.wall += 1_000_000
        await stage.until_state(job.id, JobState.WAITING)
        stage.clocks.wall -= 2_000_000
        stage.clocks.monotonic += 10
        again = await stage.worker(count=2)
        assert again.task.in_doubt  # the first may have published it and not lived to say so

    play(tmp_path, main)


def test_pauses_grow_until_something_gets_on(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        job, _ = await stage.queue.submit(asked(), 0)
        pauses = []
        for attempt in range(1, 5):
            worker = await stage.worker(count=attempt)
            if attempt == 4:
                worker.report(Report(snapshot=snapshot(acked=1)))
            worker.end(LATER)
            await stage.until_state(job.id, JobState.WAITING)
            pauses.append(((await stage.queue.job(job.id)).not_before or 0) - stage.clocks.wall)
            stage.clocks.pass_by(pauses[-1])
        assert pauses == [10, 20, 40, 10]

    play(tmp_path, main)


def test_what_is_not_worth_it_fails_with_its_message_and_holds_up_no_other(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        await stage.queue.submit(asked("a"), 0)
        await stage.queue.submit(asked("b"), 0)
        (await stage.worker()).end(NEVER)
        await stage.worker(count=2)
        failed = await stage.queue.job(1)
        assert (failed.state, failed.exit_code, failed.message) == ("failed", 10, "no such source")
        with pytest.raises(WrongState, match="submit it anew"):
            await stage.queue.resume(1)

    play(tmp_path, main, at_once=1)


def test_a_job_that_its_workers_die_of_is_given_up(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        job, _ = await stage.queue.submit(asked(), 0)
        for attempt in range(1, MAX_DEATHS + 1):
            (await stage.worker(count=attempt)).kill()
            await stage.until(lambda: stage.supervisor.running == 0)
            stage.clocks.pass_by(10_000)
        assert await stage.state(job.id) is JobState.FAILED

    play(tmp_path, main)


def test_a_daemons_successor_queues_what_ran_and_tells_its_worker_to_look(tmp_path: Path) -> None:
    async def first(stage: QueueStage) -> None:
        await stage.queue.submit(asked(), 0)
        await stage.worker()

    async def second(stage: QueueStage) -> None:
        worker = await stage.worker()
        assert worker.task.in_doubt
        assert (await stage.queue.job(1)).attempts == 2

    play(tmp_path, first)
    play(tmp_path, second)


def test_a_job_is_not_started_while_its_worker_of_before_lives(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        before = stage.locks.take(1)
        assert before is not None
        await stage.queue.submit(asked("a"), 0)
        await stage.queue.submit(asked("b"), 0)
        (await stage.worker()).end(DONE)
        assert stage.jobs_started == [2]  # which it does not hold up
        await stage.until_state(2, JobState.DONE)
        assert await stage.state(1) is JobState.QUEUED
        os.close(before)
        await stage.worker(count=2)
        assert stage.jobs_started == [2, 1]

    play(tmp_path, main, at_once=1)


def test_a_clock_that_was_set_back_between_two_daemons_holds_no_try_up_for_long(
    tmp_path: Path,
) -> None:
    clocks = Clocks()

    async def first(stage: QueueStage) -> None:
        await stage.queue.submit(asked(), 0)
        (await stage.worker()).end(LATER)
        await stage.until_state(1, JobState.WAITING)

    async def second(stage: QueueStage) -> None:
        await stage.until_state(1, JobState.WAITING)
        assert not stage.started
        clocks.monotonic += 900
        await stage.worker()

    play(tmp_path, first, clocks=clocks)
    clocks.wall -= 1_000_000
    play(tmp_path, second, clocks=clocks)


@pytest.mark.parametrize("state", [JobState.PAUSED, JobState.CANCELLED])
def test_a_running_job_becomes_what_is_wanted_once_its_worker_has_said_goodbye(
    state: JobState, tmp_path: Path
) -> None:
    async def main(stage: QueueStage) -> None:
        job, _ = await stage.queue.submit(asked(), 0)
        worker = await stage.worker()
        wish = stage.queue.pause if state is JobState.PAUSED else stage.queue.cancel
        noted = await wish(job.id)
        assert (noted.state, noted.wanted) == (JobState.RUNNING, state)
        assert worker.leaving
        worker.end(WorkerOutcome(exit_code=130, again=False, message="stopped", result=None))
        await stage.until_state(job.id, state)
        assert (await stage.queue.job(job.id)).wanted is None

    play(tmp_path, main)


def test_what_was_done_before_it_could_be_cancelled_is_done(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        await stage.queue.submit(asked(), 0)
        worker = await stage.worker()
        await stage.queue.cancel(1)
        worker.end(DONE)
        await stage.until_state(1, JobState.DONE)

    play(tmp_path, main)


def test_what_is_to_be_cancelled_is_paused_no_more(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        await stage.queue.submit(asked(), 0)
        await stage.worker()
        await stage.queue.pause(1)
        await stage.queue.cancel(1)
        with pytest.raises(WrongState):
            await stage.queue.pause(1)
        with pytest.raises(WrongState, match="wait for it"):
            await stage.queue.resume(1)

    play(tmp_path, main)


def test_a_paused_job_waits_and_goes_on_when_it_is_resumed(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        await stage.queue.submit(asked(not_before=stage.clocks.wall + 9), 0)
        await stage.queue.pause(1)
        stage.clocks.pass_by(10)
        await stage.until_state(1, JobState.PAUSED)
        assert not stage.started
        await stage.queue.resume(1)
        await stage.worker()

    play(tmp_path, main)


def test_a_job_that_waits_tries_again_at_once_when_it_is_resumed(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        await stage.queue.submit(asked(), 0)
        (await stage.worker()).end(LATER)
        await stage.until_state(1, JobState.WAITING)
        await stage.queue.resume(1)
        await stage.worker(count=2)

    play(tmp_path, main)


def test_a_daemon_that_is_drained_starts_nothing_and_waits_for_what_runs(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        await stage.queue.submit(asked("a"), 0)
        await stage.queue.submit(asked("b"), 0)
        worker = await stage.worker()
        stage.queue.drain()
        drained = asyncio.create_task(stage.queue.drained())
        worker.end(DONE)
        await drained
        assert stage.jobs_started == [1]
        assert await stage.state(2) is JobState.QUEUED

    play(tmp_path, main, at_once=1)


def test_a_daemon_that_leaves_has_workers_leave_and_queues_their_jobs(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        await stage.queue.submit(asked(), 0)
        worker = await stage.worker()
        stage.queue.close()
        with pytest.raises(NotTaken):
            await stage.queue.submit(asked("late"), 0)
        stopping = asyncio.create_task(stage.supervisor.stop())
        await stage.until(lambda: worker.leaving)
        worker.end(None)
        await stopping
        assert await stage.state(1) is JobState.QUEUED

    play(tmp_path, main)


def test_a_job_that_cannot_be_recorded_is_refused_and_its_end_is_recorded_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise QueueNotWritable("no space")

    async def main(stage: QueueStage) -> None:
        monkeypatch.setattr("flatship_sender.queue.supervisor.WRITE_AGAIN", 0.001)
        await stage.queue.submit(asked("a"), 0)
        worker = await stage.worker()
        with monkeypatch.context() as patched:
            patched.setattr(Store, "add", full)
            patched.setattr(Store, "put", full)
            with pytest.raises(QueueNotWritable):
                await stage.queue.submit(asked("b"), 0)
            worker.end(DONE)
            await stage.until(lambda: stage.started and stage.queue.snapshot(1) is None)
            assert await stage.state(1) is JobState.RUNNING
        await stage.until_state(1, JobState.DONE)
        assert [job.spec.vm for job in await stage.queue.jobs()] == ["a"]

    play(tmp_path, main)


def test_a_queue_has_room_for_so_many_jobs_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatship_sender.queue.record.MAX_LIVE", 2)

    async def main(stage: QueueStage) -> None:
        for vm in ("a", "b"):
            await stage.queue.submit(asked(vm, not_before=2e9), 0)
        with pytest.raises(QueueFull, match="2 jobs have not ended"):
            await stage.queue.submit(asked("c"), 0)
        await stage.queue.cancel(1)
        await stage.queue.submit(asked("c"), 0)

    play(tmp_path, main)


def test_who_follows_a_job_is_told_how_it_stands_how_it_gets_on_and_how_it_ended(
    tmp_path: Path,
) -> None:
    async def main(stage: QueueStage) -> None:
        await stage.queue.submit(asked(), 0)
        worker = await stage.worker()
        told: list[Snapshot | Job] = []

        async def follow() -> None:
            async for change in stage.queue.changes(1):
                told.append(change)

        following = asyncio.create_task(follow())
        await stage.until(lambda: told)
        worker.report(Report(snapshot=snapshot(acked=5)))
        await stage.until(lambda: len(told) == 2)
        worker.end(DONE)
        await following
        states = [each.state if isinstance(each, Job) else each.disks[0].acked for each in told]
        assert states == [JobState.RUNNING, 5, JobState.DONE]
        assert isinstance(told[-1], Job)
        assert told[-1].result == DONE.result
        assert [each async for each in stage.queue.changes(1)] == [await stage.queue.job(1)]

    play(tmp_path, main)


def test_a_slow_follower_is_told_the_newest_and_costs_no_more_for_it(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        await stage.queue.submit(asked(), 0)
        worker = await stage.worker()
        changes = stage.queue.changes(1)
        await anext(changes)
        for acked in range(1, 100):
            worker.report(Report(snapshot=snapshot(acked)))
        await stage.until(lambda: (seen := stage.queue.snapshot(1)) and seen.disks[0].acked == 99)
        newest = await anext(changes)
        assert isinstance(newest, Snapshot)
        assert newest.disks[0].acked == 99
        await changes.aclose()  # type: ignore[attr-defined]

    play(tmp_path, main)


def test_jobs_that_nobody_has_submitted_are_told_so(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        for call in (stage.queue.job, stage.queue.pause, stage.queue.resume, stage.queue.cancel):
            with pytest.raises(NoSuchJob) as refused:
                await call(7)
            assert refused.value.exit_code == 10
        with pytest.raises(NoSuchJob):
            await anext(stage.queue.changes(7))

    play(tmp_path, main)


def test_sizes_of_sources_are_summed_by_state_once_they_are_known(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(4096))

    async def main(stage: QueueStage) -> None:
        await stage.queue.submit(Submission(spec=spec(source=str(disk)), not_before=2e9), 0)
        await stage.until(lambda: stage.queue.counts()[JobState.QUEUED] == (1, 4096))

    play(tmp_path, main)


def test_a_change_whose_client_has_gone_is_known_as_it_is_on_record(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        await stage.queue.submit(asked(not_before=2e9), 0)
        client = asyncio.create_task(stage.queue.pause(1))
        await asyncio.sleep(0)
        client.cancel()
        await asyncio.wait({client})
        assert stage.record.live[1] == await stage.queue.job(1)
        assert stage.record.live[1].state is JobState.PAUSED

    play(tmp_path, main)


def test_workers_are_told_to_read_their_configuration_again(tmp_path: Path) -> None:
    async def main(stage: QueueStage) -> None:
        await stage.queue.submit(asked(), 0)
        worker = await stage.worker()
        await stage.until(lambda: stage.supervisor.read_again() or worker.told_to_read)

    play(tmp_path, main)
