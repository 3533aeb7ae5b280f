"""What a worker thread does to one chunk: decode, check the digest, write.

A chunk of which the image is to keep a part, or of which a part is to be copied, is put
together here first, with what the images hold now. That is never trusted: the digest of
the whole decides, as for any other.
"""

import mmap
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from flatship_protocol.codec import Decompressor
from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.digest import chunk_digest
from flatship_protocol.errors import DatastoreError, DigestMismatch
from flatship_protocol.messages import Chunk, Codec, Segment, SegmentKind
from flatship_receiver.datastores.base import Image
from flatship_service.zeroing import fill_with_zeros

_NO_SOURCES: Final[Mapping[int, "CopySource"]] = MappingProxyType({})


class CopySource(Protocol):
    """An image that chunks are copied from."""

    @property
    def size(self) -> int:
        """Bytes of its disk; what is behind them is no part of it."""

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with what the image holds at ``offset``.

        Raises:
            DatastoreError: It cannot be read; ``buffer`` is undefined.
            ValueError: It has been let go of, or ends before that.
        """


class KeptDiffers(DigestMismatch):
    """With what the images hold, or without what cannot be read of them, the chunk is another.

    Nobody's fault: the sender has it whole.
    """


@dataclass(frozen=True, slots=True)
class Effect:
    """What became of a chunk's bytes; together they are its length."""

    written: int
    zeroed: int = 0
    kept: int = 0
    copied: int = 0


@dataclass(slots=True)
class _Scratch:
    """A thread's own: a buffer for decoded literals, one for whole chunks, and the decoder."""

    literals: memoryview
    whole: memoryview
    decompressor: Decompressor


_thread = threading.local()


def store(image: Image, chunk: Chunk, sources: Mapping[int, CopySource] = _NO_SOURCES) -> Effect:
    """Write one chunk to ``image`` if its bytes have the digest that came with them.

    Args:
        image: Where it goes.
        chunk: Raw, or a zstd frame; ``payload`` stays valid until this returns.
        sources: What its copies name, by reference; one that is not there cannot be read.

    Raises:
        CodecError: The payload is not what it claims to be; nothing was written.
        KeptDiffers: What the image was to keep, or what was to be copied, is not what the
            sender takes it for; nothing was written.
        DigestMismatch: The bytes are not the sender's; nothing was written.
        DatastoreError: What was written is unknown.
    """
    literals = _literals(chunk)
    if not chunk.segments:
        _check(literals, chunk)
        image.write(chunk.offset, literals)
        return Effect(chunk.length)
    whole = _assemble(image, chunk, literals, sources)
    _check(whole, chunk)
    zeroed = _zero(image, chunk)  # first, while there may be nothing to give back yet
    written = copied = position = 0
    for segment in chunk.segments:
        length = min(segment.pages * PAGE_SIZE, chunk.length - position)
        if segment.kind is SegmentKind.LITERAL:
            image.write(chunk.offset + position, literals[written : written + length])
            written += length
        elif segment.kind is SegmentKind.COPY:
            image.write(chunk.offset + position, whole[position : position + length])
            copied += length
        position += length
    kept = chunk.length - written - zeroed - copied
    return Effect(written, zeroed, kept, copied)


def _zero(image: Image, chunk: Chunk) -> int:
    """Make the zero runs of a chunk; returns their bytes."""
    zeroed = position = 0
    for segment in chunk.segments:
        length = min(segment.pages * PAGE_SIZE, chunk.length - position)
        if segment.kind is SegmentKind.ZERO:
            image.zero(chunk.offset + position, length)
            zeroed += length
        position += length
    return zeroed


def _literals(chunk: Chunk) -> memoryview:
    if chunk.codec is Codec.RAW:
        return chunk.payload
    scratch = _scratch()
    out = scratch.literals[: chunk.literal_length]
    scratch.decompressor.decompress_into(chunk.payload, out)
    return out


def _assemble(
    image: Image, chunk: Chunk, literals: memoryview, sources: Mapping[int, CopySource]
) -> memoryview:
    """Lay the literal runs where they belong, and between them zeros, what is kept, and copies."""
    whole = _scratch().whole[: chunk.length]
    if any(segment.kind is SegmentKind.KEEP for segment in chunk.segments):
        try:
            image.read_latest(whole, chunk.offset)
        except DatastoreError as error:
            raise KeptDiffers(chunk.offset) from error
    taken = position = 0
    for segment in chunk.segments:
        length = min(segment.pages * PAGE_SIZE, chunk.length - position)
        if segment.kind is SegmentKind.LITERAL:
            whole[position : position + length] = literals[taken : taken + length]
            taken += length
        elif segment.kind is SegmentKind.ZERO:
            fill_with_zeros(whole[position : position + length])
        elif segment.kind is SegmentKind.COPY:
            try:
                _copy(segment, sources, whole[position : position + length])
            except (DatastoreError, ValueError) as error:
                raise KeptDiffers(chunk.offset) from error
        position += length
    return whole


def _copy(segment: Segment, sources: Mapping[int, CopySource], out: memoryview) -> None:
    source = sources.get(segment.image)
    if source is None or segment.source_offset + len(out) > source.size:
        raise ValueError(f"nothing to copy at {segment.source_offset} of image {segment.image}")
    source.read(out, segment.source_offset)


def _check(data: memoryview, chunk: Chunk) -> None:
    if chunk_digest(data) != chunk.digest:
        raise (KeptDiffers if chunk.guesses else DigestMismatch)(chunk.offset)


def _scratch() -> _Scratch:
    scratch: _Scratch | None = getattr(_thread, "scratch", None)
    if scratch is None:
        scratch = _thread.scratch = _Scratch(
            memoryview(mmap.mmap(-1, CHUNK_SIZE)),
            memoryview(mmap.mmap(-1, CHUNK_SIZE)),
            Decompressor(),
        )
    return scratch
