"""A directory held open: every access goes through its descriptor, one name deep.

Paths are resolved once, when the folder is opened. After that nobody can lead
us elsewhere by swapping a component for a symbolic link.
"""

import errno
import os
import stat
from typing import Final

from flatship_receiver.datastores.faults import foreign_file

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not block us
_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o755


class Folder:
    """A directory and what may be done in it. Names are entries, never paths.

    Methods raise ``OSError`` as the system calls do, and ``DatastoreError``
    with code FOREIGN_FILE where a name is taken by anything but a regular
    file with one link.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    @classmethod
    def open(cls, path: str) -> "Folder":
        """Open a directory by its path; symbolic links are followed, the operator chose it."""
        return cls(os.open(path, _FOLDER_FLAGS), path)

    def open_folder(self, name: str) -> "Folder":
        """Open a directory in this one. Not through a symbolic link."""
        path = self.path_of(name)
        try:
            fd = os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=self.fd)
        except OSError as error:
            if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                raise foreign_file(path, "not a folder, where the VM's folder belongs") from error
            raise
        return Folder(fd, path)

    def make_folder(self, name: str) -> None:
        """Make a directory in this one."""
        os.mkdir(name, _FOLDER_MODE, dir_fd=self.fd)

    def remove_folder(self, name: str) -> None:
        """Remove an empty directory from this one."""
        os.rmdir(name, dir_fd=self.fd)

    def path_of(self, name: str) -> str:
        """Where an entry is, for messages only."""
        return os.path.join(self.path, name)

    def names(self) -> list[str]:
        """Every entry, sorted."""
        return sorted(os.listdir(self.fd))

    def regular(self, name: str) -> os.stat_result | None:
        """The status of a regular file with one link; None if there is no such entry."""
        try:
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        self._require_regular(name, status)
        return status

    def create_file(self, name: str) -> int:
        """Make a new file and open it for reading and writing."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE_FLAGS
        return os.open(name, flags, _FILE_MODE, dir_fd=self.fd)

    def open_file(self, name: str, flags: int) -> int:
        """Open a regular file with one link."""
        try:
            fd = os.open(name, flags | _FILE_FLAGS, dir_fd=self.fd)
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
                self.regular(name)
            raise
        try:
            self._require_regular(name, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def read_file(self, name: str, limit: int) -> bytes:
        """The first ``limit`` bytes of a regular file with one link."""
        with open(self.open_file(name, os.O_RDONLY), "rb") as file:
            return file.read(limit)

    def is_same_file(self, name: str, fd: int) -> bool:
        """Whether an entry is the file that is open as ``fd``."""
        try:
            status = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(status, os.fstat(fd))

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, replacing what has it."""
        os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=self.fd)

    def sync(self) -> None:
        """Make the entries themselves survive a power loss."""
        os.fsync(self.fd)

    def free_space(self) -> int:
        """Bytes that the file system has for us."""
        status = os.fstatvfs(self.fd)
        return status.f_bavail * status.f_frsize

    def close(self) -> None:
        """Let go of the directory, also when that raises. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _require_regular(self, name: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise foreign_file(self.path_of(name), "not a regular file")
        if status.st_nlink != 1:
            raise foreign_file(self.path_of(name), f"a file with {status.st_nlink} links")
