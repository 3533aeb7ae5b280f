"""Disks to send: seeded content, sparse files, loop devices, small file systems."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final

MIB: Final = 1 << 20
COMPARED_AT_ONCE: Final = 4 * MIB

PROSE: Final = b"The quick brown fox jumps over the lazy dog, and ships its disk flat. "


def random_bytes(seed: int, length: int) -> bytes:
    """Bytes that do not compress."""
    return Random(seed).randbytes(length)


def prose(seed: int, length: int) -> bytes:
    """Bytes that compress well and differ from page to page."""
    random = Random(seed)
    line = b"".join(b"%08x %s" % (random.getrandbits(32), PROSE) for _ in range(400))
    return (line * (length // len(line) + 1))[:length]


def make_disk(path: Path, size: int, *, seed: int = 1) -> Path:
    """A sparse raw disk of ``size`` bytes, a quarter of it data at most.

    Holds random bytes, text, and zeros that are written (data that is zero); starts with
    text at 0 and ends with a written last sector, the rest is holes.
    """
    random = Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        file.write(prose(seed, min(size // 16, 2 * MIB)))
        for kind in (random_bytes, prose, _zeros):
            length = min(size // 16, 3 * MIB)
            file.seek(random.randrange(0, max(1, size - length), 512))
            file.write(kind(seed, length))
        file.seek(size - min(512, size))
        file.write(random_bytes(seed + 1, min(512, size)))
    return path


def make_data_disk(path: Path, size: int, *, seed: int = 1) -> Path:
    """A raw disk of ``size`` bytes that do not compress, without any hole."""
    random = Random(seed)
    with path.open("wb") as file:
        for offset in range(0, size, MIB):
            file.write(random.randbytes(min(MIB, size - offset)))
    return path


def make_sparse(path: Path, size: int) -> Path:
    """A raw disk of ``size`` bytes that is one hole."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def _zeros(seed: int, length: int) -> bytes:
    return bytes(length)


def allocated(path: Path) -> int:
    """Bytes that a file occupies."""
    return path.stat().st_blocks * 512


def same_content(source: Path, copy: Path, size: int) -> bool:
    """Whether ``copy`` starts with the first ``size`` bytes of ``source`` and is zero behind."""
    with source.open("rb") as ours, copy.open("rb") as theirs:
        for offset in range(0, size, COMPARED_AT_ONCE):
            length = min(COMPARED_AT_ONCE, size - offset)
            if ours.read(length) != theirs.read(length):
                return False
        return not theirs.read().strip(b"\0")


def flip_byte(path: Path, offset: int) -> None:
    """Invert one byte of a file, behind everybody's back."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


@contextmanager
def loop_device(backing: Path, *options: str) -> Iterator[Path]:
    """Attach ``backing`` to a loop device for the length of the block; root only."""
    attached = subprocess.run(
        ("losetup", "--find", "--show", *options, backing),
        capture_output=True,
        text=True,
        check=True,
    )
    device = Path(attached.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(("losetup", "--detach", device), check=True)


@contextmanager
def mounted(what: Path | str, where: Path, *options: str) -> Iterator[Path]:
    """Mount ``what`` at ``where``, which is made, for the length of the block; root only."""
    where.mkdir(exist_ok=True)
    subprocess.run(("mount", *options, what, where), check=True)
    try:
        yield where
    finally:
        subprocess.run(("umount", where), check=True)


def is_root() -> bool:
    """Whether devices can be attached and file systems mounted."""
    return os.geteuid() == 0
