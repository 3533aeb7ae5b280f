"""Bounds what reading a whole disk does to the host's page cache, and what each remedy costs.

A host's memory caches what its guests and services use. Reading a terabyte
through it replaces all of that with pages nobody will ask for again. This
program reads one file, and a loop device over it, in every way that Linux
offers, and prints for each

- the rate with nothing of it in the cache, and with all of it there (MiB/s);
- the pages of it that are left in the cache by a reader that found none;
- the share of pages that were in the cache beforehand (the host's own) and
  are still there afterwards.

Nothing but reading is timed: no digest, no compression, one pass. Run it as
root, so that it can attach a loop device:

    python tests/benchmarks/bench_page_cache.py --directory /var/tmp --size 1024 --threads 1 4
"""

import argparse
import ctypes
import mmap
import os
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flatship_sender.sources.raw import open_raw

MIB = 1 << 20
UNIT = MIB  # bytes a read, as the sender's chunks are
OWNED = 64 * MIB  # bytes of every second such run that the host "owns" beforehand
RWF_DONTCACHE = 0x80

Read = Callable[[memoryview, int], None]


@dataclass(frozen=True, slots=True)
class Way:
    """One way of reading: opens a path, gives a function that fills a buffer, closes."""

    name: str
    opened: Callable[[str], AbstractContextManager[Read]]


@contextmanager
def plain(path: str) -> Iterator[Read]:
    with _descriptor(path, os.O_RDONLY) as fd:
        yield lambda buffer, offset: _whole(os.preadv(fd, [buffer], offset), buffer)


@contextmanager
def behind(path: str) -> Iterator[Read]:
    with _descriptor(path, os.O_RDONLY) as fd:

        def read(buffer: memoryview, offset: int) -> None:
            _whole(os.preadv(fd, [buffer], offset), buffer)
            os.posix_fadvise(fd, offset, len(buffer), os.POSIX_FADV_DONTNEED)

        yield read


@contextmanager
def direct(path: str) -> Iterator[Read]:
    with _descriptor(path, os.O_RDONLY | os.O_DIRECT) as fd:
        yield lambda buffer, offset: _whole(os.preadv(fd, [buffer], offset), buffer)


@contextmanager
def dontcache(path: str) -> Iterator[Read]:
    with _descriptor(path, os.O_RDONLY) as fd:
        yield lambda buffer, offset: _whole(os.preadv(fd, [buffer], offset, RWF_DONTCACHE), buffer)


@contextmanager
def flatship(path: str) -> Iterator[Read]:
    source = open_raw(path, live=True)
    try:
        yield source.read_into
    finally:
        source.close()


WAYS = (
    Way("buffered", plain),
    Way("buffered + FADV_DONTNEED", behind),
    Way("O_DIRECT", direct),
    Way("RWF_DONTCACHE", dontcache),
    Way("flatship_sender.sources.raw", flatship),
)


