"""Needs root (loop devices, another user's rights) and a tmpfs at /dev/shm."""

import errno
import mmap
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from flatship_protocol.constants import MAX_DISK_SIZE
from flatship_protocol.errors import (
    SourceBusy,
    SourceError,
    SourceMissing,
    SourceReadError,
    SourceUnsuitable,
)
from flatship_protocol.extents import Extent, ExtentKind
from flatship_sender.sources.devices import lasting_name
from flatship_sender.sources.page_cache import (
    DirectReader,
    DroppingReader,
    UncachedReader,
    choose_reader,
)
from flatship_sender.sources.raw import SourcePermissionError, open_raw

MIB = 1 << 20
NOBODY = 65534


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def attach() -> Iterator[Callable[..., str]]:
    """Attaches loop devices, and detaches them at the end."""
    devices: list[str] = []

    def attached(path: Path, *options: str) -> str:
        devices.append(run("losetup", "--find", "--show", *options, str(path)))
        return devices[-1]

    yield attached
    for device in reversed(devices):
        run("losetup", "--detach", device)


@pytest.fixture
def shm() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(range(256)) * (4 * MIB // 256))
    return path


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def refused(path: Path | str, reason: str) -> None:
    with pytest.raises(SourceUnsuitable, match=reason) as caught:
        open_raw(str(path), live=False)
    assert str(path) in str(caught.value)


def test_missing_source_is_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "none", Path("/dev/null/none"), Path("/dev/none")):
        with pytest.raises(SourceMissing, match="check its name"):
            open_raw(str(path), live=False)


def test_what_is_no_disk_by_kind_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", "is a named pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        refused(tmp_path / "socket", "is a socket")
    refused("/dev/zero", "is a character device")


@pytest.mark.parametrize(
    ("size", "reason"),
    [(0, "empty"), (513, "not a multiple of 512"), (MAX_DISK_SIZE + 512, r"at most .* \(62 TiB\)")],
)
def test_what_is_no_disk_by_size_is_refused(shm: Path, size: int, reason: str) -> None:
    path = shm / "disk.raw"
    path.touch()
    os.truncate(path, size)
    refused(path, reason)


def test_largest_disk_is_described_without_being_read(shm: Path) -> None:
    path = shm / "disk.raw"
    path.touch()
    os.truncate(path, MAX_DISK_SIZE)
    with path.open("r+b") as file:
        file.seek(8 << 40)
        file.write(b"x" * 4096)
    source = open_raw(str(path), live=False)
    assert list(source.extents(0, MAX_DISK_SIZE)) == [
        Extent(0, 8 << 40, ExtentKind.HOLE),
        Extent(8 << 40, 4096, ExtentKind.DATA),
        Extent((8 << 40) + 4096, MAX_DISK_SIZE - (8 << 40) - 4096, ExtentKind.HOLE),
    ]
    source.close()


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vhdx", "vpc", "qed"])
def test_containers_that_qemu_img_makes_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "disk.img"
    run("qemu-img", "create", "-q", "-f", kind, str(path), "8M")
    name = {"qcow2": "qcow2", "vpc": "VHD"}.get(kind, kind.upper())
    refused(path, f"begins like a {name} image.*say what it is: --source-format raw")


def test_fixed_vhd_is_known_by_its_footer(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    run("qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed", str(path), "8M")
    refused(path, "begins like a VHD image")


def test_text_descriptor_of_a_vmdk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    path.write_bytes(b"# Disk DescriptorFile\n".ljust(512))
    refused(path, "begins like a VMDK image")


def test_container_on_a_block_device_is_refused(tmp_path: Path, attach: Callable[..., str]) -> None:
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(path), "8M")
    device = attach(path)
    before = os.listdir("/proc/self/fd")
    refused(device, "begins like a qcow2 image.* or --source-format qcow2")
    assert os.listdir("/proc/self/fd") == before


def test_disk_that_begins_like_an_image_is_raw_if_its_operator_says_so(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"QFI\xfb".ljust(MIB, b"x"))
    with closing(open_raw(str(path), live=False, whatever_it_holds=True)) as source:
        first = bytearray(512)
        source.read_into(memoryview(first), 0)
    assert first.startswith(b"QFI\xfbx")


def test_device_with_4096_byte_sectors_is_refused(disk: Path, attach: Callable[..., str]) -> None:
    refused(attach(disk, "--sector-size", "4096"), "sectors of 4096 bytes, and those of a VMDK")


def test_source_of_another_user_says_what_to_do(disk: Path) -> None:
    disk.chmod(0)
    with as_nobody(), pytest.raises(SourcePermissionError, match="run as root") as caught:
        open_raw(str(disk), live=True)
    assert isinstance(caught.value, SourceError)


def test_unprivileged_caller_learns_how_many_processes_were_not_seen(shm: Path) -> None:
    shm.chmod(0o755)
    path = shm / "disk.raw"
    path.write_bytes(b"x" * 4096)
    with as_nobody():
        source = open_raw(str(path), live=False)
    assert source.unseen_processes > 0
    source.close()


