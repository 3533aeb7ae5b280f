"""Which disk of a session gets on next where several would: credit, frames, connections. Pure.

``fair`` gives each disk the same: the one with the fewest chunks in hand begins the next one,
and a free connection goes to the disk that has sent the least (start-time fair queueing,
Goyal, Vin and Cheng, 1996). ``given`` serves the disks in their order: a later one gets
what the earlier ones leave. Either way no disk waits while another has nothing to do.

What the receiver does not acknowledge keeps its credit, for as long as it takes. So as long
as others have work a disk may have no more of it than is free: one that hangs takes half.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Precedence(StrEnum):
    """How the disks of a session share what there is."""

    FAIR = "fair"
    GIVEN = "given"


@dataclass(frozen=True, slots=True)
class Claim:
    """A disk that would begin a chunk.

    ``length`` is the chunk's, ``outstanding`` what the disk has of the credit, both in bytes;
    ``in_hand`` counts its chunks that were begun and are not yet sent.
    """

    disk: int
    length: int
    in_hand: int
    outstanding: int


class Sharing:
    """The shares of one session.

    Args:
        precedence: How it shares.
    """

    def __init__(self, precedence: Precedence) -> None:
        self._precedence = precedence
        self._time = 0.0  # bytes that a disk has sent which has always had something to send
        self._sent: dict[int, float] = {}  # that time at the end of what each disk sends
        self._served: dict[int, int] = {}
        self._count = 0

    def next(self, claims: Iterable[Claim], free: int, *, alone: bool) -> Claim | None:
        """The claim to be met now, if any may be.

        Args:
            claims: One a disk.
            free: Bytes of credit that nobody has.
            alone: Whether no other disk has work, now or later.
        """
        allowed = [
            claim
            for claim in claims
            if claim.length <= free and (alone or claim.outstanding + claim.length <= free)
        ]
        if not allowed:
            return None
        chosen = min(allowed, key=self._preference)
        self._count += 1
        self._served[chosen.disk] = self._count
        return chosen

    def rank(self, disk: int, size: int) -> float:
        """The place of a chunk among those that wait for a connection; the lowest goes first.

        Args:
            disk: Whose it is.
            size: Bytes that it takes on the wire.
        """
        if self._precedence is Precedence.GIVEN:
            return float(disk)
        start = max(self._time, self._sent.get(disk, 0.0))
        self._sent[disk] = start + size
        return start

    def sending(self, rank: float) -> None:
        """Note that a chunk of that rank got a connection."""
        if self._precedence is Precedence.FAIR:
            self._time = max(self._time, rank)

    def _preference(self, claim: Claim) -> tuple[int, int]:
        if self._precedence is Precedence.GIVEN:
            return claim.disk, 0
        return claim.in_hand, self._served.get(claim.disk, 0)
