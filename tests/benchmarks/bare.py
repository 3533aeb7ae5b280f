"""The floor under the data path: the same work on every byte, and nothing else.

    python -m benchmarks.bare receive FILE PORT
    python -m benchmarks.bare send FILE PORT

Two threads and two connections read chunks, take their BLAKE3 digest, seal them with
AES-256-GCM and send them; threads at the other end receive, open, digest, compare and
write. There is no session, no acknowledgement and no metadata to keep, so
nothing that does this work from Python's libraries can be much faster.
"""

import itertools
import mmap
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.contest import Run
from benchmarks.disk import MIB, Disk
from benchmarks.processes import free_port, run, serving, shown

_THREADS = 2
_KEY = AESGCM(bytes(32))  # no secret: both ends are this program
_HEAD = 8 + 32  # offset, digest
_RECORD = _HEAD + MIB + 16
_LISTENING = "listening"


@dataclass(slots=True)
class BarePair:
    """The bare sender and receiver as a contestant."""

    scratch: Path
    command: str = ""

    def transfer(
        self, disk: Disk, folder: Path, at_start: Callable[[], None]
    ) -> tuple[Run, Path | None]:
        """See ``Contestant``."""
        target = folder / "copy.raw"
        with target.open("wb") as file:
            file.truncate(disk.size)
        program = [sys.executable, "-m", "benchmarks.bare"]
        port = str(free_port())
        receive: list[str | Path] = [*program, "receive", target, port]
        send: list[str | Path] = [*program, "send", disk.path, port]
        self.command = f"{shown(receive)}\n{shown(send)}"
        with serving(receive, self.scratch / "bare.log", lambda said: _LISTENING in said) as server:
            before = server.usage()
            at_start()
            finished = run(send)
            return Run(finished.seconds, finished.usage, server.usage() - before), target


def _send(path: str, port: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    chunks = _data_chunks(fd)
    turn = threading.Lock()

    def work() -> None:
        plain = memoryview(mmap.mmap(-1, MIB))
        record = memoryview(mmap.mmap(-1, _RECORD))
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for sequence in itertools.count():
                with turn:
                    offset = next(chunks, None)
                if offset is None:
                    break
                os.preadv(fd, [plain], offset)
                record[:8] = offset.to_bytes(8, "big")
                record[8:_HEAD] = blake3(plain).digest()
                _KEY.encrypt_into(_nonce(sequence), plain, b"", record[_HEAD:])
                link.sendall(record)
            link.shutdown(socket.SHUT_WR)
            link.recv(1)  # the receiver closes when all is written

    _in_threads([threading.Thread(target=work) for _ in range(_THREADS)])


def _receive(path: str, port: int) -> None:
    fd = os.open(path, os.O_RDWR)
    writing = threading.Lock()

    def work(link: socket.socket) -> None:
        plain = memoryview(mmap.mmap(-1, MIB))
        record = memoryview(mmap.mmap(-1, _RECORD))
        with link:
            for sequence in itertools.count():
                if not _received(link, record):
                    return
                _KEY.decrypt_into(_nonce(sequence), record[_HEAD:], b"", plain)
                if blake3(plain).digest() != record[8:_HEAD]:
                    raise SystemExit("a chunk has another digest")
                with writing:
                    os.pwrite(fd, plain, int.from_bytes(record[:8], "big"))

    with socket.create_server(("127.0.0.1", port)) as listener:
        print(_LISTENING, flush=True)
        links = [listener.accept()[0] for _ in range(_THREADS)]
        _in_threads([threading.Thread(target=work, args=(link,)) for link in links])


def _nonce(sequence: int) -> bytes:
    """Twelve bytes. Both connections use the same ones, which only a benchmark may do."""
    return sequence.to_bytes(12, "big")


def _received(link: socket.socket, record: memoryview) -> bool:
    while record:
        count = link.recv_into(record)
        if not count:
            return False
        record = record[count:]
    return True


def _data_chunks(fd: int) -> Iterator[int]:
    """Offsets of the chunks that hold data."""
    size = os.fstat(fd).st_size
    offset = 0
    while offset < size:
        try:
            data = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:  # holes to the end
            return
        end = os.lseek(fd, data, os.SEEK_HOLE)
        offset = max(offset, data // MIB * MIB)
        while offset < end:
            yield offset
            offset += MIB


def _in_threads(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    _, action, file, port = sys.argv
    (_send if action == "send" else _receive)(file, int(port))
