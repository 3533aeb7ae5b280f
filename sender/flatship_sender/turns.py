"""Where a disk's pumps wait for their turn to begin a chunk: for credit, and for a frame."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.session import SenderSession
from flatship_sender.plan import ReadChunk
from flatship_sender.sharing import Claim, Sharing


@dataclass(frozen=True, slots=True)
class _Waiter:
    work: ReadChunk
    wanted: Callable[[], bool]
    turn: "asyncio.Future[bool]"


class Turns:
    """Hands out credit and frames.

    Args:
        session: Has the credit.
        sharing: Says whose turn it is.
        frames: How many chunks may be in hand at once.
        disks: Those that have chunks to carry, until ``finished``.
    """

    def __init__(
        self, session: SenderSession, sharing: Sharing, frames: int, disks: set[int]
    ) -> None:
        self._session = session
        self._sharing = sharing
        self._frames = frames
        self._working = disks
        self._in_hand: Counter[int] = Counter()
        self._waiting: dict[int, deque[_Waiter]] = {}

    async def begin(self, disk: int, work: ReadChunk, wanted: Callable[[], bool]) -> bool:
        """Wait until a chunk may be begun, and take its credit; ``end`` is to follow.

        Returns:
            False if it is not ``wanted`` any more; nothing was taken then.
        """
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(disk, deque()).append(_Waiter(work, wanted, turn))
        self.serve()
        return await turn

    def end(self, disk: int) -> None:
        """A chunk is not in hand any more: it was sent, or is not to be."""
        self._in_hand[disk] -= 1
        self.serve()

    def finished(self, disk: int) -> None:
        """A disk has no more chunks to carry."""
        self._working.discard(disk)
        self.serve()

    def serve(self) -> None:
        """Give turns to those who may have them; whenever anything has changed."""
        self._let_go()
        while self._in_hand.total() < self._frames and self._waiting:
            session = self._session
            free = session.credit - session.outstanding
            claim = self._sharing.next(map(self._claim, self._waiting), free, alone=self._alone())
            if claim is None:
                return
            waiter = self._pop(claim.disk)
            session.reserve(claim.disk, waiter.work.offset, waiter.work.length)
            self._in_hand[claim.disk] += 1
            waiter.turn.set_result(True)

    def _alone(self) -> bool:
        return len(self._working) <= 1

    def _claim(self, disk: int) -> Claim:
        return Claim(
            disk,
            self._waiting[disk][0].work.length,
            self._in_hand[disk],
            len(self._session.disks[disk].chunks) * CHUNK_SIZE,
        )

    def _pop(self, disk: int) -> _Waiter:
        waiting = self._waiting[disk]
        waiter = waiting.popleft()
        if not waiting:
            del self._waiting[disk]
        return waiter

    def _let_go(self) -> None:
        """Send those home who were cancelled, or whose chunk is not wanted any more."""
        for disk, waiting in list(self._waiting.items()):
            if all(not each.turn.done() and each.wanted() for each in waiting):
                continue
            for each in waiting:
                if not each.turn.done() and not each.wanted():
                    each.turn.set_result(False)
            left = deque(each for each in waiting if not each.turn.done())
            if left:
                self._waiting[disk] = left
            else:
                del self._waiting[disk]
