"""How long each end waits before it calls a connection, or a session, dead. SPEC.md, "Liveness"."""

from typing import Final

IDLE_TIMEOUT: Final = 30.0  # seconds in which nothing comes from a peer
KEEPALIVE_INTERVAL: Final = 10.0  # seconds between PINGs on a quiet connection
STALL_TIMEOUT: Final = 600.0  # seconds in which a receiver that lives gets on with nothing
PROGRESS_WINDOW: Final = 30.0  # seconds
MIN_PROGRESS: Final = 512  # bytes per second, over PROGRESS_WINDOW at least
