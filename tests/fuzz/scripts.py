"""Bytes read as the steps of a session, and SPEC.md's tables to judge them by.

Four bytes a step, so that cutting and splicing inputs moves whole steps: what
happens, whom it concerns, which chunk, and how.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flatship_protocol.messages import Adapter, DiskFormat, OpenDisk, Provisioning

STEP_SIZE: Final = 4  # bytes
MAX_STEPS: Final = 32
EPOCH: Final = 5
HANDLES: Final = 3
CHUNK: Final = 1 << 20  # bytes
CREDIT: Final = 4 * CHUNK
SIZES: Final = (512, CHUNK, 3 * CHUNK, 5 * CHUNK + 512, 6 * CHUNK)  # bytes
FAR: Final = 250  # chunk numbers from here on stand for offsets that no disk has

_SPEC: Final = Path(__file__).parents[2] / "protocol" / "SPEC.md"


@dataclass(frozen=True, slots=True)
class Step:
    """One step. Of each field's bits few mean anything, so that most inputs mean something."""

    act: int
    whom: int
    chunk: int
    how: int

    @property
    def handle(self) -> int:
        """0 to 2."""
        return self.whom % HANDLES

    @property
    def pass_number(self) -> int:
        """1, seldom 2."""
        return 2 if self.whom & 0xE0 == 0xE0 else 1

    @property
    def epoch(self) -> int:
        """The session's, seldom the one before or after."""
        return EPOCH + {0x00: 1, 0x08: -1}.get(self.whom & 0x18, 0) * (self.whom >= 0xC0)

    @property
    def offset(self) -> int:
        """Bytes, a multiple of 1 MiB: of chunk 0 to 7, or far behind the disk's end."""
        if self.chunk >= FAR:
            return (1 << 64) - (self.chunk - FAR + 1) * CHUNK
        return self.chunk % 8 * CHUNK

    def length_within(self, size: int) -> int:
        """Bytes of the chunk at ``offset`` on a disk of ``size``, seldom others."""
        if self.how >= 0xF0 or self.offset >= size:
            return (512, CHUNK // 2, CHUNK)[self.how % 3]
        return min(CHUNK, size - self.offset)

    def run_within(self, size: int) -> int:
        """Bytes from ``offset`` on: 1 to 4 chunks or up to the end of a disk of ``size``."""
        if self.how >= 0xF0:
            return (512, CHUNK + 512, 1 << 62, (1 << 64) - 512)[self.how % 4]
        run = (1 + self.how % 4) * CHUNK
        return min(run, size - self.offset) if self.offset < size else run


def steps(data: bytes) -> Iterator[Step]:
    """The steps of an input; what is too much or incomplete is left out."""
    for at in range(0, min(len(data), MAX_STEPS * STEP_SIZE) - STEP_SIZE + 1, STEP_SIZE):
        yield Step(*data[at : at + STEP_SIZE])


def script(*steps: tuple[int, int, int, int]) -> bytes:
    """The input that consists of these steps."""
    return b"".join(map(bytes, steps))


def opening(handle: int, pass_number: int, size: int) -> OpenDisk:
    """An OPEN_DISK for a disk of ``size`` bytes."""
    return OpenDisk(
        handle,
        pass_number,
        size=size,
        reserve=0,
        source_id=bytes(32),
        format=DiskFormat.VMFS,
        provisioning=Provisioning.THIN,
        adapter=Adapter.LSILOGIC,
        hardware_version=14,
        datastore="",
        vm="vm",
        name="disk",
    )


def transitions(title: str) -> Mapping[str, Mapping[str, str]]:
    """The table below a heading of SPEC.md: state, message, following state; errors left out."""
    text = _SPEC.read_text(encoding="utf-8").split(f"### {title}\n", 1)[1]
    lines = re.findall(r"^\|(.*)\|$", text.split("\n###", 1)[0], re.MULTILINE)
    head, _, *rows = ([cell.strip() for cell in line.split("|")] for line in lines)
    return {
        state: {name: cell for name, cell in zip(head[1:], cells, strict=True) if cell != "–"}
        for state, *cells in rows
    }
