"""Whatever a receiver does, the sender ends by itself, in one line, and calls nothing a success."""

import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from disks import MIB, make_data_disk
from processes import CompletedRun, Running, Sender, wait_until
from raw_peer import (
    CREDIT,
    PASS,
    Answer,
    ScriptedReceiver,
    Wire,
    chunk,
    hang_up,
    nothing,
    opening,
    read_exactly,
)

from flatship_protocol.endpoint import Endpoint
from flatship_protocol.errors import ErrorCode
from flatship_protocol.handshake import INITIATION_SIZE, version_notice
from flatship_protocol.messages import (
    Abandon,
    Capability,
    Chunk,
    Credit,
    DiskFailed,
    DiskOpened,
    DiskProven,
    EndPass,
    Error,
    Hello,
    HelloOk,
    Message,
    OpenDisk,
    Ping,
    Pong,
    Proving,
    Stored,
    encode,
)
from flatship_sender.receivers import Receiver, Receivers
from flatship_sender.refusals import NOT_AUTHORISED, REFUSALS, TRY_AGAIN

FAILED: Final = 1
LOST: Final = 3  # without patience, which nobody here has
INTERRUPTED: Final = 130
SIZE: Final = 2 * MIB
DATA: Final = bytes(MIB)
WRONG: Final = bytes(32)
OTHER_VERSION: Final = version_notice()[:4] + b"\x02" + version_notice()[5:]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sender]:
    """A sender that all tests use."""
    sender = Sender(tmp_path_factory.mktemp("host"))
    try:
        yield sender
    finally:
        sender.close()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk of two chunks."""
    return make_data_disk(tmp_path_factory.mktemp("disk") / "disk", SIZE)


def introduce(host: Sender, receiver: ScriptedReceiver) -> None:
    """Make the receiver known to the sender as ``esx``."""
    (host.state / "receivers.d" / "esx.toml").unlink(missing_ok=True)
    endpoint = Endpoint("127.0.0.1", receiver.port)
    Receivers(host.state).save(Receiver("esx", endpoint, receiver.identity.public))


def start(host: Sender, receiver: ScriptedReceiver, *disks: Path) -> Running:
    introduce(host, receiver)
    return host.start_send(*disks, vm="web", options=("--connections", "1", "--quiet"))


def send(host: Sender, receiver: ScriptedReceiver, *disks: Path) -> CompletedRun:
    return start(host, receiver, *disks).wait()


def answering(message: Message) -> Answer:
    """Answer with a message of the test's choice."""
    return lambda wire, _: wire.send(message)


def test_scripted_receiver_that_behaves_is_believed(host: Sender, disk: Path) -> None:
    with ScriptedReceiver() as receiver:
        run = send(host, receiver, disk).expect(0)
    assert run.disk["published"]
    assert [type(m) for m in receiver.received].count(Chunk) == SIZE // MIB


# Before there is a session


def close(sock: socket.socket) -> None:
    """Close without a word."""


def close_after_initiation(sock: socket.socket) -> None:
    read_exactly(sock, INITIATION_SIZE)


def saying(words: bytes) -> Callable[[socket.socket], None]:
    def greet(sock: socket.socket) -> None:
        read_exactly(sock, INITIATION_SIZE)
        sock.sendall(words)

    return greet


@pytest.mark.parametrize(
    ("greet", "exit_code"),
    [
        (close_after_initiation, NOT_AUTHORISED),
        (saying(b"FLTS"), NOT_AUTHORISED),
        (saying(b"SSH-2.0-OpenSSH_9.2p1\r\n" * 9), NOT_AUTHORISED),
        (saying(Random(1).randbytes(1000)), NOT_AUTHORISED),
        (saying(b"FLTS\x01\x02\x00\x40" + bytes(64)), NOT_AUTHORISED),
        (saying(OTHER_VERSION), FAILED),
    ],
    ids=["initiation", "half preface", "ssh", "random", "forged", "version"],
)
def test_handshake_that_fails_ends_in_one_line(
    host: Sender, disk: Path, greet: Callable[[socket.socket], None], exit_code: int
) -> None:
    with ScriptedReceiver(greet=greet) as receiver:
        assert send(host, receiver, disk).expect(exit_code).error


