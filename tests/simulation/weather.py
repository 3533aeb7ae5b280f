"""Lets the faults of a schedule happen, one after the other, each when its turn has come."""

import asyncio
import errno
from collections import Counter
from random import Random
from typing import Final, Protocol

from network import MemoryStream
from node import Killed, running
from schedules import DAY, Fault, Schedule
from virtual_loop import VirtualLoop

RESTART: Final = 3.0  # seconds until a receiver that ended by itself is started again
SLOW: Final = 20_000.0  # bytes a second

_CALLS: Final = {
    "full": {"pwrite", "create", "ftruncate"},
    "write error": {"pwrite"},
    "short write": {"pwrite"},
    "sync error": {"fsync"},
    "read error": {"preadv"},
    "rename error": {"rename", "unlink", "fsync folder"},
}


class World(Protocol):
    """What faults happen to."""

    @property
    def streams(self) -> list[MemoryStream]:
        """The sender's ends of the links there are."""
        ...

    def kill_sender(self) -> None:
        """End the command, as ``kill -9`` does."""
        ...

    def change_sources(self) -> None:
        """Let the sources be other ones for the next command."""
        ...

    def kill_receiver(self, death: str, down_for: float) -> None:
        """End the receiver; it starts again after so many seconds."""
        ...

    def dies_of(self, death: str, down_for: float) -> None:
        """Say what the receiver, which is about to die by itself, will have died of."""
        ...

    def save_state(self) -> None:
        """Take a backup of the receiver's state folder."""
        ...

    def suspect(self, why: str) -> None:
        """The receiver may have less than it acknowledged."""
        ...

    async def come_back_stale(self) -> None:
        """Have an incarnation that is over try to connect."""
        ...


class Weather:
    """The faults of one schedule.

    Args:
        schedule: Whose.
        world: What they happen to.
        random: Decides what the schedule leaves open.
        loop: Its clock.
    """

    def __init__(self, schedule: Schedule, world: World, random: Random, loop: VirtualLoop) -> None:
        self.happened: Counter[str] = Counter()
        self.is_over = False
        self.rate = schedule.rate
        self.unreachable_until = 0.0
        self._schedule = schedule
        self._world = world
        self._random = random
        self._loop = loop
        self._fault: Fault | None = None
        self._count = 0.0
        self._fired = asyncio.Event()

    async def run(self) -> None:
        """See all faults happen; what they broke is sound again at the end."""
        for fault in self._schedule.faults:
            self._fault, self._count = fault, fault.after
            self._fired.clear()
            if fault.trigger == "time":
                await asyncio.sleep(fault.after)
                self._fire(fault)
            await self._fired.wait()
            self.happened[fault.kind] += 1
            self._fault = None
            await self._let_last(fault)
        self.clear_up()

    def clear_up(self) -> None:
        """Let nothing go wrong any more."""
        self._fault = None
        self.is_over = True
        self.rate = self._schedule.rate
        self.unreachable_until = 0.0

    def carried(self, size: int) -> None:
        """A link has taken some bytes."""
        if self._fault is not None and self._fault.trigger == "bytes":
            self._count -= size
            if self._count <= 0:
                self._loop.call_soon(self._fire, self._fault)
                self._fault = None

    def disk_trouble(self, call: str) -> OSError | int | None:
        """What becomes of a system call of the receiver's; see ``CrashDisk``."""
        fault, node = self._fault, running()
        if fault is None or fault.trigger != "disk" or node is None:
            return None
        calls = _CALLS.get(fault.kind)
        if calls is not None and call not in calls:
            return None
        self._count -= 1
        if self._count > 0:
            return None
        self._fault = None
        if calls is None:
            self._fire(fault)
            raise Killed(node.name)
        self._fired.set()
        if fault.kind == "short write":
            return int(self._random.choice((1, 512, 4096, 70_000)))
        self._world.suspect(fault.kind)
        return OSError(errno.ENOSPC if fault.kind == "full" else errno.EIO, fault.kind)

    def journal_trouble(self) -> str | None:
        """What becomes of an access to the journal; see ``SimulatedJournal``."""
        fault = self._fault
        if fault is None or fault.trigger != "journal":
            return None
        self._count -= 1
        if self._count > 0:
            return None
        self._fault = None
        self._fired.set()
        if fault.kind == "journal fails":
            self._world.suspect(fault.kind)
            return "fails"
        self._world.dies_of(fault.kind, fault.lasts)
        return fault.where

    def _fire(self, fault: Fault) -> None:
        """Do what the fault does at the moment that it was set for."""
        self._fired.set()
        world, streams = self._world, self._world.streams
        if streams:
            self._strike(fault, self._random.choice(streams))
        match fault.kind:
            case "cut all":
                for stream in streams:
                    stream.break_()
            case "partition":
                self.unreachable_until = self._loop.time() + fault.lasts
                for stream in streams:
                    stream.stall()
            case "slow":
                self._set_rate(SLOW)
            case "kill sender":
                world.kill_sender()
            case "kill receiver" | "power loss" | "lying disk" | "old backup":
                world.kill_receiver(fault.kind, fault.lasts)
            case "wall clock":
                self._loop.wall_offset += self._random.choice((-DAY, DAY))
            case "frozen host":
                self._loop.freeze(DAY)
            case "source changes":
                world.change_sources()
                world.kill_sender()

    def _strike(self, fault: Fault, stream: MemoryStream) -> None:
        """Do what concerns one link."""
        pipe = self._random.choice((stream.outgoing, stream.incoming))
        soon = pipe.carried + self._random.randrange(1, 3_000)
        match fault.kind:
            case "cut":
                pipe.faults.cut_after = soon
            case "flip":
                pipe.faults.flip_at = soon
            case "repeat":
                pipe.faults.repeat_at = soon
            case "swap":
                pipe.faults.swap_at = soon
            case "stall":
                stream.stall()

    async def _let_last(self, fault: Fault) -> None:
        """Let a fault take its time, as far as it has any."""
        match fault.kind:
            case "stale":
                await self._world.come_back_stale()
            case "slow":
                await asyncio.sleep(fault.lasts)
                self._set_rate(self._schedule.rate)
            case "journal fails":
                await asyncio.sleep(min(fault.lasts, 5.0))
                self._world.kill_receiver("kill receiver", RESTART)  # the operator has mended it
            case "old backup":
                self._world.save_state()

    def _set_rate(self, rate: float) -> None:
        self.rate = rate
        for stream in self._world.streams:
            stream.outgoing.faults.rate = stream.incoming.faults.rate = rate
