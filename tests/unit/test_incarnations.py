"""What one command does about lost sessions; the sessions are fakes that follow a script."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flatship_protocol.errors import (
    ConnectionLost,
    ErrorCode,
    SourceReadError,
    StaleEpoch,
    TransferError,
)
from flatship_protocol.messages import Adapter, DiskFormat, OpenDisk, Provisioning
from flatship_sender.claims import claim
from flatship_sender.connecting import SessionName
from flatship_sender.incarnations import Incarnations
from flatship_sender.job import Cancelled, Job
from flatship_sender.persistence import PatienceEnded
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState
from flatship_sender.refusals import RefusedByReceiver

LOST = ConnectionLost("the link failed")
UNREACHABLE = ConnectionLost("nobody listens")


class Script:
    """What one session does.

    Args:
        ends: Raised at its end, if anything.
        opens: Whether it comes to stand at all.
        publishes: Disks that are published in it, by their place in the command.
        keeps: Disks that a live pass brings to its end.
        fails: One that fails for a reason of its own.
        acked: Bytes of each disk that are acknowledged in it, at ``at``.
    """

    def __init__(
        self,
        ends: TransferError | None = None,
        *,
        opens: bool = True,
        publishes: Sequence[int] = (),
        keeps: Sequence[int] = (),
        fails: int | None = None,
        acked: int = 0,
        at: float = 0.0,
    ) -> None:
        self.ends = ends
        self.opens = opens
        self.publishes = publishes
        self.keeps = keeps
        self.fails = fails
        self.acked = acked
        self.at = at


class FakeClient:
    def __init__(self) -> None:
        self.live = 0
        self.shortfall = None


class FakeTransfer:
    def __init__(self, world: "World", jobs: Sequence[Job], on_open: Callable[[], None]) -> None:
        self.world = world
        self.jobs = jobs
        self.on_open = on_open
        self.client = FakeClient()

    async def run(self, client: FakeClient, connections: int) -> None:
        script = self.world.scripts.pop(0)
        if script.opens:
            client.live = connections
            self.on_open()
        self.world.seen_waiting.append(self.world.progress.waiting is not None)
        for job in self.jobs:
            disk = job.progress
            disk.started = disk.started or 1.0
            if disk is self.world.disk(script.fails):
                self.end(disk, SourceReadError("sector 7"))
            elif any(disk is self.world.disk(number) for number in script.publishes):
                disk.state = TransferState.PUBLISHED
            elif any(disk is self.world.disk(number) for number in script.keeps):
                disk.state = TransferState.UNPUBLISHED
                disk.acked = disk.sent = script.acked
            elif script.ends is not None:
                disk.acked = script.acked
                disk.last_progress = max(disk.last_progress, script.at)
                self.end(disk, script.ends)
        client.live = 0
        if script.ends is not None:
            raise script.ends

    def stop(self) -> None:
        for job in self.jobs:
            if job.progress.state is not TransferState.PUBLISHED:
                self.end(job.progress, Cancelled())

    @staticmethod
    def end(disk: DiskProgress, error: TransferError) -> None:
        cancelled = isinstance(error, Cancelled)
        disk.state = TransferState.CANCELLED if cancelled else TransferState.FAILED
        disk.error, disk.error_code, disk.exit_code = str(error), error.code, error.exit_code


def opening(number: int) -> OpenDisk:
    kinds = (DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 14)
    return OpenDisk(number, 1, 1024, 0, bytes(32), *kinds, "", "web", f"web_{number}")


class World:
    def __init__(self, *scripts: Script, disks: int = 1) -> None:
        self.scripts = list(scripts)
        self.now = 100.0
        self.progress = TransferProgress(
            "esx", "web", [DiskProgress("s", f"web/{number}", 1000) for number in range(disks)]
        )
        source: Any = None
        self.jobs = [
            Job(source, opening(number), disk) for number, disk in enumerate(self.progress.disks)
        ]
        self.in_doubt: list[list[bool]] = []
        self.begun: list[tuple[int, list[DiskProgress]]] = []  # epoch, disks
        self.delays: list[float] = []
        self.seen_waiting: list[bool] = []
        self.said: list[tuple[str, str | None]] = []
        self.incarnations: Incarnations
        self.more = True  # was there for another pass

    def disk(self, number: int | None) -> DiskProgress | None:
        return None if number is None else self.progress.disks[number]

    def begin(
        self, jobs: Sequence[Job], session: SessionName, on_open: Callable[[], None]
    ) -> tuple[Any, Any]:
        self.begun.append((session.epoch, [job.progress for job in jobs]))
        self.in_doubt.append([job.opening.in_doubt for job in jobs])
        transfer = FakeTransfer(self, jobs, on_open)
        return transfer, transfer.client

    async def sleep(self, seconds: float) -> None:
        waiting = self.progress.waiting
        assert waiting is not None
        assert waiting.next_try == self.now + seconds
        self.said.append((waiting.reason, waiting.last_try))
        self.delays.append(seconds)
        self.now += seconds

    def run(self, folder: Path, patience: float = 3600.0, passes: int = 1) -> None:
        async def main() -> None:
            with claim(folder, "esx", "web") as held:
                self.incarnations = Incarnations(
                    self.jobs,
                    self.progress,
                    held,
                    self.begin,
                    connections=4,
                    patience=patience,
                    command="flatship-sender send x",
                    clock=lambda: self.now,
                    chance=lambda: 1.0,
                    sleep=self.sleep,
                )
                await self.incarnations.run()
                for _ in range(1, passes):
                    self.more = self.incarnations.begin_pass()
                    if self.more:
                        await self.incarnations.run()

        asyncio.run(main())


def test_a_transfer_that_is_never_lost_is_one_session(tmp_path: Path) -> None:
    world = World(Script(publishes=[0]))
    world.run(tmp_path)
    assert [epoch for epoch, _ in world.begun] == [1]
    assert world.progress.reconnections == 0
    assert world.delays == []


def test_a_lost_session_is_followed_by_one_with_the_next_epoch(tmp_path: Path) -> None:
    world = World(Script(LOST), Script(publishes=[0]))
    world.run(tmp_path)
    assert [epoch for epoch, _ in world.begun] == [1, 2]
    assert world.progress.reconnections == 1
    assert world.progress.disks[0].state is TransferState.PUBLISHED
    assert world.progress.waiting is None


def test_the_next_session_has_only_the_disks_that_the_lost_one_took_with_it(
    tmp_path: Path,
) -> None:
    world = World(Script(LOST, publishes=[0], fails=1), Script(publishes=[2]), disks=3)
    world.run(tmp_path)
    published, failed, lost = world.progress.disks
    assert [disks for _, disks in world.begun] == [[published, failed, lost], [lost]]
    assert failed.error == "sector 7"
    assert failed.state is TransferState.FAILED
    assert lost.state is TransferState.PUBLISHED
    assert lost.error is None


def test_every_try_waits_longer_and_takes_an_epoch_of_its_own(tmp_path: Path) -> None:
    nobody = [Script(UNREACHABLE, opens=False) for _ in range(3)]
    world = World(Script(LOST), *nobody, Script(publishes=[0]))
    world.run(tmp_path)
    assert [epoch for epoch, _ in world.begun] == [1, 2, 3, 4, 5]
    assert world.delays == [1, 2, 4, 8]
    assert world.said == [
        ("the link failed", None),
        *[("the link failed", "nobody listens")] * 3,
    ]
    assert world.progress.reconnections == 1


def test_it_is_waiting_until_the_next_session_stands(tmp_path: Path) -> None:
    world = World(Script(LOST), Script(UNREACHABLE, opens=False), Script(publishes=[0]))
    world.run(tmp_path)
    assert world.seen_waiting == [False, True, False]


def test_a_first_session_that_cannot_be_had_fails_at_once(tmp_path: Path) -> None:
    world = World(Script(UNREACHABLE, opens=False))
    with pytest.raises(ConnectionLost, match="nobody listens"):
        world.run(tmp_path)
    assert world.progress.disks[0].exit_code == 5
    assert world.delays == []


@pytest.mark.parametrize(
    "error", [StaleEpoch("another run"), RefusedByReceiver(ErrorCode.NOT_PERMITTED, (0, 0))]
)
def test_what_would_repeat_itself_ends_the_command_also_in_a_later_session(
    tmp_path: Path, error: TransferError
) -> None:
    world = World(Script(LOST), Script(error))
    with pytest.raises(type(error)):
        world.run(tmp_path)
    assert world.progress.disks[0].exit_code == error.exit_code
    assert world.progress.waiting is None


def test_a_receiver_that_shuts_down_is_waited_for(tmp_path: Path) -> None:
    world = World(Script(RefusedByReceiver(ErrorCode.SHUTTING_DOWN, (0, 0))), Script(publishes=[0]))
    world.run(tmp_path)
    assert world.progress.reconnections == 1


def test_patience_ends_with_a_last_try_and_the_command_to_go_on_with(tmp_path: Path) -> None:
    nobody = [Script(UNREACHABLE, opens=False) for _ in range(4)]
    world = World(Script(LOST), *nobody)
    with pytest.raises(PatienceEnded, match="run: flatship-sender send x") as raised:
        world.run(tmp_path, patience=10.0)
    assert world.delays == [1, 2, 4, 3]
    assert raised.value.exit_code == 3
    assert "nothing got on for 10s; missing: 1000 B of 1000 B of web/0" in str(raised.value)
    disk = world.progress.disks[0]
    assert (disk.state, disk.exit_code, disk.error) == (TransferState.FAILED, 3, "nobody listens")


def test_without_patience_a_lost_session_is_the_end(tmp_path: Path) -> None:
    world = World(Script(LOST, acked=400, at=100.0))
    with pytest.raises(PatienceEnded, match="missing: 600 B of 1000 B of web/0"):
        world.run(tmp_path, patience=0.0)
    assert world.delays == []


def test_progress_renews_patience(tmp_path: Path) -> None:
    lossy = [Script(LOST, at=100.0 + number) for number in range(20)]
    world = World(*lossy, Script(publishes=[0]))
    world.run(tmp_path, patience=5.0)
    assert world.progress.reconnections == 20
    assert set(world.delays) == {1.0}


def test_sessions_without_progress_do_not_renew_patience(tmp_path: Path) -> None:
    world = World(*[Script(LOST, at=100.0) for _ in range(20)])
    with pytest.raises(PatienceEnded):
        world.run(tmp_path, patience=60.0)


def test_the_end_of_a_wait_is_not_awaited_by_whoever_stops(tmp_path: Path) -> None:
    world = World(Script(LOST), Script(publishes=[0]))

    async def stopped(_: float) -> None:
        assert not world.incarnations.stop()  # nobody to say goodbye to
        raise asyncio.CancelledError

    world.sleep = stopped  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        world.run(tmp_path)
    disk = world.progress.disks[0]
    assert (disk.state, disk.exit_code) == (TransferState.CANCELLED, 130)
    assert disk.seconds == 99.0
    assert world.progress.waiting is None


def test_whoever_stops_a_session_that_stands_lets_it_say_goodbye(tmp_path: Path) -> None:
    world = World(Script(publishes=[0]))
    opened: list[bool] = []
    opened_before = FakeTransfer.run

    async def run(self: FakeTransfer, client: FakeClient, connections: int) -> None:
        client.live = connections
        opened.append(world.incarnations.stop())
        world.progress.disks[0].state = TransferState.WAITING
        await opened_before(self, client, connections)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeTransfer, "run", run)
        world.run(tmp_path)
    assert opened == [True]


def test_an_epoch_that_cannot_be_noted_begins_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(Script(LOST), Script(publishes=[0]))
    begin = world.begin

    def begin_then_break(*arguments: Any) -> tuple[Any, Any]:
        monkeypatch.setattr("flatship_service.files.replace", refuse)
        return begin(*arguments)

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    world.begin = begin_then_break  # type: ignore[method-assign]
    with pytest.raises(TransferError, match="No space left"):
        world.run(tmp_path)
    assert len(world.begun) == 1
    assert world.progress.disks[0].state is TransferState.FAILED


def test_a_disk_whose_last_word_was_lost_is_in_doubt_in_every_later_session(
    tmp_path: Path,
) -> None:
    lost = Script(LOST, opens=True)
    world = World(lost, Script(LOST), Script(publishes=[0, 1]), disks=2)
    world.progress.disks[1].root = bytes(32)  # END_PASS may have gone out
    world.run(tmp_path)
    assert world.in_doubt == [[False, False], [False, True], [False, True]]


def test_another_pass_is_a_session_with_the_next_epoch_and_no_reconnection(tmp_path: Path) -> None:
    world = World(Script(keeps=[0], acked=700), Script(keeps=[0]))
    world.run(tmp_path, passes=2)
    assert [epoch for epoch, _ in world.begun] == [1, 2]
    assert world.progress.reconnections == 0
    assert world.progress.disks[0].resent == 0
    assert world.delays == []


def test_another_pass_is_over_the_disks_that_the_last_one_brought_to_its_end(
    tmp_path: Path,
) -> None:
    world = World(Script(keeps=[0, 2], fails=1), Script(keeps=[0, 2]), disks=3)
    world.run(tmp_path, passes=2)
    kept, failed, other = world.progress.disks
    assert [disks for _, disks in world.begun] == [[kept, failed, other], [kept, other]]
    assert failed.error == "sector 7"


def test_there_is_no_other_pass_over_disks_that_failed(tmp_path: Path) -> None:
    world = World(Script(fails=0))
    world.run(tmp_path, passes=2)
    assert not world.more
    assert len(world.begun) == 1


def test_a_session_that_is_lost_in_a_later_pass_is_followed_by_another(tmp_path: Path) -> None:
    lost = Script(UNREACHABLE, opens=False)
    world = World(Script(keeps=[0]), lost, Script(keeps=[0]))
    world.run(tmp_path, passes=2)
    assert [epoch for epoch, _ in world.begun] == [1, 2, 3]
    assert world.progress.reconnections == 1
    assert world.progress.disks[0].state is TransferState.UNPUBLISHED


def test_a_disk_that_was_lost_in_one_pass_is_in_the_next(tmp_path: Path) -> None:
    world = World(Script(LOST, keeps=[0]), Script(keeps=[1]), Script(keeps=[0, 1]), disks=2)
    world.run(tmp_path, passes=2)
    assert [len(disks) for _, disks in world.begun] == [2, 1, 2]
    assert world.in_doubt[-1] == [False, False]
