"""Who lives is heard, and who does not get on is not waited for, whatever a link or a peer does."""

import asyncio
import re
import threading
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
    FaultyImage,
    world,
)
from network import MemoryStream
from structlog.testing import capture_logs

from flatship_protocol.connection import Connection
from flatship_protocol.constants import CHUNK_SIZE as MIB
from flatship_protocol.endpoint import Endpoint
from flatship_protocol.errors import ConnectionLost, ErrorCode
from flatship_protocol.handshake import public_key
from flatship_protocol.messages import (
    Credit,
    DiskOpened,
    DiskProven,
    Held,
    Message,
    Ping,
    Proving,
    Stored,
    decode,
)
from flatship_receiver.conversation import say_and_close
from flatship_receiver.datastores.base import Image, ImageRequest
from flatship_sender.client import Client
from flatship_sender.connecting import Credentials, SessionName, connect
from flatship_sender.pipeline import Transfer
from flatship_sender.progress import TransferState
from flatship_sender.receivers import Receiver
from flatship_sender.sources.memory import MemorySource
from flatship_sender.stalls import WaitsFor

RECEIVER = Receiver("lab", Endpoint("192.0.2.2", 7071), public_key(RECEIVER_KEY), PSK)
CREDENTIALS = Credentials(SENDER_KEY, PSK)
NAME = SessionName(SESSION_ID, 1)
GENEROUS = 20.0  # seconds; a test that takes so long hangs


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(GENEROUS):
            await scenario()

    asyncio.run(bounded())


@pytest.fixture
def store() -> FaultyDatastore:
    return FaultyDatastore(1 << 30)


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends say PING as often as they can."""
    monkeypatch.setattr("flatship_sender.client.MAINTENANCE_INTERVAL", 0.001)
    monkeypatch.setattr("flatship_sender.client.KEEPALIVE_INTERVAL", 0.0)
    monkeypatch.setattr("flatship_receiver.session.UPKEEP_INTERVAL", 0.001)
    monkeypatch.setattr("flatship_receiver.session.KEEPALIVE_INTERVAL", 0.0)


def stop_up(stream: MemoryStream, *, outgoing: bool) -> None:
    """Let one direction of a link take nothing any more."""
    pipe = stream.outgoing if outgoing else stream.incoming
    pipe.faults.stall_after = pipe.carried


async def hear(connection: Connection) -> Message:
    buffer = memoryview(bytearray(1 << 15))
    size = await connection.receive_body(await connection.receive_header(), buffer)
    return decode(buffer[:size])[1]


@pytest.mark.usefixtures("talkative")
def test_a_connection_that_takes_nothing_does_not_silence_the_senders_others(
    tmp_path: Path, store: FaultyDatastore
) -> None:
    async def scenario() -> None:
        async with world(tmp_path, store) as at, asyncio.TaskGroup() as tasks:
            client = Client(RECEIVER, CREDENTIALS, NAME, lambda *_: None, dial=at.dial)
            await client.open(tasks)
            stop_up(at.streams[0], outgoing=True)
            await client.widen(2)
            before = at.streams[1].outgoing.carried
            while at.streams[1].outgoing.carried < before + 1000:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await client.finish()
            client.close()

    run(scenario)


@pytest.mark.usefixtures("talkative")
def test_a_connection_that_takes_nothing_does_not_silence_the_receivers_others(
    tmp_path: Path, store: FaultyDatastore
) -> None:
    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            stuck, _ = await connect(RECEIVER, CREDENTIALS, NAME, 0, at.dial)
            stop_up(at.streams[0], outgoing=False)
            other, _ = await connect(RECEIVER, CREDENTIALS, NAME, 1, at.dial)
            for _ in range(20):
                assert isinstance(await hear(other), Ping)
            stuck.close()
            other.close()

    run(scenario)


@pytest.mark.usefixtures("talkative")
def test_a_sender_that_cannot_answer_a_ping_goes_on_to_listen(
    tmp_path: Path, store: FaultyDatastore
) -> None:
    async def scenario() -> None:
        async with world(tmp_path, store) as at, asyncio.TaskGroup() as tasks:
            client = Client(RECEIVER, CREDENTIALS, NAME, lambda *_: None, dial=at.dial)
            await client.open(tasks)
            stop_up(at.streams[0], outgoing=True)
            heard: set[float] = set()
            while len(heard) < 20:
                heard.add(client.heard_at)
                await asyncio.sleep(0.001)
            await client.finish()
            client.close()

    run(scenario)


def test_an_error_that_nobody_takes_does_not_keep_a_connection(
    tmp_path: Path, store: FaultyDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a sender that only sends would keep its disks from its own next session."""
    monkeypatch.setattr("flatship_receiver.conversation.ERROR_TIMEOUT", 0.01)

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            connection, _ = await connect(RECEIVER, CREDENTIALS, NAME, 0, at.dial)
            stop_up(at.streams[0], outgoing=True)
            await say_and_close(connection, ErrorCode.STALE_EPOCH, 1)
            assert connection.closed

    run(scenario)


# Progress


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatship_sender.stalls.STALL_AFTER", 0.1)
    monkeypatch.setattr("flatship_sender.stalls.STALL_TIMEOUT", 0.6)


