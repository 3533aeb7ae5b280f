"""What a seed stands for: disks, a link, and faults one after another. Pure."""

from dataclasses import dataclass, field
from random import Random
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE, PAGE_SIZE

DAY: Final = 86_400.0  # seconds

NETWORK: Final = ("cut", "cut all", "stall", "partition", "flip", "repeat", "swap", "slow", "stale")
DEATHS: Final = ("kill sender", "kill receiver", "power loss")
DISK: Final = ("full", "write error", "short write", "sync error", "read error", "rename error")
RECORD: Final = ("journal fails", "lying disk", "old backup")
CLOCKS: Final = ("wall clock", "frozen host")
SOURCE: Final = ("source changes",)

KINDS: Final = (
    *NETWORK,
    *(DEATHS * 4),
    *DISK,
    *RECORD,
    *CLOCKS,
    *(SOURCE * 3),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    ``trigger`` is "time", "disk", "journal" or "bytes"; ``after`` counts seconds, system
    calls, accesses or bytes from the moment at which the fault's turn has come.
    ``lasts`` is in seconds. ``where`` says at which side of a step a process dies.
    """

    kind: str
    trigger: str
    after: float
    lasts: float
    where: str


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """One disk: its size in bytes, what its content follows from, whether an old one stands."""

    size: int
    seed: int
    replaces: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """A whole schedule. Rates in bytes a second, times in seconds."""

    seed: int
    disks: tuple[DiskPlan, ...]
    faults: tuple[Fault, ...]
    connections: int
    patience: float
    live_first: bool
    rate: float
    latency: float
    fragments: bool = field(default=False)
    shares: bool = field(default=False)  # what the first disk holds the others hold, elsewhere


def draw(seed: int) -> Schedule:
    """The schedule of a seed."""
    random = Random(seed)
    disks = tuple(
        DiskPlan(
            size=random.randrange(1, 6) * CHUNK_SIZE + random.choice((0, 0, 512, 70_144)),
            seed=random.getrandbits(32),
            replaces=random.random() < 0.2,
        )
        for _ in range(random.choice((1, 1, 1, 1, 2, 2, 3)))
    )
    return Schedule(
        seed=seed,
        disks=disks,
        faults=tuple(_fault(random) for _ in range(random.randrange(3, 11))),
        connections=random.randrange(1, 4),
        patience=random.choice((0.0, 30.0, 600.0, DAY)),
        live_first=random.random() < 0.2,
        rate=random.choice((0.2e6, 1e6, 4e6, 50e6)),
        latency=random.choice((0.0001, 0.02, 0.3)),
        fragments=random.random() < 0.1,
        shares=random.random() < 0.5,
    )


def _fault(random: Random) -> Fault:
    kind = random.choice(KINDS)
    triggers = {
        "kill receiver": ("time", "disk", "disk", "journal", "bytes"),
        "power loss": ("time", "disk", "disk", "journal", "bytes"),
        "kill sender": ("time", "bytes"),
    }
    trigger = random.choice(triggers.get(kind, ("time", "bytes")))
    if kind in DISK:
        trigger = "disk"
    if kind == "journal fails":
        trigger = "journal"
    return Fault(
        kind,
        trigger,
        after={
            "time": random.random() * random.choice((0.3, 3.0)),
            "disk": random.randrange(1, 30 if kind in DEATHS else 6),
            "journal": random.randrange(1, 8),
            "bytes": random.randrange(1, random.choice((2_000, 100_000, 2_000_000))),
        }[trigger],
        lasts=random.choice((0.0, 0.5, 5.0, 40.0, 200.0)),
        where=random.choice(("before", "after", "torn")),
    )


def content(seed: int, size: int) -> bytes:
    """A disk: zero chunks, chunks with little in them, repetitive and random ones."""
    random = Random(seed)
    disk = bytearray(size)
    for start in range(0, size, CHUNK_SIZE):
        length = min(CHUNK_SIZE, size - start)
        match random.randrange(6):
            case 0:
                pass
            case 1:
                disk[start : start + length] = random.randbytes(length)
            case 2:
                disk[start : start + length] = (random.randbytes(64) * (length // 64 + 1))[:length]
            case _:
                for _ in range(random.randrange(1, 6)):
                    scribble(random, disk, start, length)
    return bytes(disk)


def contents(schedule: Schedule) -> list[bytes]:
    """What each disk holds."""
    disks = [content(plan.seed, plan.size) for plan in schedule.disks]
    if schedule.shares:
        disks[1:] = [rearranged(disks[0], plan.seed, plan.size) for plan in schedule.disks[1:]]
    return disks


def rearranged(disk: bytes, seed: int, size: int) -> bytes:
    """A disk of the pages of another, in runs that lie elsewhere, some of them twice."""
    random = Random(seed)
    made = bytearray()
    while len(made) < size:
        start = random.randrange(0, len(disk), PAGE_SIZE)
        made += disk[start : start + random.randrange(1, 200) * PAGE_SIZE]
    return bytes(made[:size])


def scribble(random: Random, disk: bytearray, start: int, length: int) -> None:
    """Change some pages of a range."""
    size = min(length, random.choice((512, PAGE_SIZE, 5 * PAGE_SIZE)))
    at = start + random.randrange(0, length - size + 1) // 512 * 512
    disk[at : at + size] = random.randbytes(size)


def changed(random: Random, before: bytes, earlier: list[bytes]) -> bytes:
    """What a disk may hold after its guest ran: something new, zeros, or what it was before."""
    if len(earlier) > 1 and random.random() < 0.3:
        return random.choice(earlier)
    disk = bytearray(before)
    for _ in range(random.randrange(1, 4)):
        start = random.randrange(0, len(disk)) // CHUNK_SIZE * CHUNK_SIZE
        length = min(CHUNK_SIZE, len(disk) - start)
        if random.random() < 0.3:
            disk[start : start + length] = bytes(length)
        else:
            scribble(random, disk, start, length)
    return bytes(disk)
