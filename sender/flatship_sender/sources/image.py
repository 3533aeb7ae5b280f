"""Disk images (qcow2, VDI, VHD, VHDX, VMDK) as disks, without a raw copy in between."""

import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from flatship_protocol.errors import SourceReadError
from flatship_protocol.extents import Extent
from flatship_sender.holders import find_holders
from flatship_sender.sources.containers import ImageFormat
from flatship_sender.sources.export_folders import DAEMON, default_base
from flatship_sender.sources.image_chain import Chain, ImageFile, resolve_chain
from flatship_sender.sources.image_check import check_images
from flatship_sender.sources.image_export import ImageExport, export
from flatship_sender.sources.quiet import QuietWatch, refuse_writers
from flatship_sender.sources.raw import RawSource, open_error

EXPORTS: Final = 2  # files through which a disk is read, each with a thread at the daemon
STRIPE: Final = 1 << 20  # bytes in a row that are read through one of them
DROP_BEHIND: Final = 64 << 20  # bytes read after which the page cache gives up the image's pages


def open_image(
    path: str,
    image_format: ImageFormat,
    *,
    live: bool,
    trusted: bool = True,
    base: Path | None = None,
) -> "ImageSource":
    """Open a disk image read-only and make sure that it can be shipped as it is.

    Args:
        path: The image, as the operator names it.
        image_format: What it is to be read as.
        live: Read it although somebody may write to it meanwhile.
        trusted: See ``resolve_chain``.
        base: Where folders for exports are made, if not where they always are.

    Raises:
        SourceMissing: It, or a file that it stands on, does not exist.
        SourcePermissionError: This user may not read it, or use FUSE.
        SourceUnsuitable: It cannot be read as a whole disk, or is damaged.
        SourceBusy: Not ``live``, and somebody may write to it.
        SourceReadError: It could be opened and not read.
        ImageProgramMissing: What reads images is not installed.
    """
    with ExitStack() as cleanup:
        chain = resolve_chain(path, image_format, trusted=trusted)
        cleanup.callback(chain.close)
        try:
            surveys = [find_holders(file.path) for file in chain.files]
        except OSError as error:
            raise open_error(path, error) from error
        if not live:
            for file, survey in zip(chain.files, surveys, strict=True):
                refuse_writers(_subject(path, file, chain), survey)
        if not any(survey.writers for survey in surveys):
            check_images(path, chain, live=live)  # in use, tables are in their user's memory
        running = export(path, chain.node(live=live), base or default_base(), EXPORTS)
        cleanup.callback(running.close)
        unseen = max(survey.unseen_processes for survey in surveys)
        try:
            source = ImageSource(path, chain, running, live=live, unseen_processes=unseen)
        except OSError as error:
            raise SourceReadError(
                f"source {path} cannot be read: {error.strerror}; see the kernel's log for what"
                " it is stored on"
            ) from error
        cleanup.pop_all()
        return source


class ImageSource:
    """A ``BlockSource`` over a disk image; made by ``open_image``.

    Its name and identity are those that a raw file in the place of the image would have.
    """

    def __init__(
        self,
        path: str,
        chain: Chain,
        running: ImageExport,
        *,
        live: bool,
        unseen_processes: int,
    ) -> None:
        self.name = path
        self.unseen_processes = unseen_processes
        """Processes whose open files this user may not see: they may be writing."""
        self.remarks: tuple[str, ...] = ()
        """What else the operator should know of it, in predicates."""
        self._chain = chain
        self._export = running
        self._live = live
        self._closed = False
        self._read = 0  # bytes since pages were dropped; a lost count does no harm
        with ExitStack() as cleanup:
            for fd in running.fds:
                cleanup.callback(os.close, fd)
            self._disks = tuple(
                RawSource(path, fd, live=True, unseen_processes=0) for fd in running.fds
            )
            cleanup.pop_all()
        self._watches = tuple(
            QuietWatch(_subject(path, file, chain), file.path, file.fd) for file in chain.files
        )
        self.size = self._disks[0].size
        self.block_size = self._disks[0].block_size
        self.identity = self._disks[0].identity

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Runs of data and holes, as the image has them: clusters of zeros are holes."""
        return self._extents(self._disks[0].extents(offset, length), offset)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``, page cache of the host left alone."""
        length = len(buffer)
        disk = self._disks[offset // STRIPE % len(self._disks)]
        try:
            disk.read_into(buffer, offset)
        except SourceReadError as error:
            raise self._explained(error) from error
        if not self._live:
            self._refuse_shrunk(length, offset)
        self._read += length
        if self._read >= DROP_BEHIND:
            self._read = 0
            self._drop_pages()

    def still_quiet(self) -> None:
        """Check that nobody has written to any file of it; nothing to check when live."""
        if not self._live:
            for watch in self._watches:
                watch.check()

    def close(self) -> None:
        """Release the image and end what read it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for disk in self._disks:
            with suppress(OSError):  # of a daemon that is gone
                disk.close()
        self._export.close()
        self._drop_pages()
        self._chain.close()

    def _extents(self, extents: Iterator[Extent], offset: int) -> Iterator[Extent]:
        try:
            yield from extents
        except SourceReadError as error:
            raise self._explained(error) from error

    def _refuse_shrunk(self, length: int, offset: int) -> None:
        """Refuse what was read of a file that is shorter now: qemu puts zeros there."""
        for watch, file in zip(self._watches, self._chain.files, strict=True):
            size = watch.shrank_to()
            if size is not None:
                raise SourceReadError(
                    f"source {self.name}: reading {length} bytes at {offset} failed:"
                    f" {file.path} was cut short to {size} bytes while it was read"
                )

    def _explained(self, error: SourceReadError) -> SourceReadError:
        how = self._export.ended()
        if how is not None:
            return SourceReadError(
                f"{error}; {DAEMON} (pid {self._export.pid}), which read the image, is gone:"
                f" {how}. Run the same command again: it goes on where this one stopped"
            )
        top = self._chain.layers[0]
        return SourceReadError(
            f"{error}; the image or what it is stored on is damaged: see the kernel's log, and"
            f" qemu-img check -f {top.format.driver} {shlex.quote(top.file.path)}"
        )

    def _drop_pages(self) -> None:
        for file in self._chain.files:
            os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _subject(source: str, file: ImageFile, chain: Chain) -> str:
    if file is chain.layers[0].file:
        return f"source {source}"
    return f"source {source}: {file.path}, a part of it,"
