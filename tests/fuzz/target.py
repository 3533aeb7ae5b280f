"""What a decoder promises, in a form that can be tried on any bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

DEFAULT_INPUTS: Final = 50_000
DEFAULT_MEMORY: Final = 64 << 10  # bytes


@dataclass(frozen=True, slots=True)
class Target:
    """A decoder of bytes that a peer, a person or a disk made.

    Attributes:
        name: Also the name of its corpus.
        decode: Takes any bytes; returns if the decoder accepts them and all
            that the decoder promises of what it accepts was found to hold.
        refusals: What the decoder's docstring says it raises for the rest.
        seeds: Valid inputs to start from.
        tokens: Words of the format, for the mutator.
        repair: See ``Mutator``.
        repaired: See ``Mutator``.
        memory: Bytes that decoding may take at its peak, beyond four times
            the input.
        inputs: How many it is given in ``make test``.
    """

    name: str
    decode: Callable[[bytes], None]
    refusals: tuple[type[Exception], ...]
    seeds: Sequence[bytes]
    tokens: Sequence[bytes] = ()
    repair: Callable[[bytes], bytes] | None = None
    repaired: float = 0.5
    memory: int = DEFAULT_MEMORY
    inputs: int = DEFAULT_INPUTS
