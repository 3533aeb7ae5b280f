"""Proof that an image holds what was received: all of it is re-read, past the page cache.

Only data is read; what the target calls a hole counts as zeros, so the cost
follows the data and not the size. The root digest comes from the bytes that
were read, never from the record they are compared with.

``running_proof`` begins behind the writers, while more of the disk comes;
``prove`` reads what that did not reach.
"""

import functools
import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Protocol

from flatship_protocol.constants import CHUNK_SIZE, DIGEST_SIZE, SEGMENT_CHUNKS
from flatship_protocol.digest import Manifest, chunk_digest
from flatship_protocol.errors import DatastoreError, ErrorCode, TransferError
from flatship_protocol.extents import Extent, ExtentKind, ExtentSet

_HOLE: Final = b"hole"  # in the place of digests: nothing was read
_PROVEN: Final = b"proven"  # likewise: it was read before

READERS: Final = 2  # threads; a second read keeps the disk busy while the first is digested
READ_CHUNKS: Final = 4  # chunks in one read


class ReadableDisk(Protocol):
    """The part of an ``Image`` that a proof needs."""

    @property
    def capacity(self) -> int:
        """Bytes the guest will see."""
        ...

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer``, page-aligned, with what the medium holds at ``offset``."""
        ...

    def extents(self) -> Iterator[Extent]:
        """Runs of data and holes that cover the whole disk, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Proof:
    """The root digest of what was re-read, and how many bytes that were."""

    root: bytes
    bytes_read: int


class ProofFailed(DatastoreError):
    """The target does not hold what was received.

    Args:
        offset: First byte from the start of the disk that is known to be in
            doubt: that of the chunk that differs, or of the byte past the
            disk's size that is not zero.
        found: What is wrong there.
    """

    def __init__(self, offset: int, found: str) -> None:
        super().__init__(
            f"re-read of the target failed at byte {offset}: {found}; "
            "check the storage under the datastore, then send the disk again",
            ErrorCode.PROOF_FAILED,
            (offset, 0),
        )
        self.offset = offset


class ProofStopped(TransferError):
    """The re-read was told to stop; nothing is known of the target."""

    code = ErrorCode.CANCELLED
    exit_code = 3