def test_receiver_that_closes_at_once_is_refusing_or_overloaded(host: Sender, disk: Path) -> None:
    with ScriptedReceiver(greet=close) as receiver:
        run = send(host, receiver, disk)  # a close, or a reset, as the kernel's timing has it
    assert run.exit_code in {NOT_AUTHORISED, TRY_AGAIN}
    assert run.error


def test_version_notice_is_reported(host: Sender, disk: Path) -> None:
    with ScriptedReceiver(greet=saying(OTHER_VERSION)) as receiver:
        assert "version 2" in send(host, receiver, disk).error


def test_receiver_with_another_psk_is_not_spoken_to(host: Sender, disk: Path) -> None:
    with ScriptedReceiver(psk=bytes(range(32))) as receiver:
        assert send(host, receiver, disk).expect(NOT_AUTHORISED).error
        assert receiver.received == []


def test_receiver_with_another_key_is_not_spoken_to(host: Sender, disk: Path) -> None:
    with ScriptedReceiver() as expected, ScriptedReceiver() as other:
        introduce(host, expected)
        settings = host.state / "receivers.d" / "esx.toml"
        settings.write_text(settings.read_text().replace(str(expected.port), str(other.port)))
        run = host.send(disk, vm="web", options=("--connections", "1"))
        other.failures.clear()  # it could not open the initiation
        assert run.expect(NOT_AUTHORISED).error


# In the session


@pytest.mark.parametrize("stage", [Hello, OpenDisk, Chunk, EndPass])
def test_receiver_that_hangs_up_ends_in_one_line(
    host: Sender, disk: Path, stage: type[Any]
) -> None:
    with ScriptedReceiver({stage: hang_up}) as receiver:
        run = send(host, receiver, disk)
    run.expect(TRY_AGAIN if stage is Hello else LOST)
    assert run.error
    assert not run.disk["published"]


def garbage(wire: Wire, message: Message) -> None:
    wire.send_raw(Random(2).randbytes(100_000))


def flipped(wire: Wire, message: Message) -> None:
    record = bytearray(wire.sealer.seal(encode(Ping(1), wire.epoch)))
    record[-1] ^= 1
    wire.send_raw(bytes(record))


def of_no_type(wire: Wire, message: Message) -> None:
    plaintext = bytearray(encode(Ping(1), wire.epoch))
    plaintext[0] = 0x7F
    wire.send_plaintext(bytes(plaintext))


def of_another_epoch(wire: Wire, message: Message) -> None:
    wire.send(Stored(0, PASS, ((0, MIB),)), epoch=wire.epoch + 1)


def too_large(wire: Wire, message: Message) -> None:
    wire.send_raw((1 << 20).to_bytes(4, "big") + b"\x01\0\0\0")


OFFENCES: Final[dict[str, Answer]] = {
    "garbage": garbage,
    "flipped bit": flipped,
    "unknown type": of_no_type,
    "another epoch": of_another_epoch,
    "too large": too_large,
    "chunk": answering(chunk(DATA)),
    "open disk": answering(opening("web", SIZE)),
    "hello": answering(Hello(bytes(16), 0, Capability(0), "x")),
    "second hello": answering(HelloOk(Capability(0), 1, 1, 1, "x")),
    "end of pass": answering(EndPass(0, PASS, 1, WRONG)),
    "abandon": answering(Abandon(0, PASS, ErrorCode.CANCELLED)),
    "stored of no disk": answering(Stored(7, PASS, ((0, MIB),))),
    "stored of another pass": answering(Stored(0, 2, ((0, MIB),))),
    "stored off the grid": answering(Stored(0, PASS, ((512, MIB),))),
    "failed of no disk": answering(DiskFailed(7, PASS, ErrorCode.INTERNAL)),
    "proven too early": answering(DiskProven(0, PASS, 0, WRONG, published=True)),
    "proving too early": answering(Proving(0, PASS, 0, 0)),
    "opened twice": answering(DiskOpened(0, PASS, bytes(16), SIZE, 0)),
}


