"""Judge a published disk: its descriptor, its extents, its bytes. Reads only.

Any file may be given: what is in it can fail a check and never the program.
"""

import heapq
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from stat import S_ISREG
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.errors import (
    DatastoreError,
    TransferError,
    UsageError,
)
from flatship_protocol.extents import Extent
from flatship_receiver import vmdk
from flatship_receiver.descriptor_text import MAX_DESCRIPTOR_SIZE
from flatship_receiver.flat_files import OPEN_FLAGS, FlatDisk, FlatFile, open_source
from flatship_receiver.journal import ImageRecord, ImageState, Journal
from flatship_receiver.proof import READ_CHUNKS, ProofFailed, data_chunks, data_size, prove

READ_SIZE: Final = READ_CHUNKS * CHUNK_SIZE  # bytes in one read of a comparison

Progress = Callable[[int, int], None]


class DiskMissing(TransferError):
    """There is no such descriptor."""

    exit_code = 10


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    ``offset`` is the first byte of the disk where the content is wrong, if
    that is what failed: exact for ``source``, that of the chunk for ``digest``.
    """

    name: str
    ok: bool
    detail: str
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of a disk.

    ``checks`` are, in order, ``descriptor``, ``extents``, ``digest`` and
    ``source``; the last only if there was one to compare with. What cannot be
    looked at because an earlier check failed is missing. ``root`` is the root
    digest of what was re-read, if it is the one on record.
    """

    checks: tuple[Check, ...]
    bytes_read: int = 0
    root: bytes | None = None

    @property
    def ok(self) -> bool:
        """Whether everything agrees."""
        return all(check.ok for check in self.checks)


