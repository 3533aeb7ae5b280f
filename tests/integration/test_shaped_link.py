"""The link that benchmarks shape: it keeps its rate, its account, and nothing behind."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from dark_link import needs_namespaces

from benchmarks.shaped_link import MBIT, ShapedLink, shaped_link

TIMEOUT = 20.0  # seconds

READ_ALL = """\
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
    print("listening", flush=True)
    with listener.accept()[0] as link:
        while link.recv(1 << 16):
            pass
        link.sendall(b"!")
"""


@contextmanager
def reader(link: ShapedLink) -> Iterator[socket.socket]:
    """A connection to somebody at the far end who reads to the end, and then says so."""
    command = (*link.way.beyond, sys.executable, "-c", READ_ALL, link.way.host, "7000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            with socket.create_connection((link.way.host, 7000), TIMEOUT) as connection:
                yield connection
        finally:
            process.kill()


def send_all(connection: socket.socket, size: int) -> None:
    connection.sendall(bytes(size))
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b"!"


@needs_namespaces
def test_what_crosses_takes_the_time_of_the_rate_and_is_accounted_for_with_its_headers() -> None:
    size = 1_250_000
    with shaped_link() as link:
        link.shape(10 * MBIT)
        with reader(link) as connection:
            before = link.counted()
            started = time.monotonic()
            send_all(connection, size)
            seconds = time.monotonic() - started
            wire = link.counted().since(before)
    assert size * 1.02 < wire.there < size * 1.2
    assert 0 < wire.back < wire.there / 4
    assert seconds > 0.9 * wire.there * 8 / (10 * MBIT)  # the bucket was full at the start


@needs_namespaces
def test_a_full_link_goes_on_when_its_rate_falls() -> None:
    with shaped_link() as link:
        link.shape(1000 * MBIT)
        with reader(link) as connection:
            before = link.counted()
            sending = threading.Thread(target=send_all, args=(connection, 40_000_000))
            sending.start()
            while link.counted().since(before).there < 4_000_000:
                pass
            link.shape(50 * MBIT)
            sending.join(TIMEOUT)
            assert not sending.is_alive()


@needs_namespaces
def test_nothing_of_a_link_is_left_when_its_block_fails() -> None:
    with pytest.raises(ZeroDivisionError), shaped_link() as link:
        raise ZeroDivisionError
    listed = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for command in (("ip", "netns", "list"), ("ip", "link", "show"))
    ]
    assert link.namespace not in listed[0]
    assert link.interface not in listed[1]
