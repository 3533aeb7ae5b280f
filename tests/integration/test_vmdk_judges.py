"""Disks made through a LocalDatastore, judged by the tools of others.

| case | qemu-img | libvmdk |
|---|---|---|
| what Flatship writes | accepts | accepts |
| flat extent too short | accepts, reads zeros behind its end | refuses |
| createType missing or vmfsThin | refuses | refuses |
| offset on a VMFS extent | refuses | accepts |
| geometry, uuid, longContentID out of form | accepts | accepts |

Nobody looks at the disk data base: ``vmdk.check`` does. A tool that is not
installed fails these tests; the packages are qemu-utils, libvmdk-utils, python3-libvmdk.
"""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from flatship_protocol.constants import SECTOR_SIZE
from flatship_protocol.messages import Adapter, DiskFormat, Provisioning
from flatship_receiver import vmdk
from flatship_receiver.datastores.base import ImageRequest
from flatship_receiver.datastores.local import LocalDatastore
from flatship_receiver.vmdk import Layout

MIB = 1 << 20
SYSTEM_PYTHON = "/usr/bin/python3"  # the one that Debian's python3-libvmdk belongs to
READ_WITH_LIBVMDK = """
import sys, pyvmdk
handle = pyvmdk.handle()
handle.open(sys.argv[1])
handle.open_extent_data_files()
for line in sys.stdin:
    offset, length = map(int, line.split())
    sys.stdout.buffer.write(handle.read_buffer_at_offset(length, offset))
print(handle.get_media_size(), handle.get_number_of_extents(), file=sys.stderr)
"""


@dataclass(frozen=True)
class Disk:
    """A published disk, and the raw file that it must equal."""

    descriptor: Path
    raw: Path
    capacity: int
    written: tuple[tuple[int, int], ...]  # (offset, length) of what is not zeros


def run(*command: str | Path, text: str = "") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(command, input=text.encode(), capture_output=True, check=False)


def make_disk(
    path: Path, disk_format: DiskFormat, provisioning: Provisioning, adapter: Adapter, capacity: int
) -> Disk:
    layout = Layout(disk_format, provisioning, adapter, 14)
    datastore = LocalDatastore("here", str(path))
    image = datastore.create(ImageRequest("web", "web01", capacity, layout, replace=False))
    raw = path / "source.raw"
    random = Random(capacity)
    step = vmdk.SPLIT_EXTENT_SECTORS * SECTOR_SIZE
    written = []
    with raw.open("wb") as file:
        file.truncate(capacity)
        for offset in {0, 3 * MIB, min(step, capacity) - MIB, step, capacity - MIB}:
            if offset < capacity:
                data = random.randbytes(MIB)
                image.write(offset, memoryview(data))
                os.pwrite(file.fileno(), data, offset)
                written.append((offset, MIB))
    image.zero(3 * MIB, MIB)
    with raw.open("r+b") as file:
        os.pwrite(file.fileno(), bytes(MIB), 3 * MIB)
    uuid = vmdk.make_uuid(random.randbytes(16))
    image.commit(vmdk.build("web01", capacity, layout, uuid, random.randbytes(16)))
    image.close()
    datastore.close()
    return Disk(path / "web/web01.vmdk", raw, capacity, tuple(written))


