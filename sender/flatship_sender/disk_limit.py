"""Whether another chunk of a disk may be begun, where each disk has a limit of its own. Pure.

What a chunk takes on the wire is known when it has been sent. Until then it is taken for an
average one of its disk; what it took in truth sets that right. So the limit is kept on average,
and no more than a chunk goes at once. All disks together have their bytes counted one by one.
"""

from typing import Final

from flatship_sender.pacing import DEPTH

PACKED: Final = 1448 / 1514  # bytes of records in a byte on the wire, in full packets


class DiskLimit:
    """A disk's limit.

    Args:
        rate: Bytes a second on the wire.
        wire: Bytes of its records that went before.
        done: Bytes of its chunks that did.
        now: Seconds of a steady clock; all other times are readings of it.
    """

    def __init__(self, rate: float, wire: int, done: int, now: float) -> None:
        self._rate = rate * PACKED
        self._wire, self._first_wire = wire, wire
        self._done, self._first_done = done, done
        self._begun = 0  # bytes of chunks
        self._at = now
        self._saved = 0.0

    def wait(self, wire: int, done: int, now: float) -> float:
        """Seconds until another chunk may be begun; 0 if it may now.

        Args:
            wire: Bytes of the disk's records sent so far.
            done: Bytes of its chunks that were sent, or need not be sent after all.
            now: A reading of the clock.
        """
        under_way = self._expected()
        saved = self._saved + self._rate * (now - self._at)
        self._saved = min(saved, self._rate * DEPTH + under_way) - (wire - self._wire)
        self._wire, self._done, self._at = wire, done, now
        missing = self._expected() - self._saved
        return missing / self._rate if missing >= 1 else 0.0

    def begin(self, length: int) -> None:
        """Count a chunk that is begun."""
        self._begun += length

    def _expected(self) -> float:
        """Bytes on the wire that the chunks under way will take, if they are like the others."""
        done, wire = self._done - self._first_done, self._wire - self._first_wire
        return max(0, self._begun - done) * (wire / done if done else 1.0)
