"""A TCP port on loopback in front of a Unix socket, for clients that know no such thing."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PIECE = 1 << 16


@contextmanager
def relay_to(path: Path) -> Iterator[int]:
    """Relay from a port, which is yielded, to the socket at ``path`` during the block."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        accepting = threading.Thread(target=_accept, args=(listener, path))
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()


def _accept(listener: socket.socket, path: Path) -> None:
    relays = []
    with suppress(OSError):
        while True:
            caller, _ = listener.accept()
            relay = threading.Thread(target=_relay, args=(caller, path))
            relay.start()
            relays.append(relay)
    for relay in relays:
        relay.join()


def _relay(caller: socket.socket, path: Path) -> None:
    with caller, socket.socket(socket.AF_UNIX) as called, suppress(OSError):
        called.connect(str(path))
        back = threading.Thread(target=_pump, args=(called, caller))
        back.start()
        _pump(caller, called)
        back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(PIECE):
            target.sendall(piece)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
    with suppress(OSError):
        source.shutdown(socket.SHUT_RD)
