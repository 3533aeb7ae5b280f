"""Disk images as qemu-img makes them, opened as sources. Needs root, FUSE and qemu's programs."""

import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from flatship_protocol.errors import (
    SourceBusy,
    SourceError,
    SourceMissing,
    SourceReadError,
    SourceUnsuitable,
)
from flatship_protocol.extents import ExtentKind
from flatship_sender.sources import image, image_export
from flatship_sender.sources.containers import ImageFormat
from flatship_sender.sources.export_folders import claim_folder, mount_points
from flatship_sender.sources.image import ImageSource
from flatship_sender.sources.image_chain import resolve_chain
from flatship_sender.sources.image_export import ImageProgramMissing
from flatship_sender.sources.opening import open_source
from flatship_sender.sources.raw import RawSource, SourcePermissionError

MIB = 1 << 20
SIZE = 8 * MIB
DATA = bytes(range(256)) * (MIB // 256)


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(("qemu-img", *map(str, arguments)), check=True, capture_output=True)


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where exports are made."""
    folder = tmp_path / "run"
    monkeypatch.setattr(image, "default_base", lambda: folder)
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for place in (0, 3):
            file.seek(place * MIB)
            file.write(DATA)
    return path


@pytest.fixture
def made(raw: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes an image of ``raw``."""

    def make(kind: str = "qcow2", *options: str | Path, name: str = "") -> Path:
        path = tmp_path / (name or f"disk.{kind}")
        qemu_img("convert", "-f", "raw", "-O", kind, *options, raw, path)
        return path

    return make


def opened(path: Path, *, live: bool = False, kind: ImageFormat | None = None) -> ImageSource:
    source = open_source(str(path), live=live, source_format=kind)
    assert isinstance(source, ImageSource)
    return source


def refused(
    path: Path,
    reason: str,
    error: type[SourceError] = SourceUnsuitable,
    *,
    kind: ImageFormat | None = None,
    live: bool = False,
) -> str:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(error, match=reason) as caught:
        open_source(str(path), live=live, source_format=kind).close()
    assert str(path) in str(caught.value)
    assert os.listdir("/proc/self/fd") == before
    return str(caught.value)


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def number_at(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        (number,) = struct.unpack(">Q", file.read(8))
        return int(number)


def read(source: ImageSource | RawSource, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    source.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def same(path: Path, *, kind: ImageFormat | None = None) -> None:
    """It reads as the raw disk does."""
    with closing(opened(path, kind=kind)) as source:
        assert read(source, 0, SIZE) == (DATA + bytes(2 * MIB)) * 2 + bytes(2 * MIB)
        source.still_quiet()


# What it takes to read one.


def test_nothing_is_left_when_an_image_is_closed(made: Callable[..., Path], base: Path) -> None:
    source = opened(made())
    pid = source._export.pid
    assert mount_points(base) == []  # nobody else sees the disk meanwhile
    assert len(list(base.glob("export-*"))) == 1
    source.close()
    source.close()
    assert not Path(f"/proc/{pid}").exists()
    assert list(base.glob("export-*")) == []


def test_an_export_cannot_be_written_to(
    made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made()
    before = path.read_bytes()
    real = image_export.detach

    def detach(point: Path) -> None:
        with pytest.raises(OSError, match=r"not permitted|denied|Read-only"):
            point.write_bytes(b"written")
        real(point)

    monkeypatch.setattr(image_export, "detach", detach)
    opened(path).close()
    assert path.read_bytes() == before


def test_a_guest_cannot_start_on_an_image_that_is_read(made: Callable[..., Path]) -> None:
    path = made()
    with closing(opened(path)):
        write = ("qemu-io", "-f", "qcow2", "-c", "write 0 512", str(path))
        tried = subprocess.run(write, capture_output=True, text=True, check=False)
        assert tried.returncode
        assert "lock" in tried.stderr


def test_every_file_of_the_chain_is_named_to_qemu_with_its_format_and_read_only(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    made(name="base.img")
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", "base.img", "-F", "qcow2", top)
    with closing(resolve_chain(str(top), ImageFormat.QCOW2, trusted=True)) as chain:
        node: Any = chain.node(live=False)
    for path, below in ((top, False), (tmp_path / "base.img", True)):
        assert node["driver"] == "qcow2"
        assert node["read-only"] is node["file"]["read-only"] is True
        assert node["file"]["driver"] == "file"
        assert node["file"]["filename"] == str(path)
        assert node["file"]["locking"] == "on"
        assert "force-share" not in node
        assert (node["backing"] is None) is below
        node = node["backing"]


def test_identity_is_that_of_a_raw_disk_in_its_place(made: Callable[..., Path], raw: Path) -> None:
    path = made()
    with closing(opened(path)) as source:
        identity = source.identity
    path.unlink()
    raw.rename(path)
    with closing(open_source(str(path), live=False, source_format=ImageFormat.RAW)) as same_place:
        assert same_place.identity == identity


def test_pages_of_an_image_do_not_stay_in_the_page_cache(
    made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[int] = []
    monkeypatch.setattr(image, "DROP_BEHIND", MIB)
    monkeypatch.setattr(os, "posix_fadvise", lambda *call: dropped.append(call[3]))
    with closing(opened(made())) as source:
        read(source, 0, MIB)
    assert dropped[0] == os.POSIX_FADV_DONTNEED


# Which format it is.


def test_an_image_whose_name_says_nothing_is_what_it_holds(made: Callable[..., Path]) -> None:
    same(made(name="disk.img"))


def test_a_name_that_says_another_thing_than_the_content_is_refused(
    made: Callable[..., Path], raw: Path
) -> None:
    path = made(name="disk.vmdk")
    refused(path, "is called VMDK by its name, and begins like a qcow2 image.*-format qcow2")
    same(path, kind=ImageFormat.QCOW2)
    as_raw = made(name="guest.raw")
    refused(as_raw, "is called raw by its name.*--source-format raw or --source-format qcow2")
    raw.rename(raw.with_suffix(".qcow2"))
    refused(raw.with_suffix(".qcow2"), "is called qcow2 by its name, and holds no image")


def test_an_operator_who_says_raw_gets_the_file_as_it_is(made: Callable[..., Path]) -> None:
    path = made()
    with closing(open_source(str(path), live=False, source_format=ImageFormat.RAW)) as source:
        assert read(source, 0, 512).startswith(b"QFI\xfb")


def test_an_operator_who_says_what_it_is_not_is_told(made: Callable[..., Path], raw: Path) -> None:
    refused(made(), "is a qcow2 image by its content, and VDI was expected", kind=ImageFormat.VDI)
    refused(raw, "is no image by its content, and qcow2 was expected", kind=ImageFormat.QCOW2)


def test_a_raw_disk_whose_guest_wrote_a_header_gets_no_file_of_the_host(tmp_path: Path) -> None:
    secret = tmp_path / "secret.raw"
    secret.write_bytes(b"secret".ljust(MIB))
    disk = tmp_path / "guest.img"
    qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", disk)
    message = refused(disk, "names another file .*secret.raw")
    assert "--source-format qcow2" in message
    assert "--source-format raw" in message
    with closing(opened(disk, kind=ImageFormat.QCOW2)) as source:
        assert read(source, 0, 512).startswith(b"secret")


def test_a_descriptor_that_a_guest_wrote_gets_no_file_of_the_host(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    path = made("vmdk", "-o", "subformat=monolithicFlat", name="guest.vmdk")
    path.rename(tmp_path / "guest.img")
    refused(tmp_path / "guest.img", "names another file .extent guest-flat.vmdk")


# What it stands on.


def test_a_chain_of_images_is_one_disk(
    made: Callable[..., Path], raw: Path, tmp_path: Path
) -> None:
    middle, top = tmp_path / "middle.img", tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", raw.name, "-F", "raw", middle)
    qemu_img("create", "-f", "qcow2", "-b", middle, "-F", "qcow2", top)
    same(top)
    with closing(opened(top)) as source:
        holes = [extent for extent in source.extents(0, SIZE) if extent.kind is ExtentKind.HOLE]
    assert sum(hole.length for hole in holes) == 6 * MIB


def test_a_missing_backing_file_is_named(made: Callable[..., Path], raw: Path) -> None:
    top = raw.with_name("top.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", raw, "-F", "raw", top)
    raw.unlink()
    assert str(raw) in refused(top, "its backing file .* does not exist; bring it", SourceMissing)


def test_a_backing_file_of_no_stated_format_is_refused(raw: Path) -> None:
    top = raw.with_name("top.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", raw, "-F", "raw", top)
    qemu_img("rebase", "-u", "-b", "", top)
    qemu_img("rebase", "-u", "-F", "raw", "-b", raw, top)
    same(top)
    data = top.read_bytes()
    at = data.index(struct.pack(">I", 0xE2792ACA))
    patch(top, at, struct.pack(">I", 0x12345678))
    refused(top, "does not say .* in which format it is.*qemu-img rebase -u -b")


def test_a_backing_file_over_the_network_is_refused(tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-u", "-b", "nbd://127.0.0.1:9/x", "-F", "raw", top, "1M")
    refused(top, "only files of this machine are read")


def test_an_image_that_stands_on_itself_is_refused(tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-u", "-b", "top.qcow2", "-F", "qcow2", top, "1M")
    refused(top, "or on itself")


def test_extents_of_a_vmdk_must_be_there_and_whole(made: Callable[..., Path]) -> None:
    path = made("vmdk", "-o", "subformat=monolithicFlat")
    flat = path.with_name("disk-flat.vmdk")
    same(path)
    os.truncate(flat, SIZE - 512)
    refused(path, "has an extent .* cut short")
    flat.unlink()
    assert str(flat) in refused(path, "its extent .* does not exist", SourceMissing)


def test_no_file_is_read_that_only_qemu_would_find_in_a_vmdk(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    """Three descriptors that qemu reads otherwise than their words suggest."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret".ljust(4096))
    line = f'RW +8 FLAT "{secret}" 0\n'.encode()
    flat = made("vmdk", "-o", "subformat=monolithicFlat", name="flat.vmdk")
    flat.write_bytes(flat.read_bytes().replace(b"\nRW ", b"\n" + line + b"RW "))
    refused(flat, "an extent that cannot be read")

    split = made("vmdk", "-o", "subformat=twoGbMaxExtentSparse", name="split.vmdk")
    extent = tmp_path / "split-s001.vmdk"
    patch(extent, 12, bytes(8))  # no capacity: a descriptor is within
    patch(extent, 512, flat.read_bytes().ljust(2048, b"\0"))
    refused(split, "no capacity")

    whole = made("vmdk", name="whole.vmdk")
    hint = f'\nparentFileNameHint="{flat}"\n'.encode()
    patch(whole, 512, whole.read_bytes()[512:2048].rstrip(b"\0") + hint)
    refused(whole, "is a VMDK of a snapshot")


def test_qemu_is_told_that_an_image_stands_on_none(made: Callable[..., Path]) -> None:
    """Whatever it finds there: what we have read may be another by then."""
    for kind in (ImageFormat.QCOW2, ImageFormat.VMDK):
        chain = resolve_chain(str(made(kind.value)), kind, trusted=True)
        assert chain.node(live=False)["backing"] is None
        chain.close()


# What is not read.


def test_an_encrypted_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    secret = (
        "--object",
        "secret,id=s,data=geheim",
        "-o",
        "encrypt.format=aes,encrypt.key-secret=s",
    )
    qemu_img("create", "-f", "qcow2", *secret, path, "1M")
    refused(path, "is encrypted")


def test_internal_snapshots_are_named(made: Callable[..., Path]) -> None:
    path = made()
    qemu_img("snapshot", "-c", "before the update", path)
    refused(path, r"has internal snapshots \(1: 'before the update'\).*snapshot -d")


def test_an_external_data_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", path, "1M")
    refused(path, "external data file")


@pytest.mark.parametrize(("flag", "reason"), [(1, "not closed properly"), (2, "marked as corrupt")])
def test_an_image_that_calls_itself_damaged_is_refused(
    made: Callable[..., Path], flag: int, reason: str
) -> None:
    path = made()
    patch(path, 79, bytes([flag]))
    refused(path, reason)


def test_an_image_whose_tables_are_wrong_is_refused(made: Callable[..., Path]) -> None:
    path = made()
    block = number_at(path, number_at(path, 48))  # the first block of reference counts
    patch(path, block + 2 * 6, bytes(2))
    refused(path, "is damaged: qemu-img check finds errors")


def test_an_image_with_leaks_is_refused(made: Callable[..., Path]) -> None:
    path = made()
    table = number_at(path, number_at(path, 40)) & ((1 << 56) - 1)
    patch(path, table, bytes(8))  # what the first cluster held is nobody's now
    refused(path, r"clusters that belong to nothing \(1\).*check -r leaks")


@pytest.mark.parametrize("kind", ["qcow2", "vdi", "vpc", "vhdx", "vmdk"])
def test_an_image_that_is_cut_short_is_refused(made: Callable[..., Path], kind: str) -> None:
    path = made(kind)
    os.truncate(path, path.stat().st_size - MIB)
    refused(path, "cut short|damaged|cannot be read|is no image|does not pass", SourceError)


def test_a_damaged_backing_file_is_named(made: Callable[..., Path], tmp_path: Path) -> None:
    base, top = made(), tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    block = number_at(base, number_at(base, 48))
    patch(base, block + 2 * 6, bytes(2))
    assert f"{top}: {base} is damaged" in refused(top, "is damaged")


# Who else is at it.


@contextmanager
def guest(path: Path) -> Iterator[int]:
    """A qemu that has the image open for writing."""
    node = f"driver=qcow2,node-name=n,file.driver=file,file.filename={path}"
    pid_file = path.with_name("guest.pid")
    export = "type=vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix,addr.path="
    command = ["qemu-storage-daemon", "--blockdev", node, "--pidfile", str(pid_file)]
    command += ["--export", export + str(path.with_name("guest.sock"))]
    with subprocess.Popen(command) as process:
        while not pid_file.exists():
            assert process.poll() is None
        yield process.pid
        process.terminate()


def test_an_image_in_use_is_refused_with_its_user_unless_live(made: Callable[..., Path]) -> None:
    path = made()
    with guest(path) as pid:
        refused(path, rf"is open for writing by qemu-storage-da \(pid {pid}\)", SourceBusy)
        with closing(opened(path, live=True)) as source:
            assert read(source, 0, MIB) == DATA
            source.still_quiet()


def test_a_backing_file_in_use_is_refused_and_named(made: Callable[..., Path]) -> None:
    path = made()
    top = path.with_name("top.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", path, "-F", "qcow2", top)
    with guest(path):
        assert str(path) in refused(top, "a part of it, is open for writing by", SourceBusy)


# What fails later.


def test_a_daemon_that_dies_is_named_and_the_way_on_with_it(made: Callable[..., Path]) -> None:
    with closing(opened(made())) as source:
        os.kill(source._export.pid, signal.SIGKILL)
        source._export._process.wait()
        with pytest.raises(SourceReadError, match=r"gone: it was ended by SIGKILL\. Run the"):
            read(source, 0, MIB)
        with pytest.raises(SourceReadError, match="is gone"):
            list(source.extents(0, SIZE))
        source.still_quiet()  # files of a daemon that is gone, our own, stop no look around


def test_a_cluster_that_cannot_be_read_names_offset_and_image(made: Callable[..., Path]) -> None:
    path = made("qcow2", "-o", "cluster_size=4k")  # a table for every 2 MiB, read when needed
    with closing(opened(path)) as source:
        table = number_at(path, number_at(path, 40) + 8) & ((1 << 56) - 1)
        entry = table + MIB // 4096 * 8
        patch(path, entry, struct.pack(">Q", 1 << 63 | 0x123 << 9))  # no cluster begins there
        with pytest.raises(SourceReadError, match=rf"at {3 * MIB} failed.*qemu-img check -f qcow2"):
            read(source, 3 * MIB, MIB)


# What is not there.


def test_a_host_without_the_daemon_is_told_which_package_has_it(
    made: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made()
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    refused(path, "qemu-img, which checks it, is not installed", ImageProgramMissing)
    (programs / "qemu-img").symlink_to("/usr/bin/qemu-img")
    refused(path, "is not installed: install the package qemu-utils", ImageProgramMissing)
    (programs / "qemu-storage-daemon").symlink_to("/usr/bin/qemu-storage-daemon")
    refused(path, "install the package util-linux", ImageProgramMissing)


def test_a_host_without_fuse_is_told(
    made: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made()
    monkeypatch.setattr(image_export, "FUSE_DEVICE", tmp_path / "none")
    refused(path, "modprobe fuse", SourcePermissionError)
    monkeypatch.setattr(image_export, "FUSE_DEVICE", tmp_path)
    refused(path, "cannot be opened: .*run as root", SourcePermissionError)


def test_what_qemu_refuses_is_told_in_its_words(
    made: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made()
    monkeypatch.setattr(ImageFormat, "driver", property(lambda _: "vhdx"))
    refused(path, "qemu|VHDX|vhdx", SourceError)


def test_a_folder_that_others_may_write_to_is_not_used(
    made: Callable[..., Path], base: Path
) -> None:
    base.mkdir()
    base.chmod(0o777)
    refused(made(), f"{base}.*others may write to it", SourcePermissionError)


# What a crash leaves behind.

CRASH = """
import os, sys
from pathlib import Path
from flatship_sender.sources import image, image_export
from flatship_sender.sources.opening import open_source
image.default_base = lambda: Path(sys.argv[2])
if sys.argv[3] != "detached":
    image_export.detach = lambda point: None
source = open_source(sys.argv[1], live=False)
if sys.argv[3] == "killed":
    source._export._process.kill()
    source._export._process.wait()
print(source._export.pid, flush=True)
sys.stdin.read()
"""


LOOK = """
import sys, time
from flatship_sender.holders import find_holders
sys.stdin.read()
time.sleep(1.1)  # for so long the kernel asks nobody anyway
find_holders(sys.argv[1])
"""


def crashed(path: Path, base: Path, how: str) -> int:
    """Have a process open an image and be killed; returns its daemon's pid."""
    with subprocess.Popen(
        [sys.executable, "-c", CRASH, str(path), str(base), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        process.kill()
    return pid


def await_end(pid: int) -> None:
    """Wait until a process that is no child of ours has ended; ten seconds at most."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], 10)[0]
    finally:
        os.close(fd)


def test_a_daemon_ends_with_a_sender_that_is_killed(made: Callable[..., Path], base: Path) -> None:
    await_end(crashed(made(), base, "detached"))
    assert mount_points(base) == []


def test_what_a_crash_left_is_released_at_the_next_start(
    made: Callable[..., Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made()
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "setpriv").write_text('#!/bin/sh\nshift 3\nexec "$@"\n')  # nobody tells the daemon
    (programs / "setpriv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    pid = crashed(path, base, "mounted")
    assert len(mount_points(base)) == image.EXPORTS
    assert Path(f"/proc/{pid}").exists()
    folder = claim_folder(base)
    await_end(pid)
    assert mount_points(base) == []
    assert list(base.glob("export-*")) == [folder.path]
    folder.release()


def test_a_mount_whose_daemon_was_killed_is_released_at_the_next_start(
    made: Callable[..., Path], base: Path
) -> None:
    pid = crashed(made(), base, "killed")
    await_end(pid)
    assert len(mount_points(base)) == image.EXPORTS
    claim_folder(base).release()
    assert mount_points(base) == []
    assert list(base.glob("export-*")) == []


def test_an_export_whose_owner_lives_is_left_alone(made: Callable[..., Path], base: Path) -> None:
    with closing(opened(made())) as source:
        other = claim_folder(base)
        assert len(list(base.glob("export-*"))) == 2
        other.release()
        assert read(source, 0, MIB) == DATA


def test_another_sender_whose_daemon_hangs_holds_up_nobody(
    made: Callable[..., Path], raw: Path
) -> None:
    command = [sys.executable, "-c", LOOK, str(raw)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE) as looking,
        closing(opened(made())) as source,
    ):
        os.kill(source._export.pid, signal.SIGSTOP)
        try:
            looking.communicate(timeout=10)
        finally:
            os.kill(source._export.pid, signal.SIGCONT)
    assert looking.returncode == 0


def test_a_process_that_got_the_pid_of_a_daemon_is_left_alone(base: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        left = base / "export-old"
        left.mkdir(parents=True)
        (left / "pid").write_text(f"{bystander.pid}\n")
        claim_folder(base).release()
        assert bystander.poll() is None
        bystander.kill()
    assert not left.exists()
