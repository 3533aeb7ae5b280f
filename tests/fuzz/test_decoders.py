"""Every decoder of bytes that a peer, a person or a disk made, fed with what nobody meant to make.

``targets.py`` lists them, with what each promises. The inputs are the same in every
run; ``make fuzz`` goes on from there.
"""

from itertools import islice

import pytest

from fuzz import corpus, harness
from fuzz.target import Target
from fuzz.targets import TARGETS

SEED = 1
MEASURED = 300  # inputs a decoder whose memory is counted byte by byte

every_decoder = pytest.mark.parametrize(
    "target", [pytest.param(target, id=target.name) for target in TARGETS]
)


@every_decoder
def test_seeds_are_accepted_where_they_are_meant_to_be(target: Target) -> None:
    tally = harness.give_all(target, target.seeds)
    assert tally.accepted >= len(target.seeds) / 2


@every_decoder
def test_inputs_kept_are_accepted_or_refused(target: Target) -> None:
    inputs = harness.known_inputs(target)
    assert harness.give_all(target, inputs).inputs == len(inputs)


@every_decoder
def test_mutated_inputs_are_accepted_or_refused(target: Target) -> None:
    tally = harness.give_all(target, islice(harness.mutator(target, SEED), target.inputs))
    assert tally.inputs == target.inputs
    assert tally.accepted > target.inputs / 5000  # what lies behind the refusals was reached
    assert tally.refused > target.inputs / 100


@every_decoder
def test_no_input_takes_more_memory_than_its_decoder_is_allowed(target: Target) -> None:
    mutated = islice(harness.mutator(target, SEED), MEASURED)
    harness.give_measured(target, [*harness.known_inputs(target), *mutated])


def test_every_corpus_is_a_decoders() -> None:
    kept = {path.stem for path in corpus.FOLDER.glob("*.txt")}
    assert kept <= {target.name for target in TARGETS}
