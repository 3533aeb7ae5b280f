"""Sessions of authenticated senders: who is connected, and which incarnation counts."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from flatship_protocol.connection import Connection
from flatship_protocol.errors import ErrorCode
from flatship_protocol.messages import Hello
from flatship_receiver.admission import SESSIONS_PER_PEER
from flatship_receiver.conversation import Refused
from flatship_receiver.copy_sources import CopySources
from flatship_receiver.facilities import Facilities, Store
from flatship_receiver.frame_shares import FrameShares
from flatship_receiver.journal import EpochClaim, Journal
from flatship_receiver.session import Caller, Session

TAKEOVER_TIMEOUT: Final = 8.0  # seconds an older incarnation gets to let go of its disks


class Sessions:
    """All sessions of a receiver.

    Args:
        stores: Datastores by name; the first is the default.
        facilities: What sessions share.
    """

    def __init__(self, stores: Mapping[str, Store], facilities: Facilities) -> None:
        self._stores = stores
        self._shared = facilities
        self._copying = CopySources(stores, facilities)
        self._frames = FrameShares(facilities.frames)
        self._sessions: dict[tuple[bytes, bytes], Session] = {}
        self._joining: dict[tuple[bytes, bytes], asyncio.Lock] = {}
        self._received = 0  # by sessions that have ended

    async def join(self, caller: Caller, hello: Hello, epoch: int, connection: Connection) -> None:
        """Serve a connection whose HELLO has opened, as part of its session, until it ends.

        Raises:
            Refused: Its epoch is over, or there are too many of something;
                nothing was sent yet.
        """
        key = (caller.peer.public, hello.session_id)
        joining = self._joining.setdefault(key, asyncio.Lock())
        try:
            async with joining:
                session = await self._session(caller, hello, epoch)
                session.add(hello.connection_index, connection)
        finally:
            if key not in self._sessions and not joining.locked():
                self._joining.pop(key, None)
        try:
            await session.serve(hello)
        finally:
            if session.ended.is_set():
                self._forget(session)

    async def close(self, code: ErrorCode) -> None:
        """End all sessions; their disks are let go when this returns."""
        await asyncio.gather(*(session.abort(code) for session in self._sessions.values()))

    @property
    def count(self) -> int:
        """Sessions under way."""
        return len(self._sessions)

    @property
    def received(self) -> int:
        """Bytes of records that came so far, in all sessions."""
        return self._received + sum(session.received for session in self._sessions.values())

    async def _session(self, caller: Caller, hello: Hello, epoch: int) -> Session:
        key = (caller.peer.public, hello.session_id)
        current = self._sessions.get(key)
        others = sum(1 for peer, _ in self._sessions if peer == caller.peer.public)
        if current is None and others >= SESSIONS_PER_PEER:
            raise Refused(ErrorCode.TOO_MANY_SESSIONS, f"{others} sessions are open already")
        claim = await self._shared.journal.run(Journal.claim_epoch, *key, epoch)
        if claim is EpochClaim.CURRENT and current is not None and current.is_open:
            return current
        if claim is not EpochClaim.NEW:
            raise Refused(ErrorCode.STALE_EPOCH, f"epoch {epoch} of this session is over")
        if current is not None:
            try:
                async with asyncio.timeout(TAKEOVER_TIMEOUT):
                    await current.abort(ErrorCode.STALE_EPOCH)
            except TimeoutError:
                raise Refused(
                    ErrorCode.DISK_BUSY,
                    "the epoch before this one is still letting go of its disks",
                ) from None
            self._forget(current)
        shared = replace(self._shared, frames=self._frames.share())
        session = self._sessions[key] = Session(
            caller, hello, epoch, self._stores, shared, self._copying
        )
        return session

    def _forget(self, session: Session) -> None:
        key = (session.caller.peer.public, session.session_id)
        if self._sessions.get(key) is session:
            del self._sessions[key]
            self._received += session.received
            self._joining.pop(key, None)