@pytest.mark.parametrize("offence", OFFENCES)
def test_offence_ends_in_one_line(host: Sender, disk: Path, offence: str) -> None:
    with ScriptedReceiver({Chunk: OFFENCES[offence]}) as receiver:
        run = send(host, receiver, disk).expect(LOST if offence == "flipped bit" else FAILED)
    assert run.error
    assert not run.disk["published"]
    assert run.disk["state"] == "failed"
    told = [message for message in receiver.received if isinstance(message, Error)]
    assert len(told) <= 1  # a record that does not open is answered by nothing


def test_a_receiver_that_breaks_the_protocol_is_told_so(host: Sender, disk: Path) -> None:
    with ScriptedReceiver({Chunk: OFFENCES["second hello"]}) as receiver:
        send(host, receiver, disk).expect(FAILED)
    assert Error(ErrorCode.UNEXPECTED_MESSAGE) in receiver.received


def test_proof_of_something_else_is_a_failure(host: Sender, disk: Path) -> None:
    wrong = answering(DiskProven(0, PASS, SIZE, WRONG, published=True))
    with ScriptedReceiver({EndPass: wrong}) as receiver:
        run = send(host, receiver, disk).expect(FAILED)
    assert run.disk["state"] == "failed"
    assert not run.disk["published"]
    assert "digest" in run.disk["error"]["message"]


def test_stored_for_what_was_never_sent_counts_for_nothing(host: Sender, disk: Path) -> None:
    """A receiver that claims the whole disk at once still has to prove it."""

    def claim_all(wire: Wire, message: OpenDisk) -> None:
        wire.send(DiskOpened(0, PASS, bytes(16), SIZE, 0), Stored(0, PASS, ((0, 1 << 50),)))

    proof = answering(DiskProven(0, PASS, 0, WRONG, published=True))
    with ScriptedReceiver({OpenDisk: claim_all, EndPass: proof}) as receiver:
        run = send(host, receiver, disk).expect(FAILED)
    assert not run.disk["published"]


def test_small_credit_is_kept_and_raised_when_told(host: Sender, tmp_path: Path) -> None:
    disk = make_data_disk(tmp_path / "disk", 5 * MIB)
    waiting: list[Chunk] = []
    most = 0

    def welcome(wire: Wire, message: Hello) -> None:
        wire.send(HelloOk(Capability(0), 2 * MIB, 16, 90, "scripted"))

    def count(wire: Wire, message: Chunk) -> None:
        nonlocal most
        waiting.append(message)
        most = max(most, len(waiting))
        if len(waiting) == 2:
            done = [waiting.pop() for _ in range(2)]
            wire.send(*(Stored(0, PASS, ((c.offset, c.length),)) for c in done))
        elif len(receiver.received) > 6:
            wire.send(Credit(CREDIT), Stored(0, PASS, ((waiting.pop().offset, MIB),)))

    with ScriptedReceiver({Hello: welcome, Chunk: count}) as receiver:
        send(host, receiver, disk).expect(0)
    assert most == 2


@pytest.mark.parametrize("code", ErrorCode)
def test_error_ends_with_its_own_line_and_exit_code(
    host: Sender, disk: Path, code: ErrorCode
) -> None:
    with ScriptedReceiver({OpenDisk: answering(Error(code, (3 * MIB, MIB)))}) as receiver:
        exit_code = REFUSALS[code].exit_code
        passes = exit_code == TRY_AGAIN or code is ErrorCode.DISK_BUSY
        run = send(host, receiver, disk).expect(LOST if passes else exit_code)
    assert run.error.startswith(REFUSALS[code].text.partition("{")[0])
    assert run.disk["error"]["code"] == code.name.lower()


