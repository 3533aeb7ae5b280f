"""Speaks with the daemon at its control socket, and imports little: commands wait for it.

HTTP/1.0 on a connection a request: an answer ends where the connection does, so that there is
nothing to be parsed but a status and the lines of the head.
"""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from flatship_sender.control.faults import FaultAnswer, Refused
from flatship_service.errors import OperatorError

SOCKET: Final = "control.sock"  # in the state folder
TIMEOUT: Final = 30.0  # seconds; to a follower the daemon sends a line every 10
MAX_HEAD: Final = 16 << 10  # bytes of an answer's head
MAX_ANSWER: Final = 256 << 20  # bytes; a thousand jobs of 256 long paths each come near it
PIECE: Final = 256 << 10


class NoDaemon(OperatorError):
    """Nobody answers at the control socket.

    Args:
        path: Where.
        reason: What was found there.
    """

    exit_code = 5

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"no daemon answers at {path}: {reason}; start one with flatship-sender serve, or say"
            " with --state or --socket where it is"
        )


class NotAllowed(OperatorError):
    """The control socket is not for this user."""

    exit_code = 12

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} may be used by its owner, its group and root; become one of them")


class DaemonLost(OperatorError):
    """The daemon stopped in the middle of an answer, or gave none in time.

    Args:
        reason: What happened.
    """

    exit_code = 5

    def __init__(self, reason: str) -> None:
        super().__init__(f"the daemon {reason}; what it has accepted goes on once it is back")


def socket_path(state: Path, socket_: Path | None = None) -> Path:
    """Where the daemon of a state folder listens, unless it was told otherwise."""
    return socket_ if socket_ is not None else state / SOCKET


class Daemon:
    """A daemon, as a client sees it.

    Args:
        path: Its control socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def answers(self) -> bool:
        """Whether somebody listens there and may be spoken to. Returns at once."""
        try:
            if not stat.S_ISSOCK(os.stat(self.path).st_mode):
                return False
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(TIMEOUT)
                probe.connect(os.fspath(self.path))
        except OSError:
            return False
        return True

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Ask for something; returns the body of the answer.

        Raises:
            Refused: It said no, and why.
            NoDaemon, NotAllowed, DaemonLost: It could not be asked.
        """
        with self._asked(method, path, body) as answer:
            return answer.rest()

    def lines(self, path: str) -> Iterator[bytes]:
        """The lines of an answer as they come.

        Raises:
            As for ``ask``. If the daemon leaves in good order the lines just end.
        """
        with self._asked("GET", path, None) as answer:
            yield from answer.lines()

    @contextmanager
    def _asked(self, method: str, path: str, body: bytes | None) -> Iterator["_Answer"]:
        head = f"{method} {path} HTTP/1.0\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        with self._connected() as connection:
            try:
                connection.sendall(head.encode() + b"\r\n" + (body or b""))
            except BrokenPipeError:
                pass  # it answers without having read all, and says why
            except OSError as error:
                raise _lost(error) from error
            answer = _Answer(connection)
            status = answer.status()
            if status >= 300:
                raise _refused(status, answer.rest())
            yield answer

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            try:
                connection.connect(os.fspath(self.path))
            except FileNotFoundError:
                raise NoDaemon(self.path, "there is no such socket") from None
            except ConnectionRefusedError:
                raise NoDaemon(self.path, "it was left by one that is gone") from None
            except PermissionError:
                raise NotAllowed(self.path) from None
            except OSError as error:
                raise NoDaemon(self.path, error.strerror or str(error)) from error
            yield connection


class _Answer:
    """An answer on its way.

    Args:
        connection: Where it comes from.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._come = b""
        self._length: int | None = None  # bytes of the body, where the head says

    def status(self) -> int:
        """Read the head; returns the status."""
        while b"\r\n\r\n" not in self._come:
            if len(self._come) > MAX_HEAD or not self._more():
                raise DaemonLost("broke off its answer")
        head, _, self._come = self._come.partition(b"\r\n\r\n")
        try:
            version, status, _ = head.split(None, 2)
            for line in head.lower().split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                if name == b"content-length":
                    self._length = int(value)
            if version.startswith(b"HTTP/1."):
                return int(status)
        except ValueError:
            pass
        raise DaemonLost("does not speak HTTP; is it another program's socket?")

    def rest(self) -> bytes:
        """All of the body."""
        pieces = [self._come]
        size = len(self._come)
        while piece := self._receive():
            size += len(piece)
            if size > MAX_ANSWER:
                raise DaemonLost("answered at a length that no answer has")
            pieces.append(piece)
        if self._length not in (None, size):
            raise DaemonLost("broke off its answer")
        return b"".join(pieces)

    def lines(self) -> Iterator[bytes]:
        """The body's lines, without their ends; one that was cut off is left out."""
        while True:
            *lines, self._come = self._come.split(b"\n")
            yield from lines
            if len(self._come) > MAX_ANSWER or not self._more():
                return

    def _more(self) -> bool:
        piece = self._receive()
        self._come += piece
        return bool(piece)

    def _receive(self) -> bytes:
        try:
            return self._connection.recv(PIECE)
        except OSError as error:
            raise _lost(error) from error


def _lost(error: OSError) -> DaemonLost:
    if isinstance(error, TimeoutError):
        return DaemonLost(f"has not answered for {TIMEOUT:.0f} s")
    return DaemonLost(f"broke off its answer ({error.strerror or error})")


def _refused(status: int, body: bytes) -> Refused | DaemonLost:
    try:
        fault = msgspec.json.decode(body, type=FaultAnswer).error
    except msgspec.DecodeError:
        return DaemonLost(f"answers with status {status} and no reason")
    return Refused(status, fault.code, fault.message, fault.exit_code)
