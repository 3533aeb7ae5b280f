"""What is said of a disk's chunks on their way."""

from types import SimpleNamespace
from typing import cast

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.session import SenderSession
from flatship_protocol.session.sender import SenderDisk
from flatship_sender.copies import Copies
from flatship_sender.progress import DiskProgress
from flatship_sender.shared import Shared
from flatship_sender.shipping import Shipping
from flatship_sender.unanswered import Unanswered

DISK = 3


class Heard:
    """Remembers which chunks it was told are on their way."""

    def __init__(self) -> None:
        self.underway_at: list[int] = []

    def underway(self, offset: int) -> None:
        self.underway_at.append(offset)


def test_copies_that_are_found_late_are_told_what_is_on_its_way_already() -> None:
    session = SenderSession(1, credit=0)
    chunks = {place * CHUNK_SIZE: (CHUNK_SIZE, 0.5) for place in (4, 7)}
    session.disks[DISK] = SenderDisk(1, 9 * CHUNK_SIZE, chunks=chunks)
    shared = cast("Shared", SimpleNamespace(session=session))
    shipping = Shipping(
        DISK, shared, cast("DiskProgress", None), cast("Unanswered", None), lambda: False
    )
    copies = Heard()
    shipping.search(cast("Copies", copies))
    assert shipping.copies is copies
    assert copies.underway_at == [4 * CHUNK_SIZE, 7 * CHUNK_SIZE]
