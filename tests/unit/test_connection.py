"""Streams over real sockets, sealed connections over them, and the pool of frames."""

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from flatship_protocol.connection import (
    IDLE_TIMEOUT,
    MAX_UNSENT,
    STALL_TIMEOUT,
    UNPACED,
    Connection,
    FramePool,
    SocketStream,
    initiate,
    sealed,
    watchdog,
)
from flatship_protocol.connection.movement import read_counts
from flatship_protocol.errors import (
    ConnectionLost,
    HandshakeFailed,
    MalformedMessage,
    ProtocolVersionMismatch,
    RecordNotAuthentic,
)
from flatship_protocol.handshake import (
    INITIATION_SIZE,
    Initiator,
    Keys,
    Responder,
    public_key,
    version_notice,
)
from flatship_protocol.records import Sealer
from flatship_sender.connecting import UNREAD

LIMIT = 64 * 1024
PSK = bytes(32)
RECEIVER = bytes([12]) * 32
KEYS = Keys(bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32)
PEER_KEYS = Keys(KEYS.receive, KEYS.send, KEYS.handshake_hash)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


def socket_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    return ours, theirs


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0.001)


class RawPeer:
    """The other end, in bytes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await asyncio.get_running_loop().sock_recv(self.sock, size - len(data))
            if not more:
                break
            data += more
        return data


def raw() -> tuple[SocketStream, RawPeer]:
    ours, theirs = socket_pair()
    return SocketStream(ours), RawPeer(theirs)


def connected() -> tuple[Connection, Connection]:
    ours, theirs = socket_pair()
    return (
        Connection(SocketStream(ours), KEYS, max_receive=LIMIT, max_send=LIMIT),
        Connection(SocketStream(theirs), PEER_KEYS, max_receive=LIMIT, max_send=LIMIT),
    )


async def receive(connection: Connection) -> bytes:
    out = memoryview(bytearray(LIMIT))
    size = await connection.receive_body(await connection.receive_header(), out)
    return bytes(out[:size])


def record(message: bytes) -> bytes:
    """A record as the peer seals its first one."""
    return Sealer(KEYS.receive, KEYS.handshake_hash).seal(message)


# Streams


class InPieces:
    """A throttle that admits so many bytes at a time, and notes how many were asked for."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked: list[int] = []

    async def admit(self, stream: SocketStream, wanted: int) -> int:
        self.asked.append(wanted)
        await asyncio.sleep(0)
        return min(self.size, wanted)


def test_a_throttled_stream_writes_what_is_admitted_and_no_more_at_a_time() -> None:
    async def scenario() -> None:
        stream, peer = raw()
        throttle = InPieces(1000)
        stream.throttle_by(throttle)
        data = random.Random(1).randbytes(2500)
        await stream.write_all(memoryview(data))
        assert await peer.read(len(data)) == data
        assert throttle.asked == [2500, 1500, 500]
        stream.close()
        peer.sock.close()

    run(scenario)


def test_a_stream_knows_what_it_has_put_on_the_wire() -> None:
    async def scenario() -> None:
        stream, peer = raw()
        before = stream.wire()
        assert before.payload == 0
        assert before.header <= before.carried < 4 * before.header  # SYN, and its acknowledgement
        size = 100_000
        await stream.write_all(memoryview(bytes(size)))
        await peer.read(size)
        after = stream.wire()
        assert after.payload == size
        assert after.cost(size) <= after.carried - before.carried < 1.1 * after.cost(size)
        stream.close()
        with pytest.raises(ConnectionLost, match="is closed"):
            stream.wire()
        with pytest.raises(ConnectionLost, match="is closed"):
            stream.pace(1000, 1000)
        peer.sock.close()

    run(scenario)


def test_what_the_kernel_holds_back_is_not_yet_on_the_wire() -> None:
    async def scenario() -> None:
        stream, peer = raw()
        stream.pace(1000, 64 << 10)
        await stream.write_all(memoryview(bytes(200_000)))
        assert stream.wire().payload < 200_000
        stream.pace(UNPACED, MAX_UNSENT)
        stream.close()
        peer.sock.close()

    run(scenario)


@pytest.mark.parametrize("rate", [1, 1 << 31, 5 << 30, 1 << 70])
def test_any_pace_can_be_set(rate: int) -> None:
    async def scenario() -> None:
        stream, peer = raw()
        stream.pace(rate, 1)
        stream.close()
        peer.sock.close()

    run(scenario)


