"""Plays one seeded run of harms on the link between real processes.

One patient command sees it through.

Harms come one after the other, each at the unit (the handshake's message or a record) in which
its mark of bytes lies. At the end the disk is there, byte for byte.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from disks import MIB, make_data_disk, same_content
from processes import Running
from proxy import Cut, Direction, Flow
from raw_peer import Ended
from stages import Stage, check_logs, same_to_qemu

SIZES: Final = (4 * MIB, 9 * MIB + 512, 16 * MIB)  # bytes
FIRST: Final = 4000  # bytes to the receiver before the first harm: a session is established
FIRST_BACK: Final = 300  # bytes to the sender, likewise
LARGE: Final = 64 * 1024  # bytes of a unit that more follow
LENGTH: Final = 8  # bytes of a record's header, in which a flipped bit means waiting for long
ENOUGH: Final = 90.0  # seconds


def _cut(unit: bytes, random: Random) -> Iterator[bytes]:
    yield unit[: random.randrange(len(unit))]
    raise Cut


def _close_half(unit: bytes, random: Random) -> Iterator[bytes]:
    yield unit[: random.randrange(len(unit))]
    raise Ended("by the harm")


def _delay(unit: bytes, random: Random) -> Iterator[bytes]:
    time.sleep(random.random())  # the fault itself: bytes that come late
    yield unit


def _flip(unit: bytes, random: Random) -> Iterator[bytes]:
    changed = bytearray(unit)
    changed[random.randrange(min(LENGTH, len(unit) - 1), len(unit))] ^= 1 << random.randrange(8)
    yield bytes(changed)


def _twice(unit: bytes, random: Random) -> Iterator[bytes]:
    yield unit
    yield unit


HARMS: Final[tuple[Callable[[bytes, Random], Iterator[bytes]], ...]] = (
    _cut,
    _cut,
    _close_half,
    _delay,
    _flip,
    _twice,
)


@dataclass
class _Next:
    """The harm that is due."""

    direction: Direction
    mark: int  # bytes that pass before it


class _Harms:
    """A ``Harm`` that does some in turn; ``swaps`` says whether units may change places.

    One that waits for the next must know that there is one.
    """

    def __init__(self, seed: int, size: int, *, swaps: bool) -> None:
        self._swaps = swaps
        self._random = Random(seed)
        self._size = size
        self._turn = threading.Lock()
        self._left = self._random.randint(3, 10)
        self.done = 0
        self._next = self._draw(FIRST, FIRST_BACK)

    def __call__(self, flow: Flow, number: int, data: bytes) -> Iterator[bytes]:
        with self._turn:
            harm = self._due(flow, data)
        if flow.held:
            yield from (data, flow.held)
            flow.held = b""
        elif harm is None:
            yield data
        elif self._swaps and len(data) >= LARGE and self._random.random() < 0.2:
            flow.held = data  # and goes after the one that follows
        else:
            yield from harm(data, self._random)

    def _due(self, flow: Flow, data: bytes) -> Callable[[bytes, Random], Iterator[bytes]] | None:
        if not self._left or flow.direction is not self._next.direction:
            return None
        self._next.mark -= len(data)
        if self._next.mark > 0:
            return None
        self._left -= 1
        self.done += 1
        self._next = self._draw(0, 0)
        return self._random.choice(HARMS)

    def _draw(self, least: int, least_back: int) -> _Next:
        if self._random.random() < 0.7:
            mark = self._random.randrange(least, self._size // 4)
            return _Next(Direction.TO_RECEIVER, mark)
        return _Next(Direction.TO_SENDER, self._random.randrange(least_back, least_back + 300))


def play(stage: Stage, seed: int) -> int:
    """Play what ``seed`` means; returns how many harms were done.

    Raises:
        AssertionError: Something does not hold.
    """
    random = Random(f"link {seed}")
    size, vm = random.choice(SIZES), f"vm{seed}"
    disk = make_data_disk(stage.folder / f"{vm}.raw", size, seed=seed)
    connections = random.choice((1, 1, 2, 4))
    harms = _Harms(seed, size, swaps=connections == 1)
    stage.proxy.harm = harms
    options = (
        "--quiet",
        "--compression",
        "off",
        "--patience",
        "5m",
        "--connections",
        f"{connections}",
    )
    sending = stage.pair.sender.start_send(disk, vm=vm, options=options, to="proxy")
    _finish(stage, sending)
    assert same_content(disk, stage.pair.receiver.flat(vm), size), f"{vm} differs"
    same_to_qemu(disk, stage.pair.receiver.descriptor(vm))
    check_logs(stage.pair.receiver)
    return harms.done


def _finish(stage: Stage, sending: Running) -> None:
    run = sending.wait(ENOUGH).expect(0)
    assert run.disk["published"], str(run)
