"""The harness notices what it is there to notice."""

import mmap
from itertools import islice
from random import Random

import pytest

from fuzz import bounds, corpus, harness
from fuzz.mutator import Mutator
from fuzz.target import Target


def target(decode) -> Target:
    return Target("test", decode, (ValueError,), (b"seed",))


def on(data: bytes, act) -> Target:
    """A decoder that does ``act`` for ``data``, and nothing for all others."""
    return target(lambda given: act() if given == data else None)


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error", [KeyError(1), RecursionError(), MemoryError(), AssertionError(), OSError(5, "x")]
)
def test_what_a_decoder_does_not_promise_is_reported_with_its_input(error):
    with pytest.raises(harness.Broken, match=type(error).__name__) as caught:
        harness.give_all(on(b"b\0", lambda: fail(error)), [b"a", b"b\0", b"c"])
    assert caught.value.data == b"b\0"
    assert caught.value.__cause__ is error
    assert r"b\x00" in str(caught.value)


def test_refusals_are_counted():
    tally = harness.give_all(on(b"b", lambda: fail(ValueError())), [b"a", b"b", b"c"])
    assert (tally.accepted, tally.refused) == (2, 1)


def test_memory_that_is_asked_for_and_never_touched_is_too_much():
    with pytest.raises(harness.Broken) as caught:
        harness.give_all(on(b"x", lambda: mmap.mmap(-1, 2 * bounds.HEADROOM)), [b"x"])
    assert caught.value.data == b"x"
    mmap.mmap(-1, 2 * bounds.HEADROOM).close()  # the limit is over


def test_memory_beyond_the_decoders_own_limit_is_too_much():
    big = target(lambda data: bytes(1 << 20) and None if data == b"x" else None)
    with pytest.raises(harness.Broken, match="are allowed"):
        harness.give_measured(big, [b"a", b"x"])


def test_a_hang_is_ended_and_reported(monkeypatch):
    def hang() -> None:
        while True:
            pass

    monkeypatch.setattr(bounds, "PATIENCE", 0.05)
    with pytest.raises(harness.Broken, match="Hang"):
        harness.give_all(on(b"x", hang), [b"a", b"x"])


def test_a_seed_makes_the_same_inputs_and_another_one_others():
    def first(seed: int) -> list[bytes]:
        corpus = (b"", b"one", bytes(300))
        return list(islice(Mutator(corpus, Random(seed), tokens=(b"token",)), 2000))

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert len(set(first(1))) > 1000
    assert any(b"token" in data for data in first(1))


def test_repaired_inputs_are_repaired():
    mutator = Mutator((b"abc",), Random(1), repair=lambda data: data + b"!", repaired=1.0)
    assert all(data.endswith(b"!") for data in islice(mutator, 100))


def test_corpus_holds_any_bytes_on_lines_that_people_can_read(monkeypatch, tmp_path):
    monkeypatch.setattr(corpus, "FOLDER", tmp_path)
    awkward = [bytes(range(256)), b"", b"'", b'"', b"\"'\\", b"a\nb", b"# no comment"]
    corpus.keep_found("name", awkward[2:])
    corpus.keep_regression("name", awkward[0], "broke it once")
    corpus.keep_found("name", awkward[1:])
    kept = corpus.read("name")
    assert kept[0] == awkward[0]
    assert sorted(kept[1:]) == sorted(awkward[1:])
    assert all(line.isascii() for line in (tmp_path / "name.txt").read_text().splitlines())
