"""From a frame to a connection: chunks of one disk that travel."""

import time
from collections.abc import Callable

from flatship_protocol.connection import Connection
from flatship_protocol.messages import ImageReference
from flatship_sender.copies import Copies
from flatship_sender.job import FIRST_PASS
from flatship_sender.prepare import Address, Laid, Prepared
from flatship_sender.progress import DiskProgress
from flatship_sender.rungs import Rung
from flatship_sender.shared import Shared
from flatship_sender.unanswered import Unanswered
from flatship_service.disk_map import MapState


class Shipping:
    """Sends one disk's chunks on whichever connection is theirs.

    Args:
        handle: The disk's number in the session.
        transfer: The session.
        progress: Where counts go.
        unanswered: Told what is sent.
        failed: Whether the disk was given up meanwhile.
    """

    def __init__(
        self,
        handle: int,
        transfer: Shared,
        progress: DiskProgress,
        unanswered: Unanswered,
        failed: Callable[[], bool],
    ) -> None:
        self.chunks = 0
        """Chunks that were sent and that the receiver does not want again."""
        self.copies: Copies | None = None
        """Told what is sent, where chunks are copied from."""
        self._handle = handle
        self._transfer = transfer
        self._progress = progress
        self._unanswered = unanswered
        self._failed = failed

    def search(self, copies: Copies | None) -> None:
        """From now on chunks copy what is found so; not from where others are on their way to."""
        self.copies = copies
        if copies is not None:
            for offset in self._transfer.session.disks[self._handle].chunks:
                copies.underway(offset)

    @property
    def address(self) -> Address:
        """What goes into every chunk's message."""
        return Address(self._handle, FIRST_PASS, self._transfer.session.epoch)

    async def send(self, prepared: Prepared) -> None:
        """Send one prepared chunk on the next connection that is free.

        Cancelled half way it costs the connection, and is cancelled only when the session ends.
        """
        transfer, asked = self._transfer, time.monotonic()
        connection = await transfer.borrow(self._handle, len(prepared.message))
        try:
            borrowed = time.monotonic()
            await self._announce(connection, prepared.laid)
            if self._failed():
                return
            self._goes_out(prepared, borrowed)
            sealed_before = connection.seal_seconds
            with transfer.link:
                wire = await connection.send(prepared.message)
            seal = connection.seal_seconds - sealed_before
        finally:
            transfer.client.give_back(connection)
        self._went_out(prepared, wire, borrowed - asked, seal, time.monotonic() - borrowed)

    async def send_by_lane(self, laid: Laid, frame: memoryview) -> None:
        """Have one chunk coded in a lane, and send it there."""
        transfer = self._transfer
        assert transfer.lanes is not None
        lane = transfer.lanes.lane(self._handle, laid.work.offset)
        rank = transfer.rank(self._handle, laid.literal)
        async with lane.turn(
            laid, self.address, lambda: transfer.controller.rung, frame, rank
        ) as turn:
            transfer.has_turn(rank)
            self.account(turn.rung, turn.prepared)
            begun = time.monotonic()
            await self._announce(turn.connection, laid)
            if self._failed():
                return
            self._goes_out(turn.prepared, begun)
            with transfer.link:
                wire = await turn.send()
            took = time.monotonic() - begun
        self._went_out(turn.prepared, wire, turn.waited, turn.seal_seconds, took)

    def draw(self, laid: Laid, *, taken_back: bool = False) -> None:
        """Have the disk's map show what becomes of a chunk; ``taken_back``: it is to go again.

        Called before it is sent: its acknowledgement may come before the send returns.
        """
        length = laid.work.length
        literal = length - laid.kept - laid.known
        for state, part in (
            (MapState.HELD, laid.kept),
            (MapState.KNOWN, laid.known),
            (MapState.SENT, literal),
        ):
            change = (state, MapState.UNREAD) if taken_back else (MapState.UNREAD, state)
            self._progress.map.move(laid.work.offset, part, *change)

    def _goes_out(self, prepared: Prepared, now: float) -> None:
        self.draw(prepared.laid)
        self._unanswered.sent(prepared.laid)
        if self.copies is not None:
            self.copies.underway(prepared.chunk.offset)
        self._transfer.session.send(prepared.chunk, now)
        self.chunks += 1

    def _went_out(
        self, prepared: Prepared, wire: int, wait: float, seal: float, took: float
    ) -> None:
        progress, chunk = self._progress, prepared.chunk
        progress.wire += wire
        progress.sent += chunk.length
        progress.kept += prepared.laid.kept
        progress.known += prepared.laid.known
        progress.payload[chunk.codec.name.lower()] += prepared.payload
        progress.stage_seconds["wait"] += wait
        progress.stage_seconds["seal"] += seal
        progress.stage_seconds["send"] += took - seal

    async def _announce(self, connection: Connection, laid: Laid) -> None:
        """Tell the receiver which images a chunk copies from, where this connection has not yet."""
        references = {copy.reference for copy in laid.copies}
        for number, image in self._transfer.references.unannounced(connection, references):
            await self._transfer.client.send_on(connection, ImageReference(number, image))

    def account(self, rung: Rung, prepared: Prepared) -> None:
        """Count what coding a chunk took, and have the controller learn from it."""
        progress, controller = self._progress, self._transfer.controller
        progress.stage_seconds["compress"] += prepared.compress_seconds
        if not prepared.laid.is_guess:
            controller.note_chunk(
                rung,
                prepared.laid.literal,
                prepared.payload,
                prepared.processor_seconds,
                coded=prepared.coded,
            )
        progress.level, progress.history = controller.rung.level, controller.rung.history