KINDS = [
    (DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 4200 * MIB),
    (DiskFormat.VMFS, Provisioning.THICK, Adapter.BUSLOGIC, 16 * MIB),
    (DiskFormat.VMFS, Provisioning.EAGER, Adapter.IDE, 16 * MIB),
    (DiskFormat.MONOLITHIC_FLAT, Provisioning.THIN, Adapter.LSILOGIC, 4200 * MIB),
    (DiskFormat.TWO_GB_MAX_EXTENT_FLAT, Provisioning.THIN, Adapter.LSILOGIC, 4200 * MIB),
    (DiskFormat.TWO_GB_MAX_EXTENT_FLAT, Provisioning.THIN, Adapter.IDE, 8 * MIB),
]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0].name}-{kind[1].name}-{kind[3] // MIB}M")
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return make_disk(tmp_path, *request.param)


@pytest.fixture
def vmfs_disk(tmp_path: Path) -> Disk:
    return make_disk(tmp_path, DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 16 * MIB)


@pytest.fixture
def monolithic_disk(tmp_path: Path) -> Disk:
    layout = (DiskFormat.MONOLITHIC_FLAT, Provisioning.THIN, Adapter.LSILOGIC, 16 * MIB)
    return make_disk(tmp_path, *layout)


def qemu_accepts(disk: Disk) -> bool:
    return run("qemu-img", "info", "--output=json", "-f", "vmdk", disk.descriptor).returncode == 0


def libvmdk_reads(disk: Disk) -> "subprocess.CompletedProcess[bytes]":
    ranges = "".join(f"{offset} {length}\n" for offset, length in disk.written)
    return run(SYSTEM_PYTHON, "-c", READ_WITH_LIBVMDK, disk.descriptor, text=ranges)


def libvmdk_accepts(disk: Disk) -> bool:
    return libvmdk_reads(disk).returncode == 0


def change(disk: Disk, edit: Callable[[bytes], bytes]) -> None:
    before = disk.descriptor.read_bytes()
    after = edit(before)
    assert after != before
    disk.descriptor.write_bytes(after)


def test_judges_are_installed() -> None:
    for command in (["qemu-img", "--version"], ["vmdkinfo", "-V"]):
        assert run(*command).returncode == 0
    assert run(SYSTEM_PYTHON, "-c", "import pyvmdk").returncode == 0


def test_qemu_sees_the_capacity_and_the_create_type(disk: Disk) -> None:
    result = run("qemu-img", "info", "--output=json", "-f", "vmdk", disk.descriptor)
    assert result.returncode == 0, result.stderr
    info = json.loads(result.stdout)
    descriptor = vmdk.parse(disk.descriptor.read_bytes())
    assert info["virtual-size"] == disk.capacity
    details = info["format-specific"]["data"]
    assert details["create-type"] == descriptor.header["createType"]
    assert details["cid"] == int(descriptor.header["CID"], 16)
    extents = details["extents"]
    assert [extent["virtual-size"] for extent in extents] == [
        line.sectors * SECTOR_SIZE for line in descriptor.extents
    ]


def test_qemu_reads_what_was_written(disk: Disk) -> None:
    result = run("qemu-img", "compare", "-f", "vmdk", "-F", "raw", disk.descriptor, disk.raw)
    assert result.returncode == 0, result.stdout + result.stderr


def test_libvmdk_reads_what_was_written(disk: Disk) -> None:
    result = libvmdk_reads(disk)
    assert result.returncode == 0, result.stderr
    with disk.raw.open("rb") as raw:
        expected = b"".join(os.pread(raw.fileno(), n, offset) for offset, n in disk.written)
    assert result.stdout == expected
    extents = len(vmdk.parse(disk.descriptor.read_bytes()).extents)
    assert result.stderr.split() == [b"%d" % disk.capacity, b"%d" % extents]


def test_vmdkinfo_lists_every_extent(disk: Disk) -> None:
    result = run("vmdkinfo", disk.descriptor)
    assert result.returncode == 0, result.stdout + result.stderr
    for line in vmdk.parse(disk.descriptor.read_bytes()).extents:
        assert line.file.encode() in result.stdout


def test_short_extent_is_refused_by_libvmdk_only(monolithic_disk: Disk) -> None:
    os.truncate(monolithic_disk.descriptor.parent / "web01-flat.vmdk", 15 * MIB)
    assert not libvmdk_accepts(monolithic_disk)
    assert qemu_accepts(monolithic_disk)


def test_short_vmfs_extent_is_refused_by_libvmdk_only(vmfs_disk: Disk) -> None:
    os.truncate(vmfs_disk.descriptor.parent / "web01-flat.vmdk", 15 * MIB)
    assert not libvmdk_accepts(vmfs_disk)
    assert qemu_accepts(vmfs_disk)


@pytest.mark.parametrize("instead", [b'createType="vmfsThin"\n', b""])
def test_create_type_of_no_known_disk_is_refused_by_all(vmfs_disk: Disk, instead: bytes) -> None:
    change(vmfs_disk, lambda text: text.replace(b'createType="vmfs"\n', instead))
    assert not qemu_accepts(vmfs_disk)
    assert not libvmdk_accepts(vmfs_disk)
    assert vmdk.check(vmdk.parse(vmfs_disk.descriptor.read_bytes()))


def test_offset_of_a_vmfs_extent_is_refused_by_qemu_only(vmfs_disk: Disk) -> None:
    change(vmfs_disk, lambda text: text.replace(b'-flat.vmdk"', b'-flat.vmdk" 0'))
    assert not qemu_accepts(vmfs_disk)
    assert libvmdk_accepts(vmfs_disk)
    assert vmdk.check(vmdk.parse(vmfs_disk.descriptor.read_bytes()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'ddb.geometry.heads = "64"', b'ddb.geometry.heads = "7"'),
        (b'ddb.uuid = "60 00', b'ddb.uuid = "61 00'),
        (b'ddb.longContentID = "', b'ddb.longContentID = "xx'),
    ],
)
def test_bad_disk_data_base_is_refused_by_us_alone(vmfs_disk: Disk, old: bytes, new: bytes) -> None:
    change(vmfs_disk, lambda text: text.replace(old, new))
    assert qemu_accepts(vmfs_disk)
    assert libvmdk_accepts(vmfs_disk)
    assert vmdk.check(vmdk.parse(vmfs_disk.descriptor.read_bytes()))
