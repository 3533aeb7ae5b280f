"""People and Prometheus who watch a receiver while it works: see ``viewers`` in ``bench_pair``.

    python -m benchmarks.watched PORT VIEWERS        views of the page; each tenth never reads
    python -m benchmarks.watched PORT scraped        /metrics, once a second

Runs until it is terminated.
"""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from benchmarks.processes import BenchmarkError, Server, end

SCRAPED: Final = "scraped"
_READY: Final = "watching"


def watched_by(whom: str) -> Callable[[Server], AbstractContextManager[None]]:
    """What has a receiver watched by so many viewers, or scraped, for the length of a block."""

    @contextmanager
    def watching(server: Server) -> Iterator[None]:
        found = re.search(r"metrics on http://[^:]+:(\d+)/", server.said())
        if found is None:
            raise BenchmarkError("the receiver does not say where its page is")
        command = (sys.executable, "-m", "benchmarks.watched", found[1], whom)
        watchers = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert watchers.stdout is not None
            if watchers.stdout.readline().strip() != _READY:
                raise BenchmarkError("the viewers did not come")
            yield
        finally:
            end(watchers)

    return watching


async def _view(port: int, count: int) -> None:
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for reader, writer in streams:
        writer.write(b"GET /events HTTP/1.1\r\nHost: bench\r\n\r\n")
        await reader.readuntil(b"data: ")
    print(_READY, flush=True)
    deaf = streams[9::10]
    for reader, _ in deaf:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.gather(*(_read(reader) for reader, _ in streams if (reader, _) not in deaf))


async def _read(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


async def _scrape(port: int) -> None:
    print(_READY, flush=True)
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        await _read(reader)
        writer.close()
        await asyncio.sleep(1.0)


def main() -> None:
    """Watch."""
    port, whom = int(sys.argv[1]), sys.argv[2]
    asyncio.run(_scrape(port) if whom == SCRAPED else _view(port, int(whom)))


if __name__ == "__main__":
    main()
