"""How many strangers may knock at once. Pure: time and entropy are arguments.

Limits count before a peer has authenticated itself, when all that is known is its address.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from random import Random
from typing import Final

HANDSHAKE_DEADLINE: Final = 10.0  # seconds from accept to HELLO
MAX_PENDING: Final = 64  # handshakes at once
EARLY_DROP_FROM: Final = 10  # pending handshakes from which some are refused at random
MAX_PENDING_PER_ADDRESS: Final = 4
HANDSHAKES_PER_SECOND: Final = 100.0

CONNECTIONS_PER_SESSION: Final = 16  # after authentication
SESSIONS_PER_PEER: Final = 4

_IPV6_SITE_BITS: Final = 64  # what one host commonly has to itself


class Refusal(Enum):
    """Why a connection was closed before a byte of it was read; a label of metrics."""

    ADDRESS = "address"
    PENDING = "pending"
    EARLY_DROP = "early_drop"
    RATE = "rate"


@dataclass(slots=True)
class Admission:
    """Counts pending handshakes and says which connection may start another.

    Refusing at random before the limit is reached leaves a peer that tries
    again a fair chance while somebody else fills the queue, as sshd's MaxStartups does.

    Args:
        random: Source of the early drops.
    """

    random: Random
    _pending: Counter[str] = field(default_factory=Counter, init=False)
    _tokens: float = field(default=HANDSHAKES_PER_SECOND, init=False)
    _filled_at: float | None = field(default=None, init=False)

    @property
    def pending(self) -> int:
        """Handshakes that were admitted and are not done."""
        return self._pending.total()

    def admit(self, address: str, now: float) -> Refusal | None:
        """Count a handshake in, or say why not.

        Args:
            address: IPv4 or IPv6 address of the peer.
            now: Seconds of a monotonic clock.

        Every None must be followed by one ``done`` with the same address.
        """
        source = _source(address)
        # The address comes first: one that hammers must not use up what all share.
        if self._pending[source] >= MAX_PENDING_PER_ADDRESS:
            return Refusal.ADDRESS
        if self.pending >= MAX_PENDING:
            return Refusal.PENDING
        if self.random.random() < _drop_probability(self.pending):
            return Refusal.EARLY_DROP
        if not self._take_token(now):
            return Refusal.RATE
        self._pending[source] += 1
        return None

    def done(self, address: str) -> None:
        """Count an admitted handshake out, however it ended."""
        source = _source(address)
        assert self._pending[source] > 0
        self._pending[source] -= 1
        if not self._pending[source]:
            del self._pending[source]

    def _take_token(self, now: float) -> bool:
        elapsed = max(0.0, now - self._filled_at) if self._filled_at is not None else 0.0
        self._filled_at = now
        self._tokens = min(HANDSHAKES_PER_SECOND, self._tokens + elapsed * HANDSHAKES_PER_SECOND)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _drop_probability(pending: int) -> float:
    """Zero below the threshold, then rising in a line to one at the limit."""
    over = pending - EARLY_DROP_FROM + 1
    return max(0.0, over / (MAX_PENDING - EARLY_DROP_FROM + 1))


def _source(address: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 of an IPv6 address."""
    parsed: IPv4Address | IPv6Address = ip_address(address)
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((int(parsed), _IPV6_SITE_BITS), strict=False))
