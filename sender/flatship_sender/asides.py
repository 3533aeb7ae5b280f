"""Small messages said beside the chunks: whoever sends them does not wait for a busy connection.

A record behind others takes minutes on a slow link, and longer while the
receiver reads nothing. A reader that waited with its PONG would hear nothing
meanwhile, and upkeep that waited with a PING would leave all other connections silent.
"""

import asyncio
from typing import Final

from flatship_protocol.connection import Connection

MAX_ASIDES: Final = 64  # under way at once; a receiver that asks faster waits


class Asides:
    """Sends encoded messages in tasks of their own.

    Args:
        tasks: Where they run; a connection that is lost under one of them ends it.
    """

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._running: set[asyncio.Task[None]] = set()
        self._stopped = False
        self.sent_bytes = 0  # of records

    async def say(self, connection: Connection, message: bytes) -> None:
        """Have ``message`` sent; waits only while MAX_ASIDES others are under way."""
        while len(self._running) >= MAX_ASIDES:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        if self._stopped:
            return
        task = self._tasks.create_task(self._send(connection, message))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def stop(self) -> None:
        """Say nothing more. What is cut short closes its connection."""
        self._stopped = True
        for task in self._running:
            task.cancel()

    async def _send(self, connection: Connection, message: bytes) -> None:
        self.sent_bytes += await connection.send(message)
