"""A chunk is written if it is the sender's, and otherwise nothing is."""

from dataclasses import replace
from random import Random

import pytest
import zstandard

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.digest import chunk_digest
from flatship_protocol.errors import CodecError, DatastoreError, DigestMismatch, ErrorCode
from flatship_protocol.messages import Chunk, Codec, Segment, SegmentKind
from flatship_receiver.store import Effect, KeptDiffers, store

MIB = CHUNK_SIZE
OFFSET = 5 * MIB
NOISE = Random(1).randbytes(MIB)


class RecordingImage:
    """What was done to an image, in order."""

    capacity = 64 * MIB

    def __init__(self, fail_at: int = 0) -> None:
        self.calls: list[tuple[str, int, bytes | int]] = []
        self._fail_at = fail_at
        self.present: bytes | None = None  # what the chunk at OFFSET holds

    def write(self, offset: int, data: memoryview) -> None:
        if len(self.calls) + 1 == self._fail_at:
            raise DatastoreError("the medium fails", ErrorCode.WRITE_FAILED)
        self.calls.append(("write", offset, bytes(data)))

    def zero(self, offset: int, length: int) -> None:
        self.calls.append(("zero", offset, length))

    def read_latest(self, buffer: memoryview, offset: int) -> None:
        if self.present is None:
            raise DatastoreError("the medium cannot be read", ErrorCode.WRITE_FAILED)
        buffer[:] = self.present[offset - OFFSET :][: len(buffer)]


def chunk(data: bytes, payload: bytes, codec: Codec = Codec.RAW, *segments: Segment) -> Chunk:
    literal = len(payload) if codec is Codec.RAW else len(data)
    return Chunk(
        1, 1, OFFSET, len(data), codec, literal, chunk_digest(data), segments, memoryview(payload)
    )


def stored(message: Chunk, image: RecordingImage | None = None) -> RecordingImage:
    image = image or RecordingImage()
    store(image, message)  # type: ignore[arg-type]  # the part of an Image that it needs
    return image


def test_a_literal_chunk_is_written_at_its_place() -> None:
    image = stored(chunk(NOISE, NOISE))
    assert image.calls == [("write", OFFSET, NOISE)]


def test_a_compressed_chunk_is_written_decoded() -> None:
    data = NOISE[:1024] * 300
    image = stored(chunk(data, zstandard.compress(data), Codec.ZSTD))
    assert image.calls == [("write", OFFSET, data)]


def test_zeros_are_zeroed_and_then_literals_written_where_they_belong() -> None:
    tail = 512
    data = NOISE[:PAGE_SIZE] + bytes(2 * PAGE_SIZE) + NOISE[-tail:]
    message = chunk(
        data,
        NOISE[:PAGE_SIZE] + NOISE[-tail:],
        Codec.RAW,
        Segment(SegmentKind.LITERAL, 1),
        Segment(SegmentKind.ZERO, 2),
        Segment(SegmentKind.LITERAL, 1),
    )
    assert stored(message).calls == [
        ("zero", OFFSET + PAGE_SIZE, 2 * PAGE_SIZE),
        ("write", OFFSET, NOISE[:PAGE_SIZE]),
        ("write", OFFSET + 3 * PAGE_SIZE, NOISE[-tail:]),
    ]


@pytest.mark.parametrize("with_segments", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_digest_that_differs_leaves_the_image_untouched(
    with_segments: bool, compressed: bool
) -> None:
    literal = NOISE[: 4 * PAGE_SIZE]
    segments = (Segment(SegmentKind.LITERAL, 4), Segment(SegmentKind.ZERO, 4))
    data = literal + bytes(4 * PAGE_SIZE) if with_segments else literal
    payload = zstandard.compress(literal) if compressed else literal
    message = replace(
        chunk(data, payload, Codec.ZSTD if compressed else Codec.RAW),
        literal_length=len(literal),
        segments=segments if with_segments else (),
        digest=bytes(32),
    )
    image = RecordingImage()
    with pytest.raises(DigestMismatch) as error:
        stored(message, image)
    assert error.value.offset == OFFSET
    assert image.calls == []


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x28\xb5\x2f\xfd",
        zstandard.compress(NOISE[:PAGE_SIZE])[:-1],
        zstandard.compress(NOISE[:PAGE_SIZE]) + b"x",
        zstandard.compress(NOISE[: 2 * PAGE_SIZE]),
        zstandard.compress(NOISE[:512]),
    ],
)
def test_a_payload_that_does_not_decode_leaves_the_image_untouched(payload: bytes) -> None:
    image = RecordingImage()
    with pytest.raises(CodecError):
        stored(chunk(NOISE[:PAGE_SIZE], payload, Codec.ZSTD), image)
    assert image.calls == []


