"""What is certain of a chunk before it is answered, and after."""

from pathlib import Path
from random import Random

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE
from flatship_protocol.digest import Manifest, chunk_digest
from flatship_sender.page_index import PageIndex
from flatship_sender.plan import ReadChunk
from flatship_sender.prepare import Laid
from flatship_sender.unanswered import Unanswered

SIZE = 3 * CHUNK_SIZE + 512
DATA = Random(1).randbytes(CHUNK_SIZE)
DIGEST = chunk_digest(DATA)


def laid(number: int, *, kept: int = 0, pages: bytes | None = None) -> Laid:
    work = ReadChunk(number * CHUNK_SIZE, min(CHUNK_SIZE, SIZE - number * CHUNK_SIZE))
    return Laid(work, DIGEST, 0.0, 0.0, literal=work.length - kept, kept=kept, pages=pages)


def test_a_chunk_that_was_sent_whole_is_certain_at_once() -> None:
    manifest = Manifest(SIZE)
    unanswered = Unanswered(SIZE, manifest, None)
    unanswered.sent(laid(1))
    assert manifest.chunk(1) == DIGEST
    assert not unanswered.uncertain


def test_a_chunk_with_kept_pages_is_certain_when_it_is_stored() -> None:
    manifest = Manifest(SIZE)
    unanswered = Unanswered(SIZE, manifest, None)
    unanswered.sent(laid(1, kept=PAGE_SIZE))
    assert manifest.chunk(1) is None
    assert unanswered.uncertain
    unanswered.stored([0, CHUNK_SIZE])
    assert manifest.chunk(1) == DIGEST
    assert not unanswered.uncertain
    assert not unanswered.wanted


def test_a_chunk_that_is_wanted_comes_again_and_whole() -> None:
    unanswered = Unanswered(SIZE, Manifest(SIZE), None)
    unanswered.sent(laid(0, kept=PAGE_SIZE))
    unanswered.sent(laid(3, kept=256))
    unanswered.sent(laid(1))
    assert unanswered.take_back(CHUNK_SIZE, SIZE - CHUNK_SIZE) == [256]
    assert unanswered.uncertain
    assert unanswered.wanted
    assert unanswered.next_wanted() == ReadChunk(3 * CHUNK_SIZE, 512)
    assert unanswered.must_be_whole(3 * CHUNK_SIZE)
    assert not unanswered.must_be_whole(0)
    assert not unanswered.wanted


def test_pages_are_remembered_of_what_is_stored_and_not_of_what_is_wanted(tmp_path: Path) -> None:
    index = PageIndex.open(tmp_path / "x", SIZE, bytes(32), bytes(32), 1 << 30, make=True)
    assert index is not None
    pages = index.fingerprints(memoryview(DATA))
    unanswered = Unanswered(SIZE, Manifest(SIZE), index)
    for number in range(3):
        unanswered.sent(laid(number, kept=PAGE_SIZE, pages=pages))
    unanswered.take_back(CHUNK_SIZE, CHUNK_SIZE)
    unanswered.stored([0, CHUNK_SIZE])
    assert [index.recall(number, DIGEST) for number in range(3)] == [pages, None, None]
    index.close()
