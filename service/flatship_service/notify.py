"""Tell systemd how the daemon is doing; see sd_notify(3)."""

import contextlib
import os
import socket
import time
from dataclasses import dataclass

from flatship_service.printable import printable


@dataclass(frozen=True, slots=True)
class Notifier:
    """Sends states to the socket that a service manager listens on.

    Without an ``address`` nothing is sent. What cannot be delivered is
    dropped: a daemon does not fail because its manager went away.
    """

    address: str | None

    @classmethod
    def from_environment(cls) -> "Notifier":
        """Take the address from NOTIFY_SOCKET."""
        return cls(os.environ.get("NOTIFY_SOCKET"))

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is complete."""
        self._send("READY=1", f"STATUS={printable(status)}")

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={printable(status)}")

    def reloading(self) -> None:
        """Configuration is being read again; ``ready`` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """The daemon is on its way out."""
        self._send("STOPPING=1", f"STATUS={printable(status)}")

    def _send(self, *assignments: str) -> None:
        if not self.address:
            return
        # "@" stands for the NUL byte that begins an abstract address.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        ):
            manager.setblocking(False)
            manager.sendto("\n".join(assignments).encode("utf-8"), address)