def test_a_read_ends_when_all_of_it_came_however_it_was_split() -> None:
    async def scenario() -> None:
        stream, peer = raw()
        data = bytes(range(40))
        for cut in range(1, len(data)):
            view = memoryview(bytearray(len(data)))
            reading = asyncio.create_task(stream.read_exactly(view))
            await peer.send(data[:cut])
            await asyncio.sleep(0)
            await peer.send(data[cut:])
            await reading
            assert bytes(view) == data
        stream.close()
        peer.sock.close()

    run(scenario)


@pytest.mark.parametrize("sent", [b"", b"half"])
def test_the_end_of_the_stream_in_a_read_is_a_lost_connection(sent: bytes) -> None:
    async def scenario() -> None:
        stream, peer = raw()
        await peer.send(sent)
        peer.sock.close()
        with pytest.raises(ConnectionLost, match="closed"):
            await stream.read_exactly(memoryview(bytearray(8)))
        stream.close()

    run(scenario)


@pytest.mark.parametrize("operation", ["read", "write"])
def test_close_wakes_whoever_waits_and_is_idempotent(operation: str) -> None:
    async def scenario() -> None:
        stream, peer = raw()
        if operation == "read":
            waiting = asyncio.create_task(stream.read_exactly(memoryview(bytearray(8))))
        else:
            waiting = asyncio.create_task(stream.write_all(memoryview(bytes(64 << 20))))
        await turns()
        assert not waiting.done()
        stream.close()
        stream.close()
        with pytest.raises(ConnectionLost):
            await waiting
        with pytest.raises(ConnectionLost, match="is closed"):
            await stream.read_exactly(memoryview(bytearray(1)))
        peer.sock.close()

    run(scenario)


def test_a_write_waits_for_a_slow_reader_and_arrives_whole() -> None:
    async def scenario() -> None:
        stream, peer = raw()
        data = bytes(range(256)) * 40_000
        writing = asyncio.create_task(stream.write_all(memoryview(data)))
        await turns()
        assert not writing.done()
        assert await peer.read(len(data)) == data
        await writing
        stream.close()
        peer.sock.close()

    run(scenario)


def test_a_reset_is_a_lost_connection() -> None:
    async def scenario() -> None:
        stream, peer = raw()
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.sock.close()
        with pytest.raises(ConnectionLost):
            await stream.read_exactly(memoryview(bytearray(1)))
        stream.close()

    run(scenario)


def test_a_kernel_that_gives_a_connection_up_is_a_lost_connection() -> None:
    class Unacknowledged(socket.socket):
        def recv_into(self, *_: object) -> int:
            raise TimeoutError(110, "Connection timed out")

    async def scenario() -> None:
        ours, theirs = socket_pair()
        stream = SocketStream(Unacknowledged(fileno=ours.detach()))
        with pytest.raises(ConnectionLost, match="timed out"):
            await stream.read_exactly(memoryview(bytearray(1)))
        stream.close()
        theirs.close()

    run(scenario)


def test_drain_lets_the_last_words_arrive_at_a_peer_that_still_sends() -> None:
    async def scenario() -> None:
        stream, peer = raw()
        flood = asyncio.create_task(peer.send(bytes(8 << 20)))
        await turns()
        await stream.write_all(memoryview(b"why"))
        draining = asyncio.create_task(stream.drain(5))
        await flood
        assert await peer.read(4) == b"why"  # and then the end
        peer.sock.close()
        await draining
        stream.close()

    run(scenario)


def test_drain_does_not_wait_for_ever() -> None:
    async def scenario() -> None:
        stream, peer = raw()
        await stream.drain(0.01)
        stream.close()
        peer.sock.close()

    run(scenario)


# Connections


def test_messages_arrive_in_order_in_both_directions() -> None:
    async def scenario() -> None:
        ours, theirs = connected()
        for number in range(5):
            await ours.send(bytes([number]) * 100)
            assert await receive(theirs) == bytes([number]) * 100
            await theirs.send(bytes([number]) * 30)
            assert await receive(ours) == bytes([number]) * 30
        assert ours.sealed_bytes == theirs.opened_bytes == 5 * 124
        ours.close()
        theirs.close()

    run(scenario)


def test_a_record_split_at_every_byte_decodes_identically() -> None:
    async def scenario() -> None:
        message = bytes(range(30))
        sealed = record(message)
        for cut in range(1, len(sealed)):
            stream, peer = raw()
            connection = Connection(stream, KEYS, max_receive=LIMIT, max_send=LIMIT)
            reading = asyncio.create_task(receive(connection))
            await peer.send(sealed[:cut])
            await asyncio.sleep(0)
            await peer.send(sealed[cut:])
            assert await reading == message
            connection.close()
            peer.sock.close()

    run(scenario)


