"""Disks sent and received by real processes, and judged by tools of others."""

import itertools
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from disks import (
    MIB,
    allocated,
    flip_byte,
    loop_device,
    make_data_disk,
    make_disk,
    make_sparse,
    random_bytes,
    same_content,
)
from processes import Pair, run_program, wait_until

from conftest import needs_root
from flatship_protocol.messages import Adapter, DiskFormat, Provisioning
from flatship_sender.client import Lifetime
from flatship_sender.daemon import send
from flatship_sender.display import Silent
from flatship_sender.order import Order, SendOptions, Source, Target
from flatship_sender.receivers import Receivers
from flatship_service.keys import load_or_create_identity

GIB = 1 << 30
TIB = 1 << 40
SIZE = 48 * MIB
FORMATS = ("vmfs", "monolithicFlat", "twoGbMaxExtentFlat")
PROVISIONINGS = ("thin", "thick", "eager")


@contextmanager
def open_elsewhere(path: Path, mode: str) -> Iterator[int]:
    """Another process holds ``path`` open; yields its id."""
    script = "import sys; f = open(sys.argv[1], sys.argv[2]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        (sys.executable, "-c", script, path, mode), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        holder.stdout.readline()
        try:
            yield holder.pid
        finally:
            assert holder.stdin
            holder.stdin.close()
            holder.wait(10)


def judge(source: Path, descriptor: Path) -> None:
    """Have qemu-img and libvmdk read the disk, and qemu-img compare it with its source."""
    run_program("qemu-img", "compare", "-f", "raw", "-F", "vmdk", source, descriptor).expect(0)
    run_program("vmdkinfo", descriptor).expect(0)


def test_a_sparse_file_arrives_whole_and_as_sparse_as_it_was(
    pair: Pair, vm: str, tmp_path: Path
) -> None:
    source = make_disk(tmp_path / "disk.raw", SIZE)
    disk = pair.send(source, vm=vm).expect(0).disk
    assert (disk["state"], disk["published"], disk["capacity"]) == ("published", True, SIZE)
    assert same_content(source, pair.receiver.flat(vm), SIZE)
    assert allocated(pair.receiver.flat(vm)) <= allocated(source) + MIB
    judge(source, pair.receiver.descriptor(vm))


@needs_root
def test_a_loop_device_arrives_whole(pair: Pair, vm: str, tmp_path: Path) -> None:
    with loop_device(make_disk(tmp_path / "disk.raw", SIZE)) as device:
        disk = pair.send(device, vm=vm).expect(0).disk
        judge(device, pair.receiver.descriptor(vm))
        pair.receiver.verify(vm, "", "--against", device).expect(0)
    assert disk["bytes"]["skipped"]["hole"] == 0
    assert disk["bytes"]["skipped"]["zero"] > 0
    assert allocated(pair.receiver.flat(vm)) < SIZE // 2