@contextmanager
def _descriptor(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _whole(count: int, buffer: memoryview) -> None:
    if count != len(buffer):
        raise RuntimeError(f"read {count} bytes of {len(buffer)}")


def read_all(read: Read, size: int, threads: int) -> float:
    """Read ``size`` bytes in order with so many threads; MiB/s."""
    offsets: queue.SimpleQueue[int] = queue.SimpleQueue()
    for offset in range(0, size, UNIT):
        offsets.put(offset)
    failures: list[BaseException] = []

    def work() -> None:
        buffer = memoryview(mmap.mmap(-1, UNIT))
        try:
            while True:
                read(buffer, offsets.get_nowait())
        except queue.Empty:
            return
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - began
    if failures:
        raise failures[0]
    return size / MIB / elapsed


def resident(path: str, size: int) -> bytes:
    """One byte a page of ``path``: its lowest bit says whether the page is cached; mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    vector = ctypes.create_string_buffer((size + mmap.PAGESIZE - 1) // mmap.PAGESIZE)
    # A private writable mapping, never written to: ctypes needs its address.
    with (
        _descriptor(path, os.O_RDONLY) as fd,
        mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapping,
    ):
        anchor = ctypes.c_char.from_buffer(mapping)
        failed = libc.mincore(
            ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), vector
        )
        del anchor
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return vector.raw


def cached_pages(path: str, size: int, runs: range | None = None) -> int:
    """Cached pages of ``path``: all of them, or those in the runs of OWNED bytes numbered so."""
    pages = resident(path, size)
    step = OWNED // mmap.PAGESIZE
    if runs is None:
        return sum(byte & 1 for byte in pages)
    return sum(byte & 1 for run in runs for byte in pages[run * step : (run + 1) * step])


def forget(paths: list[str]) -> None:
    """Drop every page of these from the cache, upper layers first."""
    for path in paths:
        with _descriptor(path, os.O_RDONLY) as fd:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def warm(path: str, size: int, runs: range | None = None) -> None:
    """Read ``path`` through the cache, all of it or the runs numbered so."""
    buffer = memoryview(mmap.mmap(-1, UNIT))
    with _descriptor(path, os.O_RDONLY) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead into the other runs
        for run in runs or range((size + OWNED - 1) // OWNED):
            for offset in range(run * OWNED, min(size, (run + 1) * OWNED), UNIT):
                os.preadv(fd, [buffer], offset)


def measure(way: Way, stack: list[str], size: int, threads: int) -> str:
    """One line of the table; ``stack[0]`` is read, the others lie underneath it."""
    path = stack[0]
    try:
        with way.opened(path) as read:
            forget(stack)
            cold = read_all(read, size, threads)
            left = cached_pages(path, size)
            below = sum(cached_pages(other, size) for other in stack[1:])
            forget(stack)
            warm(path, size)
            hot = read_all(read, size, threads)
            forget(stack)
            owned = range(0, size // OWNED, 2)
            warm(path, size, owned)
            before = cached_pages(path, size, owned)
            read_all(read, size, threads)
            survived = cached_pages(path, size, owned) / before
    except OSError as error:
        return f"| {way.name} | {threads} | {error.strerror} | | | | |"
    return (
        f"| {way.name} | {threads} | {cold:.0f} | {hot:.0f} | {left} | {below} | {survived:.0%} |"
    )


@contextmanager
def loop_device(path: str) -> Iterator[str]:
    """A read-only loop device over ``path``, detached on every way out."""
    device = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def report(title: str, stack: list[str], size: int, threads: list[int]) -> None:
    print(f"\n## {title}\n")
    print("| way | threads | cold, MiB/s | warm, MiB/s | pages left | in the file below | kept |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for count in threads:
        for way in WAYS:
            print(measure(way, stack, size, count), flush=True)


def _model_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((ln.split(":")[1].strip() for ln in lines if ln.startswith("model name")), "?")


def main() -> None:
    parser = argparse.ArgumentParser(description="What reading a disk does to the page cache.")
    parser.add_argument("--directory", default="/var/tmp", help="a folder on a real disk")
    parser.add_argument("--memory", default="/dev/shm", help="a folder on tmpfs")
    parser.add_argument("--size", type=int, default=1024, help="MiB; a multiple of 128")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    size = options.size * MIB

    print(f"# Page cache, {time.strftime('%Y-%m-%d')}\n")
    print(f"CPU: {_model_name()}, {os.cpu_count()} cores. Kernel {platform.release()}. ", end="")
    print(f"Python {platform.python_version()}. {options.size} MiB, {size // mmap.PAGESIZE} pages.")
    print(f"\n    python {' '.join(sys.argv)}")
    for title, folder in (("File", options.directory), ("File on tmpfs", options.memory)):
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            unit = os.urandom(UNIT)
            for _ in range(options.size):
                file.write(unit)
            file.flush()
            os.fsync(file.fileno())
            report(title, [file.name], size, options.threads)
            if os.geteuid() == 0:
                with loop_device(file.name) as device:
                    report(
                        f"Loop device over it ({title.lower()})",
                        [device, file.name],
                        size,
                        options.threads,
                    )


if __name__ == "__main__":
    main()
