"""Runs one schedule: real code at both ends, a world that does to them what the seed says.

After the last fault everything is sound again, and the same command must come to its end.
"""

import asyncio
import errno
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import structlog
from both_ends import ReceiverProcess, command, copy_state, inline_proof, prepare_state
from crash_disk import CrashDisk
from fakes import RECEIVER_KEY, SENDER_KEY, PSK
from network import Faults, MemoryStream, link
from node import Killed, Node, NumberedTask, running, task_factory
from oracle import DiskOracle, Violation, check_record, padded
from schedules import DAY, DISK, Fault, Schedule, changed, content, draw
from virtual_loop import VirtualLoop, run_virtually

from flatship_protocol.connection import Stream
from flatship_protocol.errors import ConnectionLost, ErrorCode, TransferError
from flatship_protocol.messages import (
    Adapter,
    Chunk,
    DiskFormat,
    DiskProven,
    Held,
    Message,
    OpenDisk,
    Provisioning,
    Stored,
    Zero,
)
from flatship_receiver import vmdk
from flatship_sender import pipeline
from flatship_sender.claims import AlreadySending
from flatship_sender.client import Credentials, SessionName, connect
from flatship_sender.pipeline import FIRST_PASS, Job, Transfer
from flatship_sender.progress import DiskProgress, TransferState
from flatship_sender.receivers import Receiver
from flatship_sender.refusals import RefusedByReceiver
from flatship_sender.sources.memory import MemorySource

AT_MOST: Final = 40 * DAY  # of virtual time
COMMANDS: Final = 60  # that a schedule with all its faults may take
COMMANDS_WHEN_SOUND: Final = 3  # of them, once the last fault is over
RESTART: Final = 3.0  # seconds until a receiver that ended by itself is started again
OLD_DISK: Final = b"an old disk".ljust(4096, b"\1")
MIB: Final = 1 << 20

_CALLS: Final = {
    "full": {"pwrite", "create", "ftruncate"},
    "write error": {"pwrite"},
    "short write": {"pwrite"},
    "sync error": {"fsync"},
    "read error": {"preadv"},
    "rename error": {"rename", "unlink", "fsync folder"},
}


