"""When bytes last moved over a TCP connection, in either direction, by the kernel's own counts."""

import socket
import struct
from dataclasses import dataclass
from typing import Final

# linux/tcp.h, struct tcp_info: tcpi_unacked, tcpi_bytes_acked, tcpi_bytes_received,
# tcpi_notsent_bytes. It only ever grows at its end.
_TCP_INFO: Final = struct.Struct("=24xI92xQQ8xI")


@dataclass(frozen=True, slots=True)
class Counts:
    """What TCP has carried so far, in bytes, and whether the peer has still to take something."""

    acked: int
    received: int
    waiting: bool


def read_counts(sock: socket.socket) -> Counts:
    """Ask the kernel; see tcp(7), TCP_INFO.

    Raises:
        OSError: The socket is closed.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    unacked, acked, received, unsent = _TCP_INFO.unpack(info)
    return Counts(acked, received, bool(unacked or unsent))


class Movement:
    """Tells a peer that lives, and a link that carries, from a host that is merely up. Pure.

    What came was said by a peer that lives, whether or not anybody has read it
    yet. What the peer's TCP acknowledged was carried by the link, and counts
    as taken if more waits behind it; but it may lie in the buffers of a host
    whose program was stopped, so it does not show that the peer lives.

    Args:
        now: Seconds of any steady clock; all other times are readings of it.
    """

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self.taken_at = now
        self._last = Counts(0, 0, waiting=False)

    def heard(self, now: float) -> None:
        """Note that something was read."""
        self.heard_at = now

    def look(self, counts: Counts, now: float) -> None:
        """Compare with the counts of the last look."""
        if counts.received > self._last.received:
            self.heard_at = now
        if counts.acked > self._last.acked and counts.waiting:
            self.taken_at = now
        self._last = counts
