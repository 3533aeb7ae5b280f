"""How much a run of the slow suite does: by default what the bars are about, or less."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import disk
from benchmarks.disk import GIB, Disk
from benchmarks.packaged_guests import PACKAGES
from benchmarks.shaped_link import ShapedLink, shaped_link
from benchmarks.workplace import Workplace, workplace


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asked for. None is each scenario's own choice."""

    rounds: int | None = None
    data: int | None = None  # bytes of data, in whole MiB: a dense part stands for a whole disk

    def guest(self, otherwise: int | None = None) -> Disk:
        """The disk to move: as asked for, or of ``otherwise`` bytes, or the whole guest."""
        size = self.data or otherwise
        guest = disk.guest_disk()
        return guest if size is None else disk.dense_file(guest, size)

    def packages(self) -> tuple[str, ...]:
        """What the packaged guests are made of: as many packages as the data is parts of 1 GiB."""
        if self.data is None:
            return PACKAGES
        return PACKAGES[: max(1, len(PACKAGES) * self.data // GIB)]

    def part(self, of: int) -> int:
        """``of`` bytes, or as many less as the disk asked for is smaller than 1 GiB."""
        if self.data is None:
            return of
        return max(disk.MIB, of * self.data // GIB // disk.MIB * disk.MIB)


@contextlib.contextmanager
def linked_workplace() -> Iterator[tuple[Workplace, ShapedLink]]:
    """A workplace on the disk, and a link; both gone after the block."""
    with workplace(disk.cache_folder()) as place, shaped_link() as link:
        yield place, link


def described(moved: Disk) -> list[str]:
    """A line that says what disk was moved."""
    return [
        f"Disk: {moved.path.name}, {moved.size / GIB:.2f} GiB,"
        f" {moved.data / 1e6:.0f} MB of it data, SHA-256 {moved.sha256()}.",
        "",
    ]
