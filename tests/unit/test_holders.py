"""Needs root: loop devices, other processes' descriptors."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flatship_sender.block_tree import Layer, Relation, layers_of_device
from flatship_sender.holders import Survey, find_holders
from flatship_sender.processes import Targets, find_openers

MIB = 1 << 20


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def process(code: str, path: Path | str) -> Iterator[int]:
    """A Python process that has run ``code`` on sys.argv[1], and now waits; its pid."""
    script = (
        f"import mmap, os, sys\npath = sys.argv[1]\n{code}\nprint(flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        try:
            yield child.pid
        finally:
            child.kill()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * 16 * MIB)
    return path


@pytest.fixture
def attach() -> Iterator[Callable[..., str]]:
    """Attaches loop devices, and detaches them at the end."""
    devices: list[str] = []

    def attached(path: Path | str, *options: str) -> str:
        devices.append(run("losetup", "--find", "--show", *options, str(path)))
        return devices[-1]

    yield attached
    for device in reversed(devices):
        run("losetup", "--detach", device)


def writers(survey: Survey) -> list[str]:
    return [holder.does for holder in survey.writers]


def test_file_that_nobody_uses_has_no_holders(disk: Path) -> None:
    assert find_holders(str(disk)).holders == ()


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs FUSE")
def test_file_system_whose_server_hangs_holds_up_no_search(tmp_path: Path) -> None:
    server = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
    mount = ["mount", "-i", "-t", "fuse", "-o", options, "nobody", str(tmp_path)]
    subprocess.run(mount, check=True, pass_fds=(server,))
    try:
        held = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
        search = "from flatship_sender.holders import find_holders; find_holders('/etc/passwd')"
        subprocess.run([sys.executable, "-c", search], check=True, timeout=20)
        os.close(held)
    finally:
        os.close(server)  # whoever waits for an answer gets an error instead
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_file_that_nobody_can_look_at_any_more_hides_no_writer(disk: Path, tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    files = proc / "7" / "fd"
    files.mkdir(parents=True)
    (files / "3").symlink_to("3")  # it fails as one on a dead file system does: not for its absence
    (files / "4").symlink_to(disk)
    (proc / "7" / "fdinfo").mkdir()
    (proc / "7" / "fdinfo" / "4").write_text("flags:\t0100002\n")
    (proc / "7" / "maps").write_bytes(b"")
    (proc / "7" / "comm").write_text("dd\n")
    status = disk.stat()
    targets = Targets(frozenset({(status.st_dev, status.st_ino)}), frozenset())
    (opener,) = find_openers(targets, proc).found
    assert (opener.pid, opener.writes) == (7, True)


@pytest.mark.parametrize("flags", ["os.O_WRONLY", "os.O_RDWR", "os.O_WRONLY | os.O_APPEND"])
def test_writer_is_named_with_its_process(disk: Path, flags: str) -> None:
    with process(f"os.open(path, {flags})", disk) as pid:
        (holder,) = find_holders(str(disk)).writers
    assert holder.does.startswith("is open for writing by python")
    assert holder.does.endswith(f" (pid {pid})")
    assert holder.remedy == "stop that process"


def test_hypervisors_remedy_is_to_shut_the_guest_down(disk: Path) -> None:
    code = "open('/proc/self/comm', 'w').write('qemu-system-x86'); os.open(path, os.O_RDWR)"
    with process(code, disk) as pid:
        (holder,) = find_holders(str(disk)).writers
    assert holder.does == f"is open for writing by qemu-system-x86 (pid {pid})"
    assert holder.remedy == "shut the guest down"


def test_writer_through_another_name_is_found(disk: Path) -> None:
    link = disk.with_name("other.raw")
    os.link(disk, link)
    with process("os.open(path, os.O_RDWR)", link):
        assert writers(find_holders(str(disk)))


def test_writer_by_shared_mapping_alone_is_found(disk: Path) -> None:
    code = "fd = os.open(path, os.O_RDWR); m = mmap.mmap(fd, 4096, trackfd=False)"
    if sys.version_info < (3, 13):  # mmap keeps a duplicate of the descriptor: close both
        code = "fd = os.open(path, os.O_RDWR); m = mmap.mmap(fd, 4096); os.closerange(3, 100)"
    with process(code, disk) as pid:
        assert len(os.listdir(f"/proc/{pid}/fd")) == 3
        assert len(writers(find_holders(str(disk)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "os.open(path, os.O_RDONLY)",
        "mmap.mmap(os.open(path, os.O_RDONLY), 4096, access=mmap.ACCESS_READ)",
        "mmap.mmap(os.open(path, os.O_RDONLY), 4096, access=mmap.ACCESS_COPY)",
    ],
)
def test_reader_is_no_writer(disk: Path, code: str) -> None:
    with process(code, disk):
        survey = find_holders(str(disk))
    assert not survey.writers
    assert len(survey.readers) == 1


def test_own_process_is_no_writer(disk: Path) -> None:
    with disk.open("r+b"):
        assert not find_holders(str(disk)).writers


def test_writer_of_another_file_is_no_writer_of_this(disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    other.touch()
    with process("os.open(path, os.O_RDWR)", other):
        assert not find_holders(str(disk)).holders


def test_writer_of_a_block_device_is_found_by_its_number(
    disk: Path, tmp_path: Path, attach: Callable[..., str]
) -> None:
    device = attach(disk)
    node = tmp_path / "node"
    os.mknod(node, 0o600 | 0o060000, os.stat(device).st_rdev)
    with process("os.open(path, os.O_RDWR)", node) as pid:
        (does,) = writers(find_holders(device))
    assert does.endswith(f"(pid {pid})")


def test_writer_through_a_loop_device_is_found_behind_the_file(
    disk: Path, attach: Callable[..., str]
) -> None:
    device = attach(disk)
    with process("os.open(path, os.O_RDWR)", device) as pid:
        found = writers(find_holders(str(disk)))
    assert found[0].endswith(f"(pid {pid}) through {device}")
    assert found[1] == f"is attached to {device}, which is writable"


def test_read_only_loop_device_only_reads(disk: Path, attach: Callable[..., str]) -> None:
    device = attach(disk, "--read-only")
    survey = find_holders(str(disk))
    assert not survey.writers
    assert [holder.does for holder in survey.readers] == [
        f"is attached to {device}, which is read-only"
    ]


def test_loop_device_over_a_loop_device_is_found_to_the_end(
    disk: Path, attach: Callable[..., str]
) -> None:
    lower = attach(disk)
    upper = attach(lower)
    assert f"is attached to {upper}, which is writable" in writers(find_holders(str(disk)))
    assert f"is attached to {upper}, which is writable" in writers(find_holders(lower))


@pytest.fixture
def partitioned(disk: Path, attach: Callable[..., str]) -> str:
    """A loop device with two partitions, which go with it."""
    device = attach(disk, "--partscan")
    # Told to the kernel one by one: not every kernel reads partition tables.
    run("addpart", device, "1", "2048", "16384")
    run("addpart", device, "2", "20480", "8192")
    return device


def test_mounted_partition_holds_the_disk_and_the_file_but_not_its_sibling(
    partitioned: str, disk: Path, tmp_path: Path
) -> None:
    point = tmp_path / "a mount"
    point.mkdir()
    first, second = (f"{partitioned}p{number}" for number in (1, 2))
    run("mkfs.ext4", "-q", first)
    run("mount", first, str(point))
    try:
        assert writers(find_holders(partitioned)) == [f"is mounted at {point} through {first}"]
        assert writers(find_holders(first)) == [f"is mounted at {point}"]
        assert writers(find_holders(str(disk)))[0] == f"is mounted at {point} through {first}"
        assert not writers(find_holders(second))
        run("mount", "-o", "remount,ro", str(point))
        survey = find_holders(partitioned)
        assert not survey.writers
        assert [holder.does for holder in survey.readers] == [
            f"is mounted read-only at {point} through {first}"
        ]
    finally:
        run("umount", str(point))


def test_writer_of_the_whole_disk_holds_its_partitions(partitioned: str) -> None:
    with process("os.open(path, os.O_RDWR)", partitioned):
        (does,) = writers(find_holders(f"{partitioned}p2"))
    assert does.endswith(f"through {partitioned}")


def test_mount_in_another_namespace_is_found(
    disk: Path, tmp_path: Path, attach: Callable[..., str]
) -> None:
    device = attach(disk)
    run("mkfs.ext4", "-q", device)
    point = tmp_path / "mnt"
    point.mkdir()
    with subprocess.Popen(
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            'mount "$0" "$1"; echo; exec cat',
            device,
            str(point),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        try:
            assert not os.path.ismount(point)
            assert writers(find_holders(device)) == [
                f"is mounted at {point}, in the mount namespace of pid {child.pid}"
            ]
        finally:
            child.kill()


def fake_proc(folder: Path, *, swaps: str = "", mountinfo: str = "") -> Path:
    (folder / "self" / "ns").mkdir(parents=True)
    (folder / "self" / "ns" / "mnt").symlink_to("mnt:[1]")
    (folder / "self" / "mountinfo").write_text(mountinfo)
    (folder / "swaps").write_text("Filename Type Size Used Priority\n" + swaps)
    return folder


def test_swap_holds_its_file_and_its_device(tmp_path: Path, disk: Path) -> None:
    spaced = disk.rename(disk.with_name("swap file"))
    name = str(spaced).replace(" ", "\\040")
    proc = fake_proc(tmp_path / "proc", swaps=f"{name} file 1 0 -2\n/dev/loop7 partition 1 0 -3\n")
    (holder,) = find_holders(str(spaced), proc=proc).writers
    assert holder.does == "is in use as swap"
    assert holder.remedy == f"run swapoff {spaced}"
    assert writers(find_holders("/dev/loop7", proc=proc)) == ["is in use as swap"]


def test_btrfs_mount_is_known_by_its_devices_name(tmp_path: Path) -> None:
    line = "36 28 0:49 /vms /srv rw,relatime shared:1 - btrfs /dev/loop7 rw,ssd\n"
    proc = fake_proc(tmp_path / "proc", mountinfo=line)
    assert writers(find_holders("/dev/loop7", proc=proc)) == ["is mounted at /srv"]


def test_read_only_mount_point_of_a_writable_file_system_is_a_writer(tmp_path: Path) -> None:
    line = "36 28 7:7 / /srv ro,relatime - ext4 /dev/loop7 rw\n"
    proc = fake_proc(tmp_path / "proc", mountinfo=line)
    assert writers(find_holders("/dev/loop7", proc=proc)) == ["is mounted at /srv"]


def fake_device(sys_folder: Path, name: str, number: str, *, read_only: bool = False) -> Path:
    folder = sys_folder / "block" / name
    (folder / "holders").mkdir(parents=True)
    (folder / "dev").write_text(number + "\n")
    (folder / "ro").write_text(f"{int(read_only)}\n")
    (sys_folder / "dev" / "block").mkdir(parents=True, exist_ok=True)
    (sys_folder / "dev" / "block" / number).symlink_to(folder)
    return folder


def test_device_mapper_devices_are_followed_upwards(tmp_path: Path) -> None:
    disk = fake_device(tmp_path, "sda", "8:0")
    lower = fake_device(tmp_path, "dm-0", "253:0")
    fake_device(tmp_path, "dm-1", "253:1", read_only=True)
    (disk / "holders" / "dm-0").touch()
    (lower / "holders" / "dm-1").touch()
    assert layers_of_device(os.makedev(8, 0), tmp_path) == [
        Layer(os.makedev(8, 0), "sda", True, Relation.SOURCE),
        Layer(os.makedev(253, 0), "dm-0", True, Relation.STACKED),
        Layer(os.makedev(253, 1), "dm-1", False, Relation.STACKED),
    ]


def is_kernel_thread(pid: int) -> bool:
    try:
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return False
    return 2 in (pid, int(parent))  # an ended process has no command line either


def test_processes_that_cannot_be_looked_at_are_counted_without_kernel_threads() -> None:
    os.seteuid(65534)
    try:
        openers = find_openers(Targets(frozenset(), frozenset()))
    finally:
        os.seteuid(0)
    ids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    threads = sum(is_kernel_thread(pid) for pid in ids)
    assert threads > 3
    assert 0 < openers.unseen <= len(ids) - threads + 3  # processes come and go