@pytest.mark.usefixtures("impatient", "talkative")
@pytest.mark.parametrize(
    "unsaid",
    [(DiskOpened, Held), (Held,), (Stored, DiskProven), (DiskProven,)],
    ids=lambda kinds: kinds[0].__name__,
)
def test_a_receiver_that_lives_and_does_not_get_on_is_given_up(
    tmp_path: Path, store: FaultyDatastore, unsaid: tuple[type[Message], ...]
) -> None:
    """It answers PING, and repeats what it said of the proof."""

    def hear(message: Message) -> Message:
        if isinstance(message, Proving):
            return Proving(0, 1, 0, MIB)
        return Credit(64 * MIB) if isinstance(message, unsaid) else message

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, client = at.sending([MemorySource(Random(1).randbytes(3 * MIB))], hear=hear)
            with pytest.raises(ConnectionLost, match=r"nothing got on for .*, waiting for the"):
                await transfer.run(client, 2)
            (disk,) = transfer.progress.disks
            assert disk.state is TransferState.FAILED
            assert disk.exit_code == ConnectionLost.exit_code

    run(scenario)


class SlowToGive(MemorySource):
    """Gives its third chunk only when it is told to."""

    def __init__(self) -> None:
        super().__init__(Random(2).randbytes(4 * MIB))
        self.may = threading.Event()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        if offset == 2 * MIB:
            self.may.wait(GENEROUS)
        super().read_into(buffer, offset)


def is_stalled_by_source(transfer: Transfer) -> bool:
    stall = transfer.progress.stall
    return stall is not None and stall.waits_for is WaitsFor.SOURCE


@pytest.mark.usefixtures("impatient")
def test_a_source_that_hangs_is_said_to_and_costs_no_session(
    tmp_path: Path, store: FaultyDatastore
) -> None:
    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            source = SlowToGive()
            transfer, client = at.sending([source])
            running = asyncio.create_task(transfer.run(client, 1))
            loop = asyncio.get_running_loop()
            try:
                while not is_stalled_by_source(transfer):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                since = loop.time()
                while loop.time() - since < 1.0:
                    assert not running.done()
                    await asyncio.sleep(0.05)
            finally:
                source.may.set()
            await running
            assert transfer.progress.disks[0].state is TransferState.PUBLISHED

    run(scenario)


@pytest.mark.usefixtures("impatient", "talkative")
def test_a_slow_link_that_takes_bytes_is_not_a_receiver_that_does_not_get_on(
    tmp_path: Path, store: FaultyDatastore
) -> None:
    """The one chunk takes longer to arrive than a session may go without progress."""

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, client = at.sending([MemorySource(Random(3).randbytes(MIB))])
            running = asyncio.create_task(transfer.run(client, 1))
            while not at.streams:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            faults = at.streams[0].outgoing.faults
            faults.stall_after = 100_000
            began = asyncio.get_running_loop().time()
            while not running.done():
                await asyncio.sleep(0.1)
                faults.stall_after += 60_000
                at.streams[0].outgoing.wake()
            await running
            assert asyncio.get_running_loop().time() - began > 1.0  # more than a session may wait
            assert transfer.progress.disks[0].state is TransferState.PUBLISHED

    run(scenario)


# At the receiver


class Hanging(FaultyDatastore):
    """Storage whose flush does not return until it is told to."""

    def __init__(self) -> None:
        super().__init__(1 << 30)
        self.may = threading.Event()

    def create(self, request: ImageRequest) -> Image:
        image = super().create(request)
        flush = image.flush

        def wait_and_flush() -> None:
            self.may.wait(GENEROUS)
            flush()

        image.flush = wait_and_flush  # type: ignore[method-assign]
        return image


@pytest.mark.usefixtures("talkative")
def test_a_storage_that_hangs_is_told_in_the_log_and_the_metrics_and_so_is_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatship_receiver.stalls.STORAGE_AFTER", 0.2)
    store = Hanging()

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            metrics = at.receiving.sessions._shared.metrics
            transfer, client = at.sending([MemorySource(Random(1).randbytes(MIB))])
            with capture_logs() as events:
                running = asyncio.create_task(transfer.run(client, 1))
                series = r'stalled_seconds\{disk="web",vm="web",waits_for="storage"\} 0\.[2-9]'
                while not re.search(series, metrics.render()[0].decode()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                store.may.set()
                await running
            told = [said for said in events if "get" in said["event"]]
            assert [said["event"] for said in told] == [
                "the storage does not get on",
                "the disk gets on again",
            ]
            assert told[0]["step"] == "flush"

    run(scenario)


def test_zeros_that_take_long_are_acknowledged_meanwhile(
    tmp_path: Path, store: FaultyDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flatship_receiver.pipeline.ZERO_SLICE", MIB)
    acknowledged = threading.Event()
    zero = FaultyImage.zero

    def slow_zero(image: FaultyImage, offset: int, length: int) -> None:
        if offset == 2 * MIB:
            assert acknowledged.wait(GENEROUS)
        zero(image, offset, length)

    monkeypatch.setattr(FaultyImage, "zero", slow_zero)

    def hear(message: Message) -> Message:
        if isinstance(message, Stored):
            acknowledged.set()
        return message

    async def scenario() -> None:
        async with world(tmp_path, store) as at:
            transfer, client = at.sending([MemorySource(bytes(4 * MIB))], hear=hear)
            await transfer.run(client, 1)
            assert transfer.progress.disks[0].state is TransferState.PUBLISHED

    run(scenario)
