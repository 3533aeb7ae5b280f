"""What only a datastore of real files can get wrong: foreign files, locks, space, crashes."""

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from flatship_protocol.constants import PAGE_SIZE
from flatship_protocol.errors import DatastoreError, ErrorCode
from flatship_protocol.messages import Adapter, DiskFormat, Provisioning
from flatship_receiver import vmdk
from flatship_receiver.datastores import flat, local_image, publication, residency
from flatship_receiver.datastores.base import ImageRequest
from flatship_receiver.datastores.folder import Folder
from flatship_receiver.datastores.local import LocalDatastore
from flatship_receiver.datastores.local_image import LocalImage
from flatship_receiver.datastores.local_view import MAX_FILES, LocalView
from flatship_receiver.datastores.locks import lock
from flatship_receiver.descriptor_text import MAX_DESCRIPTOR_SIZE
from flatship_receiver.vmdk import Layout

MIB = 1 << 20
CAPACITY = 4 * MIB
THIN = Layout(DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 14)
REQUEST = ImageRequest("web", "web01", CAPACITY, THIN, replace=False)
REPLACE = replace(REQUEST, replace=True)
OWN_NAMES = [
    name + suffix
    for name in ("web01.vmdk", "web01-flat.vmdk", "web01-f001.vmdk")
    for suffix in ("", ".flatship-part")
] + [f"web01.vmdk.flatship-{suffix}" for suffix in ("proven", "replacing", "old")]


class Crash(BaseException):
    """Ends the process, as far as the code under test can tell."""


@pytest.fixture
def datastore(tmp_path: Path) -> Iterator[LocalDatastore]:
    datastore = LocalDatastore("here", str(tmp_path))
    yield datastore
    datastore.close()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    path = tmp_path / "mounted"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "--lazy", path], check=False, stderr=subprocess.DEVNULL)


def with_provisioning(provisioning: Provisioning) -> ImageRequest:
    return replace(REQUEST, layout=replace(THIN, provisioning=provisioning))


def with_format(request: ImageRequest, disk_format: DiskFormat) -> ImageRequest:
    return replace(request, layout=replace(request.layout, format=disk_format))


def descriptor_for(request: ImageRequest, number: int = 1) -> bytes:
    uuid = vmdk.make_uuid(number.to_bytes(16, "big"))
    return vmdk.build(request.disk, request.capacity, request.layout, uuid, bytes(16))


def make_disk(datastore: LocalDatastore, request: ImageRequest, fill: bytes) -> bytes:
    """Publish a disk full of one byte and return its descriptor."""
    image = datastore.create(request)
    image.write(0, memoryview(fill * request.capacity))
    descriptor = descriptor_for(request, fill[0])
    image.commit(descriptor)
    image.close()
    return descriptor


def refusal(attempt: Callable[[], object]) -> DatastoreError:
    with pytest.raises(DatastoreError) as caught:
        attempt()
    return caught.value


def refusals(datastore: LocalDatastore, request: ImageRequest) -> list[ErrorCode]:
    """What a dry run says, and what the real thing says."""
    return [
        refusal(lambda: datastore.check(request)).code,
        refusal(lambda: datastore.create(request)).code,
    ]


def allocated(path: Path) -> int:
    os.sync()
    return path.stat().st_blocks * 512


# Foreign files


