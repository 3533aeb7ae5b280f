"""What a worker thread does to one chunk: decode, check the digest, write.

A chunk of which the image is to keep a part is put together here first, with what the
image holds now. That is never trusted: the digest of the whole decides, as for any other.
"""

import mmap
import threading
from dataclasses import dataclass
from typing import Final

from flatship_protocol.codec import Decompressor
from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.digest import chunk_digest
from flatship_protocol.errors import DatastoreError, DigestMismatch
from flatship_protocol.messages import Chunk, Codec, SegmentKind
from flatship_receiver.datastores.base import Image

SUPPORTED_SEGMENTS: Final = frozenset({SegmentKind.LITERAL, SegmentKind.ZERO})
DELTA_SEGMENTS: Final = SUPPORTED_SEGMENTS | {SegmentKind.KEEP}


class KeptDiffers(DigestMismatch):
    """With what the image holds, or without what cannot be read of it, the chunk is another.

    Nobody's fault: the sender has it whole.
    """


@dataclass(frozen=True, slots=True)
class Effect:
    """What became of a chunk's bytes; together they are its length."""

    written: int
    zeroed: int = 0
    kept: int = 0


@dataclass(slots=True)
class _Scratch:
    """A thread's own: a buffer for decoded literals, one for whole chunks, and the decoder."""

    literals: memoryview
    whole: memoryview
    decompressor: Decompressor


_thread = threading.local()


def store(image: Image, chunk: Chunk) -> Effect:
    """Write one chunk to ``image`` if its bytes have the digest that came with them.

    Args:
        image: Where it goes.
        chunk: With segments of DELTA_SEGMENTS only; ``payload`` stays
            valid until this returns.

    Raises:
        CodecError: The payload is not what it claims to be; nothing was written.
        KeptDiffers: What the image was to keep is not what the sender takes it for;
            nothing was written.
        DigestMismatch: The bytes are not the sender's; nothing was written.
        DatastoreError: What was written is unknown.
    """
    literals = _literals(chunk)
    if not chunk.segments:
        _check(literals, chunk)
        image.write(chunk.offset, literals)
        return Effect(chunk.length)
    _check(_assemble(image, chunk, literals), chunk)
    written = zeroed = position = 0
    for segment in chunk.segments:
        length = min(segment.pages * PAGE_SIZE, chunk.length - position)
        if segment.kind is SegmentKind.LITERAL:
            image.write(chunk.offset + position, literals[written : written + length])
            written += length
        elif segment.kind is SegmentKind.ZERO:
            image.zero(chunk.offset + position, length)
            zeroed += length
        position += length
    return Effect(written, zeroed, chunk.length - written - zeroed)


def _keeps(chunk: Chunk) -> bool:
    return any(segment.kind is SegmentKind.KEEP for segment in chunk.segments)


def _literals(chunk: Chunk) -> memoryview:
    if chunk.codec is Codec.RAW:
        return chunk.payload
    scratch = _scratch()
    out = scratch.literals[: chunk.literal_length]
    scratch.decompressor.decompress_into(chunk.payload, out)
    return out


def _assemble(image: Image, chunk: Chunk, literals: memoryview) -> memoryview:
    """Lay the literal runs where they belong, and between them zeros and what is kept."""
    whole = _scratch().whole[: chunk.length]
    if _keeps(chunk):
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
            whole[position : position + length] = bytes(length)
        position += length
    return whole


def _check(data: memoryview, chunk: Chunk) -> None:
    if chunk_digest(data) != chunk.digest:
        raise (KeptDiffers if _keeps(chunk) else DigestMismatch)(chunk.offset)


def _scratch() -> _Scratch:
    scratch: _Scratch | None = getattr(_thread, "scratch", None)
    if scratch is None:
        scratch = _thread.scratch = _Scratch(
            memoryview(mmap.mmap(-1, CHUNK_SIZE)),
            memoryview(mmap.mmap(-1, CHUNK_SIZE)),
            Decompressor(),
        )
    return scratch
