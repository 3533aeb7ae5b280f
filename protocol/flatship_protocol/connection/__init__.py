"""Connections: the only part of the protocol that waits, or touches a socket.

``stream`` moves bytes, ``wire`` counts what that took, headers included,
``movement`` knows when they last did, ``watchdog`` notices when they stop for
longer than ``deadlines`` allow, ``sealed`` makes records of them, ``frames``
holds the messages meanwhile.
"""

from flatship_protocol.connection.deadlines import (
    IDLE_TIMEOUT,
    KEEPALIVE_INTERVAL,
    MIN_PROGRESS,
    PROGRESS_WINDOW,
    STALL_TIMEOUT,
)
from flatship_protocol.connection.frames import FRAME_SIZE, MESSAGE_START, PAGE, FramePool
from flatship_protocol.connection.sealed import (
    HANDSHAKE_TIMEOUT,
    MAX_CIPHERTEXT_TO_SENDER,
    Connection,
    initiate,
)
from flatship_protocol.connection.stream import (
    MAX_UNSENT,
    UNPACED,
    SocketStream,
    Stream,
    Throttle,
)
from flatship_protocol.connection.wire import Wire

__all__ = [
    "FRAME_SIZE",
    "HANDSHAKE_TIMEOUT",
    "IDLE_TIMEOUT",
    "KEEPALIVE_INTERVAL",
    "MAX_CIPHERTEXT_TO_SENDER",
    "MAX_UNSENT",
    "MESSAGE_START",
    "MIN_PROGRESS",
    "PAGE",
    "PROGRESS_WINDOW",
    "STALL_TIMEOUT",
    "UNPACED",
    "Connection",
    "FramePool",
    "SocketStream",
    "Stream",
    "Throttle",
    "Wire",
    "initiate",
]