def verify(
    path: Path,
    journal: Journal | None,
    *,
    against: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Verdict:
    """Judge the disk whose descriptor is ``path``.

    Args:
        path: The descriptor, not an extent.
        journal: Where the digests are on record; None if there is no journal.
        against: File or block device whose bytes the disk must have.
        progress: Told the bytes read and the bytes to read in all.

    Raises:
        DiskMissing: There is no file at ``path``.
        SourceMissing: There is nothing at ``against``.
        SourceUnsuitable: ``against`` is neither file nor block device.
        UsageError: ``against`` is an extent of the disk itself.
        JournalError: The journal cannot be read.
    """
    path = Path(os.path.realpath(path))  # extents are beside the file, not beside a link to it
    with ExitStack() as stack:
        source = None
        if against is not None:
            source = stack.enter_context(closing(open_source(against)))
        descriptor, judged = _judge_descriptor(path)
        if descriptor is None:
            return Verdict((judged,))
        try:
            disk = stack.enter_context(closing(FlatDisk.open(path.parent, descriptor)))
        except DatastoreError as error:
            return Verdict((judged, Check("extents", ok=False, detail=str(error))))
        found = Check("extents", ok=True, detail=f"{len(disk.files)}, {disk.capacity} bytes")
        if source is not None and source.identity in {file.identity for file in disk.files}:
            raise UsageError(f"{against} is an extent of this very disk; give its source")
        content = _judge_content(disk, vmdk.uuid_of(descriptor), journal, source, progress)
    return Verdict((judged, found, *content.checks), content.bytes_read, content.root)


def _judge_descriptor(path: Path) -> tuple[vmdk.Descriptor | None, Check]:
    """Return the descriptor, if its extents can be looked at, and what is wrong with it."""
    try:
        descriptor = vmdk.parse(_read_descriptor(path))
    except FileNotFoundError as error:
        raise DiskMissing(f"{path}: there is no such file") from error
    except OSError as error:
        return None, Check("descriptor", ok=False, detail=f"cannot be read: {error.strerror}")
    except TransferError as error:
        return None, Check("descriptor", ok=False, detail=str(error))
    problems = vmdk.check(descriptor)
    if problems:
        return None, Check("descriptor", ok=False, detail="; ".join(problems))
    return descriptor, Check("descriptor", ok=True, detail=descriptor.header["createType"])


def _read_descriptor(path: Path) -> bytes:
    descriptor = os.open(path, OPEN_FLAGS)
    try:
        if not S_ISREG(os.fstat(descriptor).st_mode):
            raise vmdk.DescriptorError("it is not a regular file; give the path of a descriptor")
        return os.pread(descriptor, MAX_DESCRIPTOR_SIZE + 1, 0)
    finally:
        os.close(descriptor)


def _judge_content(
    disk: FlatDisk,
    uuid: bytes | None,
    journal: Journal | None,
    source: FlatFile | None,
    progress: Progress,
) -> Verdict:
    """Compare with the record and with the source, as far as there are any."""
    record = journal.image(uuid) if journal and uuid else None
    on_record = _judge_record(record, disk.capacity, by_source=source is not None)
    proving = record is not None and on_record.ok
    record_size = data_size(disk.extents(), disk.capacity) if proving else 0
    source_size = data_size(_both(disk, source), disk.capacity) if source else 0
    total = record_size + source_size
    checks, bytes_read, root = [on_record], 0, None
    if journal and record and on_record.ok:
        checks, bytes_read, root = _judge_digests(
            disk, record, journal, lambda done, _: progress(done, total)
        )
    if source is not None:
        compared = _judge_source(disk, source, lambda done, _: progress(record_size + done, total))
        checks.append(compared)
        bytes_read += source_size
    return Verdict(tuple(checks), bytes_read, root)


def _judge_record(record: ImageRecord | None, capacity: int, *, by_source: bool) -> Check:
    if record is None and by_source:
        return Check("digest", ok=True, detail="not on record; the source alone decides")
    if record is None:
        detail = "not on record: nothing can be proven; name the receiver's --state, or --against"
    elif record.state is not ImageState.COMPLETE or record.root is None:
        detail = f"on record as {record.state}, expected {ImageState.COMPLETE}; send it again"
    elif vmdk.round_capacity(record.size) != capacity:
        detail = f"on record with a size of {record.size} bytes, the extents hold {capacity}"
    else:
        return Check("digest", ok=True, detail="on record")
    return Check("digest", ok=False, detail=detail)


def _judge_digests(
    disk: FlatDisk, record: ImageRecord, journal: Journal, progress: Progress
) -> tuple[list[Check], int, bytes | None]:
    """Return the check, the bytes read and the root digest if it is the one on record."""

    def expected(number: int) -> bytes:
        digests = journal.segment(record.uuid, number)
        if digests is None:
            raise ProofFailed(number * CHUNK_SIZE, f"digest segment {number} is not on record")
        return digests

    try:
        proof = prove(disk, record.size, expected, progress=progress, should_stop=lambda: False)
    except ProofFailed as error:
        return [Check("digest", ok=False, detail=str(error), offset=error.offset)], 0, None
    except DatastoreError as error:
        return [Check("digest", ok=False, detail=str(error))], 0, None
    ok = proof.root == record.root
    detail = f"root {proof.root.hex()}" + ("" if ok else " is not the one on record")
    return [Check("digest", ok=ok, detail=detail)], proof.bytes_read, proof.root if ok else None


def _judge_source(disk: FlatDisk, source: FlatFile, progress: Progress) -> Check:
    try:
        offset = _first_difference(disk, source, progress)
    except DatastoreError as error:
        return Check("source", ok=False, detail=str(error))
    if offset is not None:
        detail = f"differs from the source, first at byte {offset}"
        return Check("source", ok=False, detail=detail, offset=offset)
    if not source.size or -(-source.size // CHUNK_SIZE) * CHUNK_SIZE != disk.capacity:
        detail = f"the source has {source.size} bytes, a disk of {disk.capacity} is not for it"
        return Check("source", ok=False, detail=detail)
    return Check("source", ok=True, detail=f"equal, {source.size} bytes")


def _both(disk: FlatDisk, source: FlatFile) -> Iterator[Extent]:
    """Extents of both, by offset, as far as the disk goes."""
    merged = heapq.merge(disk.extents(), source.extents(), key=lambda extent: extent.offset)
    for extent in merged:
        if extent.offset < disk.capacity:
            length = min(extent.length, disk.capacity - extent.offset)
            yield Extent(extent.offset, length, extent.kind)


def _first_difference(disk: FlatDisk, source: FlatFile, progress: Progress) -> int | None:
    """Return the first byte that differs; past its end the source counts as zeros."""
    done, total = 0, data_size(_both(disk, source), disk.capacity)
    with ThreadPoolExecutor(1, thread_name_prefix="source") as other:
        ours, theirs = mmap(-1, READ_SIZE), mmap(-1, READ_SIZE)
        for first, end in data_chunks(_both(disk, source)):
            stop = min(end * CHUNK_SIZE, disk.capacity)
            for start in range(first * CHUNK_SIZE, stop, READ_SIZE):
                length = min(READ_SIZE, stop - start)
                reading = other.submit(_read_padded, source, memoryview(theirs)[:length], start)
                try:
                    disk.read_into(memoryview(ours)[:length], start)
                finally:
                    reading.result()
                if ours[:length] != theirs[:length]:
                    return start + _mismatch(ours[:length], theirs[:length])
                done += length
                progress(done, total)
    return None


def _read_padded(source: FlatFile, buffer: memoryview, offset: int) -> None:
    inside = max(0, min(len(buffer), source.size - offset))
    source.read_into(buffer[:inside], offset)
    buffer[inside:] = bytes(len(buffer) - inside)


def _mismatch(ours: bytes, theirs: bytes) -> int:
    """Return the place of the first byte that differs; one does."""
    equal, end = 0, len(ours)  # what lies before equal is equal; a difference lies before end
    while end - equal > 1:
        middle = (equal + end) // 2
        if ours[equal:middle] == theirs[equal:middle]:
            equal = middle
        else:
            end = middle
    return equal
