"""The commands that a device is logged under, and what the source holds at each.

One disk, sent in every order of events that the receiver knows: cut short and gone on with
while chunks change and change back (so that what is on record must be let go), published,
replaced, copied ahead while it is in use, and replaced by the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE

VM: Final = "web01"
CHUNKS: Final = 14
SIZE: Final = (CHUNKS - 1) * CHUNK_SIZE + 1536  # bytes: the last chunk is a short one

SLOWLY: Final = ("--limit", "2MB")  # most of it is left when it is cut short
IN_FLUSHES: Final = ("--limit", "12MB")  # several of them


@dataclass(frozen=True, slots=True)
class Step:
    """One command.

    Args:
        name: What it does, for people.
        content: Of the source.
        options: Of ``send``, but for the rate.
        cut_short: The command is killed when the receiver has acknowledged something.
        restart: The receiver is stopped and started before it.
    """

    name: str
    content: bytes
    options: tuple[str, ...] = ()
    cut_short: bool = False
    restart: bool = False

    @property
    def may_publish(self) -> bool:
        """Whether the command, run to its end, publishes."""
        return "--live" not in self.options

    def chunk(self, index: int) -> bytes:
        """One chunk of the source."""
        return self.content[index * CHUNK_SIZE : (index + 1) * CHUNK_SIZE]


def make_steps(random: Random) -> tuple[Step, ...]:
    """Draw the contents and the shape of the disk."""
    first = [_chunk(index, random) for index in range(CHUNKS)]
    changed = _changed(first, random, 3)
    second = _changed(first, random, CHUNKS // 2)
    third = _changed(second, random, CHUNKS // 2)
    last = _changed(third, random, 3)
    shape = (
        *("--provisioning", random.choice(("thin", "thin", "thick", "eager"))),
        *("--format", random.choice(("vmfs", "monolithicFlat", "twoGbMaxExtentFlat"))),
    )
    replace = (*shape, "--replace")
    return (
        Step("first, cut short", b"".join(first), shape, cut_short=True),
        Step("changed, cut short", b"".join(changed), shape, cut_short=True),
        Step("changed back, published", b"".join(first), shape),
        Step("replaced", b"".join(second), replace, restart=True),
        Step("copied ahead", b"".join(third), (*replace, "--live")),
        Step("the rest, replaced", b"".join(last), replace),
    )


def _chunk(index: int, random: Random) -> bytes:
    length = min(CHUNK_SIZE, SIZE - index * CHUNK_SIZE)
    kind = random.random()
    if kind < 0.15:
        return bytes(length)
    if kind < 0.3:
        line = b"%016x the same again " % random.getrandbits(64)
        return (line * (length // len(line) + 1))[:length]
    return random.randbytes(length)


def _changed(chunks: list[bytes], random: Random, count: int) -> list[bytes]:
    """Other content in so many chunks, one of the first three among them: those are held."""
    which = {random.randrange(3), *random.sample(range(len(chunks)), count)}
    return [_chunk(index, random) if index in which else old for index, old in enumerate(chunks)]


def chunks_of(ranges: tuple[tuple[int, int], ...]) -> Iterator[int]:
    """The indices of the chunks that whole ranges of bytes cover."""
    for offset, length in ranges:
        yield from range(offset // CHUNK_SIZE, -(-(offset + length) // CHUNK_SIZE))