def test_error_of_an_unknown_code_is_an_internal_one(host: Sender, disk: Path) -> None:
    def unknown(wire: Wire, message: OpenDisk) -> None:
        plaintext = bytearray(encode(Error(ErrorCode.INTERNAL), wire.epoch))
        plaintext[24:26] = (999).to_bytes(2, "big")
        wire.send_plaintext(bytes(plaintext))

    with ScriptedReceiver({OpenDisk: unknown}) as receiver:
        run = send(host, receiver, disk).expect(FAILED)
    assert run.error == REFUSALS[ErrorCode.INTERNAL].text


def test_each_disk_that_fails_says_its_own_reason(host: Sender, tmp_path: Path) -> None:
    codes = list(ErrorCode)
    disks = [make_data_disk(tmp_path / code.name, 512) for code in codes]

    def refuse(wire: Wire, message: OpenDisk) -> None:
        wire.send(DiskFailed(message.disk, PASS, codes[message.disk], (3 * MIB, MIB)))

    with ScriptedReceiver({OpenDisk: refuse}) as receiver:
        run = send(host, receiver, *disks)
    for code, result in zip(codes, run.disks, strict=True):
        assert result["error"]["code"] == code.name.lower()
        assert result["error"]["exit_code"] == REFUSALS[code].exit_code
        assert result["error"]["message"].startswith(REFUSALS[code].text.partition("{")[0])
        assert not result["published"]
    run.expect(REFUSALS[codes[0]].exit_code)


@pytest.mark.parametrize("stage", [OpenDisk, Chunk, EndPass])
def test_disk_that_fails_at_any_stage_fails_the_command(
    host: Sender, tmp_path: Path, stage: type[Any]
) -> None:
    disk = make_data_disk(tmp_path / "disk", MIB)
    failed = answering(DiskFailed(0, PASS, ErrorCode.DATASTORE_FULL, (SIZE, MIB)))
    with ScriptedReceiver({stage: failed}) as receiver:
        run = send(host, receiver, disk).expect(TRY_AGAIN)
    assert "full: 2.0 MiB needed, 1.0 MiB free" in run.disk["error"]["message"]


def test_receiver_that_never_acknowledges_is_seen_to_stall(host: Sender, disk: Path) -> None:
    with ScriptedReceiver({Chunk: nothing, EndPass: nothing}) as receiver:
        introduce(host, receiver)
        run = host.start_send(disk, vm="web", options=("--connections", "1"))
        wait_until(lambda: "no progress" in run.stderr, "stall said")
        run.signal(signal.SIGINT)
        run.wait(10.0).expect(INTERRUPTED)


@pytest.mark.parametrize("stage", [OpenDisk, Chunk, EndPass])
def test_receiver_that_never_answers_can_be_interrupted(
    host: Sender, disk: Path, stage: type[Any]
) -> None:
    with ScriptedReceiver({stage: nothing, EndPass: nothing}) as receiver:
        run = start(host, receiver, disk)
        wait_until(lambda: stage in {type(m) for m in receiver.received}, "stage reached")
        run.signal(signal.SIGINT)
        finished = run.wait(10.0).expect(INTERRUPTED)
        assert not finished.disk["published"]
        assert Abandon in {type(m) for m in receiver.received}


def test_receiver_that_never_shakes_hands_is_given_up(host: Sender, disk: Path) -> None:
    def wait(sock: socket.socket) -> None:
        while sock.recv(1 << 16):
            pass

    with ScriptedReceiver(greet=wait) as receiver:
        assert "did not complete" in send(host, receiver, disk).expect(TRY_AGAIN).error


def test_pings_are_answered(host: Sender, disk: Path) -> None:
    def ask(wire: Wire, message: Chunk) -> None:
        wire.send(Ping(message.offset), Stored(0, PASS, ((message.offset, message.length),)))

    with ScriptedReceiver({Chunk: ask, Pong: nothing}) as receiver:
        send(host, receiver, disk).expect(0)
        tokens: Sequence[int] = [m.token for m in receiver.received if isinstance(m, Pong)]
    assert sorted(tokens) == [0, MIB]
