"""What came of PROBE messages: counted, bounded, thrown away. Pure.

A sender measures the link with them before it has anything to send. They cost no disk and no
memory, but a processor's time and the link: a session may have so many, for so long.
"""

from collections import Counter
from collections.abc import Hashable

from flatship_protocol.constants import MAX_PROBE_BYTES, MAX_PROBE_SECONDS
from flatship_protocol.errors import UnexpectedMessage
from flatship_protocol.messages import Probe, Probed

MICROSECONDS = 1_000_000  # in a second


class Probes:
    """The probes of one session."""

    def __init__(self) -> None:
        self._began: float | None = None  # when the first one came
        self._total = 0  # bytes of records
        self._came: Counter[Hashable] = Counter()  # those of them on connections that are there

    def take(self, connection: Hashable, probe: Probe, now: float) -> Probed | None:
        """Count a probe; what to answer, if it asks for that.

        Args:
            connection: Where it came.
            probe: What came.
            now: Seconds on a steady clock.

        Raises:
            UnexpectedMessage: It is more than a session may send, or too late.
        """
        if self._began is None:
            self._began = now
        if now - self._began > MAX_PROBE_SECONDS:
            raise UnexpectedMessage(f"a probe more than {MAX_PROBE_SECONDS} s after the first one")
        if self._total + probe.record_size > MAX_PROBE_BYTES:
            raise UnexpectedMessage(f"more than {MAX_PROBE_BYTES} bytes of probes")
        self._total += probe.record_size
        self._came[connection] += probe.record_size
        if not probe.report:
            return None
        return Probed(self._came[connection], int(now * MICROSECONDS))

    def forget(self, connection: Hashable) -> None:
        """A connection is gone: what came there counts still, and it is not kept for that."""
        del self._came[connection]
