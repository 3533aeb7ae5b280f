"""Both ends' real code as processes of a simulation: journal, datastore, sessions; claim, client.

What a process leaves when it dies is what its files hold: the datastore's as ``CrashDisk``
has them, the journal's as SQLite wrote them.
"""

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from fakes import PSK, RECEIVER_KEY, SENDER_KEY, Receiving
from network import MemoryStream
from node import Killed, Node, is_dead, running

from flatship_protocol.connection import FramePool, Stream
from flatship_protocol.endpoint import Endpoint
from flatship_protocol.errors import ConnectionLost
from flatship_protocol.handshake import public_key
from flatship_protocol.messages import Message
from flatship_receiver import daemon, proof
from flatship_receiver.authorized_senders import AuthorizedSenders
from flatship_receiver.datastores.local import LocalDatastore
from flatship_receiver.facilities import Facilities
from flatship_receiver.journal import AsyncJournal, Journal, JournalError
from flatship_receiver.metrics import ReceiverMetrics
from flatship_receiver.peers import Peer
from flatship_receiver.sessions import Sessions
from flatship_sender.claims import claim
from flatship_sender.client import Client
from flatship_sender.compression import CompressionController
from flatship_sender.connecting import Credentials, SessionName
from flatship_sender.disk_memory import DiskMemory
from flatship_sender.incarnations import Incarnations
from flatship_sender.job import Job
from flatship_sender.observer import Unobserved
from flatship_sender.page_indexes import FOLDER as INDEX_FOLDER
from flatship_sender.page_indexes import PageIndexes, Place
from flatship_sender.pipeline import Transfer
from flatship_sender.progress import TransferProgress
from flatship_sender.receivers import Receiver

DATASTORE = "ssd"
LAB = Receiver("lab", Endpoint("192.0.2.2", 7071), public_key(RECEIVER_KEY), PSK)
FRAMES = 8

JournalTrouble = Callable[[], str | None]
"""Asked before each access: "before", "after" or "torn" is where to die, "fails" is an error."""


