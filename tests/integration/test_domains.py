"""Domains of real libvirts: found, sent whole, or refused with what to do."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import libvirts
import pytest
from disks import MIB, loop_device, make_data_disk, make_disk, mounted, same_content
from libvirts import CDROM, PAUSED, RUNNING, drive
from processes import SENDER, CompletedRun, Pair, Running, wait_until
from sending_daemon import sending_daemon
from test_transfers import open_elsewhere

from conftest import needs_root

SIZE = 8 * MIB


def words(uri: str, *options: str | Path) -> list[str | Path]:
    return ["--to", "esx", "--connect", uri, "--json", "--patience", "0", *options]


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., str]:
    """Makes a libvirt of these domains and pools; returns its URI."""
    return lambda *parts: libvirts.node(tmp_path / "node.xml", *parts)


def send(pair: Pair, uri: str, domain: str, *options: str | Path) -> CompletedRun:
    return pair.sender.run("send", "--domain", domain, *words(uri, *options))


def refused(pair: Pair, uri: str, exit_code: int, domain: str) -> str:
    before = pair.receiver.log
    run = send(pair, uri, domain).expect(exit_code)
    assert run.stdout == ""
    assert pair.receiver.log == before
    return run.error


def test_a_whole_domain_is_sent_under_its_name_each_disk_as_the_domain_says_that_it_is(
    pair: Pair, vm: str, node: Callable[..., str], tmp_path: Path
) -> None:
    raw, second, third = (make_disk(tmp_path / f"{n}.raw", SIZE, seed=n) for n in range(3))
    with raw.open("r+b") as file:
        file.write(b"QFI\xfb" + bytes(508))  # as a guest may write into its disk
    image = tmp_path / "image"
    subprocess.run(("qemu-img", "convert", "-O", "qcow2", second, image), check=True)
    volume = (
        "<disk type='volume' device='disk'><source pool='images' volume='2.raw'/>"
        "<target dev='vdc' bus='virtio'/></disk>"
    )
    uri = node(
        libvirts.domain(vm, volume, drive("vdb", image, "qcow2"), CDROM, drive("vda", raw)),
        libvirts.pool(tmp_path, third.name),
    )
    run = send(pair, uri, vm).expect(0)
    assert f"domain {vm}, shut off: disks vda, vdb, vdc; left out: hdc (a CD-ROM)\n" in run.stderr
    names = [vm, f"{vm}_1", f"{vm}_2"]
    assert [each["target"] for each in run.disks] == [f"{vm}/{name}.vmdk" for name in names]
    for disk, name in zip((raw, second, third), names, strict=True):
        assert same_content(disk, pair.receiver.flat(vm, name), SIZE)


@pytest.mark.parametrize(
    ("state", "remedy"), [(RUNNING, "virsh shutdown"), (PAUSED, "virsh resume")]
)
def test_a_domain_that_is_not_shut_off_is_refused(
    pair: Pair, vm: str, node: Callable[..., str], tmp_path: Path, state: int, remedy: str
) -> None:
    disk = make_disk(tmp_path / "disk.raw", SIZE)
    uri = node(libvirts.domain(vm, drive("vda", disk), state=state))
    line = refused(pair, uri, 11, vm)
    assert f"{remedy} {vm}" in line
    assert "--live" in line


def test_a_domain_that_was_put_aside_with_its_memory_is_refused(
    pair: Pair, vm: str, node: Callable[..., str], tmp_path: Path
) -> None:
    disk = make_disk(tmp_path / "disk.raw", SIZE)
    uri = node(libvirts.domain(vm, drive("vda", disk), saved=True))
    assert "managedsave-remove" in refused(pair, uri, 11, vm)


def test_a_domain_that_is_not_there_is_answered_with_those_that_are(
    pair: Pair, node: Callable[..., str]
) -> None:
    uri = node(libvirts.domain("web01"), libvirts.domain("web02"))
    line = refused(pair, uri, 10, "web")
    assert line.startswith("domain web does not exist")
    assert "web01" in line
    assert "web02" in line


def test_what_libvirt_says_when_there_is_none_is_passed_on_with_advice(
    pair: Pair, tmp_path: Path
) -> None:
    line = refused(pair, f"test://{tmp_path}/absent.xml", 5, "web")
    assert "failed to connect to the hypervisor" in line
    assert "--connect" in line


def test_a_domain_that_was_started_after_libvirt_was_asked_is_known_by_its_hold(
    pair: Pair, vm: str, node: Callable[..., str], tmp_path: Path
) -> None:
    disk = make_disk(tmp_path / "disk.raw", SIZE)
    uri = node(libvirts.domain(vm, drive("vda", disk)))
    with open_elsewhere(disk, "r+b") as pid:  # in the place of the guest's QEMU
        line = refused(pair, uri, 11, vm)
    assert "is open for writing" in line
    assert f"(pid {pid})" in line


def test_nothing_is_published_of_a_domain_that_was_started_while_it_was_sent(
    pair: Pair, vm: str, node: Callable[..., str], tmp_path: Path
) -> None:
    disk = make_data_disk(tmp_path / "disk.raw", 24 * MIB)
    uri = node(libvirts.domain(vm, drive("vda", disk)))
    command = (*SENDER, "send", "--domain", vm, *words(uri, "--limit", "16MB"))
    sending: Running = pair.sender.start_command([*command, "--state", pair.sender.state])
    part = pair.receiver.flat(vm).with_name(f"{vm}-flat.vmdk.flatship-part")
    wait_until(part.exists, "the disk is opened")
    with open_elsewhere(disk, "r+b"):
        run = sending.wait().expect(11)
    assert "open for writing" in run.disk["error"]["message"]
    assert not pair.receiver.descriptor(vm).exists()


@needs_root
def test_a_domains_device_that_this_host_has_mounted_is_refused_by_its_mount_point(
    pair: Pair, vm: str, node: Callable[..., str], tmp_path: Path
) -> None:
    backing = make_disk(tmp_path / "fs.raw", SIZE)
    subprocess.run(("mke2fs", "-q", "-t", "ext4", "-F", backing), check=True)
    with loop_device(backing) as device, mounted(device, tmp_path / "mnt"):
        block = drive("vda", device).replace("'file'", "'block'").replace("file=", "dev=")
        line = refused(pair, node(libvirts.domain(vm, block)), 11, vm)
    assert f"source {device} is mounted at {tmp_path}/mnt" in line


def test_a_daemon_is_given_paths_formats_and_the_adapter_that_suits(
    paired: Pair, node: Callable[..., str], tmp_path: Path
) -> None:
    first, second = (make_disk(tmp_path / f"{n}.raw", SIZE, seed=n) for n in range(2))
    image = tmp_path / "image"
    subprocess.run(("qemu-img", "convert", "-O", "qcow2", second, image), check=True)
    ide = (drive("hda", first, bus="ide"), drive("hdb", image, "qcow2", bus="ide"))
    uri = node(libvirts.domain("web", *ide))
    with sending_daemon(paired.sender.state, tmp_path) as daemon:
        daemon.start()
        send(paired, uri, "web").expect(0)
        assert [job.state for job in daemon.jobs().values()] == ["done"]
        daemon.stop()
    assert same_content(first, paired.receiver.flat("web"), SIZE)
    assert same_content(second, paired.receiver.flat("web", "web_1"), SIZE)
    assert 'adapterType = "ide"' in paired.receiver.descriptor("web", "web_1").read_text()


def test_a_running_domain_can_be_looked_at_and_planned_for(
    pair: Pair, node: Callable[..., str], tmp_path: Path
) -> None:
    disk = make_disk(tmp_path / "disk.raw", SIZE)
    uri = node(libvirts.domain("web01", drive("vda", disk), state=RUNNING))
    at = ("--domain", "web01", "--connect", uri)
    run = pair.sender.run("plan", *at, "--to", "esx", "--rate", "100MB", "--json").expect(0)
    assert [each["target"] for each in run.json["disks"]] == ["web01/web01.vmdk"]


def test_a_guest_of_qemus_is_refused_while_it_runs_copied_ahead_and_sent_when_it_is_off(
    pair: Pair, tmp_path: Path
) -> None:
    definition = tmp_path / "domain.xml"
    with libvirts.session() as libvirt:
        disk = make_disk(libvirt.folder / "disk.raw", SIZE)
        libvirt.own(disk)
        definition.write_text(libvirts.domain("guest", drive("vda", disk), CDROM, kind="qemu"))
        libvirt.virsh("define", definition)
        assert "libvirt at qemu:///session" in refused(pair, libvirt.uri, 10, "gest")
        libvirt.virsh("start", "guest")
        line = refused(pair, libvirt.uri, 11, "guest")
        assert "domain guest is running; shut it down with virsh shutdown guest" in line
        run = send(pair, libvirt.uri, "guest", "--live").expect(0)
        assert run.disk["state"] == "unpublished"
        libvirt.virsh("destroy", "guest")
        send(pair, libvirt.uri, "guest").expect(0)
        assert same_content(disk, pair.receiver.flat("guest"), SIZE)
