"""What must be true whatever happens; told by bytes and not by Flatship's own digests."""

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from flatship_protocol.constants import CHUNK_SIZE
from flatship_protocol.messages import Chunk, Held, Stored, Zero
from flatship_receiver.journal import ImageState, Journal

EXTENT = re.compile(r'^RW \d+ VMFS "(.+)"$', re.MULTILINE)
PART = ".flatship-part"
NEVER = 1 << 30  # no session has this number


class Violation(AssertionError):
    """Something that must not happen has happened."""


class DiskOracle:
    """What is known of one disk.

    Args:
        name: Base name of its files.
        old: What stands under its name before, if anything does.
        content: What its source holds at first.
    """

    def __init__(self, name: str, old: bytes | None, content: bytes) -> None:
        self.name = name
        self.old = old
        self.versions = [content]
        self.acknowledged: dict[int, bytes] = {}
        """Chunks that the sender was told are durable, and what was in them."""
        self.doubt: str | None = None
        """Why the receiver may have less than it acknowledged, if it may."""
        self._held: set[int] = set()
        self._descriptor: str | None = None
        self._sessions = 0
        self._doubted_in = 0
        self._published_in = -1

    @property
    def source(self) -> bytes:
        """What the source holds now."""
        return self.versions[-1]

    def chunk(self, index: int) -> bytes:
        """A chunk of the source."""
        return self.source[index * CHUNK_SIZE : (index + 1) * CHUNK_SIZE]

    def suspect(self, why: str, *, for_good: bool = False) -> None:
        """From now on the receiver may have less than it acknowledged, until it has said what.

        Or for good, if it is not its own doing and may come out late.
        """
        self.doubt = why
        self._doubted_in = NEVER if for_good else max(self._doubted_in, self._sessions)

    def hear(self, message: Held | Stored) -> None:
        """What the receiver says to the sender."""
        if self._published_in == self._sessions:
            return  # said before that, and only heard now
        if isinstance(message, Stored):
            for offset, length in message.ranges:
                for index in _chunks(offset, length):
                    self.acknowledged[index] = self.chunk(index)
            return
        self._held.update(range(message.first, message.first + message.count))
        if message.last:
            lost = set(self.acknowledged) - self._held
            if lost and self.doubt is None:
                raise Violation(f"{self.name}: acknowledged, and not held any more: {sorted(lost)}")
            for index in lost:
                del self.acknowledged[index]
            self._held = set()
            if self._doubted_in < self._sessions:
                self.doubt = None

    def say(self, message: Chunk | Zero) -> None:
        """What the sender says to the receiver."""
        for index in _chunks(message.offset, message.length):
            was = self.acknowledged.pop(index, None)
            if was is not None and was == self.chunk(index):
                raise Violation(f"{self.name}: chunk {index} was acknowledged, and is sent again")

    def begin(self) -> None:
        """A session begins."""
        self._held = set()
        self._sessions += 1

    def look(self, folder: Path) -> None:
        """Once an image is published, what was acknowledged of it is no claim on the next one."""
        path = folder / f"{self.name}.vmdk"
        text = path.read_text() if path.exists() else None
        if text != self._descriptor:
            self._descriptor, self._published_in = text, self._sessions
            self.acknowledged.clear()

    def published(self, folder: Path) -> bytes | None:
        """What stands under the disk's final name."""
        descriptor = folder / f"{self.name}.vmdk"
        if not descriptor.exists():
            return None
        (extent,) = EXTENT.findall(descriptor.read_text())
        return (folder / extent).read_bytes()

    def check_published(self, folder: Path) -> bytes | None:
        """A disk under its final name is one that the source was, or the old one, whole.

        Returns:
            What stands there.
        """
        found = self.published(folder)
        if found is None:
            return None
        whole = [padded(version) for version in self.versions]
        if found not in whole and found != self.old:
            raise Violation(f"{self.name}: what is published is no version of the source")
        return found


def check_record(state: Path, datastore: Path, disks: Sequence[DiskOracle], *, lied: bool) -> None:
    """What the journal claims, and what was acknowledged, is on the medium. Nothing is running.

    Args:
        state: The receiver's state folder.
        datastore: The datastore's root.
        disks: What was acknowledged.
        lied: The medium lost what it had promised, or the journal is an old one.
    """
    with closing(Journal.open_read_only(state)) as journal:
        images = {image.disk: image for image in journal.images()}
        for disk in disks:
            image = images.get(disk.name)
            if image is None or image.state is not ImageState.RECEIVING or lied:
                continue
            part = datastore / "web" / f"{disk.name}-flat.vmdk{PART}"
            lock = datastore / "web" / f"{disk.name}.vmdk{PART}"
            if not part.exists() or not _names(lock, image.uuid):
                if disk.acknowledged and disk.doubt is None:
                    raise Violation(f"{disk.name}: acknowledged, and its files are gone")
                continue  # it was given up, and its record not yet; nobody can go on with it
            medium = part.read_bytes()
            held = {
                first + place: None if digests is None else digests[place * 32 : place * 32 + 32]
                for number in journal.held_segments(image.uuid)
                for first, count, digests in journal.held_in(image.uuid, number)
                for place in range(count)
            }
            from flatship_protocol.digest import chunk_digest

            for index, digest in held.items():
                there = medium[index * CHUNK_SIZE : min((index + 1) * CHUNK_SIZE, image.size)]
                if there.strip(b"\0") if digest is None else chunk_digest(there) != digest:
                    raise Violation(f"{disk.name}: chunk {index} is on record, and not on medium")
            for index, was in disk.acknowledged.items():
                if index not in held:
                    if disk.doubt is None:
                        raise Violation(f"{disk.name}: chunk {index} acknowledged, not on record")
                elif medium[index * CHUNK_SIZE :][: len(was)] != was:
                    raise Violation(f"{disk.name}: chunk {index} acknowledged, not on medium")


def _names(lock: Path, uuid: bytes) -> bool:
    """Whether a lock file bears an image's uuid, on its line or as a descriptor has it."""
    text = lock.read_text() if lock.exists() else ""
    return uuid.hex() in text.replace(" ", "").replace("-", "").lower()


def padded(data: bytes) -> bytes:
    """A disk as VMware has it: whole mebibytes."""
    return data + bytes(-len(data) % CHUNK_SIZE)


def _chunks(offset: int, length: int) -> range:
    return range(offset // CHUNK_SIZE, -(-(offset + length) // CHUNK_SIZE))