def test_the_end_of_the_stream_anywhere_in_a_record_is_a_lost_connection() -> None:
    async def scenario() -> None:
        sealed = record(bytes(30))
        for cut in (0, 1, 7, 8, 9, 40, len(sealed) - 1):
            stream, peer = raw()
            connection = Connection(stream, KEYS, max_receive=LIMIT, max_send=LIMIT)
            await peer.send(sealed[:cut])
            peer.sock.close()
            with pytest.raises(ConnectionLost):
                await receive(connection)
            connection.close()

    run(scenario)


def test_a_record_that_was_changed_is_not_opened() -> None:
    async def scenario() -> None:
        stream, peer = raw()
        connection = Connection(stream, KEYS, max_receive=LIMIT, max_send=LIMIT)
        sealed = bytearray(record(bytes(30)))
        sealed[20] ^= 1
        await peer.send(bytes(sealed))
        with pytest.raises(RecordNotAuthentic):
            await receive(connection)
        connection.close()
        peer.sock.close()

    run(scenario)


def test_a_record_larger_than_this_direction_allows_is_refused_before_its_body_is_read() -> None:
    async def scenario() -> None:
        ours, theirs = socket_pair()
        small = Connection(SocketStream(ours), KEYS, max_receive=1000, max_send=LIMIT)
        large = Connection(SocketStream(theirs), PEER_KEYS, max_receive=LIMIT, max_send=LIMIT)
        await large.send(bytes(1000))
        with pytest.raises(MalformedMessage, match="1000 are allowed"):
            await small.receive_header()
        small.close()
        large.close()

    run(scenario)


def test_a_send_that_is_cancelled_half_way_closes_the_connection() -> None:
    async def scenario() -> None:
        ours, theirs = socket_pair()
        connection = Connection(SocketStream(ours), KEYS, max_receive=LIMIT, max_send=1 << 20)

        async def flood() -> None:
            while True:
                await connection.send(bytes((1 << 20) - 100))

        sending = asyncio.create_task(flood())
        await turns(20)
        waiting = asyncio.create_task(connection.send(bytes(100)))
        await turns(1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        with pytest.raises(ConnectionLost):
            await waiting
        assert connection.closed
        theirs.close()

    run(scenario)


def test_a_send_that_waits_its_turn_may_be_cancelled_without_harm() -> None:
    async def scenario() -> None:
        ours, theirs = connected()
        async with ours._sending:
            waiting = asyncio.create_task(ours.send(bytes(100)))
            await turns(1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await ours.send(bytes(50))
        assert await receive(theirs) == bytes(50)
        ours.close()
        theirs.close()

    run(scenario)


@pytest.mark.parametrize("operation", ["wait", "receive", "send"])
def test_a_peer_that_makes_no_progress_is_given_up(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "WATCH_INTERVAL", 0.005)
    monkeypatch.setattr(watchdog, "IDLE_TIMEOUT", 0.02)
    monkeypatch.setattr(watchdog, "PROGRESS_WINDOW", 0.02)
    monkeypatch.setattr(watchdog, "MIN_PROGRESS", 1 << 40)

    async def scenario() -> None:
        ours, theirs = socket_pair()
        big = 1 << 20
        connection = Connection(SocketStream(ours), KEYS, max_receive=big, max_send=big)
        peer = RawPeer(theirs)

        async def use() -> None:
            while operation == "send":
                await connection.send(bytes(big - 100))
            if operation == "receive":
                await peer.send(record(bytes(30))[:20])
            await receive(connection)

        with pytest.raises(ConnectionLost, match=r"silent|less than"):
            await use()
        connection.close()
        peer.sock.close()

    run(scenario)


def test_the_kernel_says_what_it_carried_and_whether_more_waits() -> None:
    async def scenario() -> None:
        ours, theirs = socket_pair()
        with ours, theirs:
            ours.sendall(bytes(1000))
            while (counts := read_counts(ours)).acked < 1000:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            assert not counts.waiting
            assert read_counts(theirs).received == 1000
            ours.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    ours.send(bytes(1 << 20))
            assert read_counts(ours).waiting

    run(scenario)


def test_a_receiver_may_leave_unread_for_longer_what_a_sender_may_not() -> None:
    """The kernel counts a shut window, too: a storage that hangs must not cost the connection."""

    async def scenario() -> None:
        ours, theirs = socket_pair()
        streams = SocketStream(ours), SocketStream(theirs, unread=UNREAD)
        limits = [
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for sock in (ours, theirs)
        ]
        assert limits == [IDLE_TIMEOUT * 1000, UNREAD * 1000]
        assert UNREAD > STALL_TIMEOUT
        for stream in streams:
            stream.close()

    run(scenario)


def test_time_spent_sealing_is_counted_although_the_loops_clock_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        ours, theirs = connected()
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: 1.0)
        await ours.send(bytes(LIMIT - 100))
        assert ours.seal_seconds > 0
        monkeypatch.undo()
        ours.close()
        theirs.close()

    run(scenario)


def test_a_closed_connection_leaves_no_timer_behind() -> None:
    async def scenario() -> None:
        ours, theirs = connected()
        ours.close()
        theirs.close()
        loop = asyncio.get_running_loop()
        timers = [t for t in loop._scheduled if not t.cancelled()]  # type: ignore[attr-defined]
        assert len(timers) == 1  # this test's own

    run(scenario)


# The handshake's first half


def initiator() -> Initiator:
    return Initiator(bytes([11]) * 32, public_key(RECEIVER), PSK, bytes([13]) * 32)


def answered(answer: bytes | None, expected: type[Exception]) -> None:
    async def scenario() -> None:
        stream, peer = raw()
        running = asyncio.create_task(initiate(stream, initiator()))
        assert len(await peer.read(INITIATION_SIZE)) == INITIATION_SIZE
        if answer is not None:
            await peer.send(answer)
            peer.sock.close()
        with pytest.raises(expected):
            await running
        stream.close()
        peer.sock.close()

    run(scenario)


def test_both_halves_agree_on_the_keys() -> None:
    async def scenario() -> None:
        stream, peer = raw()
        running = asyncio.create_task(initiate(stream, initiator()))
        responder = Responder(RECEIVER, bytes([14]) * 32)
        responder.read_initiation(await peer.read(INITIATION_SIZE))
        response, keys = responder.respond(PSK)
        await peer.send(response)
        made = await running
        assert (made.send, made.receive) == (keys.receive, keys.send)
        assert made.handshake_hash == keys.handshake_hash
        stream.close()
        peer.sock.close()

    run(scenario)


@pytest.mark.parametrize("answer", [b"", b"FLTS", b"FLTS\x01\x02\x00\x40", bytes(0)])
def test_a_receiver_that_closes_early_is_a_lost_connection(answer: bytes) -> None:
    answered(answer, ConnectionLost)


def test_a_version_notice_is_reported() -> None:
    notice = bytearray(version_notice())
    notice[4] = 9
    answered(bytes(notice), ProtocolVersionMismatch)


def test_somebody_who_is_no_receiver_fails_the_handshake() -> None:
    answered(b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(80), HandshakeFailed)
    answered(b"FLTS\x01\x02\x00\x40" + bytes(64), HandshakeFailed)


def test_a_receiver_that_never_answers_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "HANDSHAKE_TIMEOUT", 0.02)
    answered(None, TimeoutError)