def test_what_an_earlier_chunk_left_in_the_buffers_is_never_written() -> None:
    stored(chunk(NOISE, zstandard.compress(NOISE), Codec.ZSTD))
    data = NOISE[:PAGE_SIZE] + bytes(255 * PAGE_SIZE)
    message = chunk(
        data,
        NOISE[:PAGE_SIZE],
        Codec.RAW,
        Segment(SegmentKind.LITERAL, 1),
        Segment(SegmentKind.ZERO, 255),
    )
    assert stored(message).calls == [
        ("zero", OFFSET + PAGE_SIZE, 255 * PAGE_SIZE),
        ("write", OFFSET, NOISE[:PAGE_SIZE]),
    ]


def test_a_failing_datastore_passes_through() -> None:
    with pytest.raises(DatastoreError):
        stored(chunk(NOISE, NOISE), RecordingImage(fail_at=1))


# Chunks of which the image keeps a part


def patch(tail: int = PAGE_SIZE) -> tuple[Chunk, bytes]:
    """Keep, literal, keep, zero, keep of a page each; and what it makes of ``NOISE``."""
    fresh = bytes(reversed(NOISE[:PAGE_SIZE]))
    whole = bytearray(NOISE[: 4 * PAGE_SIZE + tail])
    whole[PAGE_SIZE : 2 * PAGE_SIZE] = fresh
    whole[3 * PAGE_SIZE : 4 * PAGE_SIZE] = bytes(PAGE_SIZE)
    kinds = ("KEEP", "LITERAL", "KEEP", "ZERO", "KEEP")
    segments = tuple(Segment(SegmentKind[kind], 1) for kind in kinds)
    message = replace(chunk(bytes(whole), fresh), literal_length=PAGE_SIZE, segments=segments)
    return message, bytes(whole)


@pytest.mark.parametrize("tail", [PAGE_SIZE, 512])
def test_only_literals_and_zeros_are_written_where_the_rest_is_kept(tail: int) -> None:
    message, whole = patch(tail)
    image = RecordingImage()
    image.present = NOISE
    assert store(image, message) == Effect(PAGE_SIZE, PAGE_SIZE, 2 * PAGE_SIZE + tail)  # type: ignore[arg-type]
    assert image.calls == [
        ("zero", OFFSET + 3 * PAGE_SIZE, PAGE_SIZE),
        ("write", OFFSET + PAGE_SIZE, whole[PAGE_SIZE : 2 * PAGE_SIZE]),
    ]


@pytest.mark.parametrize("place", [0, 2 * PAGE_SIZE, 4 * PAGE_SIZE + 511])
def test_a_kept_byte_that_differs_leaves_the_image_untouched(place: int) -> None:
    message, _ = patch(512)
    image = RecordingImage()
    image.present = NOISE[:place] + bytes([NOISE[place] ^ 1]) + NOISE[place + 1 :]
    with pytest.raises(KeptDiffers):
        stored(message, image)
    assert image.calls == []


@pytest.mark.parametrize("place", [PAGE_SIZE, 3 * PAGE_SIZE + 7])
def test_what_is_written_over_may_be_anything(place: int) -> None:
    message, _ = patch()
    image = RecordingImage()
    image.present = NOISE[:place] + bytes([NOISE[place] ^ 1]) + NOISE[place + 1 :]
    assert len(stored(message, image).calls) == 2