def test_several_disks_of_a_vm_are_named_in_order(pair: Pair, vm: str, tmp_path: Path) -> None:
    sources = [make_disk(tmp_path / f"{n}.raw", SIZE // 2, seed=n) for n in range(3)]
    run = pair.send(*sources, vm=vm).expect(0)
    names = [vm, f"{vm}_1", f"{vm}_2"]
    assert [disk["target"] for disk in run.disks] == [f"{vm}/{name}.vmdk" for name in names]
    for source, name in zip(sources, names, strict=True):
        assert same_content(source, pair.receiver.flat(vm, name), SIZE // 2)
    assert run.json["totals"]["published"] == 3


def test_a_disk_that_fails_does_not_stop_the_others(pair: Pair, vm: str, tmp_path: Path) -> None:
    pair.send(make_disk(tmp_path / "there.raw", MIB), vm=f"{vm}_1").expect(0)
    there = pair.receiver.datastore / f"{vm}_1"
    there.rename(pair.receiver.datastore / vm)
    sources = [make_disk(tmp_path / f"{n}.raw", SIZE, seed=n) for n in range(3)]
    run = pair.send(*sources, vm=vm).expect(11)
    assert [disk["state"] for disk in run.disks] == ["published", "failed", "published"]
    assert run.disks[1]["error"]["code"] == "disk_exists"
    assert same_content(sources[0], pair.receiver.flat(vm), SIZE)
    assert same_content(sources[2], pair.receiver.flat(vm, f"{vm}_2"), SIZE)


@pytest.mark.parametrize("size", [512, 5 * MIB + 123 * 512])
def test_a_size_that_is_not_whole_mebibytes_is_rounded_up_and_said(
    pair: Pair, vm: str, tmp_path: Path, size: int
) -> None:
    source = tmp_path / "disk.raw"
    source.write_bytes(random_bytes(size, size))
    capacity = -(-size // MIB) * MIB
    disk = pair.send(source, vm=vm).expect(0).disk
    assert (disk["size"], disk["capacity"]) == (size, capacity)
    assert pair.receiver.flat(vm).stat().st_size == capacity
    assert same_content(source, pair.receiver.flat(vm), size)
    pair.receiver.verify(vm, "", "--against", source).expect(0)
    table = pair.sender.run("send", source, "--to", "esx", "--vm", f"{vm}-2").expect(0).stdout
    assert f"{size} bytes became {capacity}" in table


@pytest.mark.parametrize("provisioning", PROVISIONINGS)
@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_and_provisioning(
    pair: Pair, vm: str, tmp_path: Path, format_: str, provisioning: str
) -> None:
    source = make_disk(tmp_path / "disk.raw", SIZE, seed=7)
    pair.send(source, vm=vm, options=("--format", format_, "--provisioning", provisioning)).expect(
        0
    )
    descriptor = pair.receiver.descriptor(vm)
    judge(source, descriptor)
    pair.receiver.verify(vm).expect(0)
    split = format_ == "twoGbMaxExtentFlat"
    extent = descriptor.with_name(f"{vm}-f001.vmdk") if split else pair.receiver.flat(vm)
    if provisioning == "thin":
        assert allocated(extent) <= allocated(source) + MIB
    else:
        assert allocated(extent) >= SIZE
    assert ("ddb.thinProvisioned" in descriptor.read_text()) == (provisioning == "thin")


def test_a_disk_of_several_split_extents_arrives_whole(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_sparse(tmp_path / "disk.raw", 5 * GIB)
    step = 4192256 * 512
    with source.open("r+b") as file:
        for offset in (0, step - MIB, 2 * step - MIB // 2):
            file.seek(offset)
            file.write(random_bytes(offset % 97, 2 * MIB))
    pair.send(source, vm=vm, options=("--format", "twoGbMaxExtentFlat")).expect(0)
    assert pair.receiver.files(vm) == [*(f"{vm}-f00{n}.vmdk" for n in (1, 2, 3)), f"{vm}.vmdk"]
    judge(source, pair.receiver.descriptor(vm))


@pytest.mark.parametrize("compression", ["off", "auto", "9"])
def test_every_way_of_compressing(pair: Pair, vm: str, tmp_path: Path, compression: str) -> None:
    source = make_disk(tmp_path / "disk.raw", SIZE, seed=3)
    disk = pair.send(source, vm=vm, options=("--compression", compression)).expect(0).disk
    assert same_content(source, pair.receiver.flat(vm), SIZE)
    if compression == "off":
        assert set(disk["bytes"]["payload"]) == {"raw"}
    elif compression != "auto":
        assert disk["bytes"]["payload"]["history"] > 0
        assert disk["ratio"] > 1.2


@pytest.mark.parametrize("connections", [1, 14])
def test_any_number_of_connections(pair: Pair, vm: str, tmp_path: Path, connections: int) -> None:
    source = make_data_disk(tmp_path / "disk.raw", SIZE)
    run = pair.send(source, vm=vm, options=("--connections", str(connections))).expect(0)
    assert run.json["connections"] == connections
    assert same_content(source, pair.receiver.flat(vm), SIZE)


def test_connections_are_replaced_on_the_way(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 32 * MIB)
    state = pair.sender.state
    order = Order(
        (Source(str(source)),),
        Receivers(state).load("esx"),
        load_or_create_identity(state),
        state,
        Target(vm, "", DiskFormat.VMFS, Provisioning.THIN, Adapter.LSILOGIC, 14, replace=False),
        SendOptions(
            connections=2,
            compression="off",
            limit=8 * MIB,
            live=False,
            dry_run=False,
            http=None,
            lifetime=Lifetime(bytes=2 * MIB),
        ),
    )
    outcome = send(order, Silent(), "test")
    assert (outcome.failure, outcome.exit_code) == (None, 0)
    assert re.search(r"connection=[4-9] ", pair.receiver.log), pair.receiver.log
    assert same_content(source, pair.receiver.flat(vm), 32 * MIB)


def test_eight_tebibytes_with_little_data_take_seconds(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_sparse(tmp_path / "disk.raw", 8 * TIB)
    with source.open("r+b") as file:
        for number in range(8):
            file.seek(number * TIB + number * 4096)
            file.write(random_bytes(number, MIB))
    started = time.monotonic()
    disk = pair.send(source, vm=vm).expect(0).disk
    assert time.monotonic() - started < 15
    assert disk["bytes"]["skipped"]["hole"] > 7 * TIB
    assert allocated(pair.receiver.flat(vm)) < 32 * MIB
    for number in range(8):
        with pair.receiver.flat(vm).open("rb") as file:
            file.seek(number * TIB + number * 4096)
            assert file.read(MIB) == random_bytes(number, MIB)


def test_a_dry_run_creates_nothing(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_disk(tmp_path / "disk.raw", SIZE)
    run = pair.send(source, vm=vm, options=("--dry-run",)).expect(0)
    disk = run.disk
    assert not disk["published"]
    assert "nothing was sent" in run.stderr
    assert disk["bytes"]["sent"] == 0
    assert not (pair.receiver.datastore / vm).exists()
    pair.send(source, vm=vm).expect(0)
    run = pair.send(source, vm=vm, options=("--dry-run",)).expect(11)
    assert run.disk["error"]["code"] == "disk_exists"


def test_a_live_source_is_read_and_not_published(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_disk(tmp_path / "disk.raw", SIZE)
    with open_elsewhere(source, "r+b"):
        run = pair.send(source, vm=vm, options=("--live",)).expect(0)
        table = pair.sender.run("send", source, "--to", "esx", "--vm", vm, "--live").expect(0)
    assert (run.disk["state"], run.disk["published"]) == ("unpublished", False)
    assert run.disk["error"] is None
    assert not pair.receiver.descriptor(vm).exists()
    assert "unpublished" in table.stdout
    assert all("not published: " in said.stderr for said in (run, table))
    pair.send(source, vm=vm).expect(0)
    assert pair.receiver.files(vm) == [f"{vm}-flat.vmdk", f"{vm}.vmdk"]


def test_what_is_there_is_kept(pair: Pair, vm: str, tmp_path: Path) -> None:
    first = make_disk(tmp_path / "first.raw", SIZE, seed=1)
    second = make_disk(tmp_path / "second.raw", SIZE, seed=2)
    pair.send(first, vm=vm).expect(0)
    run = pair.send(second, vm=vm).expect(11)
    assert "--replace" in run.disk["error"]["message"]
    pair.receiver.verify(vm, "", "--against", first).expect(0)


def test_a_disk_is_replaced_when_asked(pair: Pair, vm: str, tmp_path: Path) -> None:
    first = make_disk(tmp_path / "first.raw", SIZE, seed=1)
    second = make_disk(tmp_path / "second.raw", SIZE, seed=2)
    pair.send(first, vm=vm).expect(0)
    pair.send(second, vm=vm, options=("--replace",)).expect(0)
    assert pair.receiver.files(vm) == [f"{vm}-flat.vmdk", f"{vm}.vmdk"]
    pair.receiver.verify(vm, "", "--against", second).expect(0)


def test_a_disk_is_not_replaced_before_the_new_one_is_proven(
    pair: Pair, vm: str, tmp_path: Path
) -> None:
    first = make_disk(tmp_path / "first.raw", SIZE, seed=1)
    second = make_data_disk(tmp_path / "second.raw", SIZE, seed=2)
    pair.send(first, vm=vm).expect(0)
    sending = pair.start_send(second, vm=vm, options=("--replace", "--limit", "8MB"))
    part = pair.receiver.flat(vm).with_name(f"{vm}-flat.vmdk.flatship-part")
    wait_until(lambda: part.exists() and allocated(part) >= 4 * MIB, "half of it is written")
    pair.receiver.verify(vm, "", "--against", first).expect(0)
    sending.kill()
    standing = [f"{vm}-flat.vmdk", f"{vm}.vmdk"]
    files = pair.receiver.files(vm)
    assert [name for name in files if not name.endswith(".flatship-part")] == standing
    pair.receiver.verify(vm, "", "--against", first).expect(0)
    pair.send(second, vm=vm, options=("--replace",)).expect(0)
    assert pair.receiver.files(vm) == standing
    pair.receiver.verify(vm, "", "--against", second).expect(0)


def test_verify_finds_a_flipped_byte_and_says_where(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 8 * MIB)
    pair.send(source, vm=vm).expect(0)
    assert pair.receiver.verify(vm, "", "--json").expect(0).json["ok"] is True
    offset = 5 * MIB + 777
    flip_byte(pair.receiver.flat(vm), offset)
    run = pair.receiver.verify(vm).expect(1)
    assert str(5 * MIB) in run.stdout  # digests know the chunk
    run = pair.receiver.verify(vm, "", "--against", source).expect(1)
    assert f"byte {offset}" in run.stdout  # a comparison knows the byte


def test_verify_finds_data_where_zeros_were(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_sparse(tmp_path / "disk.raw", 8 * MIB)
    pair.send(source, vm=vm).expect(0)
    flip_byte(pair.receiver.flat(vm), 3 * MIB)
    assert str(3 * MIB) in pair.receiver.verify(vm).expect(1).stdout


def test_verify_refuses_another_source(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_disk(tmp_path / "disk.raw", 8 * MIB, seed=1)
    other = make_disk(tmp_path / "other.raw", 8 * MIB, seed=2)
    pair.send(source, vm=vm).expect(0)
    pair.receiver.verify(vm, "", "--against", source).expect(0)
    run = pair.receiver.verify(vm, "", "--against", other).expect(1)
    assert "differs from the source" in run.stdout
    run = pair.receiver.verify(vm, "", "--against", tmp_path / "absent").expect(10)
    assert "absent" in run.error


def test_two_vms_at_once(pair: Pair, vm: str, tmp_path: Path) -> None:
    sources = {f"{vm}-{n}": make_disk(tmp_path / f"{n}.raw", SIZE, seed=n) for n in range(2)}
    sending = [pair.start_send(source, vm=name) for name, source in sources.items()]
    for running in sending:
        running.wait().expect(0)
    for name, source in sources.items():
        assert same_content(source, pair.receiver.flat(name), SIZE)


# What other tests have sent is not to make these disks any smaller on the wire.
UNKNOWN = ("--limit", "16MB", "--index-limit", "0")


def test_one_vm_is_sent_by_one_command_at_a_time(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_data_disk(tmp_path / "disk.raw", 64 * MIB)
    sending = pair.start_send(source, vm=vm, options=UNKNOWN)
    wait_until(lambda: pair.receiver.files(vm), "the disk is opened")
    assert "another flatship-sender" in pair.send(source, vm=vm).expect(11).error
    sending.wait().expect(0)


def test_every_content_id_and_uuid_is_its_own(pair: Pair, vm: str, tmp_path: Path) -> None:
    source = make_sparse(tmp_path / "disk.raw", MIB)
    texts = []
    for number in range(3):
        pair.send(source, vm=f"{vm}-{number}").expect(0)
        texts.append(pair.receiver.descriptor(f"{vm}-{number}").read_text().splitlines())
    for one, other in itertools.combinations(texts, 2):
        for key in ("CID=", "ddb.uuid", "ddb.longContentID"):
            assert not {line for line in one if line.startswith(key)} & set(other)


def test_a_small_disk_does_not_wait_for_large_ones(pair: Pair, vm: str, tmp_path: Path) -> None:
    large = [make_data_disk(tmp_path / f"{n}.raw", 24 * MIB, seed=n) for n in range(3)]
    small = make_data_disk(tmp_path / "small.raw", 4 * MIB, seed=9)
    run = pair.send(*large, small, vm=vm, options=UNKNOWN).expect(0)
    *others, last = (disk["seconds"]["total"] for disk in run.disks)
    assert last < min(others) / 2


def test_disks_that_are_sent_in_their_order_leave_the_link_to_the_first(
    pair: Pair, vm: str, tmp_path: Path
) -> None:
    disks = [make_data_disk(tmp_path / f"{n}.raw", 24 * MIB, seed=n) for n in range(3)]
    # Slowly enough for what proof and publication take not to blur who was first.
    options = (*UNKNOWN, "--limit", "8MB", "--order", "given")
    run = pair.send(*disks, vm=vm, options=options).expect(0)
    first, second, third = (disk["seconds"]["total"] for disk in run.disks)
    assert first < second < third
    assert first < 0.75 * third  # 0.93 and more where they share alike
