"""A file system that remembers what was not synced, and can lose it.

The receiver's own datastore code works on real files, of tmpfs, through system calls
that pass by here. Each change is recorded until an fsync covers it; ``crash`` then
makes a directory of what a power loss may legally leave:

- of the changes to a file's content since its last sync, any subset, in order, and
  of a write any of its 512-byte sectors;
- of the changes to a directory's entries since its last sync, the first few; a file
  whose entry was not synced is gone, however well its content was.

``forget`` takes back even what was synced, as a datastore does that lied.
"""

import ctypes
import errno
import os
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, Final

from node import Node, is_dead, running

from flatship_receiver.datastores import flat, folder, local, local_image, locks, publication

SECTOR: Final = 512
HISTORY: Final = 64  # synced changes of a file that may still be forgotten

_MODULES: Final[tuple[ModuleType, ...]] = (flat, folder, local, local_image, locks, publication)


@dataclass(slots=True)
class Change:
    """One change to a file's content: what a range held before, and what after; and the size."""

    offset: int
    before: bytes
    after: bytes
    size_before: int
    size_after: int


@dataclass(slots=True)
class _File:
    keep: int  # a descriptor of ours, so that the inode lives as long as its history
    pending: list[Change] = field(default_factory=list)
    synced: deque[Change] = field(default_factory=lambda: deque(maxlen=HISTORY))


@dataclass(slots=True)
class _Folder:
    """Entries by name: an inode, or None for a folder, as of the last sync; and changes since."""

    durable: dict[str, int | None]
    pending: list[dict[str, int | str | None]] = field(default_factory=list)


FOLDER: Final = "a folder"
GONE: Final = None

Trouble = Callable[[str], "OSError | int | None"]
"""Told each system call by name before it is made; may kill, return an error to raise, or for
pwrite a number of bytes that it will write at most."""


