"""What a seed means for a series of kills: disks, commands, and who dies when. Pure."""

from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final, TypeAlias

from disks import MIB

SIZES: Final = (2 * MIB, 5 * MIB + 512, 8 * MIB, 13 * MIB + 4096, 24 * MIB)  # bytes of a disk
SECONDS: Final = (
    0.8  # that a slow transfer of all disks is to take, so that some flushes come first
)
CALLS: Final = (
    "pwrite64",
    "fdatasync",
    "fsync",
    "rename,renameat,renameat2",
    "preadv2",
    "ftruncate",
)


class Victim(Enum):
    """Who is killed."""

    RECEIVER = "receiver"
    SENDER = "sender"


@dataclass(frozen=True)
class Bytes:
    """When this part of the disks' bytes, from 0 to 1, has come by since the moment was set."""

    part: float


@dataclass(frozen=True)
class Commits:
    """When the journal's log has changed so often."""

    count: int


@dataclass(frozen=True)
class Start:
    """So many seconds after the victim was started, whatever it does by then."""

    seconds: float


@dataclass(frozen=True)
class Call:
    """When the receiver enters a system call for the n-th time, before anything comes of it."""

    name: str
    number: int


Moment: TypeAlias = Bytes | Commits | Start | Call


@dataclass(frozen=True)
class Kill:
    """One kill; with ``changes`` the sources are other ones when a command is typed after it."""

    victim: Victim
    moment: Moment
    changes: bool


@dataclass(frozen=True)
class Schedule:
    """All that a seed decides.

    Args:
        seed: Also that of the disks' content and of what changes.
        sizes: Of the disks, in bytes.
        replaces: A disk stands where the first one goes.
        live: The first command copies ahead.
        patient: Commands wait for a receiver that is gone; else they are typed anew.
        slow: Commands are held to a rate.
        kills: In order.
    """

    seed: int
    sizes: tuple[int, ...]
    replaces: bool
    live: bool
    patient: bool
    slow: bool
    kills: tuple[Kill, ...]

    @property
    def options(self) -> tuple[str, ...]:
        """Of every ``send``."""
        options = ["--compression", "off", "--quiet", "--patience", "2m" if self.patient else "0"]
        if self.slow:
            options += ["--limit", f"{int(sum(self.sizes) / SECONDS / 1024) + 256}KiB/s"]
        if self.replaces:
            options += ["--replace"]
        return tuple(options)


def schedule(seed: int) -> Schedule:
    """What ``seed`` means."""
    random = Random(seed)
    return Schedule(
        seed,
        sizes=tuple(random.choice(SIZES) for _ in range(random.choice((1, 1, 1, 2, 3)))),
        replaces=random.random() < 0.25,
        live=random.random() < 0.25,
        patient=random.random() < 0.5,
        slow=random.random() < 0.8,
        kills=tuple(_kill(random) for _ in range(random.choice((1, 2, 3, 3, 4, 5)))),
    )


def _kill(random: Random) -> Kill:
    victim = random.choice((Victim.RECEIVER, Victim.RECEIVER, Victim.SENDER))
    moments: list[Moment] = [
        Bytes(random.random()),
        Bytes(random.random() ** 0.25),  # near the end, where proof and publication are
        Commits(random.randrange(1, 4)),
        Start(random.random() * 0.6),
    ]
    if victim is Victim.RECEIVER:
        moments += [Call(random.choice(CALLS), random.randrange(1, 6)) for _ in range(3)]
    return Kill(victim, random.choice(moments), changes=random.random() < 0.5)
