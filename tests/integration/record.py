"""What a receiver's journal has on record of a disk, whether or not the receiver runs."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flatship_protocol.constants import DIGEST_SIZE
from flatship_receiver.journal import ImageState, Journal


@dataclass(frozen=True)
class Record:
    """Of the image last begun at a place.

    Args:
        state: What has become of it.
        size: Of the disk, in bytes.
        held: Digests of the chunks on stable storage, by number; None for zeros.
    """

    state: ImageState
    size: int
    held: Mapping[int, bytes | None]


def records(state: Path, vm: str, disks: list[str]) -> dict[str, Record]:
    """What the journal in a state folder says of disks at the datastore ``ds``."""
    with closing(Journal.open_read_only(state)) as journal:
        found = {disk: journal.image_at("ds", vm, disk) for disk in disks}
        return {
            disk: Record(image.state, image.size, _held(journal, image.uuid))
            for disk, image in found.items()
            if image is not None
        }


def _held(journal: Journal, uuid: bytes) -> dict[int, bytes | None]:
    return {
        first + place: None
        if digests is None
        else digests[DIGEST_SIZE * place : DIGEST_SIZE * (place + 1)]
        for number in journal.held_segments(uuid)
        for first, count, digests in journal.held_in(uuid, number)
        for place in range(count)
    }
