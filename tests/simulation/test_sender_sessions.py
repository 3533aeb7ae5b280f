"""A sender's session when connections fail, cannot be replaced, or are refused."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
from fakes import (
    PSK,
    RECEIVER_KEY,
    SENDER_KEY,
    SESSION_ID,
    FaultyDatastore,
    World,
    world,
)
from network import Faults, MemoryStream, link

from flatship_protocol.connection import Stream, initiate
from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.endpoint import Endpoint
from flatship_protocol.errors import ConnectionLost, ErrorCode
from flatship_protocol.handshake import INITIATION_SIZE, RESPONSE_SIZE, Responder, public_key
from flatship_protocol.messages import DiskFailed, DiskProven, Message, Proving
from flatship_sender.client import HANDSHAKES, Client, Lifetime
from flatship_sender.connecting import Credentials, SessionName, connect
from flatship_sender.pipeline import Transfer, usable
from flatship_sender.progress import DiskProgress, TransferState
from flatship_sender.receivers import Receiver
from flatship_sender.refusals import NotAuthorised
from flatship_sender.sources.memory import MemorySource

MIB = CHUNK_SIZE
PATIENCE = 10.0  # seconds; a test that takes so long hangs
AT_ONCE = Lifetime(seconds=0.0)
RECEIVER = Receiver("lab", Endpoint("192.0.2.2", 7071), public_key(RECEIVER_KEY), PSK)
CREDENTIALS = Credentials(SENDER_KEY, PSK)
NAME = SessionName(SESSION_ID, 1)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await scenario()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # code that knows no events makes it true
        await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatship_sender.client.MAINTENANCE_INTERVAL", 0.001)


@pytest.fixture
def store() -> FaultyDatastore:
    return FaultyDatastore(1 << 30)


class Dialer:
    """Dials a world, until ``most`` links have been made; then nobody answers."""

    def __init__(self, at: World, most: int) -> None:
        self._at = at
        self._most = most
        self.failures = 0

    async def __call__(self, receiver: Receiver) -> Stream:
        if len(self._at.streams) == self._most:
            self.failures += 1
            raise ConnectionLost("nobody answers")
        return await self._at.dial(receiver)


def ignore(_: int, message: Message) -> None:
    pytest.fail(f"{type(message).__name__} without a disk")


def disk(transfer: Transfer, number: int = 0) -> DiskProgress:
    return transfer.progress.disks[number]


def noise(size: int) -> MemorySource:
    return MemorySource(Random(1).randbytes(size))


def break_all(at: World) -> None:
    for stream in at.streams:
        stream.break_()


# Connections that cannot be made


def test_a_connection_that_cannot_be_replaced_goes_on_and_replacement_is_tried_again(
    tmp_path: Path, store: FaultyDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatship_sender.client.REPLACE_BACKOFF", 0.01)

    async def scenario() -> None:
        async with world(tmp_path, store) as at, asyncio.TaskGroup() as tasks:
            dialer = Dialer(at, most=2)
            client = Client(RECEIVER, CREDENTIALS, NAME, ignore, lifetime=AT_ONCE, dial=dialer)
            await client.open(tasks)
            await client.widen(2)
            await until(lambda: dialer.failures == 3)
            assert client.live == 2
            await client.finish()

    run(scenario)


def test_a_failed_replacement_is_not_tried_again_at_once(
    tmp_path: Path, store: FaultyDatastore
) -> None:
    async def scenario() -> None:
        async with world(tmp_path, store) as at, asyncio.TaskGroup() as tasks:
            dialer = Dialer(at, most=2)
            client = Client(RECEIVER, CREDENTIALS, NAME, ignore, lifetime=AT_ONCE, dial=dialer)
            await client.open(tasks)
            await client.widen(2)
            await until(lambda: dialer.failures > 0)
            await asyncio.sleep(0.05)  # dozens of rounds of upkeep
            assert dialer.failures == 1
            await client.finish()

    run(scenario)


def test_further_connections_are_made_at_once_but_no_more_than_a_receiver_bears(
    tmp_path: Path, store: FaultyDatastore
) -> None:
    under_way: list[int] = []

    async def scenario() -> None:
        together = asyncio.Barrier(HANDSHAKES)  # passed only by so many that wait in it

        async with world(tmp_path, store) as at, asyncio.TaskGroup() as tasks:

            async def dial(receiver: Receiver) -> Stream:
                if at.streams:
                    under_way.append(together.n_waiting + 1)
                    await together.wait()
                return await at.dial(receiver)

            client = Client(RECEIVER, CREDENTIALS, NAME, ignore, dial=dial)
            await client.open(tasks)
            await client.widen(1 + 2 * HANDSHAKES)
            assert client.live == 1 + 2 * HANDSHAKES
            await client.finish()

    run(scenario)
    assert max(under_way) == HANDSHAKES


def test_connections_are_replaced_one_at_a_time(tmp_path: Path, store: FaultyDatastore) -> None:
    width = usable(16)
    most_open = 0

    async def scenario() -> None:
        async with world(tmp_path, store) as at, asyncio.TaskGroup() as tasks:

            async def dial(receiver: Receiver) -> Stream:
                nonlocal most_open
                most_open = max(most_open, sum(not stream.closed for stream in at.streams))
                return await at.dial(receiver)

            client = Client(RECEIVER, CREDENTIALS, NAME, ignore, lifetime=AT_ONCE, dial=dial)
            await client.open(tasks)
            await client.widen(width)
            await until(lambda: len(at.streams) >= 2 * width)
            await client.finish()

    run(scenario)
    assert most_open == width  # of those that a new one comes beside


@pytest.mark.parametrize(("allowed", "used"), [(1, 1), (4, 4), (5, 3), (16, 14)])
def test_of_many_connections_two_are_kept_for_replacement(allowed: int, used: int) -> None:
    assert usable(allowed) == used


def test_a_transfer_leaves_room_to_replace_connections(
    tmp_path: Path, store: FaultyDatastore
) -> None:
    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, client = at.sending([noise(MIB)])
            await transfer.run(client, 16)
            assert transfer.progress.connections == usable(16)

    run(scenario)


@pytest.mark.parametrize("connections", [1, 3])
def test_streams_move_to_the_connections_that_replace_theirs(
    tmp_path: Path, store: FaultyDatastore, connections: int
) -> None:
    """All the time connections are replaced; the receiver refuses one stream too many."""
    data = b"".join(Random(n % 5).randbytes(4096) * 256 for n in range(60))

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, _ = at.sending([MemorySource(data)], compression=1)
            client = Client(
                RECEIVER, CREDENTIALS, NAME, transfer.dispatch, lifetime=AT_ONCE, dial=at.dial
            )
            await transfer.run(client, connections)
            assert disk(transfer).state is TransferState.PUBLISHED
            assert len(at.streams) > 2 * connections
            assert disk(transfer).payload["history"]

    run(scenario)
    published = store.memory.disks["web", "web"].content
    assert published.read(0, len(data)) == data


def test_a_transfer_goes_on_with_the_connections_that_could_be_made(
    tmp_path: Path, store: FaultyDatastore
) -> None:
    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, _ = at.sending([noise(4 * MIB)])
            dialer = Dialer(at, most=2)
            client = Client(RECEIVER, CREDENTIALS, NAME, transfer.dispatch, dial=dialer)
            await transfer.run(client, 4)
            assert disk(transfer).state is TransferState.PUBLISHED
            assert transfer.progress.connections == 2
            assert "nobody answers" in str(client.shortfall)

    run(scenario)


def test_a_transfer_without_any_connection_fails(tmp_path: Path, store: FaultyDatastore) -> None:
    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, _ = at.sending([noise(MIB)])
            client = Client(RECEIVER, CREDENTIALS, NAME, transfer.dispatch, dial=Dialer(at, most=0))
            with pytest.raises(ConnectionLost, match="nobody answers"):
                await transfer.run(client, 4)
            assert disk(transfer).exit_code == 5

    run(scenario)


# The end


def test_links_that_break_when_all_is_published_spoil_nothing(
    tmp_path: Path, store: FaultyDatastore
) -> None:
    async def scenario() -> None:
        async with world(tmp_path, store) as at:

            def hear(message: Message) -> Message:
                if isinstance(message, DiskProven):
                    break_all(at)
                return message

            transfer, client = at.sending([noise(MIB)], hear=hear)
            await transfer.run(client, 3)
            assert disk(transfer).state is TransferState.PUBLISHED

    run(scenario)


def test_a_goodbye_that_cannot_be_said_is_no_failure(
    tmp_path: Path, store: FaultyDatastore
) -> None:
    async def scenario() -> None:
        async with world(tmp_path, store) as at, asyncio.TaskGroup() as tasks:
            client = Client(RECEIVER, CREDENTIALS, NAME, ignore, dial=at.dial)
            await client.open(tasks)
            await client.widen(2)
            break_all(at)
            await client.finish()

    run(scenario)


def test_upkeep_is_over_before_goodbye_is_said(tmp_path: Path, store: FaultyDatastore) -> None:
    events: list[str] = []

    class Told(Client):
        async def send(self, message: Message) -> None:
            events.append(type(message).__name__)
            await super().send(message)

    async def scenario() -> None:
        async with world(tmp_path, store) as at, asyncio.TaskGroup() as tasks:

            async def dial(receiver: Receiver) -> Stream:
                if not at.streams:
                    return await at.dial(receiver)
                events.append("dialling")
                try:
                    await asyncio.Event().wait()
                    raise AssertionError
                finally:
                    events.append("dialled")

            client = Told(RECEIVER, CREDENTIALS, NAME, ignore, lifetime=AT_ONCE, dial=dial)
            await client.open(tasks)
            await client.widen(1)
            await until(lambda: bool(events))
            await client.finish()

    run(scenario)
    assert events == ["dialling", "dialled", "Goodbye"]


@pytest.mark.parametrize("ending", ["interrupted", "lost"])
def test_who_leaves_during_the_proof_is_told_that_the_disk_may_still_be_published(
    tmp_path: Path, store: FaultyDatastore, ending: str
) -> None:
    """The sender does not hear that the disk is proven."""

    def hear(message: Message) -> Message:
        return Proving(0, 1, 0, 0) if isinstance(message, DiskProven) else message

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, client = at.sending([noise(MIB)], hear=hear)
            running = asyncio.create_task(transfer.run(client, 1))
            await until(lambda: bool(store.memory.disks))
            assert disk(transfer).state is TransferState.PROVING
            if ending == "interrupted":
                transfer.stop()
                await running
                assert disk(transfer).exit_code == 130
            else:
                break_all(at)
                with pytest.raises(ConnectionLost):
                    await running
                assert disk(transfer).exit_code == 5
            assert "may still publish" in str(disk(transfer).error)
            assert "flatship-receiver verify" in str(disk(transfer).error)

    run(scenario)


def test_who_is_interrupted_before_is_told_that_nothing_was_published(
    tmp_path: Path, store: FaultyDatastore
) -> None:
    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, client = at.sending([noise(MIB)])
            transfer.stop()
            await transfer.run(client, 1)
            assert disk(transfer).state is TransferState.CANCELLED
            assert "nothing was published" in str(disk(transfer).error)

    run(scenario)
    assert not store.log


# Disks that fail alone


class Surprising(MemorySource):
    """Raises ``error`` where nobody expects it."""

    def __init__(self, where: str, error: Exception) -> None:
        super().__init__(Random(2).randbytes(4 * MIB), name="surprising")
        self._where = where
        self._error = error

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See BlockSource."""
        if self._where == "read":
            raise self._error
        super().read_into(buffer, offset)

    def still_quiet(self) -> None:
        """See BlockSource."""
        if self._where == "check":
            raise self._error


