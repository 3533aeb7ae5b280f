"""Disk images sent by real processes: every format, and what happens when their reader dies."""

import os
import re
import select
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from disks import MIB, make_data_disk, make_disk
from processes import SENDER, Pair, Running, run_program, wait_until

from conftest import needs_root
from flatship_protocol.extents import ExtentKind
from flatship_sender.sources.export_folders import default_base, mount_points
from flatship_sender.sources.opening import open_source

pytestmark = needs_root

SIZE = 24 * MIB
LARGE = 40 * MIB
SLOWLY = ("--limit", "16MB")
KINDS = {
    "qcow2": ("qcow2",),
    "qcow2-compressed": ("qcow2", "-c"),
    "vdi": ("vdi",),
    "vhd": ("vpc", "-o", "force_size=on"),
    "vhd-fixed": ("vpc", "-o", "force_size=on,subformat=fixed"),
    "vhdx": ("vhdx", "-o", "block_size=1M"),
    "vmdk": ("vmdk",),
    "vmdk-streamOptimized": ("vmdk", "-o", "subformat=streamOptimized"),
    "vmdk-monolithicFlat": ("vmdk", "-o", "subformat=monolithicFlat"),
    "vmdk-twoGbMaxExtentSparse": ("vmdk", "-o", "subformat=twoGbMaxExtentSparse"),
}
ALL_DATA = ("vmdk-monolithicFlat", "vhd-fixed", "vhdx")  # as qemu has it
VM = "every"


def convert(raw: Path, image: Path, *options: str) -> Path:
    command = ("qemu-img", "convert", "-f", "raw", "-O", *options, raw, image)
    subprocess.run(command, check=True, capture_output=True)
    return image


def same_disk(raw: Path, copy: Path) -> None:
    compare = ("qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, copy)
    subprocess.run(compare, check=True, capture_output=True)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_disk(tmp_path_factory.mktemp("raw") / "disk.raw", SIZE, seed=7)


@pytest.fixture(scope="module")
def images(raw: Path) -> dict[str, Path]:
    """The raw disk in every format."""
    return {
        kind: convert(raw, raw.with_name(f"{kind}.{kind.split('-')[0]}"), *options)
        for kind, options in KINDS.items()
    }


@pytest.fixture(scope="module")
def sent(pair: Pair, raw: Path, images: dict[str, Path]) -> dict[str, tuple[Path, int]]:
    """Where each was published, and how many bytes it took on the wire: all, in one command."""
    options = ("--index-limit", "0", "--compression", "off")
    run = pair.send(raw, *images.values(), vm=VM, options=options).expect(0)
    names = [VM, *(f"{VM}_{number}" for number in range(1, len(images) + 1))]
    return {
        kind: (pair.receiver.descriptor(VM, name), int(disk["bytes"]["wire"]))
        for kind, name, disk in zip(("raw", *images), names, run.disks, strict=True)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_sent_as_the_disk_that_it_holds(
    raw: Path, sent: dict[str, tuple[Path, int]], kind: str
) -> None:
    published, wire = sent[kind]
    same_disk(raw, published)
    assert wire == pytest.approx(sent["raw"][1], rel=0.03)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ALL_DATA])
def test_holes_of_an_image_are_known_without_reading(images: dict[str, Path], kind: str) -> None:
    with closing(open_source(str(images[kind]), live=False)) as source:
        holes = [each for each in source.extents(0, SIZE) if each.kind is ExtentKind.HOLE]
    assert sum(hole.length for hole in holes) >= SIZE // 2


def test_an_image_is_inspected_as_the_disk_that_it_holds(images: dict[str, Path]) -> None:
    run = run_program(*SENDER, "inspect", images["qcow2"], "--json").expect(0)
    assert run.json["virtual_size"] == SIZE
    assert run.json["hole"] >= SIZE // 2


def test_an_image_with_its_chain_is_sent_as_one_disk(pair: Pair, raw: Path, tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    chain = ("qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", top)
    subprocess.run(chain, check=True)
    write = ("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", "-c", "write -z 0 64k", top)
    subprocess.run(write, check=True, capture_output=True)
    assert pair.send(top, vm="chain").expect(0).disk["published"]
    expected = tmp_path / "expected.raw"
    flatten = ("qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, expected)
    subprocess.run(flatten, check=True)
    same_disk(expected, pair.receiver.descriptor("chain"))


def test_a_refused_image_is_refused_in_one_line(pair: Pair, vm: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    subprocess.run(("qemu-img", "create", "-q", "-f", "qcow2", path, "1M"), check=True)
    subprocess.run(("qemu-img", "snapshot", "-c", "monday", path), check=True)
    run = pair.send(path, vm=vm).expect(2)
    assert "has internal snapshots (1: 'monday')" in run.error
    assert pair.receiver.files(vm) == []


def daemon_of(sending: Running) -> int:
    """The process that reads the image for it."""
    children = Path(f"/proc/{sending.pid}/task/{sending.pid}/children")
    wait_until(lambda: children.read_text().split(), "the image is given out")
    (child,) = children.read_text().split()
    return int(child)


def await_end(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], 10)[0]
    finally:
        os.close(fd)


def test_a_reader_that_dies_ends_the_transfer_and_the_same_command_goes_on(
    pair: Pair, vm: str, tmp_path: Path
) -> None:
    raw = make_data_disk(tmp_path / "disk.raw", LARGE, seed=71)
    image = convert(raw, tmp_path / "disk.qcow2", "qcow2")
    sending = pair.start_until(LARGE * 3 // 4, image, vm=vm, options=SLOWLY)
    os.kill(daemon_of(sending), 9)
    run = sending.wait().expect(1)
    assert re.search(r"is gone: it was ended by SIGKILL", run.disk["error"]["message"])
    again = pair.send(image, vm=vm).expect(0)
    assert again.disk["published"]
    assert again.disk["bytes"]["held"] > 0
    same_disk(raw, pair.receiver.descriptor(vm))


def test_a_sender_that_is_killed_leaves_neither_daemon_nor_mount_and_resumes(
    pair: Pair, vm: str, tmp_path: Path
) -> None:
    raw = make_data_disk(tmp_path / "disk.raw", LARGE, seed=72)
    image = convert(raw, tmp_path / "disk.qcow2", "qcow2")
    sending = pair.start_until(LARGE * 3 // 4, image, vm=vm, options=SLOWLY)
    daemon = daemon_of(sending)
    assert mount_points(default_base()) == []
    sending.kill()
    await_end(daemon)
    again = run_program(*pair.sender.send_command(image, vm=vm)).expect(0)
    assert again.disk["bytes"]["held"] > 0
    same_disk(raw, pair.receiver.descriptor(vm))