@pytest.mark.parametrize("request_", [REQUEST, REPLACE])
@pytest.mark.parametrize("name", OWN_NAMES)
@pytest.mark.parametrize("kind", ["symlink", "hard link", "folder", "fifo"])
def test_foreign_file_under_any_of_our_names_is_refused_and_untouched(
    datastore: LocalDatastore, tmp_path: Path, name: str, kind: str, request_: ImageRequest
) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    planted = folder / name
    if kind == "symlink":
        planted.symlink_to(precious)
    elif kind == "hard link":
        planted.hardlink_to(precious)
    elif kind == "folder":
        planted.mkdir()
    else:
        os.mkfifo(planted)
    before = planted.lstat()
    assert refusals(datastore, request_) == [ErrorCode.FOREIGN_FILE] * 2
    assert str(planted) in str(refusal(lambda: datastore.create(request_)))
    assert os.listdir(folder) == [name]
    assert planted.lstat() == before
    assert precious.read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_foreign_entry_in_place_of_the_folder_is_refused(
    datastore: LocalDatastore, tmp_path: Path, kind: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "symlink":
        (tmp_path / "web").symlink_to(elsewhere)
    else:
        (tmp_path / "web").write_bytes(b"")
    assert refusals(datastore, REQUEST) == [ErrorCode.FOREIGN_FILE] * 2
    assert list(elsewhere.iterdir()) == []


def test_symlink_planted_while_the_disk_is_written_is_not_published_over(
    datastore: LocalDatastore, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    image = datastore.create(REQUEST)
    (tmp_path / "web/web01-flat.vmdk").symlink_to(precious)
    assert refusal(lambda: image.commit(descriptor_for(REQUEST))).code is ErrorCode.FOREIGN_FILE
    image.abort()
    assert os.listdir(tmp_path / "web") == ["web01-flat.vmdk"]
    assert precious.read_bytes() == b"mine"


def test_abort_leaves_a_file_that_took_our_name(datastore: LocalDatastore, tmp_path: Path) -> None:
    image = datastore.create(REQUEST)
    part = tmp_path / "web/web01-flat.vmdk.flatship-part"
    part.unlink()
    part.write_bytes(b"mine")
    image.abort()
    assert part.read_bytes() == b"mine"


def test_files_of_others_in_the_folder_stay(datastore: LocalDatastore, tmp_path: Path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    for name in ("web.vmx", "web01_1.vmdk", "web01-ctk.vmdk", "web010-flat.vmdk.flatship-part"):
        (folder / name).write_bytes(name.encode())
    datastore.create(REQUEST).abort()
    make_disk(datastore, REQUEST, b"x")
    for name in ("web.vmx", "web01_1.vmdk", "web01-ctk.vmdk", "web010-flat.vmdk.flatship-part"):
        assert (folder / name).read_bytes() == name.encode()


@pytest.mark.parametrize("target", ["precious", "nowhere"])
def test_file_is_neither_made_nor_opened_through_a_symlink(tmp_path: Path, target: str) -> None:
    """Who plants it between our look and our open must gain nothing."""
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "planted").symlink_to(target)
    folder = Folder.open(str(tmp_path))
    with pytest.raises(FileExistsError):
        folder.create_file("planted")
    with pytest.raises(FileExistsError):
        folder.create_file("precious")
    error = refusal(lambda: folder.open_file("planted", os.O_RDWR))
    assert error.code is ErrorCode.FOREIGN_FILE
    folder.close()
    assert sorted(os.listdir(tmp_path)) == ["planted", "precious"]


# Locks of hosts, and of other transfers


@pytest.mark.parametrize("name", [".lck-3409000000000000", "web01.vmdk.lck"])
def test_disk_that_a_host_holds_open_is_refused(
    datastore: LocalDatastore, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / name).write_bytes(b"")
    for request in (REQUEST, REPLACE):
        assert refusals(datastore, request) == [ErrorCode.DISK_LOCKED] * 2
    assert os.listdir(folder) == [name]


def test_host_that_opens_the_old_disk_meanwhile_keeps_it(
    datastore: LocalDatastore, tmp_path: Path
) -> None:
    old = make_disk(datastore, REQUEST, b"o")
    image = datastore.create(REPLACE)
    (tmp_path / "web/.lck-01").write_bytes(b"")
    assert refusal(lambda: image.commit(descriptor_for(REPLACE))).code is ErrorCode.DISK_LOCKED
    image.abort()
    assert sorted(os.listdir(tmp_path / "web")) == [".lck-01", "web01-flat.vmdk", "web01.vmdk"]
    assert (tmp_path / "web/web01.vmdk").read_bytes() == old
    assert (tmp_path / "web/web01-flat.vmdk").read_bytes() == b"o" * CAPACITY


def test_disk_that_another_process_writes_is_busy(
    datastore: LocalDatastore, tmp_path: Path
) -> None:
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'w+'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print(flush=True); sys.stdin.read()"
    )
    part = tmp_path / "web/web01.vmdk.flatship-part"
    part.parent.mkdir()
    command = [sys.executable, "-c", script, str(part)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert refusals(datastore, REQUEST) == [ErrorCode.DISK_BUSY] * 2
        assert part.exists()
        holder.communicate()
    datastore.create(REQUEST).abort()


def test_two_datastores_on_one_path_do_not_write_the_same_disk(
    datastore: LocalDatastore, tmp_path: Path
) -> None:
    image = datastore.create(REQUEST)
    other = LocalDatastore("again", str(tmp_path))
    assert refusal(lambda: other.create(REQUEST)).code is ErrorCode.DISK_BUSY
    split = with_format(REQUEST, DiskFormat.TWO_GB_MAX_EXTENT_FLAT)
    assert refusal(lambda: other.create(split)).code is ErrorCode.DISK_BUSY
    other.close()
    image.abort()


def test_lock_on_a_file_that_was_replaced_meanwhile_is_none(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    removed = folder.create_file("lock")
    folder.unlink("lock")
    assert refusal(lambda: lock(folder, "lock", removed)).code is ErrorCode.DISK_BUSY
    successor = folder.create_file("lock")
    assert refusal(lambda: lock(folder, "lock", removed)).code is ErrorCode.DISK_BUSY
    lock(folder, "lock", successor)
    for fd in (removed, successor):
        os.close(fd)
    folder.close()


# What exists, and what an earlier attempt left


@pytest.mark.parametrize("name", ["web01.vmdk", "web01-flat.vmdk", "web01-f001.vmdk"])
def test_any_file_of_a_disk_counts_as_the_disk(
    datastore: LocalDatastore, tmp_path: Path, name: str
) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / name).write_bytes(b"")
    assert refusals(datastore, REQUEST) == [ErrorCode.DISK_EXISTS] * 2
    assert os.listdir(tmp_path / "web") == [name]


def test_disk_made_meanwhile_is_not_replaced(datastore: LocalDatastore, tmp_path: Path) -> None:
    image = datastore.create(REQUEST)
    (tmp_path / "web/web01.vmdk").write_bytes(b"by hand")
    assert refusal(lambda: image.commit(descriptor_for(REQUEST))).code is ErrorCode.DISK_EXISTS
    image.abort()
    assert (tmp_path / "web/web01.vmdk").read_bytes() == b"by hand"


def test_what_is_no_flat_disk_cannot_be_replaced(datastore: LocalDatastore, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    sparse = tmp_path / "web/web01.vmdk"
    sparse.write_bytes(b"KDMV" + bytes(100_000))
    assert refusals(datastore, REPLACE) == [ErrorCode.FOREIGN_FILE] * 2
    assert sparse.read_bytes() == b"KDMV" + bytes(100_000)


SNAPSHOTS = ["web01-000001.vmdk", "web01-000012-delta.vmdk", "web01-000001-sesparse.vmdk"]


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_disk_with_snapshots_is_not_replaced(
    datastore: LocalDatastore, tmp_path: Path, name: str
) -> None:
    old = make_disk(datastore, REQUEST, b"o")
    image = datastore.create(REPLACE)
    snapshot = tmp_path / "web" / name
    snapshot.write_bytes(b"")
    error = refusal(lambda: image.commit(descriptor_for(REPLACE, 2)))
    assert error.code is ErrorCode.FOREIGN_FILE
    assert name in str(error)
    assert "consolidate" in str(error)
    image.abort()
    assert refusals(datastore, REPLACE) == [ErrorCode.FOREIGN_FILE] * 2
    assert check_whole(tmp_path / "web", old, descriptor_for(REPLACE, 2)) == "old"
    snapshot.unlink()
    datastore.create(REPLACE).abort()


def test_files_like_snapshots_of_other_disks_do_not_keep_a_disk(
    datastore: LocalDatastore, tmp_path: Path
) -> None:
    make_disk(datastore, REQUEST, b"o")
    for name in ("web010-000001.vmdk", "web01-202401-data.vmdk", "web01_1-000001.vmdk"):
        (tmp_path / "web" / name).write_bytes(b"")
    make_disk(datastore, REPLACE, b"n")


def test_leftovers_of_every_format_are_replaced(datastore: LocalDatastore, tmp_path: Path) -> None:
    datastore.create(with_format(REQUEST, DiskFormat.TWO_GB_MAX_EXTENT_FLAT)).close()
    datastore.create(REQUEST).close()
    assert sorted(os.listdir(tmp_path / "web")) == [
        "web01-flat.vmdk.flatship-part",
        "web01.vmdk.flatship-part",
    ]


def test_aborted_image_takes_the_folder_it_made_with_it(
    datastore: LocalDatastore, tmp_path: Path
) -> None:
    datastore.create(REQUEST).abort()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "web").mkdir()
    datastore.create(REQUEST).abort()
    assert list(tmp_path.iterdir()) == [tmp_path / "web"]


def test_descriptor_of_another_shape_is_not_published(datastore: LocalDatastore) -> None:
    image = datastore.create(REQUEST)
    with pytest.raises(ValueError, match="does not describe"):
        image.commit(descriptor_for(replace(REQUEST, capacity=CAPACITY + MIB)))
    image.abort()


# Provisioning


def test_thin_disk_takes_no_space_until_written_and_gives_it_back(
    datastore: LocalDatastore, tmp_path: Path
) -> None:
    image = datastore.create(REQUEST)
    part = tmp_path / "web/web01-flat.vmdk.flatship-part"
    image.zero(0, CAPACITY)
    image.flush()
    assert allocated(part) == 0
    image.write(MIB, memoryview(b"x" * MIB))
    image.flush()
    assert allocated(part) >= MIB
    image.zero(0, CAPACITY)
    image.flush()
    assert allocated(part) == 0
    assert part.stat().st_size == CAPACITY
    image.abort()


def test_holes_are_not_read_from_the_medium(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[tuple[int, int], None] = {}  # once each, in whatever ways it was tried

    def noting(fd: int, buffer: memoryview, offset: int, flags: int = 0) -> None:
        read[offset, len(buffer)] = None
        read_all(fd, buffer, offset, flags)

    read_all = flat.read_all
    monkeypatch.setattr(flat, "read_all", noting)
    image = datastore.create(REQUEST)
    page = memoryview(b"\x5a" * PAGE_SIZE)
    image.write(3 * PAGE_SIZE, page)
    image.flush()
    found = memoryview(mmap.mmap(-1, MIB))
    found[:] = b"\xff" * MIB
    image.read_into(found, 0)
    after = MIB - 4 * PAGE_SIZE
    assert bytes(found) == bytes(3 * PAGE_SIZE) + page.tobytes() + bytes(after)
    assert list(read) == [(3 * PAGE_SIZE, PAGE_SIZE)]
    image.write(0, memoryview(b"\x5a" * MIB))
    image.zero(0, 2 * PAGE_SIZE)
    image.flush()
    image.read_into(found, 0)
    assert bytes(found) == bytes(2 * PAGE_SIZE) + b"\x5a" * (MIB - 2 * PAGE_SIZE)
    assert list(read)[1:] == [(2 * PAGE_SIZE, MIB - 2 * PAGE_SIZE)]
    image.abort()


@pytest.mark.parametrize("provisioning", [Provisioning.THICK, Provisioning.EAGER])
def test_thick_disk_has_its_space_from_the_start_and_keeps_it(
    datastore: LocalDatastore, tmp_path: Path, provisioning: Provisioning
) -> None:
    image = datastore.create(with_provisioning(provisioning))
    part = tmp_path / "web/web01-flat.vmdk.flatship-part"
    assert allocated(part) >= CAPACITY
    image.write(MIB, memoryview(b"x" * MIB))
    image.zero(0, CAPACITY)
    image.flush()
    assert allocated(part) >= CAPACITY
    assert not any(part.read_bytes())
    image.abort()


def test_only_eager_writes_zeros_where_nothing_was_written(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[Provisioning, int] = {}
    pwrite = os.pwrite

    def counting(fd: int, data: memoryview, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("-flat.vmdk.flatship-part"):
            written[provisioning] += len(data)
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", counting)
    for provisioning in Provisioning:
        written[provisioning] = 0
        image = datastore.create(with_provisioning(provisioning))
        image.zero(512, CAPACITY - 512)
        image.abort()
    assert written == {
        Provisioning.THIN: 0,
        Provisioning.THICK: 0,
        Provisioning.EAGER: CAPACITY - 512,
    }


def test_zeros_are_written_where_no_hole_can_be_punched(
    datastore: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_supported(fd: int, mode: int, offset: int, length: int) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(flat, "_fallocate", not_supported)
    image = datastore.create(REQUEST)
    image.write(0, memoryview(b"x" * 2 * MIB))
    image.zero(512, MIB)
    part = tmp_path / "web/web01-flat.vmdk.flatship-part"
    assert part.read_bytes()[: 2 * MIB] == b"x" * 512 + bytes(MIB) + b"x" * (MIB - 512)
    image.abort()


def test_allocation_of_one_disk_holds_up_no_other(
    datastore: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(fd: int, offset: int, length: int) -> None:
        entered.set()
        assert release.wait(60)
        os.ftruncate(fd, length)

    def use_others() -> None:
        datastore.check(replace(REQUEST, disk="web02"))
        datastore.create(replace(REQUEST, disk="web02")).abort()
        datastore.create(replace(REQUEST, vm="mail")).abort()
        assert refusals(datastore, REQUEST) == [ErrorCode.DISK_BUSY] * 2

    monkeypatch.setattr(os, "posix_fallocate", slow)
    with ThreadPoolExecutor(2) as pool:
        try:
            slow_one = pool.submit(datastore.create, with_provisioning(Provisioning.THICK))
            assert entered.wait(10)
            pool.submit(use_others).result(timeout=10)
        finally:
            release.set()
        slow_one.result().abort()
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_continued(
    datastore: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:100_000], offset))
    image = datastore.create(REQUEST)
    data = os.urandom(MIB)
    image.write(MIB, memoryview(data))
    part = tmp_path / "web/web01-flat.vmdk.flatship-part"
    assert part.read_bytes()[MIB : 2 * MIB] == data
    image.abort()


# Space, and places that went away


def test_full_file_system_is_reported_with_numbers(mounted: Path) -> None:
    datastore = LocalDatastore("small", str(mounted))
    image = datastore.create(replace(REQUEST, capacity=16 * MIB))

    def fill() -> None:
        for offset in range(0, 16 * MIB, MIB):
            image.write(offset, memoryview(b"x" * MIB))

    error = refusal(fill)
    assert error.code is ErrorCode.DATASTORE_FULL
    assert error.numbers[0] == MIB
    assert 0 <= error.numbers[1] < MIB
    assert str(mounted) in str(error)
    image.abort()
    assert datastore.space().free > 7 * MIB
    datastore.close()


def test_thick_disk_that_does_not_fit_leaves_nothing(mounted: Path) -> None:
    datastore = LocalDatastore("small", str(mounted))
    request = replace(with_provisioning(Provisioning.THICK), capacity=16 * MIB)
    error = refusal(lambda: datastore.create(request))
    assert (error.code, error.numbers[0]) == (ErrorCode.DATASTORE_FULL, 16 * MIB)
    assert list(mounted.iterdir()) == []
    datastore.close()


def test_allocation_that_fails_halfway_leaves_nothing(
    datastore: LocalDatastore, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CAPACITY - 1, hard))
    try:
        error = refusal(lambda: datastore.create(with_provisioning(Provisioning.THICK)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.code is ErrorCode.SIZE_REFUSED
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder_exists", [True, False])
def test_read_only_file_system_is_reported(mounted: Path, folder_exists: bool) -> None:
    if folder_exists:
        (mounted / "web").mkdir()
    datastore = LocalDatastore("frozen", str(mounted))
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    assert refusals(datastore, REQUEST) == [ErrorCode.DATASTORE_READ_ONLY] * 2
    assert str(mounted) in str(refusal(lambda: datastore.create(REQUEST)))
    datastore.close()


def test_too_few_descriptors_for_a_split_disk_is_reported_and_leaves_nothing(
    datastore: LocalDatastore, tmp_path: Path
) -> None:
    request = with_format(replace(REQUEST, capacity=1 << 39), DiskFormat.TWO_GB_MAX_EXTENT_FLAT)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        error = refusal(lambda: datastore.create(request))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "LimitNOFILE" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_missing_path_is_reported(tmp_path: Path) -> None:
    error = refusal(lambda: LocalDatastore("gone", str(tmp_path / "gone")))
    assert error.code is ErrorCode.DATASTORE_MISSING


def test_unmounted_file_system_is_not_mistaken_for_its_mount_point(mounted: Path) -> None:
    datastore = LocalDatastore("gone", str(mounted))
    subprocess.run(["umount", "--lazy", mounted], check=True)
    assert refusals(datastore, REQUEST) == [ErrorCode.DATASTORE_MISSING] * 2
    assert refusal(datastore.space).code is ErrorCode.DATASTORE_MISSING
    assert refusal(datastore.recover).code is ErrorCode.DATASTORE_MISSING
    assert list(mounted.iterdir()) == []
    datastore.close()


# Durability


def fail_with(number: int) -> Callable[..., Any]:
    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return failing


def test_failed_flush_is_never_tried_again(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = datastore.create(REQUEST)
    image.write(0, memoryview(b"x" * MIB))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail_with(errno.EIO))
        assert refusal(image.flush).code is ErrorCode.WRITE_FAILED
    for attempt in (
        image.flush,
        lambda: image.write(0, memoryview(b"x")),
        lambda: image.zero(0, MIB),
        lambda: image.read_into(memoryview(bytearray(4096)), 0),
        lambda: list(image.extents()),
        lambda: image.commit(descriptor_for(REQUEST)),
    ):
        assert refusal(attempt).code is ErrorCode.WRITE_FAILED
    image.abort()


def test_failed_flush_is_final_although_the_free_space_is_unknown(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = datastore.create(REQUEST)
    image.write(0, memoryview(b"x" * MIB))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail_with(errno.ESTALE))
        patch.setattr(os, "fstatvfs", fail_with(errno.ESTALE))
        assert refusal(image.flush).code is ErrorCode.DATASTORE_MISSING
    assert refusal(image.flush).code is ErrorCode.WRITE_FAILED
    image.abort()


@pytest.mark.parametrize("end", [LocalImage.close, LocalImage.abort])
@pytest.mark.parametrize("failing", ["close", "stat", "unlink"])
def test_image_lets_go_of_everything_whatever_fails(
    datastore: LocalDatastore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[LocalImage], None],
    failing: str,
) -> None:
    before = os.listdir("/proc/self/fd")
    image = datastore.create(with_format(REQUEST, DiskFormat.TWO_GB_MAX_EXTENT_FLAT))
    close = os.close

    def close_and_fail(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        failure = close_and_fail if failing == "close" else fail_stale
        patch.setattr(os, failing, failure)
        end(image)
        end(image)
    assert os.listdir("/proc/self/fd") == before
    datastore.create(REQUEST).abort()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def fail_stale(*_: object, **__: object) -> None:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@pytest.mark.parametrize("failing", ["stat", "unlink"])
def test_abort_removes_what_can_be_removed(
    datastore: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    image = datastore.create(REQUEST)
    call = getattr(os, failing)

    def fail_at_the_extent(path: str, **how: Any) -> object:
        if path == "web01-flat.vmdk.flatship-part":
            fail_stale()
        return call(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail_at_the_extent)
        image.abort()
    assert os.listdir(tmp_path / "web") == ["web01-flat.vmdk.flatship-part"]


def test_interrupted_abort_leaves_nothing_open(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.listdir("/proc/self/fd")
    image = datastore.create(REQUEST)
    with monkeypatch.context() as patch:
        Recorder(patch, crash_at=0)
        with pytest.raises(Crash):
            image.abort()
    assert os.listdir("/proc/self/fd") == before


def test_extent_that_cannot_be_made_leaves_nothing_open(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", fail_with(errno.ESTALE))
        patch.setattr(os, "unlink", fail_stale)
        assert refusal(lambda: datastore.create(REQUEST)).code is ErrorCode.DATASTORE_MISSING
    assert os.listdir("/proc/self/fd") == before
    datastore.create(REQUEST).abort()


def test_failed_write_is_reported_and_not_final(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = datastore.create(REQUEST)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail_with(errno.ENOSPC))
        error = refusal(lambda: image.write(0, memoryview(b"x" * MIB)))
    assert (error.code, error.numbers[0]) == (ErrorCode.DATASTORE_FULL, MIB)
    image.write(0, memoryview(b"x" * MIB))
    image.flush()
    image.abort()


def test_flush_syncs_exactly_what_was_written_since(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    image = datastore.create(REQUEST)
    counts = []
    for length, zeros in ((0, 0), (1, 0), (0, 0), (0, MIB)):
        image.write(0, memoryview(bytes(length)))
        image.zero(0, zeros)
        image.zero(MIB, MIB)  # never written: nothing to sync
        image.flush()
        counts.append(len(synced))
    assert counts == [0, 1, 1, 2]
    image.abort()


class Interleaving:
    """Runs something else before the n-th bytecode that a call executes in ``flat.py``.

    ``reached`` says whether the call had so many.
    """

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self._left = step
        self._action = action
        self.reached = False

    def run(self, call: Callable[[], None]) -> None:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            call()
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != flat.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if self._left == 0:
                self.reached = True
                self._action()  # not traced: the interpreter sees to that
            self._left -= 1
        return self._trace


@pytest.mark.parametrize("during", ["write", "zero of nothing", "zero of data", "flush"])
@pytest.mark.parametrize("meanwhile", ["write", "flush"])
def test_nothing_written_escapes_the_next_flush_however_calls_interleave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str, meanwhile: str
) -> None:
    unsynced: list[int] = []
    pwrite, fdatasync = os.pwrite, os.fdatasync

    def recording_pwrite(fd: int, data: memoryview, offset: int) -> int:
        count = pwrite(fd, data, offset)
        unsynced.append(offset)
        return count

    def recording_fdatasync(fd: int) -> None:
        unsynced.clear()
        fdatasync(fd)

    def no_holes(fd: int, mode: int, offset: int, length: int) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    monkeypatch.setattr(os, "pwrite", recording_pwrite)
    monkeypatch.setattr(os, "fdatasync", recording_fdatasync)
    monkeypatch.setattr(flat, "_fallocate", no_holes)  # zeros are written, so they are recorded
    folder = Folder.open(str(tmp_path))
    extent = flat.FlatExtent.create(folder, "extent", CAPACITY, Provisioning.THIN)
    block = memoryview(bytes(512))
    calls: dict[str, Callable[[], None]] = {
        "write": lambda: extent.write(0, block),
        "zero of nothing": lambda: extent.zero(2 * MIB, MIB),
        "zero of data": lambda: extent.zero(0, 512),
        "flush": extent.flush,
    }
    step, reached = 0, True
    while reached:
        extent.write(0, block)
        if during != "flush":
            extent.flush()
        interleaving = Interleaving(step, calls[meanwhile])
        interleaving.run(calls[during])
        extent.flush()
        assert unsynced == [], f"at step {step} of {during}"
        step, reached = step + 1, interleaving.reached
    assert step > 5
    extent.close()
    folder.close()


def test_second_flush_waits_for_the_one_under_way(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        entered.set()
        assert release.wait(10)

    monkeypatch.setattr(os, "fdatasync", slow)
    image = datastore.create(REQUEST)
    image.write(0, memoryview(b"x"))
    order: list[str] = []

    def flush(name: str) -> None:
        image.flush()
        order.append(name)

    first = threading.Thread(target=flush, args=["first"])
    second = threading.Thread(target=flush, args=["second"])
    first.start()
    assert entered.wait(10)
    second.start()
    second.join(0.1)
    assert order == []  # the second has nothing of its own to sync, and still must not return
    release.set()
    first.join()
    second.join()
    assert sorted(order) == ["first", "second"]
    image.abort()


def test_close_waits_for_a_write_under_way(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release = threading.Event(), threading.Event()
    pwrite = os.pwrite

    def slow(fd: int, data: memoryview, offset: int) -> int:
        entered.set()
        assert release.wait(10)
        return pwrite(fd, data, offset)  # fails if the file was closed meanwhile

    image = datastore.create(REQUEST)
    monkeypatch.setattr(os, "pwrite", slow)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            image.write(0, memoryview(b"x"))
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    assert entered.wait(10)
    closer = threading.Thread(target=image.close)
    closer.start()
    closer.join(0.1)
    release.set()
    writer.join()
    closer.join()
    assert failures == []


@pytest.mark.parametrize("flushed", [True, False])
@pytest.mark.parametrize("vouched", ["as it is", "some are cached", "nobody can say"])
def test_read_goes_round_the_cache(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch, flushed: bool, vouched: str
) -> None:
    reads = []
    preadv = os.preadv

    def recording(fd: int, buffers: list[memoryview], offset: int, *flags: int) -> int:
        direct = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
        reads.append("direct" if direct else residency.cached_pages(fd, offset, MIB))
        return preadv(fd, buffers, offset, *flags)

    answers = {"some are cached": 3, "nobody can say": None}
    if vouched in answers:
        monkeypatch.setattr(flat, "cached_pages", lambda *_: answers[vouched])
    image = datastore.create(REQUEST)
    data = os.urandom(MIB)
    image.write(0, memoryview(data))
    if flushed:
        image.flush()
    monkeypatch.setattr(os, "preadv", recording)
    buffer = memoryview(mmap.mmap(-1, MIB))
    image.read_into(buffer, 0)
    assert buffer == data
    assert reads
    if vouched == "as it is":
        assert set(reads) <= {"direct", 0}
    else:
        assert set(reads) == {"direct"}
    image.abort()


def test_what_is_cached_is_counted_and_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * PAGE_SIZE))
    with path.open("r+b") as file:
        counted = residency.cached_pages(file.fileno(), PAGE_SIZE, 2 * PAGE_SIZE)
        if counted is None:
            pytest.skip("this kernel has no cachestat(2)")
        assert counted == 2
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert residency.cached_pages(file.fileno(), PAGE_SIZE, 2 * PAGE_SIZE) == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        residency.cached_pages(file_closed(path), 0, PAGE_SIZE)


def file_closed(path: Path) -> int:
    """A descriptor that was open and is not."""
    fd = os.open(path, os.O_RDONLY)
    os.close(fd)
    return fd


def test_read_without_direct_access_syncs_and_drops_the_cache_first(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat, "_open_direct", lambda *_: -1)
    image = datastore.create(REQUEST)
    data = os.urandom(MIB)
    image.write(MIB, memoryview(data))
    steps: list[str] = []

    def record(name: str) -> None:
        call = getattr(os, name)

        def recording(*args: object) -> object:
            steps.append(name)
            return call(*args)

        monkeypatch.setattr(os, name, recording)

    for name in ("fdatasync", "posix_fadvise", "preadv"):
        record(name)
    with mmap.mmap(-1, MIB) as buffer, memoryview(buffer) as view:
        image.read_into(view, MIB)
        assert view == data
    assert (steps[0], set(steps[1:-1]), steps[-1]) == ("fdatasync", {"posix_fadvise"}, "preadv")
    image.abort()


def test_read_of_a_truncated_extent_fails(datastore: LocalDatastore, tmp_path: Path) -> None:
    image = datastore.create(REQUEST)
    os.truncate(tmp_path / "web/web01-flat.vmdk.flatship-part", MIB)
    buffer = memoryview(mmap.mmap(-1, MIB))
    assert refusal(lambda: image.read_into(buffer, MIB)).code is ErrorCode.WRITE_FAILED
    image.abort()


class Recorder:
    """Counts the steps that change a folder, and crashes before a given one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, crash_at: int | None = None) -> None:
        self.steps: list[str] = []
        self._crash_at = crash_at
        for name in ("rename", "sync", "unlink"):
            monkeypatch.setattr(Folder, name, self._wrap(name, getattr(Folder, name)))
        fsync = os.fsync

        def recording_fsync(fd: int) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            if not os.path.isdir(path):
                self._step(f"fsync {os.path.basename(path)}")
            fsync(fd)

        monkeypatch.setattr(os, "fsync", recording_fsync)

    def _wrap(self, name: str, original: Callable[..., None]) -> Callable[..., None]:
        def step(folder: Folder, *names: str) -> None:
            self._step(" ".join([name, *names]))
            original(folder, *names)

        return step

    def _step(self, text: str) -> None:
        if len(self.steps) == self._crash_at:
            raise Crash(text)
        self.steps.append(text)


def test_publication_is_the_promised_list_of_steps(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_disk(datastore, with_format(REQUEST, DiskFormat.TWO_GB_MAX_EXTENT_FLAT), b"o")
    image = datastore.create(REPLACE)
    recorder = Recorder(monkeypatch)
    image.commit(descriptor_for(REPLACE))
    image.close()
    assert recorder.steps == [
        "fsync web01-flat.vmdk.flatship-part",
        "fsync web01.vmdk.flatship-part",  # whole, and the image's name behind it
        "fsync web01.vmdk.flatship-part",  # of its own length
        "rename web01.vmdk.flatship-part web01.vmdk.flatship-replacing",
        "sync",
        "rename web01.vmdk web01.vmdk.flatship-old",
        "sync",
        "rename web01-flat.vmdk.flatship-part web01-flat.vmdk",
        "sync",
        "rename web01.vmdk.flatship-replacing web01.vmdk",
        "sync",
        "unlink web01-f001.vmdk",
        "unlink web01.vmdk.flatship-old",
        "sync",
    ]


def test_files_are_durable_when_an_image_is_created(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    datastore.create(REQUEST).close()
    extent, lock_file = "web01-flat.vmdk.flatship-part", "web01.vmdk.flatship-part"
    assert recorder.steps == ["sync", f"fsync {extent}", "sync", f"fsync {lock_file}"]


@pytest.mark.parametrize("damage", ["an extent is gone", "an extent is short", "torn", "foreign"])
def test_an_image_that_is_not_whole_is_not_resumed(
    datastore: LocalDatastore, tmp_path: Path, damage: str
) -> None:
    image = datastore.create(REQUEST)
    image.write(0, memoryview(b"x" * MIB))
    image.flush()
    image.close()
    extent = tmp_path / "web/web01-flat.vmdk.flatship-part"
    lock_file = tmp_path / "web/web01.vmdk.flatship-part"
    if damage == "an extent is gone":
        extent.unlink()
    elif damage == "an extent is short":
        os.truncate(extent, CAPACITY - MIB)
    else:
        lock_file.write_bytes(b"flatship image 00" if damage == "torn" else b"\xff hello")
    before = sorted(os.listdir(tmp_path / "web"))
    assert datastore.resume(REQUEST) is None
    assert sorted(os.listdir(tmp_path / "web")) == before
    datastore.create(REQUEST).abort()


def _crash(*_: object, **__: object) -> None:
    raise Crash("before the decision")


def test_an_image_whose_descriptor_was_written_already_is_resumed(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = vmdk.make_uuid(bytes(16))
    request = replace(REQUEST, uuid=uuid)
    image = datastore.create(request)
    image.write(0, memoryview(b"x" * MIB))
    text = vmdk.build(request.disk, request.capacity, request.layout, uuid, bytes(16))
    with monkeypatch.context() as crashing:
        crashing.setattr(publication, "decide", _crash)
        with pytest.raises(Crash):
            image.commit(text)
    image.close()
    again = datastore.resume(request)
    assert again is not None
    again.commit(text)
    assert datastore.descriptor(request.vm, request.disk) == text


VMFS, SPLIT = DiskFormat.VMFS, DiskFormat.TWO_GB_MAX_EXTENT_FLAT


@pytest.mark.parametrize(
    ("old_format", "new_format"),
    [(None, VMFS), (None, SPLIT), (VMFS, VMFS), (VMFS, SPLIT), (SPLIT, VMFS), (SPLIT, SPLIT)],
)
def test_crash_at_any_step_of_a_commit_leaves_the_old_disk_or_the_new_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    old_format: DiskFormat | None,
    new_format: DiskFormat,
) -> None:
    outcomes = []
    for crash_at in range(30):
        path = tmp_path / str(crash_at)
        path.mkdir()
        datastore = LocalDatastore("here", str(path))
        old = None
        if old_format is not None:
            old = make_disk(datastore, with_format(REQUEST, old_format), b"o")
        request = with_format(replace(REQUEST, replace=old is not None), new_format)
        image = datastore.create(request)
        image.write(0, memoryview(b"n" * CAPACITY))
        new = descriptor_for(request)
        crashed = False
        with monkeypatch.context() as patch:
            Recorder(patch, crash_at)
            try:
                image.commit(new)
            except Crash:
                crashed = True
        image.close()
        check_whole(path / "web", old, new, before_recovery=True)
        recovery = LocalDatastore("here", str(path)).recover()
        assert recovery.failed == ()
        outcomes.append(check_whole(path / "web", old, new))
        if outcomes[-1] == "new":
            assert list_but_disk(path / "web", new) == []
        if not crashed:
            break
    assert not crashed
    assert outcomes == sorted(outcomes, reverse=True)  # "old" until the decision, then "new"
    assert set(outcomes) == {"old", "new"}


def list_but_disk(folder: Path, descriptor: bytes) -> list[str]:
    extents = {line.file for line in vmdk.parse(descriptor).extents}
    return sorted(set(os.listdir(folder)) - extents - {"web01.vmdk"})


def check_whole(
    folder: Path, old: bytes | None, new: bytes, *, before_recovery: bool = False
) -> str:
    """Whatever has the descriptor's name describes exactly its own bytes."""
    descriptor = folder / "web01.vmdk"
    if not descriptor.exists():
        assert before_recovery or old is None
        return "old"
    text = descriptor.read_bytes()
    assert text in (old, new)
    fill = b"o" if text == old else b"n"
    for line in vmdk.parse(text).extents:
        assert (folder / line.file).read_bytes() == fill * (line.sectors * 512)
    return "new" if text == new else "old"


def test_crash_during_recovery_is_recovered_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for crash_at in range(20):
        path = tmp_path / str(crash_at)
        path.mkdir()
        datastore = LocalDatastore("here", str(path))
        old = make_disk(datastore, with_format(REQUEST, SPLIT), b"o")
        interrupt_commit(datastore, REPLACE, monkeypatch)
        crashed = False
        with monkeypatch.context() as patch:
            Recorder(patch, crash_at)
            try:
                datastore.recover()
            except Crash:
                crashed = True
        new = descriptor_for(REPLACE)
        check_whole(path / "web", old, new, before_recovery=True)
        datastore.recover()
        assert check_whole(path / "web", old, new) == "new"
        assert list_but_disk(path / "web", new) == []
        datastore.close()
        if not crashed:
            break
    assert crash_at == 9


def interrupt_commit(
    datastore: LocalDatastore, request: ImageRequest, monkeypatch: pytest.MonkeyPatch
) -> LocalImage:
    """Crash right after the decision. The image is left as the dead process would leave it."""
    image = datastore.create(request)
    image.write(0, memoryview(b"n" * CAPACITY))
    with monkeypatch.context() as patch:
        Recorder(patch, crash_at=4)
        with pytest.raises(Crash):
            image.commit(descriptor_for(request))
    image.abort()
    return image


def test_abort_after_the_decision_removes_nothing(
    datastore: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_commit(datastore, REQUEST, monkeypatch)
    assert sorted(os.listdir(tmp_path / "web")) == [
        "web01-flat.vmdk.flatship-part",
        "web01.vmdk.flatship-proven",
    ]
    assert datastore.recover().finished == (("web", "web01"),)
    assert (tmp_path / "web/web01-flat.vmdk").read_bytes() == b"n" * CAPACITY


def test_create_finishes_an_interrupted_commit_first(
    datastore: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_commit(datastore, REQUEST, monkeypatch)
    assert refusal(lambda: datastore.check(REQUEST)).code is ErrorCode.DISK_EXISTS
    assert refusal(lambda: datastore.create(REQUEST)).code is ErrorCode.DISK_EXISTS
    assert (tmp_path / "web/web01.vmdk").read_bytes() == descriptor_for(REQUEST)
    datastore.create(REPLACE).abort()


def test_recovery_leaves_a_disk_that_was_made_meanwhile(
    datastore: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_commit(datastore, REQUEST, monkeypatch)
    interrupt_commit(datastore, replace(REQUEST, disk="web02"), monkeypatch)
    (tmp_path / "web/web01-flat.vmdk").write_bytes(b"by hand")
    recovery = datastore.recover()
    assert recovery.finished == (("web", "web02"),)
    assert [error.code for error in recovery.failed] == [ErrorCode.DISK_EXISTS]
    assert (tmp_path / "web/web01-flat.vmdk").read_bytes() == b"by hand"
    assert (tmp_path / "web/web01.vmdk.flatship-proven").exists()


def test_recovery_waits_for_a_host_that_has_the_old_disk_open(
    datastore: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_disk(datastore, REQUEST, b"o")
    interrupt_commit(datastore, REPLACE, monkeypatch)
    lock = tmp_path / "web/.lck-01"
    lock.write_bytes(b"")
    assert [error.code for error in datastore.recover().failed] == [ErrorCode.DISK_LOCKED]
    assert check_whole(tmp_path / "web", old, descriptor_for(REPLACE)) == "old"
    lock.unlink()
    assert datastore.recover().finished == (("web", "web01"),)
    assert check_whole(tmp_path / "web", old, descriptor_for(REPLACE)) == "new"


def test_recovery_waits_for_snapshots_of_the_old_disk_to_be_consolidated(
    datastore: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_disk(datastore, REQUEST, b"o")
    interrupt_commit(datastore, REPLACE, monkeypatch)
    snapshot = tmp_path / "web/web01-000001.vmdk"
    snapshot.write_bytes(b"")
    assert [error.code for error in datastore.recover().failed] == [ErrorCode.FOREIGN_FILE]
    assert check_whole(tmp_path / "web", old, descriptor_for(REPLACE)) == "old"
    snapshot.unlink()
    assert datastore.recover().finished == (("web", "web01"),)


def test_descriptor_that_cannot_be_read_is_reported(
    datastore: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def code() -> ErrorCode:
        return refusal(lambda: datastore.descriptor("web", "web01")).code

    make_disk(datastore, REQUEST, b"o")
    path = tmp_path / "web/web01.vmdk"
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read_file", fail_with(errno.EIO))
        assert code() is ErrorCode.WRITE_FAILED
    path.write_bytes(b"x" * MAX_DESCRIPTOR_SIZE)
    assert datastore.descriptor("web", "web01") == b"x" * MAX_DESCRIPTOR_SIZE
    path.write_bytes(b"x" * (MAX_DESCRIPTOR_SIZE + 1))
    assert code() is ErrorCode.FOREIGN_FILE
    path.unlink()
    path.symlink_to("elsewhere")
    assert code() is ErrorCode.FOREIGN_FILE
    tmp_path.rename(tmp_path.with_name("moved"))
    assert code() is ErrorCode.DATASTORE_MISSING
    tmp_path.with_name("moved").rename(tmp_path)


def test_recovery_does_not_take_over_a_commit_under_way(
    datastore: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = datastore.create(REQUEST)
    with monkeypatch.context() as patch:
        Recorder(patch, crash_at=4)
        with pytest.raises(Crash):
            image.commit(descriptor_for(REQUEST))
    assert [error.code for error in datastore.recover().failed] == [ErrorCode.DISK_BUSY]
    image.close()
    assert datastore.recover().finished == (("web", "web01"),)


def test_recovery_moves_only_files_of_the_disk(datastore: LocalDatastore, tmp_path: Path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    (tmp_path / "precious.flatship-part").write_bytes(b"mine")
    text = descriptor_for(REQUEST).replace(b"web01-flat.vmdk", b"../precious")
    (folder / "web01.vmdk.flatship-proven").write_bytes(text)
    assert [error.code for error in datastore.recover().failed] == [ErrorCode.FOREIGN_FILE]
    assert (tmp_path / "precious.flatship-part").read_bytes() == b"mine"


def test_replaced_disk_keeps_extents_that_are_not_its_own(
    datastore: LocalDatastore, tmp_path: Path
) -> None:
    old = make_disk(datastore, REQUEST, b"o")
    (tmp_path / "web/other-flat.vmdk").write_bytes(b"mine")
    (tmp_path / "web/web01.vmdk").write_bytes(old.replace(b"web01-flat", b"other-flat"))
    make_disk(datastore, REPLACE, b"n")
    assert (tmp_path / "web/other-flat.vmdk").read_bytes() == b"mine"


def test_a_folder_is_synced_by_its_own_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    folder = Folder.open(str(tmp_path))
    folder.sync()
    assert synced == [str(tmp_path)]
    folder.close()


@pytest.mark.parametrize("length", [300, 700, 2000])
def test_the_lock_file_names_its_image_whichever_of_its_sectors_are_new(
    datastore: LocalDatastore, length: int
) -> None:
    image = datastore.create(REQUEST)
    before = os.pread(image._lock_fd, 8192, 0)
    image._write_lock_file(b"# Disk DescriptorFile\n".ljust(length, b"#"))
    after = os.pread(image._lock_fd, 8192, 0)
    assert len(after) == len(before)
    sectors = range(0, len(before), 512)
    for new in range(1 << 5):
        torn = b"".join(
            (after if new >> min(at // 512, 4) & 1 else before)[at : at + 512] for at in sectors
        )
        os.pwrite(image._lock_fd, torn, 0)
        assert local_image.image_named_in(image._lock_fd) == REQUEST.uuid
    image.abort()


def test_the_lock_file_names_its_image_while_it_is_made_as_short_as_the_descriptor(
    datastore: LocalDatastore,
) -> None:
    """A power loss may find zeros behind the descriptor, and the length that the file had."""
    image = datastore.create(REQUEST)
    length = len(os.pread(image._lock_fd, 8192, 0))
    descriptor = descriptor_for(REQUEST)
    os.pwrite(image._lock_fd, descriptor.ljust(length, b"\0"), 0)
    named = local_image.image_named_in(image._lock_fd)
    assert named == vmdk.uuid_of(vmdk.parse(descriptor))
    image.abort()


# Views


def test_disk_that_is_replaced_while_it_is_opened_is_not_viewed(
    datastore: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_disk(datastore, REQUEST, b"a")
    uuid = vmdk.make_uuid(b"a"[0].to_bytes(16, "big"))
    of = LocalView.of

    def replaced(folder: Folder, files: Sequence[tuple[str, int]]) -> LocalView | None:
        monkeypatch.setattr(LocalView, "of", of)
        image = datastore_of_its_own.create(REPLACE)
        image.write(0, memoryview(b"b" * CAPACITY))
        image.commit(descriptor_for(REPLACE, b"b"[0]))
        return of(folder, files)

    datastore_of_its_own = LocalDatastore("here", datastore._path)
    monkeypatch.setattr(LocalView, "of", replaced)
    assert datastore.view("web", "web01", CAPACITY, uuid) is None
    datastore_of_its_own.close()


@pytest.mark.parametrize("name", ["web01.vmdk", "web01-flat.vmdk"])
@pytest.mark.parametrize("how", ["link", "symlink", "folder"])
def test_view_follows_no_link(
    datastore: LocalDatastore, tmp_path: Path, name: str, how: str
) -> None:
    make_disk(datastore, REQUEST, b"a")
    uuid = vmdk.make_uuid(b"a"[0].to_bytes(16, "big"))
    file = tmp_path / "web" / name
    file.rename(tmp_path / "real")
    if how == "folder":
        file.mkdir()
    elif how == "link":
        file.hardlink_to(tmp_path / "real")
    else:
        file.symlink_to(tmp_path / "real")
    error = refusal(lambda: datastore.view("web", "web01", CAPACITY, uuid))
    assert error.code is ErrorCode.FOREIGN_FILE


def test_view_of_a_disk_in_many_files_is_none(datastore: LocalDatastore, tmp_path: Path) -> None:
    capacity = MAX_FILES * vmdk.SPLIT_EXTENT_SECTORS * 512
    for size, there in ((capacity, True), (capacity + MIB, False)):
        uuid = vmdk.make_uuid(size.to_bytes(16, "big"))
        layout = replace(THIN, format=DiskFormat.TWO_GB_MAX_EXTENT_FLAT)
        image = datastore.create(replace(REQUEST, capacity=size, layout=layout, uuid=uuid))
        image.close()
        opened = datastore.view("web", "web01", size, uuid)
        assert (opened is not None) == there
        if opened is not None:
            opened.close()


def test_view_of_a_file_that_was_cut_says_so(datastore: LocalDatastore, tmp_path: Path) -> None:
    make_disk(datastore, REQUEST, b"a")
    opened = datastore.view("web", "web01", CAPACITY, vmdk.make_uuid(b"a"[0].to_bytes(16, "big")))
    assert opened is not None
    os.truncate(tmp_path / "web" / "web01-flat.vmdk", MIB)
    buffer = memoryview(bytearray(PAGE_SIZE))
    opened.read(buffer, MIB - PAGE_SIZE)
    assert refusal(lambda: opened.read(buffer, MIB)).code is ErrorCode.WRITE_FAILED
    opened.close()
