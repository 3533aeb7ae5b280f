"""Gives a decoder inputs, within bounds, and says which one broke it."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random
from typing import Final

from fuzz import bounds, corpus
from fuzz.mutator import Mutator
from fuzz.target import Target

BLOCK: Final = 64  # inputs between two looks at the clock


@dataclass(slots=True)
class Tally:
    """What became of a decoder's inputs."""

    accepted: int = 0
    refused: int = 0

    @property
    def inputs(self) -> int:
        """All of them."""
        return self.accepted + self.refused


class Broken(AssertionError):
    """A decoder did with an input what it must not do. The cause says what.

    Args:
        target: The decoder.
        data: The input.
        cause: What came out.
    """

    def __init__(self, target: Target, data: bytes, cause: BaseException) -> None:
        super().__init__(
            f"{target.name}: {type(cause).__name__}: {str(cause)[:500]}\n"
            f"    input, as a line of {corpus.FOLDER.name}/{target.name}.txt:\n"
            f"{corpus.encode_line(data)}"
        )
        self.data = data


def known_inputs(target: Target) -> list[bytes]:
    """A decoder's seeds and its corpus, each as it is and repaired."""
    inputs = [*target.seeds, *corpus.read(target.name)]
    repaired = [target.repair(data) for data in inputs] if target.repair else []
    return list(dict.fromkeys([*inputs, *repaired]))


def mutator(target: Target, seed: int) -> Mutator:
    """Endless inputs for ``target``, the same ones for the same ``seed`` and corpus.

    Half of them at least are made from the decoder's seeds, however large its corpus is.
    """
    known = known_inputs(target)
    return Mutator(
        [*known, *islice(cycle(target.seeds), len(known))],
        Random(f"{target.name} {seed}"),
        tokens=target.tokens,
        repair=target.repair,
        repaired=target.repaired,
    )


def give(target: Target, data: bytes, tally: Tally) -> None:
    """Give one input.

    Raises:
        Broken: The decoder raised what it does not promise, or a promise did not hold.
    """
    try:
        target.decode(data)
    except target.refusals:
        tally.refused += 1
    except (Exception, bounds.Hang) as error:
        raise Broken(target, data, error) from error
    else:
        tally.accepted += 1


def give_all(target: Target, inputs: Iterable[bytes]) -> Tally:
    """Give all of ``inputs``, with memory and time bounded.

    Raises:
        Broken: As ``give``, or an input took too much of either.
    """
    tally = Tally()
    source = iter(inputs)
    target.decode(target.seeds[0])  # what is made once and kept is not the inputs' doing
    with bounds.limited_memory(), bounds.watched():
        while block := list(islice(source, BLOCK)):
            bounds.restart()
            for data in block:
                give(target, data, tally)
    return tally


def give_measured(target: Target, inputs: Iterable[bytes]) -> Tally:
    """Give all of ``inputs``, and hold each to the decoder's ``memory``.

    Raises:
        Broken: As ``give``, or an input took more.
    """
    tally = Tally()
    target.decode(target.seeds[0])
    with bounds.traced():
        for data in inputs:
            before = bounds.begin()
            give(target, data, tally)
            taken = bounds.peak(before)
            allowed = target.memory + 4 * len(data)
            if taken > allowed:
                cause = MemoryError(f"{taken} bytes were allocated, {allowed} are allowed")
                raise Broken(target, data, cause)
    return tally
