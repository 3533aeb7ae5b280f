"""What has become of a disk on record: what the datastore says, and how people are told."""

import time

import msgspec
import structlog

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.errors import DiskError
from flatship_receiver import vmdk
from flatship_receiver.datastores.base import Datastore
from flatship_receiver.descriptor_text import DescriptorError
from flatship_receiver.journal import ImageRecord, ImageState, Journal
from flatship_service.printable import printable
from flatship_service.units import format_size

log = structlog.get_logger()


class KnownImage(msgspec.Struct, frozen=True, kw_only=True):
    """One disk on record. Sizes in bytes, times in seconds since the epoch.

    ``held`` is what is on stable storage of an incomplete disk; what is missing is the rest.
    """

    schema_version: int = 1
    datastore: str
    vm: str
    disk: str
    state: str
    size: int
    held: int
    created: float
    completed: float | None
    root: str | None


def describe(image: ImageRecord, journal: Journal) -> KnownImage:
    """Gather what is known of an image."""
    held = image.size
    if image.state is ImageState.RECEIVING:
        chunks = sum(
            count
            for number in journal.held_segments(image.uuid)
            for _, count, _ in journal.held_in(image.uuid, number)
        )
        held = min(chunks * CHUNK_SIZE, image.size)
    return KnownImage(
        datastore=image.datastore,
        vm=image.vm,
        disk=image.disk,
        state="incomplete" if image.state is ImageState.RECEIVING else image.state.value,
        size=image.size,
        held=held,
        created=image.created,
        completed=image.completed,
        root=image.root.hex() if image.root else None,
    )


def stands(datastore: Datastore, image: ImageRecord) -> bool:
    """Whether the disk under the image's name is that image. Blocks."""
    try:
        text = datastore.descriptor(image.vm, image.disk)
        return text is not None and vmdk.uuid_of(vmdk.parse(text)) == image.uuid
    except (DescriptorError, DiskError) as error:
        log.warning("cannot tell what was published", vm=image.vm, reason=str(error))
        return False


def image_line(image: KnownImage) -> str:
    """One line for people."""
    line = f"{printable(f'{image.datastore}:{image.vm}/{image.disk}.vmdk')}  {image.state}"
    if image.held < image.size:
        missing = format_size(image.size - image.held)
        return f"{line}, {format_size(image.held)} of {format_size(image.size)}, {missing} missing"
    begun = image.completed or image.created
    return f"{line}, {format_size(image.size)}, {time.strftime('%F %R', time.localtime(begun))}"
