"""What cannot be sent as it is: refused in one line, with an exit code, receiver untouched."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import (
    MIB,
    allocated,
    loop_device,
    make_data_disk,
    make_disk,
    make_sparse,
    mounted,
    random_bytes,
)
from processes import CompletedRun, Pair, wait_until
from test_transfers import open_elsewhere

from conftest import needs_root

SIZE = 16 * MIB
LARGE = 40 * MIB  # more than a sender that is ahead of the link holds in memory
SLOWLY = ("--limit", "16MB")


@pytest.fixture
def roomy() -> Iterator[Path]:
    """A folder where files may be larger than a virtual disk, as on tmpfs."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def refused(pair: Pair, source: Path, exit_code: int, vm: str) -> str:
    """Send what is to be refused before the receiver hears of it; returns the error's line."""
    before = pair.receiver.log
    run = pair.send(source, vm=vm).expect(exit_code)
    assert run.stdout == ""
    assert pair.receiver.log == before
    assert pair.receiver.files(vm) == []
    return run.error


def half_way(pair: Pair, vm: str) -> None:
    """Wait until the receiver has written a part of a disk that is sent slowly."""
    part = pair.receiver.flat(vm).with_name(f"{vm}-flat.vmdk.flatship-part")
    wait_until(lambda: part.exists() and allocated(part) >= LARGE // 8, "a part of it is written")


def nothing_visible(pair: Pair, vm: str) -> None:
    """No disk; what there is, is kept to go on with once the source is well again."""
    assert all(name.endswith(".flatship-part") for name in pair.receiver.files(vm))


def test_a_missing_source(pair: Pair, vm: str, tmp_path: Path) -> None:
    line = refused(pair, tmp_path / "absent.raw", 10, vm)
    assert "absent.raw does not exist" in line


def test_a_folder(pair: Pair, vm: str, tmp_path: Path) -> None:
    assert "is a folder" in refused(pair, tmp_path, 2, vm)


def test_a_character_device(pair: Pair, vm: str) -> None:
    assert "is a character device" in refused(pair, Path("/dev/zero"), 2, vm)


def test_a_named_pipe(pair: Pair, vm: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a named pipe" in refused(pair, tmp_path / "pipe", 2, vm)


def test_an_empty_file(pair: Pair, vm: str, tmp_path: Path) -> None:
    assert "is empty" in refused(pair, make_sparse(tmp_path / "empty.raw", 0), 2, vm)


@pytest.mark.parametrize("size", [1, 511, 513])
def test_a_size_that_is_not_whole_sectors(pair: Pair, vm: str, tmp_path: Path, size: int) -> None:
    line = refused(pair, make_sparse(tmp_path / "odd.raw", size), 2, vm)
    assert f"{size} bytes" in line


def test_a_disk_too_large_for_any_vmdk(pair: Pair, vm: str, roomy: Path) -> None:
    line = refused(pair, make_sparse(roomy / "large.raw", (62 << 40) + 512), 2, vm)
    assert "62 TiB" in line


def test_the_largest_disk_is_taken(pair: Pair, vm: str, roomy: Path) -> None:
    source = make_sparse(roomy / "large.raw", 62 << 40)
    pair.send(source, vm=vm, options=("--dry-run",)).expect(0)


def test_a_qcow2_given_as_raw(pair: Pair, vm: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    subprocess.run(("qemu-img", "create", "-q", "-f", "qcow2", image, "1M"), check=True)
    line = refused(pair, image, 2, vm)
    assert "qcow2" in line
    assert "--source-format qcow2" in line


def test_a_file_that_a_process_may_write_to(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_disk(tmp_path / "disk.raw", SIZE)
    with open_elsewhere(source, "r+b") as pid:
        line = refused(pair, source, 11, vm)
        assert f"open for writing by python3 (pid {pid})" in line or f"(pid {pid})" in line
        assert "--live" in line
    pair.send(source, vm=vm).expect(0)


def test_a_file_that_a_process_only_reads(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_disk(tmp_path / "disk.raw", SIZE)
    with open_elsewhere(source, "rb"):
        pair.send(source, vm=vm).expect(0)


@needs_root
def test_a_device_that_is_mounted(pair: Pair, vm: str, tmp_path: Path) -> None:
    backing = make_sparse(tmp_path / "fs.raw", SIZE)
    subprocess.run(("mke2fs", "-q", "-t", "ext4", backing), check=True)
    with loop_device(backing) as device, mounted(device, tmp_path / "mnt"):
        line = refused(pair, device, 11, vm)
        assert f"mounted at {tmp_path}/mnt" in line


@needs_root
def test_a_file_behind_a_writable_device(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_disk(tmp_path / "disk.raw", SIZE)
    with loop_device(source) as device:
        assert str(device) in refused(pair, source, 11, vm)
    with loop_device(source, "--read-only"):
        pair.send(source, vm=vm).expect(0)


@needs_root
def test_a_device_with_4096_byte_sectors(pair: Pair, vm: str, tmp_path: Path) -> None:
    with loop_device(make_disk(tmp_path / "disk.raw", SIZE), "--sector-size", "4096") as device:
        assert "4096" in refused(pair, device, 2, vm)


@needs_root
def test_a_device_that_fails_half_way(pair: Pair, vm: str, tmp_path: Path) -> None:
    """A loop device whose file is cut short below it answers with EIO."""
    backing = make_data_disk(tmp_path / "disk.raw", LARGE)
    with loop_device(backing, "--direct-io=on") as device:
        sending = pair.start_send(device, vm=vm, options=SLOWLY)
        half_way(pair, vm)
        os.truncate(backing, LARGE - 2 * MIB)
        run = sending.wait().expect(1)
    failure = run.disk["error"]
    assert "Input/output error" in failure["message"]
    assert failure["code"] == "source_failed"
    nothing_visible(pair, vm)


def test_a_file_that_shrinks_half_way(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_data_disk(tmp_path / "disk.raw", LARGE)
    sending = pair.start_send(source, vm=vm, options=SLOWLY)
    half_way(pair, vm)
    os.truncate(source, LARGE - 2 * MIB)
    run = sending.wait().expect(1)
    assert "shrank" in run.disk["error"]["message"]
    nothing_visible(pair, vm)


def disturbed(pair: Pair, vm: str, source: Path, how: str) -> CompletedRun:
    """Send ``source`` slowly and have somebody open it for writing half way."""
    sending = pair.start_send(source, vm=vm, options=SLOWLY)
    half_way(pair, vm)
    if how == "stays":
        with open_elsewhere(source, "r+b"):
            return sending.wait()
    with source.open("r+b") as file:
        file.seek(LARGE - MIB)
        file.write(random_bytes(99, 4096))
    return sending.wait()


@pytest.mark.parametrize("how", ["stays", "writes and leaves"])
def test_a_source_that_is_opened_for_writing_half_way_is_not_published(
    pair: Pair, vm: str, tmp_path: Path, how: str
) -> None:
    source = make_data_disk(tmp_path / "disk.raw", LARGE)
    disk = disturbed(pair, vm, source, how).expect(11).disk
    assert (disk["state"], disk["published"]) == ("failed", False)
    assert "--live" in disk["error"]["message"]
    nothing_visible(pair, vm)


@pytest.mark.parametrize("by", ["name", "link"])
def test_one_disk_named_twice(pair: Pair, vm: str, tmp_path: Path, by: str) -> None:
    source = make_disk(tmp_path / "disk.raw", SIZE)
    other = source
    if by == "link":
        other = tmp_path / "link.raw"
        other.symlink_to(source)
    run = pair.send(source, other, vm=vm).expect(2)
    assert "the same disk" in run.error


def test_a_disk_named_twice_through_a_hard_link(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_disk(tmp_path / "disk.raw", SIZE)
    other = tmp_path / "link.raw"
    other.hardlink_to(source)
    assert "the same disk" in pair.send(source, other, vm=vm).expect(2).error


@pytest.mark.parametrize(
    "name",
    [
        *("../escape", "..", "", "a\nb", "a\x1b[31mb", "日本", "a\u202eb", "\udcff", "n" * 300),
        "web-flat",
    ],
)
def test_a_name_that_is_no_name(pair: Pair, tmp_path: Path, name: str) -> None:
    """Refused before anything is opened: the source does not even exist. See also test_names."""
    before = pair.receiver.log
    run = pair.send(tmp_path / "absent.raw", vm=name).expect(2)
    assert "is refused" in run.error
    assert run.error.isprintable()
    assert len(run.error) < 700
    assert pair.receiver.log == before


def test_a_name_whose_second_disk_would_be_too_long(pair: Pair, tmp_path: Path) -> None:
    sources = [make_disk(tmp_path / f"{n}.raw", MIB) for n in range(2)]
    pair.send(sources[0], vm="n" * 80, options=("--dry-run",)).expect(0)
    assert "82 characters" in pair.send(*sources, vm="n" * 80).expect(2).error


@pytest.mark.parametrize("name", ["../ds", "n" * 300, "\udcff"])
def test_a_datastore_whose_name_is_no_name(pair: Pair, vm: str, tmp_path: Path, name: str) -> None:
    source = make_disk(tmp_path / "disk.raw", MIB)
    run = pair.send(source, vm=vm, options=("--datastore", name)).expect(2)
    assert "is refused" in run.error


def test_a_datastore_that_the_receiver_does_not_have(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_disk(tmp_path / "disk.raw", MIB)
    run = pair.send(source, vm=vm, options=("--datastore", "ssd9")).expect(10)
    assert run.disk["error"]["code"] == "datastore_unknown"