@pytest.mark.parametrize("where", ["read", "check"])
@pytest.mark.parametrize(
    "error", [OSError(2, "gone"), AssertionError("two\nlines"), ValueError("no such thing")]
)
def test_what_nobody_has_thought_of_ends_one_disk(
    tmp_path: Path, store: FaultyDatastore, where: str, error: Exception
) -> None:
    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, client = at.sending([Surprising(where, error), noise(6 * MIB)])
            await transfer.run(client, 2)
            failed, other = transfer.progress.disks
            assert (failed.state, failed.error_code) == (TransferState.FAILED, ErrorCode.INTERNAL)
            assert type(error).__name__ in str(failed.error)
            assert "\n" not in str(failed.error)
            assert other.state is TransferState.PUBLISHED

    run(scenario)
    assert set(store.memory.disks) == {("web", "web_1")}


def test_the_answer_to_abandon_changes_nothing_but_the_credit(
    tmp_path: Path, store: FaultyDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatship_receiver.session.CREDIT", 2 * MIB)
    answers: list[DiskFailed] = []
    bad = MemorySource(Random(2).randbytes(6 * MIB), name="bad")
    bad.fail_at(MIB)

    def hear(message: Message) -> Message:
        if isinstance(message, DiskFailed):
            answers.append(message)
        return message

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, client = at.sending([bad, noise(8 * MIB)], hear=hear)
            await transfer.run(client, 2)
            assert "source bad: reading" in str(disk(transfer, 0).error)
            assert disk(transfer, 1).state is TransferState.PUBLISHED
            assert transfer.session.outstanding == 0

    run(scenario)
    assert [(answer.disk, answer.code) for answer in answers] == [(0, ErrorCode.SOURCE_FAILED)]


# Receivers that do not complete a connection

Answer = Callable[[MemoryStream, bytes], Awaitable[None]]


async def close(stream: MemoryStream, _: bytes) -> None:
    stream.close()


async def reset(stream: MemoryStream, _: bytes) -> None:
    stream.outgoing.break_()


async def say_nothing(_: MemoryStream, initiation: bytes) -> None:
    await asyncio.Event().wait()


async def say_nonsense(stream: MemoryStream, _: bytes) -> None:
    await stream.write_all(memoryview(b"FLTS\x01\x02\x00\x40".ljust(RESPONSE_SIZE, b"\0")))


def respond_and(then: Answer) -> Answer:
    async def respond(stream: MemoryStream, initiation: bytes) -> None:
        responder = Responder(RECEIVER_KEY, bytes([24]) * 32)
        responder.read_initiation(initiation)
        await stream.write_all(memoryview(responder.respond(PSK)[0]))
        await asyncio.sleep(0.01)  # a link that breaks loses what is on its way
        await then(stream, initiation)

    return respond


def call(answer: Answer) -> None:
    """Connect to a receiver that reads the initiation and then does what ``answer`` does."""

    async def scenario() -> None:
        ours, theirs = link(Faults(), Faults())

        async def receive() -> None:
            initiation = bytearray(INITIATION_SIZE)
            await theirs.read_exactly(memoryview(initiation))
            await answer(theirs, bytes(initiation))

        async def dial(_: Receiver) -> Stream:
            return ours

        receiving = asyncio.create_task(receive())
        try:
            await connect(RECEIVER, CREDENTIALS, NAME, 0, dial)
        finally:
            receiving.cancel()
            assert ours.closed

    run(scenario)


@pytest.mark.parametrize("answer", [close, say_nonsense])
def test_a_receiver_that_turns_the_sender_away_does_not_accept_it(answer: Answer) -> None:
    with pytest.raises(NotAuthorised) as refused:
        call(answer)
    assert refused.value.exit_code == 12


@pytest.mark.parametrize(
    "answer",
    [
        reset,
        say_nothing,
        respond_and(close),
        respond_and(reset),
        respond_and(say_nothing),
    ],
    ids=["reset", "silence", "answered-closed", "answered-reset", "answered-silence"],
)
def test_a_receiver_that_breaks_off_is_to_be_tried_again(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (initiate.__module__, "flatship_sender.connecting"):
        monkeypatch.setattr(f"{module}.HANDSHAKE_TIMEOUT", 0.1)
    with pytest.raises(ConnectionLost, match="overloaded or restarting") as lost:
        call(answer)
    assert lost.value.exit_code == 5
