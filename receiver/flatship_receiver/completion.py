"""The end of a disk: prove what stands on the datastore, then let it be seen."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from flatship_protocol.errors import DatastoreError, DiskError, ErrorCode
from flatship_protocol.extents import ExtentSet
from flatship_protocol.messages import Message, OpenDisk, Proving
from flatship_receiver import vmdk
from flatship_receiver.board import ProofProgress
from flatship_receiver.datastores.base import Datastore, Image
from flatship_receiver.facilities import Facilities
from flatship_receiver.journal import ImageState, Journal, JournalError
from flatship_receiver.proof import ProofStopped, prove
from flatship_service.workers import finished

PROVING_INTERVAL: Final = 1.0  # seconds between two PROVING messages

log = structlog.get_logger()


class Completion:
    """Proves and publishes one image whose pass is complete and journalled.

    Args:
        opening: What the sender asked for.
        uuid: The image's.
        image: Flushed, and not written to any more.
        datastore: Where it is.
        facilities: Shared by all disks.
        send: Sends a message to the sender.
        check: Raises when the disk is to be given up; also called in the proof's thread.
        got_on: Called whenever more was read.
        progress: Told how far the re-read is.
    """

    def __init__(
        self,
        opening: OpenDisk,
        uuid: bytes,
        image: Image,
        datastore: Datastore,
        facilities: Facilities,
        send: Callable[[Message], Awaitable[None]],
        check: Callable[[], None],
        got_on: Callable[[], None],
        progress: ProofProgress,
    ) -> None:
        self._opening = opening
        self._uuid = uuid
        self._image = image
        self._datastore = datastore
        self._shared = facilities
        self._send = send
        self._check = check
        self._got_on = got_on
        self._progress = progress

    async def prove(self, root: bytes, proven: ExtentSet) -> int:
        """Read the image again and compare it with what the journal recorded.

        Args:
            root: The root digest of what was received.
            proven: What was re-read already, behind the writers.

        Returns:
            Bytes read; the rest are holes at the target.

        Raises:
            ProofFailed: The image differs.
            DiskError: The root of what was read is another.
            DatastoreError: The device failed.
            TransferError: ``check`` said so.
        """
        opening, shared = self._opening, self._shared
        shared.metrics.disk_state(opening.vm, opening.name, "proving")
        progress = self._progress
        telling = asyncio.create_task(self._tell(progress))
        try:
            proof = await shared.slow_workers.run(
                prove,
                self._image,
                opening.size,
                self._expected_segment,
                progress=progress.update,
                should_stop=self._should_stop,
                proven=proven,
            )
        except DatastoreError:
            shared.metrics.verify_failed()
            raise
        except ProofStopped:
            self._check()
            raise
        finally:
            telling.cancel()
        shared.metrics.verified(proof.bytes_read)
        if proof.root != root:
            raise DiskError(
                "the root digest of the re-read is not the sender's", ErrorCode.ROOT_MISMATCH
            )
        return proof.bytes_read

    async def publish(self, root: bytes, layout: vmdk.Layout) -> None:
        """Make the disk visible under its final name; there is no way back from here.

        Raises:
            DatastoreError: It may or may not be visible; the journal says
                "publishing", and the next start finds out.
        """
        descriptor = vmdk.build(
            self._opening.name,
            self._image.capacity,
            layout,
            self._uuid,
            secrets.token_bytes(vmdk.CONTENT_ID_SIZE),
        )
        workers = self._shared.slow_workers
        await workers.run(self._datastore.space)  # raises if it has been unmounted
        await self._record(ImageState.PUBLISHING, root)
        self._check()
        await workers.run(self._image.commit, descriptor)
        try:
            await self._record(ImageState.COMPLETE, root)
        except JournalError as error:  # the disk is there; the next start settles the record
            log.error("published, and not on record", reason=str(error))  # noqa: TRY400

    async def _record(self, state: ImageState, root: bytes) -> None:
        await self._shared.journal.run(
            Journal.set_state, self._uuid, state, when=time.time(), root=root
        )

    def _expected_segment(self, number: int) -> bytes:
        """Called in the proof's thread."""
        digests = self._shared.journal.run_from_thread(Journal.segment, self._uuid, number)
        assert digests is not None  # saved before the proof began
        return digests

    def _should_stop(self) -> bool:
        """Called in the proof's thread."""
        try:
            self._check()
        except Exception:  # whatever it is, it is raised again on the loop's thread
            return True
        return False

    async def _tell(self, progress: ProofProgress) -> None:
        opening, told = self._opening, 0
        while True:
            if progress.done != told:
                told = progress.done
                self._got_on()
            proving = Proving(opening.disk, opening.pass_number, progress.done, progress.total)
            await finished(self._send(proving))  # a send cut short would cost the connection
            await asyncio.sleep(PROVING_INTERVAL)