@dataclass(slots=True)
class Record:
    """What became of a schedule."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    commands: int = 0
    lives: int = 0  # of the receiver
    virtual_seconds: float = 0.0


class Trial:
    """The world of one schedule.

    Args:
        schedule: What happens in it.
        folder: An empty directory of tmpfs.
        loop: Its clock.
    """

    def __init__(self, schedule: Schedule, folder: Path, loop: VirtualLoop) -> None:
        self.record = Record(schedule.seed)
        self._schedule = schedule
        self._folder = folder
        self._loop = loop
        self._random = Random(schedule.seed ^ 0x5EED)
        self._disk = CrashDisk(folder / "datastore-0", self._random, self._disk_trouble)
        self._state = folder / "state-0"
        self._backup: Path | None = None
        self._oracles: list[DiskOracle] = []
        self._receiver: ReceiverProcess | None = None
        self._sender: Node | None = None
        self._streams: list[MemoryStream] = []
        self._fault: Fault | None = None
        self._count = 0.0
        self._fired = asyncio.Event()
        self._unreachable_until = 0.0
        self._rate = schedule.rate
        self._death = "kill"
        self._down_for = 0.0
        self._lied = False
        self._faults_over = False
        self._changes_due = False
        self._epochs: list[SessionName] = []
        self._published: dict[str, bytes | None] = {}
        self.violations: list[BaseException] = []

    async def run(self) -> None:
        """Run the schedule; raises what went wrong in it."""
        NumberedTask.made = 0
        self._loop.set_task_factory(task_factory)
        self._loop.set_exception_handler(self._unhandled)
        self._disk.root.mkdir()
        prepare_state(self._state)
        self._make_disks()
        with self._disk.in_place():
            receiver = asyncio.create_task(self._keep_receiver())
            weather = asyncio.create_task(self._weather())
            sending = asyncio.create_task(self._send_until_done(weather))
            try:
                await asyncio.wait({receiver, sending}, return_when=asyncio.FIRST_COMPLETED)
                if receiver.done():
                    await receiver
                await sending
                self._raise()
                self._check_end()
            finally:
                for task in (weather, receiver, sending):
                    task.cancel()
                await asyncio.wait({weather, receiver, sending})
                await self._end_receiver()
        if not weather.cancelled():
            await weather
        self._raise()
        self.record.virtual_seconds = self._loop.time()

    # -- disks --------------------------------------------------------------------------

    def _make_disks(self) -> None:
        for number, plan in enumerate(self._schedule.disks):
            name = "web" if number == 0 else f"web_{number}"
            old = None
            if plan.replaces:
                old = padded(OLD_DISK)
                layout = vmdk.Layout(DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 21)
                text = vmdk.build(name, len(old), layout, vmdk.make_uuid(bytes(16)), bytes(vmdk.CONTENT_ID_SIZE))
                self._disk.put(f"web/{name}-flat.vmdk", old)
                self._disk.put(f"web/{name}.vmdk", text)
            oracle = DiskOracle(name, old, content(plan.seed, plan.size))
            oracle.look(self._disk.root / "web")
            self._oracles.append(oracle)

    def _change_sources(self) -> None:
        for oracle in self._oracles:
            if self._random.random() < 0.7:
                oracle.versions.append(changed(self._random, oracle.source, oracle.versions))

    def _jobs(self, *, live: bool) -> list[Job]:
        sources = [MemorySource(oracle.source, name=oracle.name) for oracle in self._oracles]
        return [
            Job(
                source,
                OpenDisk(
                    disk=number,
                    pass_number=FIRST_PASS,
                    size=source.size,
                    reserve=0,
                    source_id=source.identity,
                    format=DiskFormat.VMFS,
                    provisioning=Provisioning.THIN,
                    adapter=Adapter.LSILOGIC,
                    hardware_version=21,
                    datastore="",
                    vm="web",
                    name=oracle.name,
                    replace=oracle.old is not None,
                    live=live,
                    dry_run=False,
                ),
                DiskProgress(oracle.name, f"web/{oracle.name}", source.size),
            )
            for number, (source, oracle) in enumerate(zip(sources, self._oracles, strict=True))
        ]

    @property
    def _listens(self) -> bool:
        receiver = self._receiver
        return receiver is not None and receiver.node.alive and receiver.receiving is not None

    # -- the sender ---------------------------------------------------------------------

    async def _send_until_done(self, weather: "asyncio.Task[None]") -> None:
        live = self._schedule.live_first
        when_sound = 0
        while when_sound <= COMMANDS_WHEN_SOUND:
            if self.record.commands >= COMMANDS:
                weather.cancel()
                self._all_is_sound()
            when_sound += self._faults_over and self._listens
            done = await self._one_command(live=live)
            self._raise()
            if done and not live:
                if not self._faults_over:
                    weather.cancel()
                    self._all_is_sound()
                return
            if done:
                live = False
                self._change_sources()
            if self._changes_due:
                self._changes_due = False
                self._change_sources()
            await asyncio.sleep(self._random.random() * 10)
        raise Violation(f"all is sound, and {when_sound} commands did not bring the disks over")

    async def _one_command(self, *, live: bool) -> bool:
        """Type the command once; whether all disks are over there."""
        self.record.commands += 1
        jobs = self._jobs(live=live)
        node = self._sender = Node("sender", self._break_links)
        task = node.spawn(
            command(
                jobs,
                self._folder / "sender",
                self._dial,
                self._begun,
                self._hear,
                self._random,
                connections=self._schedule.connections,
                patience=self._schedule.patience,
            )
        )
        ended = asyncio.create_task(node.ended.wait())
        await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not task.done() or not node.alive:
            await node.unwind()
            return False
        node.die()
        await node.unwind()
        error = task.exception()
        if error is not None and (
            not isinstance(error, TransferError) or isinstance(error, AlreadySending)
        ):
            raise Violation(f"the command ended by {error!r}") from error
        return all(
            self._is_over(job.progress, oracle, live=live)
            for job, oracle in zip(jobs, self._oracles, strict=True)
        )

    def _is_over(self, progress: DiskProgress, oracle: DiskOracle, *, live: bool) -> bool:
        if live:
            return progress.state is TransferState.UNPUBLISHED
        if progress.error is not None and "internal error" in progress.error:
            self.violations.append(Violation(progress.error))
        stands = oracle.published(self._disk.root / "web") == padded(oracle.source)
        if progress.state is TransferState.PUBLISHED and not stands:
            raise Violation(f"{oracle.name}: said to be published, and it is not")
        if progress.error_code is ErrorCode.DISK_EXISTS and not stands:
            # Published as it was before it changed; an operator would have it replaced.
            oracle.old = oracle.published(self._disk.root / "web")
            oracle.acknowledged.clear()
        said = progress.state is TransferState.PUBLISHED
        return stands and (said or progress.error_code is ErrorCode.DISK_EXISTS)

    async def _dial(self, _: Receiver) -> Stream:
        """Connect to the receiver, if it can be reached."""
        running()
        await asyncio.sleep(self._schedule.latency)
        if self._loop.time() < self._unreachable_until:
            await asyncio.sleep(10.0)
            raise ConnectionLost("no answer within 10 s")
        if not self._listens:
            raise ConnectionLost("connection refused")
        assert self._receiver is not None
        ours, theirs = link(self._sound_link(), self._sound_link())
        self._streams = [stream for stream in self._streams if not stream.closed]
        self._streams.append(ours)
        self._receiver.accept(theirs)
        return ours

    def _sound_link(self) -> Faults:
        return Faults(
            fragments=Random(self._schedule.seed) if self._schedule.fragments else None,
            latency=self._schedule.latency,
            rate=self._rate,
            carried=self._carry,
        )

    def _carry(self, size: int) -> None:
        """A link has taken some bytes."""
        if self._fault is not None and self._fault.trigger == "bytes":
            self._count -= size
            if self._count <= 0:
                self._loop.call_soon(self._fire, self._fault)
                self._fault = None

    def _begun(self, session: SessionName, transfer: Transfer) -> None:
        """A session is about to be run: listen to what it says."""
        self._epochs.append(session)
        for oracle in self._oracles:
            oracle.begin()
        send = transfer.session.send

        def say(message: Any, now: float) -> None:
            if isinstance(message, Chunk | Zero):
                self._check(lambda: self._oracles[message.disk].say(message))
            send(message, now)

        transfer.session.send = say  # type: ignore[method-assign]

    def _hear(self, message: Message) -> None:
        """The sender has taken a message."""
        if isinstance(message, Held | Stored):
            oracle = self._oracles[message.disk]
            oracle.look(self._disk.root / "web")
            self._check(lambda: oracle.hear(message))
        elif isinstance(message, DiskProven):
            self._oracles[message.disk].acknowledged.clear()

    def _break_links(self) -> None:
        for stream in self._streams:
            stream.break_()

    # -- the receiver -------------------------------------------------------------------

    async def _keep_receiver(self) -> None:
        """Start the receiver, and again whenever it ends, as systemd does."""
        while True:
            node = Node("receiver", self._receiver_died)
            self.record.lives += 1
            receiver = self._receiver = ReceiverProcess(
                node, self._state, self._disk.root, self._random, self._journal_trouble
            )
            starting = node.spawn(receiver.start())
            await asyncio.wait({starting})
            if node.alive and starting.exception() is not None:
                error = starting.exception()
                if not isinstance(error, TransferError):
                    raise Violation(f"the receiver cannot start: {error!r}") from error
                self._death, self._down_for = "kill", RESTART
                node.die()
            if node.alive:
                self._check_stands()
                await node.ended.wait()
            await self._bury(receiver)
            await asyncio.sleep(self._down_for)

    async def _bury(self, receiver: ReceiverProcess) -> None:
        """Take down what is left of a dead receiver, and let the disk be what it then is."""
        lives = self.record.lives
        self._disk.abandon(receiver.node)
        state = self._folder / f"state-{lives}"
        copy_state(self._state, state)
        await receiver.node.unwind()
        receiver.bury()
        if receiver.receiving is not None and receiver.receiving.trouble:
            self.violations.extend(
                error for error in receiver.receiving.trouble if not isinstance(error, Killed)
            )
        shutil.rmtree(self._state)
        self._state = state
        root = self._folder / f"datastore-{lives}"
        match self._death:
            case "power loss":
                self._disk.crash(root)
            case "lying disk":
                self._disk.forget(root)
                self._doubt("the disk lied")
            case "old backup" if self._backup is not None:
                shutil.rmtree(self._state)
                self._state = self._backup
                self._backup = None
                self._doubt("the state folder is an old one")
        try:
            check_record(self._state, self._disk.root, self._oracles, lied=self._lied)
        except Violation as error:
            self.violations.append(error)
        for oracle in self._oracles:
            self._check(lambda oracle=oracle: oracle.check_published(self._disk.root / "web"))

    def _doubt(self, why: str) -> None:
        self._lied = True
        for oracle in self._oracles:
            oracle.suspect(why)

    def _receiver_died(self) -> None:
        silent = self._death != "kill" and self._random.random() < 0.5
        for stream in self._streams:
            if silent:
                stream.stall()
            else:
                stream.break_()

    async def _end_receiver(self) -> None:
        receiver = self._receiver
        if receiver is not None:
            receiver.node.die()
            self._disk.abandon(receiver.node)
            await receiver.node.unwind()
            receiver.bury()

    def _check_stands(self) -> None:
        """Once it listens, a disk that is to be replaced, or its replacement, stands whole."""
        for oracle in self._oracles:
            if oracle.old is None:
                continue
            if self._check(lambda oracle=oracle: oracle.check_published(self._disk.root / "web")) is None:
                self.violations.append(Violation(f"{oracle.name}: neither old nor new disk stands"))

    def _check(self, check: Callable[[], Any]) -> Any:
        try:
            return check()
        except Violation as error:
            self.violations.append(error)
            return None

    # -- the weather --------------------------------------------------------------------

    async def _weather(self) -> None:
        """Let one fault after the other happen."""
        for fault in self._schedule.faults:
            self._fault, self._count = fault, fault.after
            self._fired.clear()
            if fault.trigger == "time":
                await asyncio.sleep(fault.after)
                self._fire(fault)
            await self._fired.wait()
            self.record.faults[fault.kind] += 1
            self._fault = None
            await self._last(fault)
        self._all_is_sound()

    def _all_is_sound(self) -> None:
        self._fault = None
        self._faults_over = True
        self._rate = self._schedule.rate
        self._unreachable_until = 0.0

    def _fire(self, fault: Fault) -> None:
        """Do what the fault does at the moment that it was set for."""
        self._fired.set()
        stream = self._random.choice(self._streams) if self._streams else None
        pipe = None if stream is None else self._random.choice((stream.outgoing, stream.incoming))
        soon = 0 if pipe is None else pipe.carried + self._random.randrange(1, 3_000)
        match fault.kind:
            case "cut" if pipe is not None:
                pipe.faults.cut_after = soon
            case "flip" if pipe is not None:
                pipe.faults.flip_at = soon
            case "repeat" if pipe is not None:
                pipe.faults.repeat_at = soon
            case "swap" if pipe is not None:
                pipe.faults.swap_at = soon
            case "stall" if stream is not None:
                stream.stall()
            case "cut all":
                self._break_links()
            case "partition":
                self._unreachable_until = self._loop.time() + fault.lasts
                for each in self._streams:
                    each.stall()
            case "slow":
                self._rate = 20_000.0
                for each in self._streams:
                    each.outgoing.faults.rate = each.incoming.faults.rate = self._rate
            case "kill sender":
                if self._sender is not None:
                    self._sender.die()
            case "kill receiver":
                self._kill_receiver("kill", fault.lasts)
            case "power loss" | "lying disk" | "old backup":
                self._kill_receiver(fault.kind, fault.lasts)
            case "wall clock":
                self._loop.wall_offset += self._random.choice((-DAY, DAY))
            case "frozen host":
                self._loop.freeze(DAY)
            case "source changes":
                self._changes_due = True
                if self._sender is not None:
                    self._sender.die()

    async def _last(self, fault: Fault) -> None:
        """Let a fault take its time, as far as it has any."""
        match fault.kind:
            case "stale":
                await self._come_back_stale()
            case "slow":
                await asyncio.sleep(fault.lasts)
                self._rate = self._schedule.rate
                for stream in self._streams:
                    stream.outgoing.faults.rate = stream.incoming.faults.rate = self._rate
            case "journal fails":
                await asyncio.sleep(min(fault.lasts, 5.0))
                self._kill_receiver("kill", RESTART)  # the operator has mended it
            case "old backup" if self._backup is None:
                self._save_backup()

    def _save_backup(self) -> None:
        self._backup = self._folder / f"backup-{self.record.lives}-{self._loop.time():.3f}"
        copy_state(self._state, self._backup)

    def _kill_receiver(self, death: str, down_for: float) -> None:
        receiver = self._receiver
        if receiver is not None and receiver.node.alive:
            self._death, self._down_for = death, down_for
            receiver.node.die()

    async def _come_back_stale(self) -> None:
        """An incarnation that is over tries to connect again."""
        if len(self._epochs) < 2:
            return
        stale = self._random.choice(self._epochs[:-1])
        from both_ends import LAB

        try:
            connection, _ = await connect(LAB, Credentials(SENDER_KEY, PSK), stale, 0, self._dial)
        except RefusedByReceiver as error:
            if error.code is not ErrorCode.STALE_EPOCH:
                self.violations.append(Violation(f"a stale epoch was refused by {error!r}"))
        except TransferError:
            return
        else:
            connection.close()
            self.violations.append(Violation(f"epoch {stale.epoch} is over and was let in"))

    def _disk_trouble(self, call: str) -> OSError | int | None:
        fault, receiver = self._fault, self._receiver
        node = running()
        if fault is None or fault.trigger != "disk" or receiver is None or node is None:
            return None
        calls = _CALLS.get(fault.kind)
        if calls is not None and call not in calls:
            return None
        self._count -= 1
        if self._count > 0:
            return None
        if calls is None:
            self._fire(fault)
            raise Killed(node.name)
        self._fault = None
        self._fired.set()
        if fault.kind == "short write":
            return int(self._random.choice((1, 512, 4096, 70_000)))
        for oracle in self._oracles:
            oracle.suspect(fault.kind)
        return OSError(errno.ENOSPC if fault.kind == "full" else errno.EIO, fault.kind)

    def _journal_trouble(self) -> str | None:
        fault = self._fault
        if fault is None or fault.trigger != "journal":
            return None
        self._count -= 1
        if self._count > 0:
            return None
        if fault.kind == "journal fails":
            self._fault = None
            self._fired.set()
            for oracle in self._oracles:
                oracle.suspect(fault.kind)
            return "fails"
        self._fault = None
        self._death, self._down_for = fault.kind.replace("kill receiver", "kill"), fault.lasts
        self._fired.set()
        return fault.where

    # -- the end ------------------------------------------------------------------------

    def _check_end(self) -> None:
        for oracle in self._oracles:
            if oracle.published(self._disk.root / "web") != padded(oracle.source):
                raise Violation(f"{oracle.name}: the copy is not the source")
        left = [path.name for path in (self._disk.root / "web").iterdir() if "flatship" in path.name]
        if left:
            raise Violation(f"left behind: {left}")

    def _unhandled(self, _: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, Killed):
            self.violations.append(Violation(f"unhandled: {context}"))

    def _raise(self) -> None:
        if self.violations:
            raise self.violations[0]


def run_seed(seed: int) -> Record:
    """Run the schedule of a seed.

    Raises:
        Violation: What must not happen has happened.
        Stuck: The program hangs.
    """
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        cleanup.callback(setattr, pipeline, "ProcessorWatch", pipeline.ProcessorWatch)
        pipeline.ProcessorWatch = _AllIdle  # type: ignore[misc,assignment]
        inline_proof()
        internal: list[str] = []
        structlog.configure(processors=[_listener(internal)])
        cleanup.callback(structlog.reset_defaults)

        async def scenario(loop: VirtualLoop) -> Record:
            trial = Trial(draw(seed), folder, loop)
            await trial.run()
            if internal:
                raise Violation(internal[0])
            return trial.record

        return run_virtually(scenario, seed, at_most=AT_MOST)


class _AllIdle:
    def cores(self) -> float:
        return 2.0


def _listener(internal: list[str]) -> Any:
    def listen(_: object, __: str, event: dict[str, Any]) -> Any:
        if event.get("event") in ("internal error", "connection failed"):
            internal.append(str(event))
        raise structlog.DropEvent

    return listen


_ = (DISK, RECEIVER_KEY, MIB)