# Frames


def test_frames_are_bounded_and_the_longest_waiter_is_served_first() -> None:
    async def scenario() -> None:
        pool = FramePool(1)
        served: list[str] = []

        async def use(name: str) -> None:
            frame = await pool.acquire()
            served.append(name)
            assert pool.in_use == 1
            await asyncio.sleep(0)
            pool.release(frame)

        frame = await pool.acquire()
        users = [asyncio.create_task(use(name)) for name in "abc"]
        await asyncio.sleep(0)
        pool.release(frame)
        await asyncio.gather(*users)
        assert served == ["a", "b", "c"]
        assert pool.in_use == 0

    run(scenario)


def test_whoever_gives_a_frame_back_and_wants_another_waits_its_turn() -> None:
    async def scenario() -> None:
        pool = FramePool(1)
        served: list[str] = []

        async def wait(name: str) -> None:
            frame = await pool.acquire()
            served.append(name)
            pool.release(frame)

        frame = await pool.acquire()
        waiting = asyncio.create_task(wait("waiting"))
        await asyncio.sleep(0)
        pool.release(frame)
        await wait("greedy")
        await waiting
        assert served == ["waiting", "greedy"]

    run(scenario)


def test_a_waiter_cancelled_before_or_after_its_turn_loses_no_frame() -> None:
    async def scenario() -> None:
        pool = FramePool(1)
        frame = await pool.acquire()
        waiters = [asyncio.create_task(pool.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[0].cancel()  # before
        pool.release(frame)
        waiters[1].cancel()  # has been served and has not run
        await asyncio.gather(*waiters[:2], return_exceptions=True)
        pool.release(await waiters[2])
        assert pool.in_use == 0

    run(scenario)