def test_source_is_opened_for_reading_only(disk: Path) -> None:
    source = open_raw(str(disk), live=False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(source._fd, b"x", 0)
    source.close()


def test_refused_source_leaves_no_descriptor_open(disk: Path) -> None:
    os.truncate(disk, 513)
    before = os.listdir("/proc/self/fd")
    refused(disk, "not a multiple")
    assert os.listdir("/proc/self/fd") == before


def test_closed_source_leaves_no_descriptor_open(disk: Path, attach: Callable[..., str]) -> None:
    device = attach(disk)
    before = os.listdir("/proc/self/fd")
    open_raw(device, live=False).close()
    assert os.listdir("/proc/self/fd") == before


def test_shrunk_file_is_an_error_where_it_ends_and_not_a_hole(disk: Path) -> None:
    source = open_raw(str(disk), live=True)
    os.truncate(disk, MIB)
    with pytest.raises(SourceReadError, match=f"ended at byte {2 * MIB}.* shrank"):
        list(source.extents(2 * MIB, MIB))
    with pytest.raises(SourceReadError, match=f"ended at byte {MIB}.* shrank"):
        source.read_into(memoryview(bytearray(2 * MIB)), 0)
    source.close()


def test_file_system_without_holes_is_all_data(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lseek(fd: int, position: int, whence: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "lseek", lseek)
    source = open_raw(str(disk), live=False)
    assert list(source.extents(0, source.size)) == [Extent(0, 4 * MIB, ExtentKind.DATA)]
    source.close()


def test_short_reads_are_continued(disk: Path) -> None:
    class Halting:
        def read(self, buffer: memoryview, offset: int) -> int:
            return os.preadv(fd, [buffer[:1000]], offset)

        def close(self) -> None: ...

    source = open_raw(str(disk), live=False)
    fd = source._fd
    source._reader = Halting()
    buffer = bytearray(64 * 1024)
    source.read_into(memoryview(buffer), 512)
    assert buffer == disk.read_bytes()[512 : 512 + len(buffer)]
    source.close()


def test_writer_that_came_and_went_is_noticed_by_the_files_times(disk: Path) -> None:
    source = open_raw(str(disk), live=False)
    source.still_quiet()
    with disk.open("r+b") as file:
        file.write(b"changed")
    with pytest.raises(SourceBusy, match="was written to while it was read"):
        source.still_quiet()
    source.close()


def test_writer_that_came_and_went_is_noticed_by_the_devices_count(
    disk: Path, attach: Callable[..., str]
) -> None:
    device = attach(disk)
    source = open_raw(device, live=False)
    source.still_quiet()
    fd = os.open(device, os.O_WRONLY | os.O_SYNC)
    os.pwrite(fd, b"changed", MIB)
    os.close(fd)
    with pytest.raises(SourceBusy, match="was written to while it was read"):
        source.still_quiet()
    source.close()


def test_pages_dirtied_before_the_start_are_no_writer(
    disk: Path, attach: Callable[..., str]
) -> None:
    device = attach(disk)
    keeper = os.open(device, os.O_RDONLY)  # the last close would write them back
    fd = os.open(device, os.O_WRONLY)
    os.pwrite(fd, b"earlier", MIB)
    os.close(fd)
    source = open_raw(device, live=False)
    os.fsync(keeper)
    source.still_quiet()
    buffer = bytearray(512)
    source.read_into(memoryview(buffer), MIB)
    assert buffer.startswith(b"earlier")
    source.close()
    os.close(keeper)


def test_source_that_was_renamed_cannot_be_called_quiet(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    with closing(open_raw(str(path), live=False)) as source:
        path.rename(tmp_path / "other.raw")
        with pytest.raises(SourceReadError, match="cannot be looked at any more"):
            source.still_quiet()


def test_live_source_is_always_quiet_enough(disk: Path, attach: Callable[..., str]) -> None:
    device = attach(disk)
    refused_when_quiet = open_raw(str(disk), live=True)  # attached to a writable device
    refused_when_quiet.still_quiet()
    refused_when_quiet.close()
    with pytest.raises(SourceBusy, match=f"attached to {device}.*losetup -d {device} or .*--live"):
        open_raw(str(disk), live=False)


def test_quiet_device_is_claimed_until_it_is_closed(disk: Path, attach: Callable[..., str]) -> None:
    device = attach(disk)
    source = open_raw(device, live=False)
    with pytest.raises(OSError, match="busy"):
        os.open(device, os.O_RDONLY | os.O_EXCL)
    source.close()
    os.close(os.open(device, os.O_RDONLY | os.O_EXCL))


def test_live_device_is_not_claimed(disk: Path, attach: Callable[..., str]) -> None:
    device = attach(disk)
    source = open_raw(device, live=True)
    os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    source.close()


@pytest.fixture
def file_system(tmp_path: Path, attach: Callable[..., str]) -> str:
    path = tmp_path / "ext4.raw"
    path.touch()
    os.truncate(path, 16 * MIB)
    run("mkfs.ext4", "-q", str(path))
    return attach(path)


def test_device_mounted_read_only_can_be_read(file_system: str, tmp_path: Path) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    run("mount", "-o", "ro,noload", file_system, str(point))
    try:
        open_raw(file_system, live=False).close()
    finally:
        run("umount", str(point))


def test_mounted_device_is_busy_and_the_mount_point_is_named(
    file_system: str, tmp_path: Path
) -> None:
    point = tmp_path / "a mount"
    point.mkdir()
    run("mount", file_system, str(point))
    try:
        with pytest.raises(SourceBusy, match=f"is mounted at {point}; unmount {point} or pass"):
            open_raw(file_system, live=False)
        open_raw(file_system, live=True).close()
    finally:
        run("umount", str(point))


def test_file_system_that_is_mounted_out_of_sight_is_busy(file_system: str, tmp_path: Path) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    run("mount", file_system, str(point))
    inside = os.open(point, os.O_RDONLY)
    try:
        run("umount", "--lazy", str(point))
        with pytest.raises(SourceBusy, match="claimed by something that /proc and /sys do not"):
            open_raw(file_system, live=False)
    finally:
        os.close(inside)


def test_identity_depends_on_where_and_how_large_and_not_on_content(disk: Path) -> None:
    def identity() -> bytes:
        source = open_raw(str(disk), live=False)
        source.close()
        return source.identity

    before = identity()
    link = disk.with_name("link")
    link.symlink_to(disk)
    through_link = open_raw(str(link), live=False)
    assert through_link.identity == before
    through_link.close()
    disk.write_bytes(b"y" * disk.stat().st_size)
    assert identity() == before
    os.truncate(disk, 8 * MIB)
    assert identity() != before


def test_device_is_named_by_what_lasts(tmp_path: Path) -> None:
    rdev = os.makedev(253, 7)
    folder = tmp_path / "sys" / "dev" / "block" / "253:7"
    by_id = tmp_path / "by-id"
    by_id.mkdir()
    zero = os.stat("/dev/loop0").st_rdev
    (by_id / "virtio-serial7").symlink_to("/dev/loop0")
    (by_id / "gone").symlink_to("/dev/none")

    def name(number: int) -> str:
        return lasting_name("/dev/vg0/web", number, tmp_path / "sys", by_id)

    assert name(rdev) == "path:/dev/vg0/web"
    assert name(zero) == "id:virtio-serial7"
    (folder / "loop").mkdir(parents=True)
    (folder / "loop" / "backing_file").write_text("/srv/web.raw\n")
    (folder / "loop" / "offset").write_text("0\n")
    assert name(rdev) == "loop:0:/srv/web.raw"
    (folder / "dm").mkdir()
    (folder / "dm" / "uuid").write_text("LVM-abc\n")
    assert name(rdev) == "dm:LVM-abc"


def cached_pages(path: Path | str) -> int:
    return int(run("fincore", "--noheadings", "--output", "PAGES", str(path)))


def read_all(source_path: str) -> None:
    source = open_raw(source_path, live=True)
    buffer = memoryview(mmap.mmap(-1, MIB))
    for offset in range(0, source.size, MIB):
        source.read_into(buffer, offset)
    source.close()


def test_reading_leaves_the_page_cache_as_it_was(disk: Path) -> None:
    with disk.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), MIB, 2 * MIB)  # the host's own
    before = cached_pages(disk)
    assert before == MIB // mmap.PAGESIZE
    read_all(str(disk))
    assert cached_pages(disk) == before


def reader_without(*refused_ways: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """The reader that is chosen where these ways are refused."""
    original_preadv, original_open = os.preadv, os.open

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags and "dontcache" in refused_ways:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return original_preadv(fd, buffers, offset, flags)

    def opened(name: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_DIRECT and "direct" in refused_ways:
            raise OSError(errno.EINVAL, "Invalid argument")
        return original_open(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "open", opened)
    fd = original_open(path, os.O_RDONLY)
    reader = choose_reader(fd)
    page = memoryview(mmap.mmap(-1, 4096))
    assert reader.read(page, 4096) == 4096
    assert bytes(page) == path.read_bytes()[4096:8192]
    assert reader.read(page[:512], 512) == 512  # not page-aligned
    assert bytes(page[:512]) == path.read_bytes()[512:1024]
    reader.close()
    os.close(fd)
    return reader


def test_each_file_system_gets_the_gentlest_reader_it_supports(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [
        reader_without(*ways, path=disk, monkeypatch=monkeypatch)
        for ways in ((), ("dontcache",), ("dontcache", "direct"))
    ]
    expected: list[type] = [UncachedReader, DirectReader, DroppingReader]
    if [int(part) for part in os.uname().release.split(".")[:2]] < [6, 14]:
        expected[0] = DirectReader
    assert [type(reader) for reader in chosen] == expected


def test_broken_first_page_is_an_error_and_not_a_lack_of_support(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(SourceReadError, match="Input/output error"):
        open_raw(str(disk), live=True)
