"""Runs one schedule: real code at both ends, a world that does to them what the seed says.

After the last fault everything is sound again, and the same command must come to its end.
"""

import asyncio
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
from both_ends import (
    LAB,
    ReceiverProcess,
    command,
    copy_state,
    inline_proof,
    prepare_state,
    spoil_indexes,
)
from crash_disk import CrashDisk
from fakes import PSK, SENDER_KEY
from network import Faults, MemoryStream, link
from node import Killed, Node, running, task_factory
from oracle import DiskOracle, Violation, check_record, padded
from schedules import DAY, Schedule, changed, contents, draw
from virtual_loop import VirtualLoop, run_virtually
from weather import RESTART, Weather

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
    SegmentKind,
    Stored,
    Want,
    Zero,
)
from flatship_receiver import vmdk
from flatship_sender import pipeline
from flatship_sender.claims import AlreadySending
from flatship_sender.connecting import Credentials, SessionName, connect
from flatship_sender.job import FIRST_PASS, Job
from flatship_sender.pipeline import Transfer
from flatship_sender.processor import Share
from flatship_sender.progress import DiskProgress, TransferState
from flatship_sender.receivers import Receiver
from flatship_sender.refusals import RefusedByReceiver
from flatship_sender.sources.memory import MemorySource

AT_MOST: Final = 40 * DAY  # of virtual time
COMMANDS: Final = 60  # that a schedule with all its faults may take
COMMANDS_WHEN_SOUND: Final = 3  # of them, once the last fault is over
OLD_DISK: Final = b"an old disk".ljust(4096, b"\1")