class CrashDisk:
    """The system calls of the receiver's datastores, recorded.

    Args:
        root: An empty directory of tmpfs: the datastore.
        random: Chooses among legal outcomes.
        trouble: Makes system calls fail.
    """

    def __init__(self, root: Path, random: Random, trouble: Trouble) -> None:
        self.root = root
        self._random = random
        self._trouble = trouble
        self._files: dict[int, _File] = {}
        self._folders: dict[str, _Folder] = {"": _Folder({})}
        self._open: dict[int, Node | None] = {}
        self._fallocate = flat._fallocate

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the datastores' modules call here instead of the operating system."""
        calls = _Calls(self)
        for module in _MODULES:
            module.os = calls  # type: ignore[attr-defined]
        flat._fallocate = self.fallocate
        cached_pages, flat.cached_pages = flat.cached_pages, lambda *_: None
        try:
            yield
        finally:
            for module in _MODULES:
                module.os = os  # type: ignore[attr-defined]
            flat._fallocate, flat.cached_pages = self._fallocate, cached_pages
            for descriptor in [*self._open, *(file.keep for file in self._files.values())]:
                with suppress(OSError):
                    os.close(descriptor)

    def abandon(self, node: Node) -> None:
        """Close what a dead process had open, and so give up its locks."""
        for descriptor in [each for each, owner in self._open.items() if owner is node]:
            del self._open[descriptor]
            os.close(descriptor)

    def put(self, path: str, content: bytes) -> None:
        """Let a file have been there, durably, since long ago."""
        target = self.root / path
        if not target.parent.exists():
            target.parent.mkdir()
            self._folders[""].durable[target.parent.name] = FOLDER  # type: ignore[assignment]
            self._folders[target.parent.name] = _Folder({})
        target.write_bytes(content)
        descriptor = os.open(target, os.O_RDWR)
        self._folders[target.parent.name].durable[target.name] = self._know(descriptor)
        os.close(descriptor)

    def crash(self, new_root: Path) -> None:
        """Lose power: whatever was not synced is a matter of chance. ``new_root`` is the disk then.

        Nobody may have it open any more.
        """
        for file in self._files.values():
            self._settle(file)
        self._rebuild(new_root)

    def forget(self, new_root: Path) -> None:
        """Lose what was written last to incomplete disks although it was synced.

        What was proven and is about to be published is left alone: it has had its proof.
        """
        decided = (publication.PROVEN, publication.REPLACING)
        incomplete = {
            inode
            for entries in map(self._surviving, self._folders.values())
            if not any(name.endswith(decided) for name in entries)
            for name, inode in entries.items()
            if name.endswith(publication.PART)
        }
        for inode, file in self._files.items():
            self._settle(file)
            if inode not in incomplete:
                continue
            lost = self._random.randrange(len(file.synced) + 1) if file.synced else 0
            for _ in range(lost):
                _undo(file.keep, file.synced.pop())
        self._rebuild(new_root)

    # -- the system calls ---------------------------------------------------------------

    def open(self, name: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        node = running()
        creates = bool(flags & os.O_CREAT)
        self._meet("create" if creates else "open")
        descriptor = os.open(name, flags & ~os.O_DIRECT, mode, dir_fd=dir_fd)
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if not regular or flags & (os.O_RDWR | os.O_DIRECT):
            self._open[descriptor] = node  # all others are read and closed at once
        if regular and flags & os.O_RDWR:
            inode = self._know(descriptor)
            if creates:
                self._enter(dir_fd, {name: inode})
        return descriptor

    def close(self, descriptor: int) -> None:
        if is_dead():
            return  # its descriptors are closed already, and the numbers may be another's
        self._open.pop(descriptor, None)
        os.close(descriptor)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        data = memoryview(data)
        limit = self._meet("pwrite")
        if limit is not None:
            data = data[: max(1, limit)]
        with self._changing(descriptor, offset, len(data), data):
            return os.pwrite(descriptor, data, offset)

    def ftruncate(self, descriptor: int, size: int) -> None:
        self._meet("ftruncate")
        old = os.fstat(descriptor).st_size
        with self._changing(descriptor, size, max(0, old - size), None):
            os.ftruncate(descriptor, size)

    def posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        self._meet("fallocate")
        with self._changing(descriptor, offset, 0, None):
            os.posix_fallocate(descriptor, offset, length)

    def fallocate(self, descriptor: int, mode: int, offset: int, length: int) -> int:
        try:
            self._meet("fallocate")
        except OSError as error:
            ctypes.set_errno(error.errno or errno.EIO)
            return -1
        size = os.fstat(descriptor).st_size
        length = min(length, size - offset)
        with self._changing(descriptor, offset, length, None):
            return self._fallocate(descriptor, mode, offset, length)

    def fsync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._meet("fsync folder")
            entries = self._folders[self._path_of(descriptor)]
            for change in entries.pending:
                _apply(entries.durable, change)
            entries.pending.clear()
            return
        file = self._files[status.st_ino]
        try:
            self._meet("fsync")
        except OSError:
            self._settle(file)  # the kernel calls the lost pages clean: a read finds what is there
            raise
        file.synced.extend(file.pending)
        file.pending.clear()

    fdatasync = fsync

    def rename(self, old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        self._meet("rename")
        inode = os.stat(old, dir_fd=src_dir_fd).st_ino
        os.rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self._enter(dst_dir_fd, {old: GONE, new: inode})

    def unlink(self, name: str, *, dir_fd: int) -> None:
        self._meet("unlink")
        os.unlink(name, dir_fd=dir_fd)
        self._enter(dir_fd, {name: GONE})

    def mkdir(self, name: str, mode: int, *, dir_fd: int) -> None:
        self._meet("mkdir")
        os.mkdir(name, mode, dir_fd=dir_fd)
        self._enter(dir_fd, {name: FOLDER})
        self._folders[name] = _Folder({})

    def rmdir(self, name: str, *, dir_fd: int) -> None:
        self._meet("rmdir")
        os.rmdir(name, dir_fd=dir_fd)
        self._enter(dir_fd, {name: GONE})

    def preadv(self, descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        self._meet("preadv")
        return os.preadv(descriptor, buffers, offset)

    # -- what is remembered -------------------------------------------------------------

    def _meet(self, call: str) -> int | None:
        """Ask for trouble; raises it, or returns a limit to what a write takes."""
        running()
        met = self._trouble(call)
        if isinstance(met, OSError):
            raise met
        return met

    def _know(self, descriptor: int) -> int:
        inode = os.fstat(descriptor).st_ino
        if inode not in self._files:
            # Not dup(2): it would share the lock.
            self._files[inode] = _File(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR))
        return inode

    @contextmanager
    def _changing(
        self, descriptor: int, offset: int, length: int, data: memoryview | None
    ) -> Iterator[None]:
        """Record what happens to a range, and to the size, in the block."""
        file = self._files[os.fstat(descriptor).st_ino]
        size_before = os.fstat(descriptor).st_size
        before = os.pread(descriptor, length, offset)
        yield
        size_after = os.fstat(descriptor).st_size
        after = bytes(length) if data is None else bytes(data)
        file.pending.append(Change(offset, before, after, size_before, size_after))

    def _enter(self, folder_fd: int | None, change: dict[str, int | str | None]) -> None:
        assert folder_fd is not None
        self._folders[self._path_of(folder_fd)].pending.append(change)

    def _path_of(self, folder_fd: int) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{folder_fd}"))
        return "" if path == self.root else path.name

    # -- what is left -------------------------------------------------------------------

    def _settle(self, file: _File) -> None:
        """Decide which of a file's changes reached the medium."""
        pending, file.pending = file.pending, []
        for change in reversed(pending):
            _undo(file.keep, change)
        fate = self._random.choice(("all", "none", "some", "some", "first"))
        first = self._random.randrange(len(pending) + 1)
        for number, change in enumerate(pending):
            if fate == "none" or (fate == "first" and number >= first):
                continue
            if fate == "some" and self._random.random() < 0.4:
                continue
            torn = fate != "all" and len(change.after) > SECTOR and self._random.random() < 0.3
            _redo(file.keep, self._tear(change) if torn else change)

    def _tear(self, change: Change) -> Change:
        """Let only some sectors of a write have arrived."""
        torn = bytearray(change.before.ljust(len(change.after), b"\0"))
        whole = self._random.randrange(len(change.after) // SECTOR) * SECTOR
        torn[:whole] = change.after[:whole]  # up to a point, and beyond it here and there
        for start in range(whole, len(torn), max(SECTOR, len(torn) // 32 // SECTOR * SECTOR)):
            if self._random.random() < 0.5:
                torn[start : start + SECTOR] = change.after[start : start + SECTOR]
        return Change(
            change.offset, change.before, bytes(torn), change.size_before, change.size_after
        )

    def _rebuild(self, new_root: Path) -> None:
        """Lay out the folders as they are on the medium, with the files' content."""
        old_root, self.root = self.root, new_root
        new_root.mkdir()
        known, self._files = self._files, {}
        folders, self._folders = self._folders, {}
        entries = {name: self._surviving(folder_) for name, folder_ in folders.items()}
        for name in ["", *(name for name, what in entries[""].items() if what == FOLDER)]:
            target = new_root / name if name else new_root
            target.mkdir(exist_ok=True)
            here = self._folders[name] = _Folder({})
            for entry, inode in entries[name].items():
                if inode == FOLDER:
                    here.durable[entry] = inode
                    continue
                with open(target / entry, "w+b") as file:
                    os.fchmod(file.fileno(), 0o600)
                    _copy(known[inode].keep, file.fileno())
                    here.durable[entry] = self._know(file.fileno())
        for file in known.values():
            os.close(file.keep)
        shutil.rmtree(old_root)

    def _surviving(self, entries: _Folder) -> dict[str, Any]:
        durable: dict[str, Any] = dict(entries.durable)
        for change in entries.pending[: self._random.randrange(len(entries.pending) + 1)]:
            _apply(durable, change)
        return durable


class _Calls:
    """Stands where a module has ``os``."""

    def __init__(self, disk: CrashDisk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name) if name in _RECORDED else getattr(os, name)


_RECORDED: Final = frozenset(
    {"open", "close", "pwrite", "ftruncate", "posix_fallocate", "fsync", "fdatasync"}
    | {"rename", "unlink", "mkdir", "rmdir", "preadv"}
)


def _apply(entries: dict[str, Any], change: dict[str, Any]) -> None:
    for name, what in change.items():
        if what is GONE:
            entries.pop(name, None)
        else:
            entries[name] = what


def _undo(descriptor: int, change: Change) -> None:
    os.pwrite(descriptor, change.before, change.offset)
    os.ftruncate(descriptor, change.size_before)


def _redo(descriptor: int, change: Change) -> None:
    size = os.fstat(descriptor).st_size
    if change.size_after > size or change.size_after < change.size_before:
        os.ftruncate(descriptor, change.size_after)
        size = change.size_after
    os.pwrite(descriptor, change.after[: max(0, size - change.offset)], change.offset)


def _copy(source: int, target: int) -> None:
    """Copy content, holes as holes."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        position = os.lseek(source, start, os.SEEK_HOLE)
        os.pwrite(target, os.pread(source, position - start, start), start)
