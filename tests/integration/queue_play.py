"""A queue whose daemon is killed again and again: every job ends once, and none is sent by two.

A seed draws the disks, and for how long each daemon starts or works before it dies; what it is at
by then is the machine's to say. One worker at most may live for a job at any time, also over
daemons.
"""

import threading
from collections import Counter
from pathlib import Path
from random import Random
from time import sleep
from typing import Final

from disks import MIB, make_disk, same_content
from processes import Receiver, wait_until
from sending_daemon import OnRecord, SendingDaemon, sending_daemon
from stages import Stage

from flatship_sender.queue.model import JobSpec

LOOK: Final = 0.03  # seconds between two looks at processes
AT_START: Final = 0.2  # of all kills
START: Final = 1.0  # seconds within which those come
WORK: Final = 1.5  # seconds within which the others do, once there is a worker
RATE: Final = MIB  # bytes a second for a job, so that it takes longer than a daemon lives
PATIENCE: Final = 180.0  # seconds for what is left when nobody is killed any more
ENDED: Final = ("done", "failed", "cancelled")


class Play:
    """A queue under kills.

    Args:
        stage: Where; the receiver is left running.
        seed: Draws disks and moments.
        jobs: How many are queued.
        kills: How often the daemon is killed.
    """

    def __init__(self, stage: Stage, seed: int, *, jobs: int = 20, kills: int = 50) -> None:
        self._random = Random(f"queue {seed}")
        self._stage = stage
        self._seed = seed
        self._jobs = jobs
        self._kills = kills
        self._ended: dict[int, OnRecord] = {}
        self.attempts = 0
        self.kills_at_work = 0

    def run(self) -> int:
        """Play it to its end; returns how many daemons were killed.

        Raises:
            AssertionError: Something does not hold.
        """
        folder = self._stage.folder / f"queue-{self._seed}"
        folder.mkdir()
        with sending_daemon(self._stage.pair.sender.state, folder) as daemon:
            sources = {
                f"q{self._seed}-{number}": folder / f"{number}.raw" for number in range(self._jobs)
            }
            for number, path in enumerate(sources.values()):
                size = self._random.choice((8, 16, 32)) * MIB
                make_disk(path, size, seed=self._seed * 1000 + number)
            numbers = daemon.put(
                *(
                    JobSpec(sources=[str(path)], receiver="esx", vm=vm, patience=0, limit=RATE)
                    for vm, path in sources.items()
                )
            )
            watching = _Watching(daemon)
            try:
                for _ in range(self._kills):
                    self._one_life(daemon)
                    self._check(daemon, numbers)
                daemon.start()
                wait_until(lambda: self._all_ended(daemon), "all jobs end", PATIENCE)
                daemon.stop()
            finally:
                watching.stop()
            self._check(daemon, numbers)
            self._check_end(daemon, self._stage.pair.receiver, sources)
            assert not watching.overlaps, watching.overlaps
        return self._kills

    def _one_life(self, daemon: SendingDaemon) -> None:
        daemon.begin()
        at_start, part = self._random.random() < AT_START, self._random.random()
        if not at_start:
            wait_until(lambda: daemon.workers() or self._all_ended(daemon), "a worker is there")
        sleep(part * (START if at_start else WORK))  # the moment, as the seed drew it
        assert not daemon.process.ended, daemon.said
        self.kills_at_work += bool(daemon.workers())
        daemon.kill()

    def _check(self, daemon: SendingDaemon, numbers: list[int]) -> None:
        """No job is lost, and what has ended stays as it ended."""
        jobs = daemon.jobs()
        assert [number for number in jobs if number in numbers] == numbers
        for number, before in self._ended.items():
            assert jobs[number] == before, f"{before} has become {jobs[number]}"
        self._ended = {number: job for number, job in jobs.items() if job.state in ENDED}

    def _all_ended(self, daemon: SendingDaemon) -> bool:
        return all(job.state in ENDED for job in daemon.jobs().values())

    def _check_end(
        self, daemon: SendingDaemon, receiver: Receiver, sources: dict[str, Path]
    ) -> None:
        jobs = daemon.jobs()
        outcomes = Counter((job.state, job.results) for job in jobs.values())
        assert set(outcomes) == {("done", 1)}, f"{jobs}\n{daemon.said}"
        self.attempts = sum(job.attempts for job in jobs.values())
        for vm, path in sources.items():
            assert same_content(path, receiver.flat(vm), path.stat().st_size), f"{vm} differs"
            assert receiver.files(vm) == [f"{vm}-flat.vmdk", f"{vm}.vmdk"]
        assert "Traceback" not in daemon.said, daemon.said
        wait_until(lambda: not daemon.workers(), "workers leave")


class _Watching:
    """Looks for two workers of one job, from its making to ``stop``."""

    def __init__(self, daemon: SendingDaemon) -> None:
        self.overlaps: list[str] = []
        self._daemon = daemon
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            workers = self._daemon.workers()
            twice = {job for job, count in Counter(workers.values()).items() if count > 1}
            self.overlaps += [f"{job}: {workers}" for job in twice]


def play(stage: Stage, seed: int) -> int:
    """Play what ``seed`` means; returns how many daemons were killed.

    Raises:
        AssertionError: Something does not hold.
    """
    return Play(stage, seed).run()
