"""The disks that benchmarks move: made once from this machine's files, kept outside the checkout.

``guest_disk`` is what a migration meets: an 8 GiB ext4 guest with about
1.7 GiB of real files, a third of them deleted again, so that their bytes are
still on the disk and still cost. The other disks bound one thing each.
"""

import hashlib
import itertools
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

GUEST_SIZE = 8 * GIB
GUEST_FILE_BYTES = 1700 * MIB
GUEST_FILE_LIMIT = 32 * MIB  # a few giant files would decide the compression ratio alone
DELETED_ONE_IN = 3
FILE_TREES = (Path("/usr/bin"), Path("/usr/lib"), Path("/usr/share"))

# mke2fs draws these at random; a benchmark disk is the same each time it is made.
_FILE_SYSTEM_UUID = "6f1d5c0e-9a51-4b7e-8a4e-2d5b5c1f0a11"
_FILE_SYSTEM_EPOCH = "1700000000"
SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

_COPY_PIECE = 4 * MIB
_BLOCK = 64 * KIB  # what dense and scattered files are made of


@dataclass(frozen=True, slots=True)
class Disk:
    """A raw disk image to be read by a benchmark."""

    path: Path
    size: int  # bytes
    data: int  # bytes allocated; the rest are holes

    def sha256(self) -> str:
        """SHA-256 of the whole disk, holes included, in hexadecimal."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where benchmark disks are kept: ``$XDG_CACHE_HOME/flatship-bench``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "flatship-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def describe(path: Path) -> Disk:
    """What ``path`` is: its size and what it occupies."""
    status = path.stat()
    return Disk(path, status.st_size, status.st_blocks * 512)


def guest_disk() -> Disk:
    """The benchmark's guest, built at first use (about a minute)."""
    path = cache_folder() / "guest.raw"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as scratch:
            unfinished = Path(scratch) / path.name
            _build_guest(unfinished, Path(scratch) / "tree")
            unfinished.rename(path)
    return describe(path)


def dense_file(guest: Disk, size: int, skipped: int = 0) -> Disk:
    """A file of ``size`` bytes without holes: data of ``guest``, run after run.

    ``skipped`` bytes of data are left out before it.
    """
    path = cache_folder() / f"dense-{size // MIB}MiB-after-{skipped // MIB}MiB.raw"
    if not path.exists():
        _scatter(guest, path, size, pieces=1, total=size, skipped=skipped)
    return describe(path)


def scattered_file(guest: Disk, size: int, total: int, pieces: int, skipped: int = 0) -> Disk:
    """The bytes of such a ``dense_file`` in ``pieces`` parts, far apart in ``total``."""
    name = f"scattered-{size // MIB}MiB-after-{skipped // MIB}MiB-in-{total // GIB}GiB.raw"
    path = cache_folder() / name
    if not path.exists():
        _scatter(guest, path, size, pieces=pieces, total=total, skipped=skipped)
    return describe(path)


def random_file(size: int) -> Disk:
    """A file of ``size`` bytes, a multiple of 1 MiB, that nothing compresses; always the same."""
    path = cache_folder() / f"random-{size // MIB}MiB.raw"
    if not path.exists():
        content = random.Random(size).randbytes(size)
        path.write_bytes(content)
    return describe(path)


def copy_sparse(disk: Disk, target: Path) -> Disk:
    """Copy ``disk`` to ``target`` with its holes."""
    with disk.path.open("rb") as source, target.open("wb") as file:
        file.truncate(disk.size)
        for offset, length in data_runs(source.fileno(), disk.size):
            for start in range(offset, offset + length, _COPY_PIECE):
                piece = os.pread(source.fileno(), min(_COPY_PIECE, offset + length - start), start)
                os.pwrite(file.fileno(), piece, start)
    return describe(target)


def _build_guest(path: Path, tree: Path) -> None:
    deleted = _stage(_sampled_files(), tree)
    environment = {**os.environ, "PATH": SYSTEM_PATH, "E2FSPROGS_FAKE_TIME": _FILE_SYSTEM_EPOCH}
    with path.open("wb") as file:
        file.truncate(GUEST_SIZE)
    options = f"hash_seed={_FILE_SYSTEM_UUID},lazy_itable_init=1,root_owner=0:0"
    subprocess.run(
        [
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-F",
            "-U",
            _FILE_SYSTEM_UUID,
            "-E",
            options,
            "-d",
            tree,
            path,
        ],
        env=environment,
        check=True,
    )
    subprocess.run(
        ["debugfs", "-w", "-f", "-", path],
        input="".join(f"rm {name}\n" for name in deleted),
        env=environment,
        text=True,
        check=True,
        capture_output=True,
    )


def _sampled_files() -> Iterator[Path]:
    """Files of this machine, ``GUEST_FILE_BYTES`` of them, in an order their paths decide."""
    files = {
        Path(folder, name)
        for tree in FILE_TREES
        for folder, _, names in os.walk(tree)
        for name in names
    }
    total = 0
    for file in sorted(files, key=lambda file: hashlib.sha256(os.fsencode(file)).digest()):
        if file.is_symlink() or not file.is_file() or not os.access(file, os.R_OK):
            continue
        size = file.stat().st_size
        if 0 < size <= GUEST_FILE_LIMIT:
            yield file
            total += size
        if total >= GUEST_FILE_BYTES:
            return


def _stage(files: Iterator[Path], tree: Path) -> list[str]:
    """Copy ``files`` under ``tree`` and name those that the guest deletes again."""
    deleted = []
    for number, file in enumerate(files):
        folder = tree / f"{number % 256:02x}"
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / f"{number:06d}"
        _copy_content(file, staged)
        if number % DELETED_ONE_IN == 0:
            deleted.append(f"/{folder.name}/{staged.name}")
    return deleted


def _copy_content(source: Path, target: Path) -> None:
    """Copy content only: owners and modes of the host have no business in the guest."""
    with source.open("rb") as reading, target.open("wb") as writing:
        os.sendfile(writing.fileno(), reading.fileno(), 0, source.stat().st_size)


def _scatter(guest: Disk, path: Path, size: int, *, pieces: int, total: int, skipped: int) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as scratch:
        unfinished = Path(scratch) / path.name
        with guest.path.open("rb") as source, unfinished.open("wb") as file:
            file.truncate(total)
            written = 0
            blocks = _blocks(source.fileno(), guest.size)
            for block in itertools.islice(blocks, skipped // _BLOCK, None):
                if written == size:
                    break
                piece, within = divmod(written, size // pieces)
                os.pwrite(file.fileno(), block, piece * (total // pieces) + within)
                written += len(block)
        unfinished.rename(path)


def _blocks(descriptor: int, size: int) -> Iterator[bytes]:
    """The whole blocks of 64 KiB that hold data; a scattered piece is a multiple of them."""
    for offset, length in data_runs(descriptor, size):
        for start in range(offset, offset + length - _BLOCK + 1, _BLOCK):
            yield os.pread(descriptor, _BLOCK, start)


def data_runs(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each run of a file that is not a hole, in order."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole follows
            return
        offset = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, offset - start
