"""A chunk that was sent before: its changed pages travel, if the receiver has the others."""

import mmap
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatship_protocol.connection import FRAME_SIZE
from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.digest import chunk_digest
from flatship_protocol.messages import (
    Adapter,
    Chunk,
    Codec,
    DiskFormat,
    Provisioning,
    Segment,
    SegmentKind,
    decode,
)
from flatship_receiver.datastores.base import ImageRequest
from flatship_receiver.datastores.memory import MemoryDatastore
from flatship_receiver.store import KeptDiffers, store
from flatship_receiver.vmdk import Layout
from flatship_sender.copies import Copy
from flatship_sender.known_pages import Found
from flatship_sender.page_index import PageIndex
from flatship_sender.page_slots import Heading, Slot
from flatship_sender.plan import ReadChunk
from flatship_sender.prepare import Address, Earlier, Laid, Prepared, prepare
from flatship_sender.sources.memory import MemorySource

MIB = CHUNK_SIZE
LAYOUT = Layout(DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 21)
BEFORE = Random(1).randbytes(MIB)


@pytest.fixture
def index(tmp_path: Path) -> PageIndex:
    return new_index(tmp_path)


def new_index(folder: Path) -> PageIndex:
    heading = Heading(bytes(16), bytes(16), bytes(16), MIB)
    index = PageIndex.open(folder / "x", heading, bytes(32), lambda: 1 << 30)
    assert index is not None
    return index


def tried(
    data: bytes, index: PageIndex, held: bytes | None, *, remember: bool = False
) -> tuple[Laid, Prepared | None]:
    """A chunk, where the receiver says that it holds ``held``."""
    digest = None if held is None else chunk_digest(held)
    return prepare(
        MemorySource(data),
        ReadChunk(0, len(data)),
        Address(3, 1, 7),
        None,
        memoryview(mmap.mmap(-1, FRAME_SIZE)),
        Earlier(digest, index, remember),
    )


def prepared(
    data: bytes, index: PageIndex, held: bytes | None, *, remember: bool = False
) -> Prepared:
    """The same, of a chunk that is sent."""
    _, result = tried(data, index, held, remember=remember)
    assert result is not None
    return result


def remembered(data: bytes, index: PageIndex) -> None:
    index.record(0, Slot(chunk_digest(data), index.fingerprints(memoryview(data))))


def arrived(result: Prepared) -> Chunk:
    _, message = decode(memoryview(bytes(result.message)))
    assert isinstance(message, Chunk)
    return message


def kinds(result: Prepared) -> set[SegmentKind]:
    return {segment.kind for segment in arrived(result).segments}


def edited(*pages: int, before: bytes = BEFORE) -> bytes:
    data = bytearray(before)
    for page in pages:
        data[page * PAGE_SIZE] ^= 1
    return bytes(data)


