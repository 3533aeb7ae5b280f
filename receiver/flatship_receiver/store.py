"""What a worker thread does to one chunk: decode, check the digest, write."""

import mmap
import threading
from dataclasses import dataclass
from typing import Final

from flatship_protocol.codec import Decompressor
from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.digest import chunk_digest
from flatship_protocol.errors import DigestMismatch
from flatship_protocol.messages import Chunk, Codec, SegmentKind
from flatship_receiver.datastores.base import Image

SUPPORTED_SEGMENTS: Final = frozenset({SegmentKind.LITERAL, SegmentKind.ZERO})


@dataclass(slots=True)
class _Scratch:
    """A thread's own: a buffer for decoded literals, one for whole chunks, and the decoder."""

    literals: memoryview
    whole: memoryview
    decompressor: Decompressor


_thread = threading.local()


def store(image: Image, chunk: Chunk) -> int:
    """Write one chunk to ``image`` if its bytes have the digest that came with them.

    Args:
        image: Where it goes.
        chunk: With segments of SUPPORTED_SEGMENTS only; ``payload`` stays
            valid until this returns.

    Returns:
        Bytes written; what is left of the chunk was zeroed.

    Raises:
        CodecError: The payload is not what it claims to be; nothing was written.
        DigestMismatch: The bytes are not the sender's; nothing was written.
        DatastoreError: What was written is unknown.
    """
    literals = _literals(chunk)
    if not chunk.segments:
        _check(literals, chunk)
        image.write(chunk.offset, literals)
        return chunk.length
    _check(_assemble(chunk, literals), chunk)
    written = taken = position = 0
    for segment in chunk.segments:
        length = min(segment.pages * PAGE_SIZE, chunk.length - position)
        if segment.kind is SegmentKind.LITERAL:
            image.write(chunk.offset + position, literals[taken : taken + length])
            taken += length
            written += length
        else:
            image.zero(chunk.offset + position, length)
        position += length
    return written


def _literals(chunk: Chunk) -> memoryview:
    if chunk.codec is Codec.RAW:
        return chunk.payload
    scratch = _scratch()
    out = scratch.literals[: chunk.literal_length]
    scratch.decompressor.decompress_into(chunk.payload, out)
    return out


def _assemble(chunk: Chunk, literals: memoryview) -> memoryview:
    """Lay the literal runs where they belong, zeros between them."""
    whole = _scratch().whole[: chunk.length]
    taken = position = 0
    for segment in chunk.segments:
        length = min(segment.pages * PAGE_SIZE, chunk.length - position)
        if segment.kind is SegmentKind.LITERAL:
            whole[position : position + length] = literals[taken : taken + length]
            taken += length
        else:
            whole[position : position + length] = bytes(length)
        position += length
    return whole


def _check(data: memoryview, chunk: Chunk) -> None:
    if chunk_digest(data) != chunk.digest:
        raise DigestMismatch(chunk.offset)


def _scratch() -> _Scratch:
    scratch: _Scratch | None = getattr(_thread, "scratch", None)
    if scratch is None:
        scratch = _thread.scratch = _Scratch(
            memoryview(mmap.mmap(-1, CHUNK_SIZE)),
            memoryview(mmap.mmap(-1, CHUNK_SIZE)),
            Decompressor(),
        )
    return scratch
