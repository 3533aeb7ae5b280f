"""Two guests installed from the same Debian packages, as one host's guests are.

About 96 % of what the second holds the first holds too, at other places: the
packages are unpacked in another order, into a file system of another size with
another UUID and other times, and each has two packages that the other lacks.
apt-get fetches them once; they are kept. Owners and dates of files are the
staging's, so that two builds differ in some pages: the digest tells.
"""

import os
import random
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from benchmarks.disk import GIB, SYSTEM_PATH, Disk, cache_folder, data_runs, describe
from benchmarks.processes import BenchmarkError

PAGE = 4096

#: Of Debian 12, about 1 GiB unpacked: what servers run, with documents and data among it.
PACKAGES = (
    "git",
    "postgresql-15",
    "openjdk-17-jre-headless",
    "vim-runtime",
    "perl-modules-5.36",
    "gcc-12",
    "libpython3.11-stdlib",
    "systemd",
    "locales",
    "docker.io",
    "qemu-system-x86",
    "libllvm14",
    "mariadb-server-core",
    "iso-codes",
    "libicu72",
    "libgl1-mesa-dri",
    "libwebkit2gtk-4.1-0",
    "apache2-bin",
    "php8.2-cli",
    "libreoffice-core",
)

# tmpfs lists a folder by the age of its files, and mke2fs takes them as they are listed: so the
# order of unpacking becomes the order on the disk. Most other file systems list by a hash.
_STAGING = Path("/dev/shm")
_PIECE = 1024 * PAGE


@dataclass(frozen=True, slots=True)
class Machine:
    """What makes a guest itself, and not its neighbour."""

    name: str
    seed: int  # of the order in which its packages were installed
    size: int  # bytes
    uuid: str
    epoch: str  # seconds since 1970: when its file system was made
    own: tuple[str, ...]  # packages that only this one has; about 30 MB, 3 % of its data


FIRST = Machine(
    name="first",
    seed=1,
    size=3 * GIB,
    uuid="2c9be1f0-51d8-4f0c-9a43-6c1d5c0e0001",
    epoch="1700000000",
    own=("samba-libs", "cmake-data"),
)
SECOND = Machine(
    name="second",
    seed=2,
    size=4 * GIB,
    uuid="8e0d7a65-0b3c-4d1a-b7f2-6c1d5c0e0002",
    epoch="1710000000",
    own=("libruby3.1", "slapd"),
)


@dataclass(frozen=True, slots=True)
class Shared:
    """How much of a disk another one has, wherever it has it."""

    pages: int  # of 4 KiB, those of zeros left out
    known: int  # of them, those that occur on the other disk
    runs: int  # in which the known ones lie, as neighbours there as here

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.known / self.pages


def packaged_guests(packages: Sequence[str] = PACKAGES) -> tuple[Disk, Disk]:
    """The two guests, built at first use (about a minute, and apt-get's time).

    Args:
        packages: Names of Debian packages; a part of ``PACKAGES`` makes smaller guests.

    Raises:
        BenchmarkError: apt-get cannot fetch one of them, or a tool failed.
    """
    first, second = (_guest(machine, packages) for machine in (FIRST, SECOND))
    return first, second


def shared_pages(known: Disk, disk: Disk) -> Shared:
    """Which part of ``disk``'s pages ``known`` has."""
    there: dict[bytes, int] = {}
    for place, page in _pages(known):
        there.setdefault(page, place)
    pages = hits = runs = 0
    follows = -1  # the page that would continue the run
    for _, page in _pages(disk):
        found = there.get(page, -2)
        pages += 1
        hits += found >= 0
        runs += found >= 0 and found != follows
        follows = found + 1
    return Shared(pages, hits, runs)


def _guest(machine: Machine, packages: Sequence[str]) -> Disk:
    path = cache_folder() / f"packaged-{len(packages)}-{machine.name}.raw"
    if not path.exists():
        archives = [_fetched(package) for package in (*packages, *machine.own)]
        random.Random(machine.seed).shuffle(archives)
        with (
            tempfile.TemporaryDirectory(dir=_STAGING, prefix="flatship-guest-") as tree,
            tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as scratch,
        ):
            for archive in archives:
                _checked(["dpkg-deb", "--extract", archive, tree])
            unfinished = Path(scratch) / path.name
            _make_file_system(machine, unfinished, Path(tree))
            unfinished.rename(path)
    return describe(path)


def _fetched(package: str) -> Path:
    folder = cache_folder() / "packages"
    folder.mkdir(exist_ok=True)
    if not list(folder.glob(f"{package}_*.deb")):
        # apt-get's own user may not write below a home folder.
        _checked(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package], folder)
    return next(folder.glob(f"{package}_*.deb"))


def _make_file_system(machine: Machine, path: Path, tree: Path) -> None:
    with path.open("wb") as file:
        file.truncate(machine.size)
    options = f"hash_seed={machine.uuid},lazy_itable_init=1,root_owner=0:0"
    _checked(
        [
            *("mke2fs", "-q", "-t", "ext4", "-F", "-U", machine.uuid),
            *("-E", options, "-L", machine.name, "-d", tree, path),
        ],
        epoch=machine.epoch,
    )


def _checked(command: list[str | Path], folder: Path | None = None, epoch: str = "") -> None:
    environment = {**os.environ, "PATH": SYSTEM_PATH, "LC_ALL": "C"}
    if epoch:
        environment["E2FSPROGS_FAKE_TIME"] = epoch
    finished = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        raise BenchmarkError(
            f"{command[0]} exited {finished.returncode}: {finished.stderr.strip()}"
            + ("; has apt-get update run here?" if command[0] == "apt-get" else "")
        )


def _pages(disk: Disk) -> Iterator[tuple[int, bytes]]:
    """Number and digest of each page that is not all zeros."""
    zeros = bytes(PAGE)
    with disk.path.open("rb") as file:
        for offset, length in data_runs(file.fileno(), disk.size):
            for start in range(offset, offset + length, _PIECE):
                piece = os.pread(file.fileno(), min(_PIECE, offset + length - start), start)
                for at in range(0, len(piece), PAGE):
                    page = piece[at : at + PAGE]
                    if page != zeros:
                        yield (start + at) // PAGE, blake3(page).digest(16)