@st.composite
def histories(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A chunk, perhaps a short one, and what became of it: bytes, pages, runs, zeros."""
    random = Random(draw(st.integers(0, 1 << 32)))
    size = draw(st.sampled_from([512, PAGE_SIZE, 7 * PAGE_SIZE + 1024, 64 * PAGE_SIZE, MIB]))
    before = bytearray(random.randbytes(size))
    for data in (before, after := bytearray(before)):
        for _ in range(draw(st.integers(0, 12))):
            start = random.randrange(-(-size // PAGE_SIZE)) * PAGE_SIZE
            end = min(start + random.randrange(1, 12) * PAGE_SIZE, size)
            data[start:end] = random.choice((bytes, random.randbytes))(end - start)
    return bytes(before), bytes(after)


@settings(max_examples=80, deadline=None)
@given(history=histories())
def test_what_is_sent_over_the_earlier_content_makes_the_later_one(
    tmp_path_factory: pytest.TempPathFactory, history: tuple[bytes, bytes]
) -> None:
    before, after = history
    index = new_index(tmp_path_factory.mktemp("index"))
    remembered(before, index)
    _, result = tried(after, index, before)
    index.close()
    if result is None:
        assert before == after or not any(after)
        return
    target = MemoryDatastore("ssd", 1 << 30).create(
        ImageRequest("web", "web", MIB, LAYOUT, replace=False)
    )
    target.write(0, memoryview(before))
    store(target, arrived(result))
    found = bytearray(len(after))
    target.read_latest(memoryview(found), 0)
    assert found == after
    starts = range(0, len(after), PAGE_SIZE)
    same = [at for at in starts if before[at : at + PAGE_SIZE] == after[at : at + PAGE_SIZE]]
    if result.laid.kept:
        assert result.laid.kept == sum(min(PAGE_SIZE, len(after) - at) for at in same)
    else:
        assert len(same) <= len(starts) * 0.25


def test_only_the_changed_pages_are_in_the_payload(index: PageIndex) -> None:
    remembered(BEFORE, index)
    after = edited(7, 8, 255)
    result = prepared(after, index, BEFORE)
    chunk = arrived(result)
    assert bytes(chunk.payload) == after[7 * PAGE_SIZE : 9 * PAGE_SIZE] + after[255 * PAGE_SIZE :]
    assert [(segment.kind.name, segment.pages) for segment in chunk.segments] == [
        ("KEEP", 7),
        ("LITERAL", 2),
        ("KEEP", 246),
        ("LITERAL", 1),
    ]
    assert (result.laid.literal, result.laid.kept) == (3 * PAGE_SIZE, 253 * PAGE_SIZE)


def test_an_index_of_other_content_than_is_held_is_not_used(index: PageIndex) -> None:
    remembered(BEFORE, index)
    result = prepared(edited(7), index, edited(9))
    assert arrived(result).segments == ()
    assert result.laid.kept == 0


def test_nothing_is_kept_of_what_is_not_held(index: PageIndex) -> None:
    remembered(BEFORE, index)
    assert arrived(prepared(edited(7), index, None)).segments == ()


def test_fingerprints_that_lie_are_found_out_by_the_receiver(index: PageIndex) -> None:
    after = edited(7, 9)
    lie = index.fingerprints(memoryview(edited(9)))  # page 9 passes for unchanged
    index.record(0, Slot(chunk_digest(BEFORE), lie))
    message = arrived(prepared(after, index, BEFORE))
    target = MemoryDatastore("ssd", 1 << 30).create(
        ImageRequest("web", "web", MIB, LAYOUT, replace=False)
    )
    target.write(0, memoryview(BEFORE))
    with pytest.raises(KeptDiffers):
        store(target, message)


def test_fingerprints_that_tell_no_difference_where_there_is_one_are_not_used(
    index: PageIndex,
) -> None:
    index.record(0, Slot(chunk_digest(BEFORE), index.fingerprints(memoryview(edited(7)))))
    assert arrived(prepared(edited(7), index, BEFORE)).segments == ()


def test_a_chunk_of_which_hardly_a_page_is_the_same_is_sent_whole(index: PageIndex) -> None:
    remembered(BEFORE, index)
    assert SegmentKind.KEEP in kinds(prepared(edited(*range(192)), index, BEFORE))
    assert arrived(prepared(edited(*range(193)), index, BEFORE)).segments == ()


def test_pages_that_became_zeros_do_not_travel_and_zeros_that_were_there_are_kept(
    index: PageIndex,
) -> None:
    before = BEFORE[: 10 * PAGE_SIZE] + bytes(20 * PAGE_SIZE) + BEFORE[30 * PAGE_SIZE :]
    after = before[: 5 * PAGE_SIZE] + bytes(5 * PAGE_SIZE) + before[10 * PAGE_SIZE :]
    after = after[: 100 * PAGE_SIZE] + bytes(3 * PAGE_SIZE) + after[103 * PAGE_SIZE :]
    remembered(before, index)
    assert arrived(prepared(after, index, before)).segments == (
        Segment(SegmentKind.KEEP, 5),
        Segment(SegmentKind.ZERO, 5),
        Segment(SegmentKind.KEEP, 90),
        Segment(SegmentKind.LITERAL, 3),  # too short a run to punch a hole for
        Segment(SegmentKind.KEEP, 153),
    )


def test_fingerprints_are_taken_where_a_pass_follows_and_where_one_went_before(
    index: PageIndex,
) -> None:
    assert prepared(BEFORE, index, None).laid.slot is None
    assert prepared(BEFORE, index, edited(1)).laid.slot is None
    slot = prepared(BEFORE, index, None, remember=True).laid.slot
    assert slot is not None
    assert (slot.digest, slot.pages) == (
        chunk_digest(BEFORE),
        index.fingerprints(memoryview(BEFORE)),
    )
    remembered(BEFORE, index)
    assert prepared(edited(3), index, BEFORE).laid.slot is not None


def test_a_chunk_that_is_held_is_remembered_for_the_pass_that_follows(index: PageIndex) -> None:
    laid, _ = tried(BEFORE, index, BEFORE)
    assert laid.held
    assert index.recall(0, chunk_digest(BEFORE)) is None
    tried(BEFORE, index, BEFORE, remember=True)
    slot = index.recall(0, chunk_digest(BEFORE))
    assert slot is not None
    assert slot.pages == index.fingerprints(memoryview(BEFORE))


class FirstHalf:
    """The receiver has the first half of every chunk, on some other disk."""

    def find(self, pages: bytes, free: Sequence[bool], chunk: int) -> tuple[Copy, ...]:
        assert len(pages) == 6 * len(free)
        return (Copy(Found(0, 128, bytes(16), 7), 3),)


@pytest.mark.parametrize("level", [None, 3])
def test_copies_are_named_and_what_travels_beside_them_is_compressed_if_anything_may_be(
    index: PageIndex, level: int | None
) -> None:
    data = Random(2).randbytes(MIB // 2) + b"hello" * 80_000 + bytes(MIB // 2 - 400_000)
    copies: Any = FirstHalf()
    _, result = prepare(
        MemorySource(data),
        ReadChunk(0, MIB),
        Address(3, 1, 7),
        None,
        memoryview(mmap.mmap(-1, FRAME_SIZE)),
        Earlier(None, index, True, copies, level),
    )
    assert result is not None
    chunk = arrived(result)
    assert chunk.segments == (
        Segment(SegmentKind.COPY, 128, 3, 7 * PAGE_SIZE),
        Segment(SegmentKind.LITERAL, 98),
        Segment(SegmentKind.ZERO, 30),
    )
    assert chunk.codec is (Codec.RAW if level is None else Codec.ZSTD)
    assert (result.laid.known, result.laid.literal) == (128 * PAGE_SIZE, 98 * PAGE_SIZE)
    assert result.laid.slot is not None
    even = sum(1 << page for page in range(128, 226, 2))
    few = sum(1 << page for page in range(0, 128, 16))
    assert result.laid.slot.anchors == even | few


def test_a_chunk_with_hardly_a_page_in_it_is_not_worth_its_slot(index: PageIndex) -> None:
    page = Random(3).randbytes(PAGE_SIZE)
    few = bytes(100 * PAGE_SIZE) + 15 * page + bytes(141 * PAGE_SIZE)
    enough = bytes(100 * PAGE_SIZE) + 16 * page + bytes(140 * PAGE_SIZE)
    assert prepared(few, index, None, remember=True).laid.slot is None
    assert prepared(enough, index, None, remember=True).laid.slot is not None
    tried(few, index, few, remember=True)
    tried(enough, index, enough, remember=True)
    assert index.recall(0, chunk_digest(few)) is None
    assert index.recall(0, chunk_digest(enough)) is not None
