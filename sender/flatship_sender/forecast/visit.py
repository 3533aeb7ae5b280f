"""A short session with a receiver that sends no disk: what would it say, and how is the link?

Space and names are asked for by dry runs, which every receiver answers. The link is measured
where the receiver has the capability PROBE.
"""

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from flatship_protocol.connection import MAX_CIPHERTEXT_TO_SENDER, Connection, SocketStream
from flatship_protocol.errors import ConnectionLost, ErrorCode, TransferError, UnexpectedMessage
from flatship_protocol.messages import (
    Capability,
    DiskFailed,
    DiskOpened,
    Error,
    Goodbye,
    HelloOk,
    OpenDisk,
    Ping,
    Pong,
    encode,
)
from flatship_sender.claims import SESSION_ID_SIZE
from flatship_sender.connecting import Credentials, Dial, SessionName, connect, dial_tcp, receive
from flatship_sender.forecast.link import Link, measure
from flatship_sender.pipeline import usable
from flatship_sender.receivers import Receiver
from flatship_sender.refusals import RefusedByReceiver
from flatship_sender.throttle import Throttle

EPOCH = 1
MAX_QUESTIONS = 256  # handles that a session may use
ANSWER_TIMEOUT = 5.0  # seconds for all answers about disks: a datastore may hang


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver says of one disk.

    Attributes:
        free: Bytes at the datastore beyond all reservations; None if it did not say.
        exists: Whether a disk of that name stands there.
        refusal: Why it would not take the disk, were it to replace what is there; None: it would.
        silent: It has not answered in time.
    """

    free: int | None = None
    exists: bool = False
    refusal: RefusedByReceiver | None = None
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Visit:
    """What came of it. ``link`` is None if it was not measured.

    ``can_probe`` is whether the receiver would let it be measured; ``connections`` and
    ``streams`` are what a transfer would have of them.
    """

    answers: Sequence[Answer]
    link: Link | None
    can_probe: bool
    connections: int
    streams: int
    cost: float  # bytes on the wire, headers and all, for one of records


async def visit(
    receiver: Receiver,
    credentials: Credentials,
    openings: Sequence[OpenDisk],
    throttle: Throttle,
    *,
    connections: int,
    probing: bool,
    congestion_control: str | None = None,
    dial: Dial | None = None,
) -> Visit:
    """Ask a receiver about disks, and measure the link to it.

    Args:
        receiver: The receiver.
        credentials: Whom it will see.
        openings: Dry runs, numbered from 0.
        throttle: Holds the connections to what limits there are.
        connections: How many a transfer would use.
        probing: Whether to measure.
        congestion_control: TCP's.
        dial: Makes the streams; TCP if absent.

    Raises:
        TransferError: The receiver cannot be had, or breaks a rule.
    """
    session = SessionName(secrets.token_bytes(SESSION_ID_SIZE), EPOCH)
    dial = dial or partial(dial_tcp, congestion_control=congestion_control)
    made: list[Connection] = []

    async def add() -> HelloOk:
        connection, hello = await connect(receiver, credentials, session, len(made), dial)
        made.append(connection)
        if isinstance(connection.stream, SocketStream):
            throttle.add(connection.stream)
        return hello

    try:
        hello = await add()
        answers = await _ask_all(made[0], openings)
        can_probe = Capability.PROBE in hello.capabilities
        count = min(connections, usable(hello.connections))
        link = None
        if probing and can_probe:
            with suppress(RefusedByReceiver):  # as few connections as it allows
                while len(made) < count:
                    await add()
            link = await measure(made, EPOCH)
        streams = hello.history_streams if Capability.HISTORY in hello.capabilities else 0
        cost = _cost(made[0])
        await _leave(made)
    finally:
        for connection in made:
            connection.close()
    return Visit(answers, link, can_probe, count, min(streams, count), cost)


async def _ask_all(connection: Connection, openings: Sequence[OpenDisk]) -> list[Answer]:
    """Ask about each disk as if it was new, and again as if it replaced what is there."""
    answers = [Answer(silent=True) for _ in openings]
    with suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_TIMEOUT):
            for number, opening in enumerate(openings):
                answers[number] = await _ask(connection, opening)
            again = range(len(openings), MAX_QUESTIONS)
            standing = [number for number, each in enumerate(answers) if each.exists]
            for handle, number in zip(again, standing, strict=False):
                opening = replace(openings[number], disk=handle, replace=True)
                answers[number] = replace(await _ask(connection, opening), exists=True)
    return answers


async def _ask(connection: Connection, opening: OpenDisk) -> Answer:
    await connection.send(encode(opening, EPOCH))
    buffer = bytearray(MAX_CIPHERTEXT_TO_SENDER)
    while True:
        _, message = await receive(connection, buffer)
        if isinstance(message, Error):
            raise RefusedByReceiver(message.code, message.numbers)
        if isinstance(message, Ping):
            await connection.send(encode(Pong(message.token), EPOCH))
        elif isinstance(message, DiskOpened | DiskFailed) and message.disk != opening.disk:
            raise UnexpectedMessage(f"an answer about disk {message.disk}")
        elif isinstance(message, DiskOpened):
            return Answer(free=message.free)
        elif isinstance(message, DiskFailed):
            free = message.numbers[1] if message.code is ErrorCode.DATASTORE_FULL else None
            exists = message.code is ErrorCode.DISK_EXISTS
            return Answer(free, exists, RefusedByReceiver(message.code, message.numbers))


def _cost(connection: Connection) -> float:
    """What a byte of records takes on the wire, with the headers of full packets."""
    if not isinstance(connection.stream, SocketStream):
        return 1.0
    try:
        wire = connection.stream.wire()
    except ConnectionLost:  # dropped with what was on its way when the time was up
        return 1.05
    return 1 + wire.header / wire.segment


async def _leave(made: Sequence[Connection]) -> None:
    """End the session, on whichever connection still takes it."""
    for connection in made:
        try:
            async with asyncio.timeout(1.0):
                await connection.send(encode(Goodbye(last=True), EPOCH))
        except (TransferError, TimeoutError):
            continue
        return