class InlineWorkers:
    """Stands for ``Workers``: calls take time, and are made in one go at the end of it."""

    count = 2

    def __init__(self, random: Random, longest: float) -> None:
        self._random = random
        self._longest = longest

    async def run(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """See ``Workers.run``."""
        running()
        try:
            await asyncio.sleep(self._random.random() * self._longest)
        except asyncio.CancelledError:
            _make(call, *args, **kwargs)  # what a thread has begun it ends
            raise
        return _make(call, *args, **kwargs)


class InlineExecutor(Executor):
    """Makes each call where it is submitted."""

    def __init__(self, *_: object, **__: object) -> None:
        """Take whatever a pool of threads takes."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See ``Executor.submit``."""
        done: Future[Any] = Future()
        try:
            done.set_result(_make(call, *args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


def _make(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    running()
    return call(*args, **kwargs)


class SimulatedJournal(AsyncJournal):
    """The journal without its thread: one call after the other, each taking a moment."""

    def __init__(self, folder: Path, random: Random, trouble: JournalTrouble, node: Node) -> None:
        super().__init__(Journal.open(folder), InlineExecutor())  # type: ignore[arg-type]
        self.folder = folder
        self._random = random
        self._trouble = trouble
        self._node = node
        self._turn = asyncio.Lock()

    async def run(self, operation: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """See ``AsyncJournal.run``."""
        running()
        async with self._turn:
            await asyncio.sleep(self._random.random() * 0.02)
            running()
            return self._access(operation, *args, **kwargs)

    def run_from_thread(self, operation: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """See ``AsyncJournal.run_from_thread``."""
        running()
        return operation(self._journal, *args, **kwargs)

    def _access(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        trouble = self._trouble()
        if trouble == "fails":
            self._journal._failed = True  # as after SQLITE_IOERR
            raise JournalError("the state folder's disk fails")
        if trouble == "before":
            self._die()
        log = self.folder / "journal.db-wal"
        before = log.read_bytes() if log.exists() else b""
        result = operation(self._journal, *args, **kwargs)
        if trouble is not None:
            if trouble == "torn":
                after = log.read_bytes() if log.exists() else b""
                if len(after) > len(before):
                    kept = self._random.randrange(len(before), len(after))
                    log.write_bytes(after[:kept] + self._random.randbytes(len(after) - kept))
            self._die()
        return result

    def _die(self) -> None:
        self._node.die()
        raise Killed(self._node.name)


def copy_state(source: Path, target: Path) -> None:
    """What is in a state folder at this moment, as another life of the process finds it."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*-shm"))


class ReceiverProcess:
    """One life of ``flatship-receiver serve``.

    Args:
        node: Its process.
        state: Its state folder.
        path: Its datastore.
        random: Of what things take.
        journal_trouble: Makes the journal fail.
    """

    def __init__(
        self,
        node: Node,
        state: Path,
        path: Path,
        random: Random,
        journal_trouble: JournalTrouble,
    ) -> None:
        self.node = node
        self.state = state
        self.receiving: Receiving | None = None
        self.pool = FramePool(FRAMES)
        self._path = path
        self._random = random
        self._journal_trouble = journal_trouble
        self._journal: SimulatedJournal | None = None

    async def start(self) -> None:
        """Do what ``daemon.serve`` does until it listens."""
        metrics = ReceiverMetrics("test")
        journal = SimulatedJournal(self.state, self._random, self._journal_trouble, self.node)
        self._journal = journal
        store = daemon._store(LocalDatastore(DATASTORE, str(self._path)), metrics)
        slow: Any = InlineWorkers(self._random, 0.2)
        workers: Any = InlineWorkers(self._random, 0.01)
        await daemon._recover(store.datastore, slow)
        await daemon._settle(journal, {DATASTORE: store.datastore}, slow)
        facilities = Facilities(
            journal, workers, slow, self.pool, metrics, AuthorizedSenders(self.state), prove=True
        )
        self.receiving = Receiving(store.datastore, Sessions({DATASTORE: store}, facilities))

    def accept(self, stream: MemoryStream) -> None:
        """Serve a connection."""
        if self.receiving is None or not self.node.alive:
            raise ConnectionLost("nobody listens there")
        receiving = self.receiving

        async def serve() -> None:
            receiving.accept(stream)

        self.node.spawn(serve())

    def bury(self) -> None:
        """Let go of what the dead process had; its files have been copied."""
        if self._journal is not None:
            with ExitStack() as stack:
                stack.callback(self._journal._journal._connection.close)
                lock = self._journal._journal._lock
                if lock is not None:
                    stack.callback(os.close, lock)
                    self._journal._journal._lock = None


def prepare_state(state: Path) -> None:
    """Make a state folder whose receiver knows the sender."""
    state.mkdir()
    AuthorizedSenders(state).add(Peer(public_key(SENDER_KEY), "kvm1", PSK))


async def command(
    jobs: Sequence[Job],
    state: Path,
    dial: Callable[[Receiver], Awaitable[Stream]],
    begun: Callable[[SessionName, Transfer], None],
    hear: Callable[[Message], None],
    random: Random,
    *,
    connections: int,
    patience: float,
) -> None:
    """One ``flatship-sender send``, from its claim to its end; raises what that raises.

    Args:
        begun: Told each session before it is run.
        hear: Told each message of the receiver once it has been taken.
    """
    with ExitStack() as opened:
        indexes = PageIndexes(state)
        opened.callback(indexes.close)
        await _command(
            [_with_memory(job, indexes, opened) for job in jobs],
            state,
            dial,
            begun,
            hear,
            random,
            connections=connections,
            patience=patience,
        )


def _with_memory(job: Job, indexes: PageIndexes, opened: ExitStack) -> Job:
    """The job with what is known of its pages; a process that dies closes nothing."""
    opening = job.opening
    place = Place(LAB.public, opening.datastore, opening.vm, opening.name)
    memory = DiskMemory(indexes, place, opening.size)
    opened.callback(_close, memory)
    return replace(job, memory=memory)


def _close(memory: DiskMemory) -> None:
    if is_dead() and memory._index is not None:
        memory._index._noted.clear()  # what was not written yet
    memory.close()


def spoil_indexes(state: Path, random: Random) -> None:
    """Leave of the sender's page indexes what a power loss may leave: some bytes are others."""
    for path in sorted((state / INDEX_FOLDER).glob("*.[ia]n*")):
        content = bytearray(path.read_bytes())
        for _ in range(random.randrange(4)):
            if content:
                content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(content[: random.randrange(len(content) // 2, len(content) + 1)])


async def _command(
    jobs: Sequence[Job],
    state: Path,
    dial: Callable[[Receiver], Awaitable[Stream]],
    begun: Callable[[SessionName, Transfer], None],
    hear: Callable[[Message], None],
    random: Random,
    *,
    connections: int,
    patience: float,
) -> None:
    progress = TransferProgress("lab", "web", [job.progress for job in jobs])
    workers: Any = InlineWorkers(random, 0.01)
    controller = CompressionController(random.choice(("off", 1)), workers.count)

    def begin(
        jobs: Sequence[Job], session: SessionName, on_open: Callable[[], None]
    ) -> tuple[Transfer, Client]:
        transfer = Transfer(jobs, progress, controller, Unobserved(), workers, session.epoch)
        begun(session, transfer)

        def take(epoch: int, message: Message) -> None:
            transfer.dispatch(epoch, message)
            hear(message)

        client = Client(
            LAB, Credentials(SENDER_KEY, PSK), session, take, dial=dial, on_open=on_open
        )
        return transfer, client

    with claim(state, LAB.name, "web") as held:
        await Incarnations(
            jobs,
            progress,
            held,
            begin,
            connections=connections,
            patience=patience,
            command="flatship-sender send",
            clock=asyncio.get_running_loop().time,
            chance=random.random,
        ).run()


def inline_proof() -> None:
    """Have proofs read without threads of their own, for as long as this process lives."""
    proof.ThreadPoolExecutor = InlineExecutor  # type: ignore[misc,assignment]
