"""What is found on the file systems after a power cut, compared with the source byte by byte."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crash.steps import CHUNKS, SIZE, VM, Step
from flatship_protocol.constants import CHUNK_SIZE, DIGEST_SIZE, SECTOR_SIZE
from flatship_protocol.digest import chunk_digest
from flatship_receiver import vmdk
from flatship_receiver.journal import ImageState, Journal

DESCRIPTOR: Final = f"{VM}.vmdk"
PART: Final = ".flatship-part"


class Violation(Exception):
    """A promise that was not kept."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A disk under its name: the steps whose content it has, none if it is half a disk."""

    steps: frozenset[int]
    uuid: bytes | None


class Remains:
    """The files of the disk, and what the journal says of them.

    Args:
        datastore: The datastore's folder.
        state: The receiver's state folder.
        steps: What the disk was sent as.
    """

    def __init__(self, datastore: Path, state: Path, steps: Sequence[Step]) -> None:
        self._folder = datastore / VM
        self._state = state
        self._steps = steps
        # Digests only name which content is meant.
        self._contents = {
            chunk_digest(step.chunk(index)): step.chunk(index)
            for step in steps
            for index in range(CHUNKS)
        }

    def names(self) -> list[str]:
        """Of all files in the VM's folder."""
        return sorted(path.name for path in self._folder.iterdir()) if self._folder.is_dir() else []

    def standing(self) -> Standing | None:
        """The disk under its name, if there is a descriptor."""
        if DESCRIPTOR not in self.names():
            return None
        descriptor = vmdk.parse((self._folder / DESCRIPTOR).read_bytes())
        content = b""
        for line in descriptor.extents:
            path = self._folder / line.file
            data = path.read_bytes() if path.exists() else b""
            if len(data) != line.sectors * SECTOR_SIZE:
                return Standing(frozenset(), None)
            content += data
        steps = frozenset(
            number
            for number, step in enumerate(self._steps)
            if content[:SIZE] == step.content and not content[SIZE:].strip(b"\0")
        )
        return Standing(steps, vmdk.uuid_of(descriptor))

    def part_chunk(self, chunk: int) -> bytes | None:
        """What the incomplete extent has in the place of a chunk; None if there is none."""
        parts = [name for name in self.names() if name.endswith(PART) and DESCRIPTOR not in name]
        if len(parts) != 1:
            return None
        with (self._folder / parts[0]).open("rb") as file:
            file.seek(chunk * CHUNK_SIZE)
            return file.read(min(CHUNK_SIZE, SIZE - chunk * CHUNK_SIZE))

    def check_journal(self) -> tuple[list[bytes], set[int]]:
        """Compare what the journal says is held of incomplete images with what is there.

        Returns:
            The uuids of the images that it calls complete, and the chunks that are held.

        Raises:
            Violation: A chunk is on record and not on the medium.
            JournalError: The journal cannot be read.
        """
        complete, held = [], set[int]()
        journal = Journal.open_read_only(self._state)
        try:
            for image in journal.images():
                if image.state is ImageState.COMPLETE:
                    complete.append(image.uuid)
                    continue
                for number in journal.held_segments(image.uuid):
                    held |= self._check_held(journal.held_in(image.uuid, number))
        finally:
            journal.close()
        return complete, held

    def _check_held(self, runs: list[tuple[int, int, bytes | None]]) -> set[int]:
        held = set[int]()
        for first, count, digests in runs:
            for place in range(count):
                chunk = first + place
                if digests is None:
                    expected: bytes | None = bytes(len(self._steps[0].chunk(chunk)))
                else:
                    digest = digests[place * DIGEST_SIZE : (place + 1) * DIGEST_SIZE]
                    expected = self._contents.get(digest)
                if expected is None or self.part_chunk(chunk) != expected:
                    raise Violation(f"chunk {chunk} is on record and not on the medium")
                held.add(chunk)
        return held
