"""Buffers for messages: few, large, page-aligned, used again."""

import asyncio
import mmap
from collections import deque
from typing import Final

from flatship_protocol.constants import CHUNK_SIZE, MAX_CIPHERTEXT, TAG_SIZE
from flatship_protocol.messages import CHUNK_PAYLOAD_OFFSET

PAGE: Final = mmap.PAGESIZE
FRAME_SIZE: Final = PAGE + MAX_CIPHERTEXT
MESSAGE_START: Final = PAGE - CHUNK_PAYLOAD_OFFSET  # puts a chunk's payload on a page boundary

assert CHUNK_SIZE + CHUNK_PAYLOAD_OFFSET + TAG_SIZE < MAX_CIPHERTEXT


class FramePool:
    """A fixed number of page-aligned buffers, each large enough for any message.

    A message is laid into a frame at ``MESSAGE_START``, so that the payload of
    a CHUNK begins on a page boundary and can be read from a device, or written
    to one, without a copy.

    Args:
        count: Frames; ``count * FRAME_SIZE`` bounds the memory of what is under way.
    """

    def __init__(self, count: int) -> None:
        self._free = deque(memoryview(mmap.mmap(-1, FRAME_SIZE)) for _ in range(count))
        self._waiters: deque[asyncio.Future[memoryview]] = deque()
        self.count = count

    @property
    def in_use(self) -> int:
        """Frames that are not free."""
        return self.count - len(self._free)

    async def acquire(self) -> memoryview:
        """Wait for a frame; the longest waiter is served first."""
        if self._free:
            return self._free.popleft()
        waiter: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release(waiter.result())
            raise

    def release(self, frame: memoryview) -> None:
        """Give back a frame; no view of it may be used afterwards."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(frame)  # not by way of _free, where a newcomer could take it
                return
        self._free.appendleft(frame)
