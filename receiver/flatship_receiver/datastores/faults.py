"""What the operating system refused, in the words and codes of a datastore."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flatship_protocol.errors import DatastoreError, ErrorCode


@dataclass(frozen=True, slots=True)
class _Fault:
    code: ErrorCode
    remedy: str


_FULL = _Fault(ErrorCode.DATASTORE_FULL, "free space there, or choose another datastore")
_READ_ONLY = _Fault(ErrorCode.DATASTORE_READ_ONLY, "let the receiver's user write there")
_MISSING = _Fault(ErrorCode.DATASTORE_MISSING, "mount it, then restart the receiver")
_FOREIGN = _Fault(ErrorCode.FOREIGN_FILE, "move what stands there out of the way")
_DESCRIPTORS = _Fault(ErrorCode.WRITE_FAILED, "let the receiver open more files (LimitNOFILE)")
_FAULTS: Final[Mapping[int | None, _Fault]] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _Fault(ErrorCode.DATASTORE_READ_ONLY, "remount it for writing"),
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,
    errno.ENOENT: _MISSING,
    errno.ESTALE: _MISSING,
    errno.ELOOP: _FOREIGN,
    errno.ENOTDIR: _FOREIGN,
    errno.EISDIR: _FOREIGN,
    errno.EEXIST: _FOREIGN,
    errno.EMFILE: _DESCRIPTORS,
    errno.ENFILE: _DESCRIPTORS,
    errno.EFBIG: _Fault(ErrorCode.SIZE_REFUSED, "choose a file system that holds such files"),
}
_DEVICE = _Fault(ErrorCode.WRITE_FAILED, "look into the kernel's log; the medium may be failing")


def datastore_error(
    error: OSError, doing: str, path: str, numbers: tuple[int, int] = (0, 0)
) -> DatastoreError:
    """Say what failed, where, and what to do about it.

    Args:
        error: What the operating system said.
        doing: What was attempted, as in "cannot *create* PATH".
        path: The file or folder, for the operator.
        numbers: Bytes needed and bytes free, of use when the place is full.
    """
    fault = _FAULTS.get(error.errno, _DEVICE)
    room = ""
    if fault is _FULL:
        room = f" ({numbers[0]} bytes needed, {numbers[1]} free)"
    return DatastoreError(
        f"cannot {doing} {path}: {error.strerror or error}{room}; {fault.remedy}",
        fault.code,
        numbers,
    )


def foreign_file(path: str, found: str) -> DatastoreError:
    """An entry stands where a file of ours belongs; it has not been touched."""
    return DatastoreError(
        f"{path} is {found}, a regular file with one link is expected; {_FOREIGN.remedy}",
        ErrorCode.FOREIGN_FILE,
    )
