"""Which jobs may start now. Pure: times are arguments.

``not_before`` is an operator's date and follows the wall clock, also when that is set. The pause
before another try is a length of time and does not.
"""

from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass
from typing import Final, TypeAlias

from flatship_sender.queue.model import JobSpec, paths_of

Claim: TypeAlias = tuple[str, ...]
"""What only one job at a time may use."""

FIRST_PAUSE: Final = 10.0  # seconds before the second try at most, doubled for the next
LONGEST_PAUSE: Final = 900.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job that would start.

    ``not_before`` is in Unix seconds, ``retry_at`` on the monotonic clock; None for at once.
    """

    job: int
    priority: int
    claims: Set[Claim]
    not_before: float | None = None
    retry_at: float | None = None

    def is_due(self, wall: float, monotonic: float) -> bool:
        """Whether its time has come, as far as clocks go."""
        return (self.not_before or 0.0) <= wall and (self.retry_at or 0.0) <= monotonic


def claims(spec: JobSpec) -> frozenset[Claim]:
    """What a job uses that no other may use meanwhile: its sources, and the machine there."""
    sources = {("source", path) for path in paths_of(spec.sources)}
    return frozenset({*sources, ("machine", spec.receiver, spec.vm)})


def startable(
    candidates: Iterable[Candidate],
    taken: Collection[Claim],
    free: int,
    *,
    wall: float,
    monotonic: float,
) -> list[int]:
    """The jobs to start, in order: the larger priority first, then the older one.

    Args:
        candidates: All that would.
        taken: What running jobs use. Who is kept from starting by it lets others pass.
        free: How many may start at most.
        wall: Unix time in seconds.
        monotonic: A reading of the clock of ``retry_at``.
    """
    due = [each for each in candidates if each.is_due(wall, monotonic)]
    used, chosen = set(taken), list[int]()
    for candidate in sorted(due, key=lambda each: (-each.priority, each.job)):
        if len(chosen) >= free:
            break
        if used.isdisjoint(candidate.claims):
            used |= candidate.claims
            chosen.append(candidate.job)
    return chosen


def pause(failures: int, chance: float) -> float:
    """Seconds before another try, after so many in a row that failed; the more the longer.

    Drawn from the upper half of its length, so that many jobs do not return at one moment.

    Args:
        failures: At least 1.
        chance: From 0 to 1, drawn at random.
    """
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 30))
    return longest * (1 + chance) / 2