def data_chunks(extents: Iterable[Extent]) -> Iterator[tuple[int, int]]:
    """Yield the runs of chunks that data touches as ``(first, end)``: ascending, apart.

    ``extents`` are in the order of their offsets; they may overlap.
    """
    first = end = 0
    for extent in extents:
        if extent.kind is ExtentKind.HOLE or not extent.length:
            continue
        begins = extent.offset // CHUNK_SIZE
        if begins > end and first < end:
            yield first, end
        if begins > end or first == end:
            first = begins
        end = max(end, -(-extent.end // CHUNK_SIZE))
    if first < end:
        yield first, end


def data_size(extents: Iterable[Extent], capacity: int) -> int:
    """Return the bytes in the chunks that data touches, on a disk of ``capacity`` bytes."""
    return sum(_length(capacity, first, end) for first, end in data_chunks(extents))


def prove(
    image: ReadableDisk,
    size: int,
    expected: Callable[[int], bytes],
    *,
    progress: Callable[[int, int], None],
    should_stop: Callable[[], bool],
    proven: ExtentSet | None = None,
    readers: int = READERS,
) -> Proof:
    """Re-read an image and compare it with the digests on record.

    Blocks: belongs into a worker thread. ``expected``, ``progress`` and
    ``should_stop`` are called in that thread. Memory: a few reads and digest
    segments, whatever the disk.

    Args:
        image: Flushed, and not written to meanwhile.
        size: Bytes that the sender's disk has; from there to the image's
            capacity all must be zeros.
        expected: Returns the chunk digests of a digest segment, by number, 32
            bytes each; called once for every segment of the disk, in order.
        progress: Told the bytes read and the bytes to read in all.
        should_stop: Asked before every read.
        proven: Ranges that were re-read since they were flushed, and had the
            digests on record; they are not read once more.
        readers: Threads that read.

    Raises:
        ProofFailed: The first difference, lowest offset first within a digest segment.
        ProofStopped: ``should_stop`` said so.
        DatastoreError: The device failed.
        Whatever ``expected`` raises.
    """

    recorded_in = functools.lru_cache(maxsize=2)(expected)

    def compare(number: int, found: bytes) -> None:
        recorded = recorded_in(number)
        if found != recorded:
            chunk = number * SEGMENT_CHUNKS + _first_difference(found, recorded)
            raise ProofFailed(chunk * CHUNK_SIZE, "the chunk there is not what was received")

    manifest = Manifest(size, compare)
    proven = proven or ExtentSet()
    total = max(0, data_size(image.extents(), image.capacity) - proven.total)
    done = 0
    progress(done, total)
    with _Readers(image, size, readers) as pending:
        for first, end, digests in pending.read_in_order(proven, should_stop):
            if digests is _HOLE:
                _set_zeros(manifest, first, end)
                continue
            if digests is _PROVEN:
                for chunk in range(first, end):
                    number, place = divmod(chunk, SEGMENT_CHUNKS)
                    at = place * DIGEST_SIZE
                    manifest.set_chunk(chunk, recorded_in(number)[at : at + DIGEST_SIZE])
                continue
            for place in range(len(digests) // DIGEST_SIZE):
                digest = digests[place * DIGEST_SIZE : (place + 1) * DIGEST_SIZE]
                manifest.set_chunk(first + place, digest)
            done += _length(image.capacity, first, end)
            progress(done, total)
    return Proof(manifest.root(), done + proven.total)


class _Readers:
    """Threads that read and digest runs of chunks ahead of whoever takes the results."""

    def __init__(self, image: ReadableDisk, size: int, threads: int) -> None:
        self._image = image
        self._size = size
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="proof")
        self._depth = 2 * threads  # reads under way or waiting to be taken
        self._buffers: SimpleQueue[mmap.mmap] = SimpleQueue()
        for _ in range(threads):
            self._buffers.put(mmap.mmap(-1, READ_CHUNKS * CHUNK_SIZE))

    def __enter__(self) -> "_Readers":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def read_in_order(
        self, proven: ExtentSet, should_stop: Callable[[], bool]
    ) -> Iterator[tuple[int, int, bytes]]:
        """Yield ``(first chunk, end chunk, digests)``; _HOLE and _PROVEN stand for unread ones."""
        queue: deque[tuple[int, int, Future[bytes] | bytes]] = deque()
        for first, end, unread in _pieces(self._image, proven):
            if should_stop():
                raise ProofStopped("the re-read of the target was stopped")
            read = self._executor.submit(self._digest, first, end) if unread is None else unread
            queue.append((first, end, read))
            if len(queue) > self._depth:
                yield _settled(queue.popleft())
        while queue:
            yield _settled(queue.popleft())

    def _digest(self, first: int, end: int) -> bytes:
        """Read chunks and return the digests of those that lie within the disk's size."""
        buffer = self._buffers.get()
        try:
            start, length = first * CHUNK_SIZE, _length(self._image.capacity, first, end)
            data = memoryview(buffer)[:length]
            self._image.read_into(data, start)
            disk = max(0, min(length, self._size - start))
            self._check_tail(bytes(data[disk:]), start + disk)
            return b"".join(
                chunk_digest(data[at : min(at + CHUNK_SIZE, disk)])
                for at in range(0, disk, CHUNK_SIZE)
            )
        finally:
            self._buffers.put(buffer)

    def _check_tail(self, tail: bytes, offset: int) -> None:
        written = tail.lstrip(b"\0")
        if written:
            first = offset + len(tail) - len(written)
            raise ProofFailed(first, f"not zero, past the disk's size of {self._size} bytes")


def _pieces(image: ReadableDisk, proven: ExtentSet) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield ``(first chunk, end chunk, mark)`` over the image: None for what is to be read."""
    position = 0
    for first, end in data_chunks(image.extents()):
        if position < first:
            yield position, first, _HOLE
        yield from _runs(first, end, proven)
        position = end
    chunks = -(-image.capacity // CHUNK_SIZE)
    if position < chunks:
        yield position, chunks, _HOLE


def _runs(first: int, end: int, proven: ExtentSet) -> Iterator[tuple[int, int, bytes | None]]:
    """Cut a run of chunks into what is proven and reads of what is not."""
    at = first
    for offset, length in proven.gaps(first * CHUNK_SIZE, (end - first) * CHUNK_SIZE):
        unread, until = offset // CHUNK_SIZE, -(-(offset + length) // CHUNK_SIZE)
        if at < unread:
            yield at, unread, _PROVEN
        for start in range(unread, until, READ_CHUNKS):
            yield start, min(start + READ_CHUNKS, until), None
        at = until
    if at < end:
        yield at, end, _PROVEN


def _settled(piece: tuple[int, int, Future[bytes] | bytes]) -> tuple[int, int, bytes]:
    first, end, read = piece
    return first, end, read if isinstance(read, bytes) else read.result()


def _set_zeros(manifest: Manifest, first: int, end: int) -> None:
    """Set the chunks of a hole, of which the image may have more than the disk."""
    first, end = min(first, manifest.chunks), min(end, manifest.chunks)
    manifest.set_zeros(first, end - first)


def _length(capacity: int, first: int, end: int) -> int:
    """Bytes in a run of chunks of a disk, of which the last may be short."""
    return min(end * CHUNK_SIZE, capacity) - first * CHUNK_SIZE


def _first_difference(found: bytes, recorded: bytes) -> int:
    """Return the place in a digest segment of the first chunk whose digest differs."""
    for at in range(0, len(found), DIGEST_SIZE):
        if found[at : at + DIGEST_SIZE] != recorded[at : at + DIGEST_SIZE]:
            return at // DIGEST_SIZE
    return 0  # the record is too long: none of it can be trusted
