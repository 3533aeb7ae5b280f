"""Inputs that are nearly right: what a seeded generator makes of a corpus.

Fast before all: a change is one or two microseconds, so that a decoder sees
fifty thousand inputs in about a second.
"""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Final, Literal, TypeVar

T = TypeVar("T")

MAX_CHANGES: Final = 3  # to one input
MAX_INSERTION: Final = 40  # bytes
WIDTHS: Final = (1, 2, 4, 8)  # bytes of a number

# Zero, one, all ones, and what lies around powers of two; cut to the width at hand.
INTERESTING: Final = tuple(
    sorted(
        {
            (value + near) % (1 << 64)
            for shift in (0, 4, 7, 8, 9, 12, 15, 16, 20, 24, 31, 32, 40, 46, 62, 63)
            for value in (0, 1 << shift)
            for near in (-1, 0, 1)
        }
    )
)


class Mutator:
    """Endless inputs made from ``corpus`` by ``random``: the same ones for the same seed.

    Args:
        corpus: Not empty. Empty inputs in it are fine.
        random: Every decision comes from it.
        tokens: Words of the format, put in whole.
        repair: Makes what a change broke consistent again (a length, a
            checksum), so that what stands behind it is reached.
        repaired: The share of inputs that are repaired, 0 to 1.
    """

    def __init__(
        self,
        corpus: Sequence[bytes],
        random: Random,
        *,
        tokens: Sequence[bytes] = (),
        repair: Callable[[bytes], bytes] | None = None,
        repaired: float = 0.5,
    ) -> None:
        self._corpus = corpus
        self._below = random.random
        self._random = random
        self._tokens = tokens
        self._repair = repair
        self._repaired = repaired
        self._changes: tuple[Callable[[bytearray], None], ...] = (
            self._flip_bit,
            self._flip_bit,
            self._set_byte,
            self._set_number,
            self._set_number,
            self._shift_number,
            self._shift_number,
            self._truncate,
            self._cut_out,
            self._put_in,
            self._repeat,
            self._splice,
            *((self._put_token, self._put_token) if tokens else ()),
        )

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self.changed(self._any(self._corpus))

    def changed(self, data: bytes) -> bytes:
        """``data`` with one to three changes, and perhaps repaired."""
        made = bytearray(data)
        for _ in range(1 + self._place(MAX_CHANGES)):
            self._any(self._changes)(made)
        changed = bytes(made)
        if self._repair is not None and self._below() < self._repaired:
            return self._repair(changed)
        return changed

    def _place(self, size: int) -> int:
        """Any of 0 to ``size`` - 1."""
        return int(self._below() * size)

    def _any(self, choices: Sequence[T]) -> T:
        return choices[int(self._below() * len(choices))]

    def _flip_bit(self, data: bytearray) -> None:
        if data:
            data[self._place(len(data))] ^= 1 << self._place(8)

    def _set_byte(self, data: bytearray) -> None:
        if data:
            data[self._place(len(data))] = self._place(256)

    def _set_number(self, data: bytearray) -> None:
        width, at = self._field(data)
        value = self._any(INTERESTING) % (1 << 8 * width)
        data[at : at + width] = value.to_bytes(width, self._order())

    def _shift_number(self, data: bytearray) -> None:
        width, at = self._field(data)
        order = self._order()
        value = int.from_bytes(data[at : at + width], order) + self._place(33) - 16
        data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, order)

    def _field(self, data: bytearray) -> tuple[int, int]:
        """Width and place of what may be a number."""
        width = self._any(WIDTHS)
        return width, self._place(max(len(data) - width, 0) + 1)

    def _order(self) -> Literal["little", "big"]:
        return "little" if self._below() < 0.2 else "big"

    def _truncate(self, data: bytearray) -> None:
        del data[self._place(len(data) + 1) :]

    def _cut_out(self, data: bytearray) -> None:
        at = self._place(len(data) + 1)
        del data[at : at + 1 + self._place(16)]

    def _put_in(self, data: bytearray) -> None:
        at = self._place(len(data) + 1)
        data[at:at] = self._random.randbytes(1 + self._place(MAX_INSERTION))

    def _put_token(self, data: bytearray) -> None:
        at = self._place(len(data) + 1)
        token = self._any(self._tokens)
        end = at + (len(token) if self._below() < 0.5 else 0)
        data[at:end] = token

    def _repeat(self, data: bytearray) -> None:
        at = self._place(len(data) + 1)
        data[at:at] = data[at : at + 1 + self._place(MAX_INSERTION)]

    def _splice(self, data: bytearray) -> None:
        other = self._any(self._corpus)
        data[self._place(len(data) + 1) :] = other[self._place(len(other) + 1) :]
