"""Which kind of source a path is, and what a name and a first sector are worth in saying so.

A guest writes what it likes into its raw disk. If its first sector could make the
disk a qcow2 image, one that names a file of this host as its backing
file, that file would be sent as part of the guest's disk. So content alone
decides little. The operator's word counts first; the name of a file is one.
"""

import os
import stat
from functools import partial

from flatship_protocol.errors import SourceReadError, SourceUnsuitable, UsageError
from flatship_sender.sources.containers import (
    READABLE,
    ImageFormat,
    container_of,
    format_of_name,
)
from flatship_sender.sources.image import ImageSource, open_image
from flatship_sender.sources.lvm.snapshot_source import SnapshotSource, open_snapshot
from flatship_sender.sources.lvm.thin import ThinSource, with_mapping
from flatship_sender.sources.lvm.volume_snapshots import VolumeSnapshots
from flatship_sender.sources.raw import RawSource, open_error, open_raw


def open_source(
    path: str,
    *,
    live: bool,
    source_format: ImageFormat | None = None,
    snapshots: VolumeSnapshots | None = None,
    room: int | None = None,
) -> RawSource | ThinSource | ImageSource | SnapshotSource:
    """Open a disk read-only, a raw one or an image, and make sure that it can be shipped.

    Args:
        path: A regular file or a block device, as the operator names it.
        live: Read it although somebody may write to it meanwhile.
        source_format: What the operator says that it is; None to recognise it:

            - a block device is raw, and refused if it begins like an image;
            - a file whose name and content agree is what they say;
            - one whose name says another thing than its content is refused;
            - one whose name says nothing is what its content says, and is refused if it
              is an image that names other files.
        snapshots: Makes a snapshot of a logical volume in use, to be read in its place; None to
            read the source itself.
        room: Bytes that a thick volume's may take in its group; None for the usual.

    Raises:
        UsageError: There can be no snapshot of it, for it is no logical volume, or an image.
        SourceError: As ``open_raw``, ``open_image`` and ``SnapshotSource``.
    """
    if snapshots is not None:
        return _in_snapshot(path, snapshots, room, source_format)
    if source_format is None:
        if not _is_file(path):
            return _volume(path, live=live)
        content, named = _content(path), format_of_name(path)
        if content is None and named in (None, ImageFormat.RAW):
            return open_raw(path, live=live)
        if content is None or named not in (None, content):
            raise SourceUnsuitable(_at_odds(path, named, content))
        return open_image(path, content, live=live, trusted=named is content)
    if source_format is ImageFormat.RAW:
        return _volume(path, live=live, whatever_it_holds=True)
    return open_image(path, source_format, live=live)


def _in_snapshot(
    path: str, snapshots: VolumeSnapshots, room: int | None, source_format: ImageFormat | None
) -> SnapshotSource:
    if source_format not in (None, ImageFormat.RAW):
        raise UsageError(
            f"--snapshot takes raw disks, and {path} is to be a {source_format.label} image;"
            " leave out one of the two"
        )
    raw = source_format is ImageFormat.RAW
    return open_snapshot(
        path,
        partial(open_raw, live=True, whatever_it_holds=raw),
        partial(_volume, live=True, whatever_it_holds=raw),
        snapshots,
        room,
    )


def _volume(path: str, *, live: bool, whatever_it_holds: bool = False) -> RawSource | ThinSource:
    """A raw disk; of a thin volume it is known what is mapped."""
    disk = open_raw(path, live=live, whatever_it_holds=whatever_it_holds)
    try:
        return with_mapping(disk)
    except BaseException:
        disk.close()
        raise


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise open_error(path, error) from error


def _content(path: str) -> ImageFormat | None:
    """The image that a regular file holds, None for a raw disk."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise open_error(path, error) from error
    try:
        return container_of(fd)
    except OSError as error:
        raise SourceReadError(f"source {path} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)


def _at_odds(path: str, named: ImageFormat | None, content: ImageFormat | None) -> str:
    is_called = "nothing" if named is None else named.label
    begins = "holds no image" if content is None else f"begins like a {content.label} image"
    choices = [ImageFormat.RAW, *(each for each in (named, content) if each in READABLE)]
    return f"source {path} is called {is_called} by its name, and {begins}; say what it is: " + (
        " or ".join(f"--source-format {each.value}" for each in dict.fromkeys(choices))
    )
