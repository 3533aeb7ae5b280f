"""What is certain of a chunk before it is answered, and after."""

from pathlib import Path
from random import Random

import pytest

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.digest import Manifest, chunk_digest
from flatship_sender.page_index import PageIndex
from flatship_sender.page_slots import Heading, Slot
from flatship_sender.plan import ReadChunk
from flatship_sender.prepare import Laid
from flatship_sender.unanswered import Unanswered

SIZE = 3 * CHUNK_SIZE + 512
DATA = Random(1).randbytes(CHUNK_SIZE)
DIGEST = chunk_digest(DATA)


def laid(number: int, *, kept: int = 0, known: int = 0, slot: Slot | None = None) -> Laid:
    work = ReadChunk(number * CHUNK_SIZE, min(CHUNK_SIZE, SIZE - number * CHUNK_SIZE))
    literal = work.length - kept - known
    return Laid(work, DIGEST, 0.0, 0.0, literal=literal, kept=kept, known=known, slot=slot)


def test_a_chunk_that_was_sent_whole_is_certain_at_once() -> None:
    manifest = Manifest(SIZE)
    unanswered = Unanswered(SIZE, manifest)
    unanswered.sent(laid(1))
    assert manifest.chunk(1) == DIGEST
    assert not unanswered.uncertain


@pytest.mark.parametrize("guess", [{"kept": PAGE_SIZE}, {"known": PAGE_SIZE}])
def test_a_chunk_that_the_receiver_completes_is_certain_when_it_is_stored(
    guess: dict[str, int],
) -> None:
    manifest = Manifest(SIZE)
    unanswered = Unanswered(SIZE, manifest)
    unanswered.sent(chunk := laid(1, **guess))
    assert manifest.chunk(1) is None
    assert unanswered.uncertain
    assert unanswered.stored([0, CHUNK_SIZE]) == [chunk]
    assert manifest.chunk(1) == DIGEST
    assert not unanswered.uncertain
    assert not unanswered.wanted


def test_a_chunk_that_is_wanted_comes_again_and_whole() -> None:
    unanswered = Unanswered(SIZE, Manifest(SIZE))
    unanswered.sent(laid(0, kept=PAGE_SIZE))
    unanswered.sent(last := laid(3, kept=256))
    unanswered.sent(laid(1))
    assert unanswered.take_back(CHUNK_SIZE, SIZE - CHUNK_SIZE) == [last]
    assert unanswered.uncertain
    assert unanswered.wanted
    assert unanswered.next_wanted() == ReadChunk(3 * CHUNK_SIZE, 512)
    assert unanswered.must_be_whole(3 * CHUNK_SIZE)
    assert not unanswered.must_be_whole(0)
    assert not unanswered.wanted


def test_pages_are_remembered_of_what_is_stored_and_not_of_what_is_wanted(tmp_path: Path) -> None:
    heading = Heading(bytes(16), bytes(16), bytes(16), SIZE)
    index = PageIndex.open(tmp_path / "x", heading, bytes(32), lambda: 1 << 30)
    assert index is not None
    slot = Slot(DIGEST, index.fingerprints(memoryview(DATA)), anchors=5)
    unanswered = Unanswered(SIZE, Manifest(SIZE))
    unanswered.index = index
    for number in range(3):
        unanswered.sent(laid(number, kept=PAGE_SIZE, slot=slot))
    unanswered.take_back(CHUNK_SIZE, CHUNK_SIZE)
    unanswered.stored([0, CHUNK_SIZE])
    assert [index.read(number) for number in range(3)] == [slot, None, None]
    index.close()