def test_what_cannot_be_read_cannot_be_kept() -> None:
    message, _ = patch()
    image = RecordingImage()
    with pytest.raises(KeptDiffers):
        stored(message, image)
    assert image.calls == []


def test_a_chunk_without_a_kept_part_is_not_read_back() -> None:
    literals = NOISE[:PAGE_SIZE]
    segments = (Segment(SegmentKind.LITERAL, 1), Segment(SegmentKind.ZERO, 1))
    message = chunk(literals + bytes(PAGE_SIZE), literals, Codec.RAW, *segments)
    assert len(stored(message).calls) == 2  # the image could not be read


class Elsewhere:
    """An image to copy from."""

    def __init__(self, content: bytes, error: Exception | None = None, size: int = 0) -> None:
        self.size = size or len(content)
        self._content = content
        self._error = error

    def read(self, buffer: memoryview, offset: int) -> None:
        if self._error is not None:
            raise self._error
        buffer[:] = self._content[offset : offset + len(buffer)]


THERE = Random(2).randbytes(4 * PAGE_SIZE)


def copying(source_offset: int = PAGE_SIZE) -> tuple[Chunk, bytes]:
    """Two pages copied from image 7, a literal one, two kept, a short literal one."""
    literals = NOISE[: PAGE_SIZE + 512]
    segments = (
        Segment(SegmentKind.COPY, 2, 7, source_offset),
        Segment(SegmentKind.LITERAL, 1),
        Segment(SegmentKind.KEEP, 2),
        Segment(SegmentKind.LITERAL, 1),
    )
    whole = b"".join(
        (
            THERE[PAGE_SIZE : 3 * PAGE_SIZE],
            literals[:PAGE_SIZE],
            NOISE[3 * PAGE_SIZE : 5 * PAGE_SIZE],
            literals[PAGE_SIZE:],
        )
    )
    fields = (1, 1, OFFSET, len(whole), Codec.RAW, len(literals), chunk_digest(whole))
    return Chunk(*fields, segments, memoryview(literals)), whole


def test_copies_are_written_where_they_belong() -> None:
    message, whole = copying()
    image = RecordingImage()
    image.present = NOISE
    effect = store(image, message, {7: Elsewhere(THERE)})  # type: ignore[arg-type]
    assert effect == Effect(PAGE_SIZE + 512, 0, 2 * PAGE_SIZE, 2 * PAGE_SIZE)
    assert image.calls == [
        ("write", OFFSET, whole[: 2 * PAGE_SIZE]),
        ("write", OFFSET + 2 * PAGE_SIZE, whole[2 * PAGE_SIZE : 3 * PAGE_SIZE]),
        ("write", OFFSET + 5 * PAGE_SIZE, whole[5 * PAGE_SIZE :]),
    ]


@pytest.mark.parametrize(
    "sources",
    [
        {},
        {8: Elsewhere(THERE)},
        {7: Elsewhere(NOISE)},
        {7: Elsewhere(THERE, size=PAGE_SIZE * 3 - 1)},
        {7: Elsewhere(b"")},
        {7: Elsewhere(THERE, DatastoreError("no", ErrorCode.DISK_LOCKED))},
        {7: Elsewhere(THERE, ValueError("closed"))},
    ],
    ids=["nothing", "another", "other bytes", "too short", "empty", "locked", "let go of"],
)
def test_a_copy_that_cannot_be_had_leaves_the_image_untouched(
    sources: dict[int, Elsewhere],
) -> None:
    message, _ = copying()
    image = RecordingImage()
    image.present = NOISE
    with pytest.raises(KeptDiffers):
        store(image, message, sources)  # type: ignore[arg-type]
    assert image.calls == []


def test_a_copy_beyond_all_ends_is_not_read() -> None:
    message, _ = copying((1 << 64) - PAGE_SIZE)
    image = RecordingImage()
    image.present = NOISE
    with pytest.raises(KeptDiffers):
        store(image, message, {7: Elsewhere(THERE)})  # type: ignore[arg-type]
    assert image.calls == []