@dataclass(slots=True)
class Record:
    """What became of a schedule."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    commands: int = 0
    lives: int = 0  # of the receiver
    virtual_seconds: float = 0.0
    patched: int = 0  # chunks of which the receiver was to keep a part
    copied: int = 0  # and of which it was to copy a part from elsewhere
    wanted: int = 0  # of both, those that it wanted whole


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
        self._spoils = Random(schedule.seed ^ 0x1DE)  # its own: what it draws moves nothing else
        self._weather = Weather(schedule, self, self._random, loop)
        self._disk = CrashDisk(folder / "datastore-0", self._random, self._weather.disk_trouble)
        self._state = folder / "state-0"
        self._backup: Path | None = None
        self._oracles: list[DiskOracle] = []
        self._receiver: ReceiverProcess | None = None
        self._sender: Node | None = None
        self._death = ("kill receiver", 0.0)
        self._lied = False
        self._changes_due = False
        self._session: SessionName | None = None
        self._last_heard: SessionName | None = None
        self._violations: list[Violation] = []
        self.streams: list[MemoryStream] = []

    async def run(self) -> None:
        """Run the schedule; raises what went wrong in it."""
        self._loop.set_task_factory(task_factory)
        self._loop.set_exception_handler(self._unhandled)
        self._disk.root.mkdir()
        prepare_state(self._state)
        self._make_disks()
        with self._disk.in_place():
            receiver = asyncio.create_task(self._keep_receiver())
            weather = asyncio.create_task(self._weather.run())
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
        self.record.faults = self._weather.happened
        self.record.virtual_seconds = self._loop.time()

    # -- disks --------------------------------------------------------------------------

    def _make_disks(self) -> None:
        held = contents(self._schedule)
        for number, (plan, content) in enumerate(zip(self._schedule.disks, held, strict=True)):
            name = "web" if number == 0 else f"web_{number}"
            old = None
            if plan.replaces:
                old = padded(OLD_DISK)
                layout = vmdk.Layout(DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 21)
                text = vmdk.build(
                    name, len(old), layout, vmdk.make_uuid(bytes(16)), bytes(vmdk.CONTENT_ID_SIZE)
                )
                self._disk.put(f"web/{name}-flat.vmdk", old)
                self._disk.put(f"web/{name}.vmdk", text)
            oracle = DiskOracle(name, old, content)
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
                self._weather.clear_up()
            when_sound += self._weather.is_over and self._listens
            done = await self._one_command(live=live)
            self._raise()
            if done and not live:
                weather.cancel()
                self._weather.clear_up()
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
            if self._spoils.random() < 0.3:
                spoil_indexes(self._folder / "sender", self._spoils)
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
            self._violations.append(Violation(progress.error))
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
        if self._loop.time() < self._weather.unreachable_until:
            await asyncio.sleep(10.0)
            raise ConnectionLost("no answer within 10 s")
        if not self._listens:
            raise ConnectionLost("connection refused")
        assert self._receiver is not None
        ours, theirs = link(self._sound_link(), self._sound_link())
        self.streams = [stream for stream in self.streams if not stream.closed]
        self.streams.append(ours)
        self._receiver.accept(theirs)
        return ours

    def _sound_link(self) -> Faults:
        return Faults(
            fragments=Random(self._schedule.seed) if self._schedule.fragments else None,
            latency=self._schedule.latency,
            rate=self._weather.rate,
            carried=self._weather.carried,
        )

    def _begun(self, session: SessionName, transfer: Transfer) -> None:
        """A session is about to be run: listen to what it says."""
        self._session = session
        for oracle in self._oracles:
            oracle.begin()
        send = transfer.session.send

        def say(message: Any, now: float) -> None:
            if isinstance(message, Chunk | Zero):
                self._check(lambda: self._oracles[message.disk].say(message))
            if isinstance(message, Chunk):
                kinds = {segment.kind for segment in message.segments}
                self.record.patched += SegmentKind.KEEP in kinds
                self.record.copied += SegmentKind.COPY in kinds
            send(message, now)

        transfer.session.send = say  # type: ignore[method-assign]

    def _hear(self, message: Message) -> None:
        """The sender has taken a message."""
        self._last_heard = self._session
        if isinstance(message, Held | Stored):
            oracle = self._oracles[message.disk]
            oracle.look(self._disk.root / "web")
            self._check(lambda: oracle.hear(message))
        elif isinstance(message, Want):
            self.record.wanted += len(message.ranges)
        elif isinstance(message, DiskProven):
            self._oracles[message.disk].acknowledged.clear()

    def _break_links(self) -> None:
        for stream in self.streams:
            stream.break_()

    # -- the receiver -------------------------------------------------------------------

    async def _keep_receiver(self) -> None:
        """Start the receiver, and again whenever it ends, as systemd does."""
        while True:
            node = Node("receiver", self._receiver_died)
            self.record.lives += 1
            receiver = self._receiver = ReceiverProcess(
                node, self._state, self._disk.root, self._random, self._weather.journal_trouble
            )
            starting = node.spawn(receiver.start())
            await asyncio.wait({starting})
            if node.alive and starting.exception() is not None:
                error = starting.exception()
                if not isinstance(error, TransferError):
                    raise Violation(f"the receiver cannot start: {error!r}") from error
                self.kill_receiver("kill receiver", RESTART)
            if node.alive:
                self._check_stands()
                await node.ended.wait()
            await self._bury(receiver)
            await asyncio.sleep(self._death[1])

    async def _bury(self, receiver: ReceiverProcess) -> None:
        """Take down what is left of a dead receiver, and let the disk be what it then is."""
        lives = self.record.lives
        self._disk.abandon(receiver.node)
        state = self._folder / f"state-{lives}"
        copy_state(self._state, state)
        await receiver.node.unwind()
        receiver.bury()
        if receiver.receiving is not None and receiver.receiving.trouble:
            self._violations.extend(
                Violation(f"out of a connection came {error!r}")
                for error in receiver.receiving.trouble
                if not isinstance(error, Killed)
            )
        shutil.rmtree(self._state)
        self._state = state
        root = self._folder / f"datastore-{lives}"
        match self._death[0]:
            case "power loss":
                self._disk.crash(root)
            case "lying disk":
                self._disk.forget(root)
                self._distrust("the disk lied")
            case "old backup" if self._backup is not None:
                shutil.rmtree(self._state)
                self._state = self._backup
                self._backup = None
                self._distrust("the state folder is an old one")
        try:
            check_record(self._state, self._disk.root, self._oracles, lied=self._lied)
        except Violation as error:
            self._violations.append(error)
        for oracle in self._oracles:
            self._look_at(oracle)

    def _distrust(self, why: str) -> None:
        self._lied = True
        for oracle in self._oracles:
            oracle.suspect(why, for_good=True)

    def _receiver_died(self) -> None:
        silent = self._death[0] != "kill receiver" and self._random.random() < 0.5
        for stream in self.streams:
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
            if self._look_at(oracle) is None:
                self._violations.append(
                    Violation(f"{oracle.name}: neither old nor new disk stands")
                )

    def _look_at(self, oracle: DiskOracle) -> bytes | None:
        """What stands under a disk's name, and may stand there."""
        folder = self._disk.root / "web"
        found: bytes | None = self._check(lambda: oracle.check_published(folder))
        return found

    def _check(self, check: Callable[[], Any]) -> Any:
        try:
            return check()
        except Violation as error:
            self._violations.append(error)
            return None

    # -- what the weather does ----------------------------------------------------------

    def kill_sender(self) -> None:
        """See World."""
        if self._sender is not None:
            self._sender.die()

    def change_sources(self) -> None:
        """See World."""
        self._changes_due = True

    def kill_receiver(self, death: str, down_for: float) -> None:
        """See World."""
        if self._receiver is not None and self._receiver.node.alive:
            self.dies_of(death, down_for)
            self._receiver.node.die()

    def dies_of(self, death: str, down_for: float) -> None:
        """See World."""
        self._death = (death, down_for)

    def save_state(self) -> None:
        """See World."""
        if self._backup is None:
            self._backup = self._folder / f"backup-{self._loop.time():.3f}"
            copy_state(self._state, self._backup)

    def suspect(self, why: str) -> None:
        """See World."""
        for oracle in self._oracles:
            oracle.suspect(why)

    async def come_back_stale(self) -> None:
        """See World."""
        last = self._last_heard
        if last is None or last.epoch == 1 or self._lied:
            return  # who has lost its record has lost the epochs too
        stale = SessionName(last.session_id, self._random.randrange(1, last.epoch))
        try:
            connection, _ = await connect(LAB, Credentials(SENDER_KEY, PSK), stale, 0, self._dial)
        except RefusedByReceiver as error:
            if error.code is not ErrorCode.STALE_EPOCH:
                self._violations.append(Violation(f"a stale epoch was refused by {error!r}"))
        except TransferError:
            return
        else:
            connection.close()
            self._violations.append(Violation(f"epoch {stale.epoch} is over and was let in"))

    # -- the end ------------------------------------------------------------------------

    def _check_end(self) -> None:
        for oracle in self._oracles:
            if oracle.published(self._disk.root / "web") != padded(oracle.source):
                raise Violation(f"{oracle.name}: the copy is not the source")
        left = [
            path.name for path in (self._disk.root / "web").iterdir() if "flatship" in path.name
        ]
        if left:
            raise Violation(f"left behind: {left}")

    def _unhandled(self, _: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, Killed):
            self._violations.append(Violation(f"unhandled: {context}"))

    def _raise(self) -> None:
        if self._violations:
            raise self._violations[0]


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
            try:
                await trial.run()
            finally:
                if internal:  # and whatever came of it
                    raise Violation(internal[0])
            return trial.record

        return run_virtually(scenario, seed, at_most=AT_MOST)


class _AllIdle:
    def look(self) -> Share:
        return Share(0.0, 2.0)


def _listener(internal: list[str]) -> Any:
    def listen(_: object, __: str, event: dict[str, Any]) -> Any:
        if event.get("event") in ("internal error", "connection failed"):
            internal.append(str(event))
        raise structlog.DropEvent

    return listen
