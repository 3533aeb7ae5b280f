"""What a TCP connection has put on the wire, headers and what was sent twice included."""

import socket
import struct
from dataclasses import dataclass
from typing import Final

# linux/tcp.h, struct tcp_info: tcpi_options, tcpi_snd_mss, tcpi_segs_out, tcpi_notsent_bytes,
# tcpi_bytes_sent (Linux 4.19). It only ever grows at its end.
_TCP_INFO: Final = struct.Struct("=5xB10xI116xI4xI52xQ")
# Likewise tcpi_total_retrans, tcpi_segs_out, tcpi_min_rtt (microseconds; Linux 4.6).
_TCP_PATH: Final = struct.Struct("=100xI32xI8xI")
_TIMESTAMPS: Final = 1  # TCPI_OPT_TIMESTAMPS

ETHERNET: Final = 14  # bytes; what interfaces count of a frame beside the packet
TIMESTAMPS_SIZE: Final = 12
_TCP_HEADER: Final = 20
_IP_HEADERS: Final = {socket.AF_INET: 20, socket.AF_INET6: 40}


@dataclass(frozen=True, slots=True)
class Wire:
    """One look at a connection.

    Args:
        carried: Bytes that left this host, as an interface counts them.
        payload: Bytes of the stream among them, each counted once.
        segment: Bytes of the stream that fit into one packet.
        header: Bytes that each packet has in addition.
    """

    carried: int
    payload: int
    segment: int
    header: int

    def cost(self, size: int) -> int:
        """What ``size`` bytes of the stream take on the wire, if nothing of them is lost."""
        return size + -(-size // self.segment) * self.header


def read_wire(sock: socket.socket, written: int) -> Wire:
    """Ask the kernel; see tcp(7), TCP_INFO.

    Args:
        sock: A connected TCP socket.
        written: Bytes that the socket has taken so far.

    Raises:
        OSError: The socket is closed.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    options, segment, segments, unsent, sent = _TCP_INFO.unpack(info)
    header = ETHERNET + _IP_HEADERS.get(sock.family, 20) + _TCP_HEADER
    header += TIMESTAMPS_SIZE if options & _TIMESTAMPS else 0
    return Wire(sent + segments * header, written - unsent, max(1, segment), header)


@dataclass(frozen=True, slots=True)
class Path:
    """How a connection fares on its way.

    Args:
        round_trip: Seconds, the shortest of late.
        segments: Packets sent so far.
        retransmitted: Those of them that were sent again.
    """

    round_trip: float
    segments: int
    retransmitted: int


def read_path(sock: socket.socket) -> Path:
    """Ask the kernel; see tcp(7), TCP_INFO.

    Raises:
        OSError: The socket is closed.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_PATH.size)
    retransmitted, segments, shortest = _TCP_PATH.unpack(info)
    return Path(shortest / 1e6, segments, retransmitted)
