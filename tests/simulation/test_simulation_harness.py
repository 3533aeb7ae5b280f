"""The simulation's own parts: a harness that forgives is worse than none."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from crash_disk import CrashDisk
from network import Faults, link
from node import Killed, Node, running, task_factory
from virtual_loop import Stuck, VirtualLoop, run_virtually

from flatship_protocol.errors import ConnectionLost
from flatship_receiver.datastores import flat
from flatship_receiver.datastores.folder import Folder

DAY = 86_400.0
SEEDS = range(60)


class Disk:
    """A ``CrashDisk`` with one folder of its datastore open."""

    def __init__(self, root: Path, seed: int) -> None:
        root.mkdir()
        self.crashing = CrashDisk(root, Random(seed), lambda _: None)
        self.after = root.with_name("after")
        self.folder = Folder.open(str(root))

    def crashed(self) -> dict[str, bytes]:
        self.folder.close()
        self.crashing.crash(self.after)
        return {path.name: path.read_bytes() for path in self.after.iterdir()}


def each(tmp_path: Path) -> Iterator[Disk]:
    for seed in SEEDS:
        (tmp_path / str(seed)).mkdir()
        disk = Disk(tmp_path / str(seed) / "root", seed)
        with disk.crashing.in_place():
            yield disk


def test_what_was_synced_outlives_every_power_loss(tmp_path: Path) -> None:
    for disk in each(tmp_path):
        fd = disk.folder.create_file("a")
        flat.os.pwrite(fd, b"x" * 5000, 0)
        flat.os.fsync(fd)
        disk.folder.sync()
        assert disk.crashed() == {"a": b"x" * 5000}


def test_what_was_not_synced_may_be_lost_kept_or_torn(tmp_path: Path) -> None:
    found = set()
    for disk in each(tmp_path):
        fd = disk.folder.create_file("a")
        flat.os.pwrite(fd, b"x" * 65_536, 0)
        flat.os.fsync(fd)
        disk.folder.sync()
        flat.os.pwrite(fd, b"y" * 65_536, 0)
        found.add(disk.crashed()["a"])
    assert {b"x" * 65_536, b"y" * 65_536} < found
    assert all(set(torn) <= set(b"xy") for torn in found)


def test_a_file_whose_entry_was_not_synced_may_be_gone_however_well_it_was_synced(
    tmp_path: Path,
) -> None:
    found = set()
    for disk in each(tmp_path):
        fd = disk.folder.create_file("a")
        flat.os.pwrite(fd, b"x", 0)
        flat.os.fsync(fd)
        found.add(tuple(disk.crashed()))
    assert found == {(), ("a",)}


def test_entries_of_a_folder_are_lost_from_the_last_one_on(tmp_path: Path) -> None:
    found = set()
    for disk in each(tmp_path):
        for name in ("a", "b", "c"):
            disk.folder.create_file(name)
        disk.folder.sync()
        disk.folder.rename("a", "d")
        disk.folder.unlink("b")
        found.add(tuple(sorted(disk.crashed())))
    assert found == {("a", "b", "c"), ("b", "c", "d"), ("c", "d")}


def test_a_failed_sync_loses_what_it_was_to_save_although_the_next_one_succeeds(
    tmp_path: Path,
) -> None:
    lost = 0
    for disk in each(tmp_path):
        fd = disk.folder.create_file("a")
        flat.os.ftruncate(fd, 4096)
        flat.os.fsync(fd)
        disk.folder.sync()
        flat.os.pwrite(fd, b"x" * 4096, 0)
        disk.crashing._trouble = lambda _: OSError(5, "lost")
        with pytest.raises(OSError, match="lost"):
            flat.os.fsync(fd)
        disk.crashing._trouble = lambda _: None
        flat.os.fsync(fd)
        lost += disk.crashed()["a"] != b"x" * 4096
    assert lost


def test_descriptors_of_a_dead_process_give_up_their_locks(tmp_path: Path) -> None:
    import fcntl

    async def scenario(loop: VirtualLoop) -> None:
        loop.set_task_factory(task_factory)
        disk = Disk(tmp_path / "root", 1)
        node = Node("receiver", lambda: None)

        async def hold() -> None:
            fd = disk.folder.create_file("lock")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                await asyncio.Event().wait()
            finally:
                flat.os.close(fd)  # which is closed already, and may be another's

        with disk.crashing.in_place():
            node.spawn(hold())
            await asyncio.sleep(1)
            node.die()
            disk.crashing.abandon(node)
            fd = os.open(tmp_path / "root" / "lock", os.O_RDWR)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            await node.unwind()
            os.fstat(fd)  # still ours
            os.close(fd)

    run_virtually(scenario, 1, at_most=10)


def test_a_dead_process_changes_nothing_on_its_way_out() -> None:
    async def scenario(loop: VirtualLoop) -> list[str]:
        loop.set_task_factory(task_factory)
        done: list[str] = []
        node = Node("sender", lambda: done.append("died"))

        async def act(what: str) -> None:
            running()
            done.append(what)

        async def live() -> None:
            try:
                await act("began")
                await asyncio.sleep(DAY)
            finally:
                await act("cleaned up")

        task = node.spawn(live())
        await asyncio.sleep(1)
        node.die()
        await node.unwind()
        assert isinstance(task.exception(), Killed)
        return done

    assert run_virtually(scenario, 1, at_most=10) == ["began", "died"]


def test_a_day_takes_no_time_and_is_seen_by_all_clocks() -> None:
    async def scenario(_: VirtualLoop) -> tuple[float, float]:
        steady, wall = time.monotonic(), time.time()
        await asyncio.sleep(DAY)
        return time.monotonic() - steady, time.time() - wall

    began = time.monotonic()
    assert run_virtually(scenario, 1, at_most=2 * DAY) == pytest.approx((DAY, DAY))
    assert time.monotonic() - began < 60


def test_who_waits_for_what_cannot_come_is_found() -> None:
    async def scenario(_: VirtualLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck):
        run_virtually(scenario, 1, at_most=DAY)


@pytest.mark.parametrize(
    ("faults", "arrives"),
    [
        (Faults(latency=0.5, rate=1000.0), b"0123456789"),
        (Faults(repeat_at=3), b"01234567890123456789"),
        (Faults(swap_at=3), b"5678901234"),
        (Faults(flip_at=3), b"0122456789"),
    ],
)
def test_a_link_spoils_what_it_was_told_to_spoil(faults: Faults, arrives: bytes) -> None:
    async def scenario(_: VirtualLoop) -> bytes:
        ours, theirs = link(faults, Faults())
        await ours.write_all(memoryview(b"0123456789"))
        got = bytearray(len(arrives))
        await theirs.read_exactly(memoryview(got))
        return bytes(got)

    assert run_virtually(scenario, 1, at_most=10) == arrives


def test_a_broken_link_is_found_and_a_stalled_one_is_not() -> None:
    async def scenario(loop: VirtualLoop) -> None:
        ours, theirs = link(Faults(), Faults())
        ours.stall()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(DAY):
                await theirs.read_exactly(memoryview(bytearray(1)))
        ours.break_()
        with pytest.raises(ConnectionLost):
            await theirs.read_exactly(memoryview(bytearray(1)))

    run_virtually(scenario, 1, at_most=2 * DAY)
