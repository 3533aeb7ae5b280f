"""Tell systemd how the daemon is doing; see sd_notify(3)."""

import asyncio
import contextlib
import faulthandler
import os
import re
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from flatship_service.printable import printable

BEATS: Final = 3  # signs of life in the time after which the manager loses patience


@dataclass(frozen=True, slots=True)
class Notifier:
    """Sends states to the socket that a service manager listens on.

    Without an ``address`` nothing is sent. What cannot be delivered is
    dropped: a daemon does not fail because its manager went away.
    """

    address: str | None
    watchdog: float | None = None
    """Seconds of silence after which the manager restarts the daemon; None if it does not."""

    @classmethod
    def from_environment(cls) -> "Notifier":
        """Take the address from NOTIFY_SOCKET, and from WATCHDOG_USEC whether to be ``alive``."""
        return cls(os.environ.get("NOTIFY_SOCKET"), _watchdog())

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

    def alive(self) -> None:
        """The daemon does its work; due more often than every ``watchdog`` seconds."""
        self._send("WATCHDOG=1")

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


@contextlib.asynccontextmanager
async def watched(notifier: Notifier) -> AsyncIterator[None]:
    """Say that the daemon is alive for as long as its event loop turns.

    It is the loop that says so, not a thread beside it: a daemon whose loop hangs falls silent
    and is restarted. What it hung in is then on standard error, for the manager sends SIGABRT.
    """
    if notifier.watchdog is None:
        yield
        return
    faulthandler.enable()
    beating = asyncio.get_running_loop().create_task(_beat(notifier, notifier.watchdog))
    try:
        yield
    finally:
        beating.cancel()


async def _beat(notifier: Notifier, watchdog: float) -> None:
    while True:
        notifier.alive()
        await asyncio.sleep(watchdog / BEATS)


def _watchdog() -> float | None:
    """See sd_watchdog_enabled(3): it may be meant for another process."""
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if pid != str(os.getpid()) or not re.fullmatch("[0-9]{1,18}", microseconds, re.ASCII):
        return None
    return int(microseconds) / 1e6 or None
