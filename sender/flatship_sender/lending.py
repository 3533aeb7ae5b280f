"""Connections that nobody sends on, and those who wait for one: the lowest rank goes first."""

import asyncio
import heapq
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class Lending(Generic[T]):
    """Lends things, the one last given back first; each to one borrower at a time."""

    def __init__(self) -> None:
        self._idle: list[T] = []
        self._waiting: list[tuple[float, int, asyncio.Future[T]]] = []
        self._order = count()

    async def borrow(self, rank: float) -> T:
        """Wait for a thing; of equal ranks the longest waiter is served first."""
        if self._idle:
            return self._idle.pop()
        turn: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._order), turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.add(turn.result())
            raise

    def add(self, thing: T) -> None:
        """Have a thing to lend, or have it back."""
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(thing)
                return
        self._idle.append(thing)

    def discard(self, thing: T) -> None:
        """Lend a thing no more, if nobody has it just now."""
        if thing in self._idle:
            self._idle.remove(thing)
