"""A queue without processes: workers that a test holds in its hand, clocks that it sets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flatship_sender.progress import DiskProgress, TransferProgress
from flatship_sender.queue.model import Job, JobSpec, JobState, Submission, Task
from flatship_sender.queue.process import Locks
from flatship_sender.queue.queue import Queue
from flatship_sender.queue.record import Record
from flatship_sender.queue.sizes import Sizes
from flatship_sender.queue.store import AsyncStore
from flatship_sender.queue.supervisor import Supervisor
from flatship_sender.results import from_progress
from flatship_sender.snapshot import Snapshot, take
from flatship_sender.worker_reports import Report, WorkerOutcome

DONE = WorkerOutcome(
    exit_code=0, again=False, message=None, result=from_progress(TransferProgress("esx", "web"))
)


def spec(vm: str = "web", source: str | None = None) -> JobSpec:
    return JobSpec(sources=[source or f"/dev/vg0/{vm}"], receiver="esx", vm=vm)


def asked(vm: str = "web", **more: object) -> Submission:
    return Submission(spec=spec(vm), **more)  # type: ignore[arg-type]


def snapshot(acked: int) -> Snapshot:
    disk = DiskProgress("/dev/vg0/web", "web/web.vmdk", 1 << 30, acked=acked)
    return take(TransferProgress("esx", "web", [disk]), 0.0, 0.0)


class FakeWorker:
    """A worker that does what the test says."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.leaving = False
        self.told_to_read = 0
        self._reports: asyncio.Queue[Report | None] = asyncio.Queue()
        self._died_of: str | None = None

    def report(self, report: Report) -> None:
        self._reports.put_nowait(report)

    def end(self, outcome: WorkerOutcome | None = DONE, died_of: str | None = None) -> None:
        if outcome is not None:
            self._reports.put_nowait(Report(outcome=outcome))
        self._died_of = died_of
        self._reports.put_nowait(None)

    async def reports(self) -> AsyncIterator[Report]:
        while (report := await self._reports.get()) is not None:
            yield report

    def leave(self) -> None:
        self.leaving = True

    def read_again(self) -> None:
        self.told_to_read += 1

    def kill(self) -> None:
        self.end(None, "signal 9 (SIGKILL)")

    async def wait(self) -> str | None:
        return self._died_of


@dataclass
class Clocks:
    """Readings that a test sets."""

    wall: float = 1_000_000.0
    monotonic: float = 50.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


@dataclass
class QueueStage:
    """One daemon's queue."""

    queue: Queue
    record: Record
    supervisor: Supervisor
    clocks: Clocks
    locks: Locks
    store: AsyncStore
    started: list[FakeWorker] = field(default_factory=list)
    left: list[Job] = field(default_factory=list)

    @property
    def jobs_started(self) -> list[int]:
        return [worker.task.job for worker in self.started]

    async def until(self, condition: Callable[[], object]) -> None:
        """Look again and again, as the daemon would each second; the test fails if in vain."""
        async with asyncio.timeout(10):
            while not condition():
                self.record.changed.set()
                await asyncio.sleep(0.001)

    async def state(self, number: int) -> JobState:
        return (await self.queue.job(number)).state

    async def until_state(self, number: int, state: JobState) -> None:
        async with asyncio.timeout(10):
            while await self.state(number) is not state:
                self.record.changed.set()
                await asyncio.sleep(0.001)

    async def worker(self, index: int = -1, count: int = 1) -> FakeWorker:
        """A worker, once as many have been started."""
        await self.until(lambda: len(self.started) >= count)
        return self.started[index]


@asynccontextmanager
async def queue_stage(
    state: Path, *, at_once: int = 2, clocks: Clocks | None = None
) -> AsyncIterator[QueueStage]:
    """A daemon's queue; at the end it is gone as by a crash, and may be opened again."""
    clocks = clocks or Clocks()
    store = await AsyncStore.open(state)
    record = Record(store, lambda: clocks.wall)
    await record.load()
    locks = Locks(state / "queue")
    stage: QueueStage | None = None

    async def launch(task: Task, lock: int) -> FakeWorker:
        assert stage is not None
        stage.started.append(FakeWorker(task))
        return stage.started[-1]

    class Watcher:
        def began(self, job: Job) -> None: ...
        def reported(self, job: Job, report: Report) -> None: ...
        def left(self, job: Job) -> None:
            assert stage is not None
            stage.left.append(job)

    supervisor = Supervisor(
        record,
        state,
        None,
        at_once,
        locks,
        Watcher(),
        launch=launch,
        wall=lambda: clocks.wall,
        monotonic=lambda: clocks.monotonic,
        chance=lambda: 1.0,
    )
    queue = Queue(record, store, supervisor, Sizes(record))
    stage = QueueStage(queue, record, supervisor, clocks, locks, store)
    running = asyncio.create_task(supervisor.run())
    try:
        yield stage
    finally:
        running.cancel()
        await asyncio.wait({running})
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)
        await store.close()
