"""The daemon's end of the control socket: made, guarded, and left without a trace.

Who may connect is the file's mode (0660); who is heard is decided once more for each
connection by what the kernel says of the process at the other end.
"""

import asyncio
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flatship_service.errors import ConfigError, ConflictError

MODE: Final = 0o660
BACKLOG: Final = 64
MAX_REFUSED: Final = 16  # strangers' connections that are left to end by themselves
MAX_CONNECTIONS: Final = 128  # at once; others wait in the backlog
FULL_INTERVAL: Final = 0.1  # seconds between two looks for a place
MAX_SOCKET_PATH: Final = 107  # bytes; see unix(7)
SO_PEERGROUPS: Final = 59  # socket(7); the standard library does not name it
MAX_GROUPS: Final = 65536  # NGROUPS_MAX
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid; see unix(7)


class SocketTaken(ConflictError):
    """Another daemon answers at the socket.

    Args:
        path: Where.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"another daemon answers at {path}; stop that one, or choose another with --socket"
        )


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a connection, as it was when it connected."""

    uid: int
    groups: frozenset[int]

    def may_control(self, *, own_uid: int, group: int) -> bool:
        """Whether it is heard: root, the daemon's own user, a member of the socket's group."""
        return self.uid in (0, own_uid) or group in self.groups


def peer_of(connection: socket.socket) -> Peer:
    """Ask the kernel who is at the other end.

    Raises:
        OSError: It does not say.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, gid = _CREDENTIALS.unpack(raw)
    groups = {gid}
    with suppress(OSError):  # a kernel older than 4.13 does not know them
        listed = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MAX_GROUPS)
        groups.update(struct.unpack(f"{len(listed) // 4}I", listed))
    return Peer(uid, frozenset(groups))


def listen(path: Path) -> socket.socket:
    """Listen at ``path``; what a daemon that crashed has left there is replaced.

    Raises:
        SocketTaken: Another daemon answers there. Nothing was changed.
        ConfigError: It cannot be a socket's place. Nothing was changed.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ConfigError(
            f"control socket {path}: the path is longer than the {MAX_SOCKET_PATH} bytes that a"
            " socket's can have; choose another with --socket"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _make_way(path)
        listener.bind(str(path))
        path.chmod(MODE)
        listener.listen(BACKLOG)  # nobody could connect before
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"control socket {path}: {error.strerror or error}; choose another with --socket"
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


def _make_way(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(
            f"control socket {path}: something else stands there; remove it, or choose another"
            " with --socket"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # it listens, and has much to do
    raise SocketTaken(path)


def leave(listener: socket.socket, path: Path) -> None:
    """Close the listener, and remove its file unless another daemon's stands there by now."""
    listener.close()
    with (
        suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe,
    ):
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


async def admit(
    listener: socket.socket,
    path: Path,
    protocol: Callable[[], asyncio.Protocol],
    count: Callable[[], int],
    refusal: bytes,
) -> None:
    """Accept connections until cancelled, and turn strangers away.

    Args:
        listener: What ``listen`` returned.
        path: Where it listens.
        protocol: Makes what speaks with a peer that is let in.
        count: Connections that were let in and are there still.
        refusal: All that a stranger is told.
    """
    refused: deque[socket.socket] = deque()
    try:
        while True:
            while count() >= MAX_CONNECTIONS:  # noqa: ASYNC110  # aiohttp tells nobody who left
                await asyncio.sleep(FULL_INTERVAL)
            await _admit_one(listener, path, protocol, refusal, refused)
            if len(refused) > MAX_REFUSED:
                refused.popleft().close()
    finally:
        for connection in refused:
            connection.close()


async def _admit_one(
    listener: socket.socket,
    path: Path,
    protocol: Callable[[], asyncio.Protocol],
    refusal: bytes,
    refused: deque[socket.socket],
) -> None:
    loop = asyncio.get_running_loop()
    try:
        connection, _ = await loop.sock_accept(listener)
    except OSError:  # out of descriptors, most likely
        await asyncio.sleep(FULL_INTERVAL)
        return
    try:
        if _known(connection, path):
            await loop.connect_accepted_socket(protocol, connection)
            return
        connection.send(refusal, socket.MSG_DONTWAIT)
        # It may be about to write, and reads no answer after a write that failed.
        connection.shutdown(socket.SHUT_WR)
        refused.append(connection)
    except OSError:  # it has left, or the socket was removed
        connection.close()


def _known(connection: socket.socket, path: Path) -> bool:
    """Whether the peer is to be heard. The socket's group may be another one each time."""
    group = path.stat().st_gid
    return peer_of(connection).may_control(own_uid=os.geteuid(), group=group)
