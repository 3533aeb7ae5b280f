"""What a chunk becomes on its way, and that it comes out as it went in."""

import mmap
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatship_protocol.connection import FRAME_SIZE, MESSAGE_START, PAGE
from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.digest import chunk_digest
from flatship_protocol.errors import SourceReadError
from flatship_protocol.messages import (
    Adapter,
    Chunk,
    Codec,
    DiskFormat,
    Provisioning,
    SegmentKind,
    decode,
)
from flatship_receiver.datastores.base import ImageRequest
from flatship_receiver.datastores.memory import MemoryDatastore, MemoryImage
from flatship_receiver.store import store
from flatship_receiver.vmdk import Layout
from flatship_sender.layout import MIN_ZERO_RUN
from flatship_sender.plan import ReadChunk, plan
from flatship_sender.prepare import Address, Prepared, prepare
from flatship_sender.sources.memory import MemorySource

MIB = CHUNK_SIZE
ADDRESS = Address(3, 1, 7)
LAYOUT = Layout(DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 21)
LEVELS = (None, -7, 1, 3, 19)


def frame() -> memoryview:
    return memoryview(mmap.mmap(-1, FRAME_SIZE))


def image(capacity: int = MIB) -> MemoryImage:
    return MemoryDatastore("ssd", 1 << 40).create(
        ImageRequest("web", "web", capacity, LAYOUT, replace=False)
    )


def tried(data: bytes, level: int | None, into: memoryview | None = None) -> Prepared | None:
    chunk = ReadChunk(0, len(data))
    return prepare(MemorySource(data), chunk, ADDRESS, level, into or frame())[1]


def prepared(data: bytes, level: int | None, into: memoryview | None = None) -> Prepared:
    result = tried(data, level, into)
    assert result is not None
    return result


def arrived(result: Prepared) -> Chunk:
    epoch, message = decode(memoryview(bytes(result.message)))
    assert epoch == ADDRESS.epoch
    assert isinstance(message, Chunk)
    assert (message.disk, message.pass_number) == (ADDRESS.disk, ADDRESS.pass_number)
    return message


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    """Runs of zeros, of noise, and of text, in pages; then a short tail."""
    random = Random(draw(st.integers(0, 1 << 32)))
    kinds: dict[str, Callable[[int], bytes]] = {
        "zeros": bytes,
        "noise": random.randbytes,
        "text": lambda size: (b"GET /index.html HTTP/1.1\r\n" * (size // 26 + 1))[:size],
    }
    data = bytearray()
    for kind, pages in draw(
        st.lists(st.tuples(st.sampled_from(sorted(kinds)), st.integers(1, 40)), max_size=6)
    ):
        data += kinds[kind](pages * PAGE_SIZE)
    tail = draw(st.integers(0, 8)) * 512
    data += kinds[draw(st.sampled_from(sorted(kinds)))](tail)
    return bytes(data[:MIB]) or bytes(512)


@settings(max_examples=80, deadline=None)
@given(data=chunks(), level=st.sampled_from(LEVELS))
def test_what_is_prepared_is_stored_as_it_was_read_and_zeros_take_no_room(
    data: bytes, level: int | None
) -> None:
    result = tried(data, level)
    if not any(data):
        assert result is None
        return
    assert result is not None
    target = image()
    target.write(0, memoryview(b"\xff" * MIB))
    written = store(target, arrived(result)).written
    found = memoryview(bytearray(MIB))
    target.read_into(found, 0)
    assert bytes(found[: len(data)]) == data
    assert bytes(found[len(data) :]) == b"\xff" * (MIB - len(data))  # not a byte beyond
    assert written == result.laid.literal
    long_zeros = _zeros_in_long_runs(data)
    assert written == len(data) - long_zeros


def _zeros_in_long_runs(data: bytes) -> int:
    total = run = pages = 0
    for start in range(0, len(data) + PAGE_SIZE, PAGE_SIZE):
        page = data[start : start + PAGE_SIZE]
        if page and not any(page):
            run += len(page)
            pages += 1
        else:
            total += run if pages >= MIN_ZERO_RUN else 0
            run = pages = 0
    return total


def test_the_payload_lies_on_a_page_and_the_message_before_it() -> None:
    into = frame()
    result = prepared(Random(1).randbytes(MIB), None, into)
    assert bytes(into[PAGE : PAGE + 64]) == bytes(result.chunk.payload[:64])
    assert bytes(into[MESSAGE_START : MESSAGE_START + 64]) == bytes(result.message[:64])


def test_noise_goes_raw_and_text_goes_compressed() -> None:
    noise = prepared(Random(1).randbytes(MIB), 3)
    assert arrived(noise).codec is Codec.RAW
    assert noise.payload == noise.laid.literal == MIB
    text = prepared(b"all work and no play " * 1000 + bytes(504), 3)
    assert arrived(text).codec is Codec.ZSTD
    assert text.payload < text.laid.literal / 10


def test_short_runs_of_zeros_travel_as_data() -> None:
    data = bytearray(Random(1).randbytes(16 * PAGE_SIZE))
    data[PAGE_SIZE : PAGE_SIZE * MIN_ZERO_RUN] = bytes(PAGE_SIZE * (MIN_ZERO_RUN - 1))
    assert arrived(prepared(bytes(data), None)).segments == ()


def test_long_runs_of_zeros_do_not_travel() -> None:
    data = bytearray(Random(1).randbytes(MIB))
    data[8 * PAGE_SIZE : 200 * PAGE_SIZE] = bytes(192 * PAGE_SIZE)
    chunk = arrived(prepared(bytes(data), None))
    assert [(s.kind, s.pages) for s in chunk.segments] == [
        (SegmentKind.LITERAL, 8),
        (SegmentKind.ZERO, 192),
        (SegmentKind.LITERAL, 56),
    ]
    assert chunk.literal_length == 64 * PAGE_SIZE
    assert chunk.digest == chunk_digest(bytes(data))


def test_holes_of_a_chunk_are_zeros_and_are_not_read() -> None:
    noise = Random(1).randbytes(3 * PAGE_SIZE)
    source = MemorySource({MIB + 8 * PAGE_SIZE: noise}, size=2 * MIB)
    works = list(plan(source.extents(0, source.size), source.size))
    into = frame()
    into[:] = b"\xff" * len(into)
    _, message = prepare(source, works[1], ADDRESS, None, into)
    assert message is not None
    whole = bytes(8 * PAGE_SIZE) + noise + bytes(MIB - 11 * PAGE_SIZE)
    assert arrived(message).digest == chunk_digest(whole)
    assert source.bytes_read == len(noise)


@pytest.mark.parametrize("size", [512, 4096, MIB - 512, MIB])
def test_a_chunk_of_zeros_becomes_no_message(size: int) -> None:
    laid, message = prepare(MemorySource(bytes(size)), ReadChunk(0, size), ADDRESS, 3, frame())
    assert message is None
    assert (laid.digest, laid.travels, laid.literal) == (None, False, 0)


def test_a_source_that_fails_says_so() -> None:
    source = MemorySource(bytes(MIB))
    source.fail_at(700)
    with pytest.raises(SourceReadError):
        prepare(source, ReadChunk(0, MIB), ADDRESS, None, frame())
