"""What a disk is written to: an image that stands already, is gone on with, or is made.

A target is opened once and let go of once. Between the two its image belongs to
``pipeline``; what is on record of it, and under which uuid, is known here.
"""

import secrets
import time
from dataclasses import replace

import structlog

from flatship_protocol.constants import MAX_DISK_SIZE
from flatship_protocol.errors import TransferError
from flatship_protocol.messages import OpenDisk, Provisioning
from flatship_protocol.names import check_name
from flatship_receiver import vmdk
from flatship_receiver.datastores.base import Image, ImageRequest
from flatship_receiver.facilities import Facilities, Store
from flatship_receiver.holdings import Holdings, are_on_medium
from flatship_receiver.images import stands
from flatship_receiver.journal import ImageRecord, ImageState, Journal

log = structlog.get_logger()


class Target:
    """The image of one disk.

    Args:
        opening: What the sender asked for; permitted already.
        peer: The sender's static key.
        store: Where the disk goes.
        facilities: Shared by all disks.
        resumes: What was not finished is gone on with.
    """

    def __init__(
        self, opening: OpenDisk, peer: bytes, store: Store, facilities: Facilities, *, resumes: bool
    ) -> None:
        self.uuid = vmdk.make_uuid(secrets.token_bytes(16))
        self.capacity = 0
        """Bytes the guest will see; known once ``open`` has returned."""
        self.layout = vmdk.Layout(
            opening.format, opening.provisioning, opening.adapter, opening.hardware_version
        )
        self.image: Image | None = None
        """Where to write; None before ``open``, after ``let_go``, and if the disk stands."""
        self.standing: bytes | None = None
        """Root digest of the disk, if it stands already as it was asked for."""
        self.held = Holdings(facilities.journal, self.uuid, min(opening.size, MAX_DISK_SIZE))
        self.on_record = False
        self._opening = opening
        self._peer = peer
        self._store = store
        self._shared = facilities
        self._resumes = resumes
        self._log = log.bind(vm=opening.vm, disk=opening.name)

    async def open(self) -> int:
        """Find the image or make it; a dry run only asks whether it could be made.

        Returns:
            Bytes free on the datastore and promised to nobody.

        Raises:
            TransferError: It cannot be had. ``let_go`` is due all the same.
        """
        opening, shared = self._opening, self._shared
        datastore, reservations = self._store.datastore, self._store.reservations
        check_name(opening.vm)
        check_name(opening.name)
        self.capacity = vmdk.round_capacity(opening.size)
        vmdk.check_capacity(self.capacity, self.layout)
        if await self._stands():
            return 0
        thin = opening.provisioning is Provisioning.THIN
        resumed = not opening.dry_run and await self._resume()
        if not resumed:
            await shared.slow_workers.run(datastore.check, self._request(self.uuid))
        space = await shared.slow_workers.run(datastore.space)
        needed = opening.reserve if thin else 0 if resumed else self.capacity
        reservations.take(self.uuid, max(0, needed - self.held.ranges.total), space.free)
        if not opening.dry_run and not resumed:
            await self._create()
            if not thin:
                reservations.release(self.uuid)
        return reservations.available((await shared.slow_workers.run(datastore.space)).free)

    async def record(self, state: ImageState) -> None:
        """Put on record what has become of the image."""
        await self._shared.journal.run(Journal.set_state, self.uuid, state, when=time.time())

    async def let_go(self, *, kept: bool, publishing: bool) -> None:
        """Let go of the image, and of its files and its record unless they are ``kept``.

        A publication that was begun keeps its record: the next opening finds out what became of it.
        """
        self._store.reservations.release(self.uuid)
        image, self.image = self.image, None
        if image is None:
            return
        try:
            await self._shared.slow_workers.run(image.close if kept else image.abort)
            if self.on_record and not kept and not publishing:
                await self.record(ImageState.DISCARDED)
                self._log.info("incomplete files removed")
        except (TransferError, OSError) as error:
            self._log.warning("could not clean up", reason=str(error))

    async def _stands(self) -> bool:
        """Whether this very disk was published already and its sender has not heard of it.

        The sender says that it is in doubt; or the publication failed after it was decided,
        and is brought to its end here.
        """
        opening, shared, datastore = self._opening, self._shared, self._store.datastore
        record = await shared.journal.run(
            Journal.image_at, datastore.name, opening.vm, opening.name
        )
        if not self._resumes or opening.dry_run or record is None or not self._is_same(record):
            return False
        if record.state is ImageState.PUBLISHING:
            await shared.slow_workers.run(datastore.finish, opening.vm, opening.name)
        elif record.state is not ImageState.COMPLETE or not opening.in_doubt:
            return False
        if not await shared.slow_workers.run(stands, datastore, record):
            return False
        if record.state is ImageState.PUBLISHING:
            complete = ImageState.COMPLETE
            await shared.journal.run(Journal.set_state, record.uuid, complete, when=time.time())
            if opening.replace and not opening.in_doubt:
                return False
        self.uuid, self.standing = record.uuid, record.root
        self.held = Holdings(shared.journal, record.uuid, opening.size)
        await self.held.load()
        return True

    async def _resume(self) -> bool:
        """Go on with the incomplete image of this very disk, if it is to be trusted."""
        opening, shared, datastore = self._opening, self._shared, self._store.datastore
        record = await shared.journal.run(
            Journal.resumable, datastore.name, opening.vm, opening.name
        )
        if record is None or not self._resumes or not self._is_same(record):
            return False
        image = await shared.slow_workers.run(datastore.resume, self._request(record.uuid))
        if image is None:
            return False
        fresh, self.uuid = self.uuid, record.uuid
        self.image, self.on_record = image, True
        held = Holdings(shared.journal, record.uuid, opening.size)
        sample = await held.sample()
        if not await shared.slow_workers.run(are_on_medium, image, sample):
            self._log.warning("the datastore lost what is on record; the disk starts over")
            await shared.slow_workers.run(image.abort)
            self.uuid, self.image, self.on_record = fresh, None, False
            return False
        await held.load()
        self.held = held
        if record.state is not ImageState.RECEIVING:
            await self.record(ImageState.RECEIVING)
        self._log.info("disk resumed", held=held.ranges.total)
        return True

    async def _create(self) -> None:
        opening, shared = self._opening, self._shared
        record = self._new_record()
        image = await shared.slow_workers.run(
            self._store.datastore.create, self._request(self.uuid)
        )
        self.image = image
        if self.capacity > opening.size:  # only eager disks have something to write for that
            tail = self.capacity - opening.size
            await shared.slow_workers.run(image.zero, opening.size, tail)
        await self._forget_replaced()
        await shared.journal.run(Journal.begin_image, record)
        self.on_record = True
        self._log.info("disk opened", size=opening.size, datastore=record.datastore)

    async def _forget_replaced(self) -> None:
        """Take off the record what ``create`` has replaced; not sooner, it may be in use."""
        journal, datastore = self._shared.journal, self._store.datastore
        replaced = await journal.run(
            Journal.resumable, datastore.name, self._opening.vm, self._opening.name
        )
        if replaced is not None and not await self._shared.slow_workers.run(
            stands, datastore, replaced
        ):
            self._log.info("an incomplete image is replaced", image=replaced.uuid.hex())
            discarded = ImageState.DISCARDED
            await journal.run(Journal.set_state, replaced.uuid, discarded, when=time.time())

    def _request(self, uuid: bytes) -> ImageRequest:
        opening = self._opening
        return ImageRequest(
            opening.vm,
            opening.name,
            self.capacity,
            self.layout,
            replace=opening.replace,
            uuid=uuid,
        )

    def _new_record(self) -> ImageRecord:
        opening, layout = self._opening, self.layout
        words = (layout.format, layout.provisioning, layout.adapter, layout.hardware_version)
        return ImageRecord(
            uuid=self.uuid,
            peer=self._peer,
            datastore=self._store.datastore.name,
            vm=opening.vm,
            disk=opening.name,
            size=opening.size,
            capacity=self.capacity,
            source_id=opening.source_id,
            created=time.time(),
            layout=" ".join(str(int(word)) for word in words),
        )

    def _is_same(self, record: ImageRecord) -> bool:
        """Whether an image on record was begun for what is asked for now, by the same sender."""
        asked = self._new_record()
        return asked == replace(
            record,
            uuid=asked.uuid,
            created=asked.created,
            state=asked.state,
            root=None,
            completed=None,
        )
