import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_queue import FakeQueue, job

from flatship_sender.control.client import Daemon, DaemonLost, NoDaemon
from flatship_sender.control.faults import Refused
from flatship_sender.control.following import Follower, NotFollowed
from flatship_sender.control.server import ControlServer
from flatship_sender.progress import DiskProgress, TransferProgress
from flatship_sender.queue.model import Job, JobState
from flatship_sender.snapshot import take

MIB = 1 << 20


class Watched:
    """A display that remembers which object it was shown, and how far that was."""

    interval = 1.0

    def __init__(self) -> None:
        self.shown: list[int] = []
        self.objects: set[int] = set()
        self.closed = 0

    def show(self, progress: TransferProgress, now: float) -> None:
        self.shown.append(progress.disks[0].acked)
        self.objects.add(id(progress))

    def close(self) -> None:
        self.closed += 1


class Clock:
    """Moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def sent(acked: int) -> TransferProgress:
    return TransferProgress("esx", "web01", [DiskProgress("/d", "t", 4 * MIB, acked=acked)])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what a thread does is looked at from outside
            await asyncio.sleep(0.005)


def test_a_job_is_shown_from_its_wait_to_its_end(tmp_path: Path) -> None:
    display, said = Watched(), list[str]()

    async def run() -> Job:
        queue = FakeQueue()
        queue.all[1] = job(1, JobState.PAUSED)
        follower = Follower(Daemon(tmp_path / "c"), 1, display, said.append)
        async with ControlServer(queue, tmp_path, "1").serve(tmp_path / "c"):
            following = asyncio.create_task(asyncio.to_thread(follower.run))
            await until(lambda: bool(said))
            queue.becomes(1, JobState.RUNNING)
            for acked in (MIB, 3 * MIB):
                queue.progresses(1, take(sent(acked), 0.0))
                await until(lambda acked=acked: acked in display.shown)  # type: ignore[misc]
            queue.becomes(1, JobState.FAILED, exit_code=5, message="full")
            return await following

    ended = asyncio.run(run())
    assert (ended.state, ended.exit_code, ended.message) == (JobState.FAILED, 5, "full")
    assert said == ["job 1 is paused: waits for you; run: flatship-sender resume 1"]
    assert len(display.objects) == 1
    assert display.shown[-1] == 3 * MIB
    assert display.closed


def test_a_daemon_that_comes_back_in_time_is_followed_on(tmp_path: Path) -> None:
    said: list[str] = []
    gone = threading.Event()

    async def run() -> Job:
        queue = FakeQueue()
        queue.all[1] = job(1, JobState.RUNNING)
        clock = Clock()
        follower = Follower(
            Daemon(tmp_path / "c"), 1, Watched(), said.append, clock, lambda _: gone.wait(0.01)
        )
        async with ControlServer(queue, tmp_path, "1").serve(tmp_path / "c"):
            following = asyncio.create_task(asyncio.to_thread(follower.run))
            await until(lambda: queue.followers == 1)
        await until(lambda: bool(said))
        queue.becomes(1, JobState.DONE, exit_code=0)
        async with ControlServer(queue, tmp_path, "1").serve(tmp_path / "c"):
            return await following

    assert asyncio.run(run()).state is JobState.DONE
    assert said == ["the daemon is gone; waiting for it to come back"]


def test_a_daemon_that_does_not_come_back_is_given_up_and_the_job_is_not(tmp_path: Path) -> None:
    clock = Clock()
    follower = Follower(Daemon(tmp_path / "c"), 7, Watched(), lambda _: None, clock, clock.sleep)
    with pytest.raises(NotFollowed, match="run: flatship-sender show 7 --follow") as caught:
        follower.run()
    assert caught.value.exit_code == 3
    assert clock.now >= 160.0


def test_a_job_that_is_not_there_cannot_be_followed(tmp_path: Path) -> None:
    async def run() -> None:
        follower = Follower(Daemon(tmp_path / "c"), 9, Watched(), lambda _: None)
        async with ControlServer(FakeQueue(), tmp_path, "1").serve(tmp_path / "c"):
            await asyncio.to_thread(follower.run)

    with pytest.raises(Refused, match="no job 9"):
        asyncio.run(run())


def test_where_no_daemon_is_it_is_said_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoDaemon, match="start one with flatship-sender serve"):
        Daemon(tmp_path / "c").ask("GET", "/v1/status")
    assert not Daemon(tmp_path / "c").answers
    (tmp_path / "file").write_text("")
    assert not Daemon(tmp_path / "file").answers


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "broke off"),
        (b"SSH-2.0\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 500 No\r\n\r\nno", "status 500 and no reason"),
        (b"x" * 70_000, "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}", "does not speak HTTP"),
    ],
)
def test_an_answer_that_is_none_is_told_from_one(
    tmp_path: Path, answer: bytes, reason: str
) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def run() -> None:
        async with await asyncio.start_unix_server(handle, tmp_path / "c"):
            await asyncio.to_thread(Daemon(tmp_path / "c").ask, "GET", "/v1/status")

    with pytest.raises(DaemonLost, match=reason):
        asyncio.run(run())
