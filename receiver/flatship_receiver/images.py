"""What the journal knows of a disk, for people and for programs."""

import time

import msgspec

from flatship_protocol.constants import CHUNK_SIZE
from flatship_receiver.journal import ImageRecord, ImageState, Journal
from flatship_service.printable import printable
from flatship_service.units import format_size


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


def image_line(image: KnownImage) -> str:
    """One line for people."""
    line = f"{printable(f'{image.datastore}:{image.vm}/{image.disk}.vmdk')}  {image.state}"
    if image.held < image.size:
        missing = format_size(image.size - image.held)
        return f"{line}, {format_size(image.held)} of {format_size(image.size)}, {missing} missing"
    begun = image.completed or image.created
    return f"{line}, {format_size(image.size)}, {time.strftime('%F %R', time.localtime(begun))}"
