"""From a domain's name to disks, or to a reason why not and what to do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner
from domain_samples import (
    BLOCK,
    CDROM,
    FLOPPY,
    NETWORK,
    NVME,
    OVERLAY,
    UUID,
    VOLUME,
    disk,
    domain,
)

from flatship_protocol.errors import (
    SourceBusy,
    SourceError,
    SourceMissing,
    SourceUnsuitable,
    UsageError,
)
from flatship_sender.cli import cli
from flatship_sender.commands.options import Work, settle, spec_of
from flatship_sender.commands.sources import Choice, Selection
from flatship_sender.domains.resolve import Resolved, resolve
from flatship_sender.domains.virsh import LibvirtFailed, NoSuchDomain
from flatship_sender.order import Source
from flatship_sender.sources.containers import ImageFormat

RAW, Q = ImageFormat.RAW, ImageFormat.QCOW2


@dataclass
class FakeLibvirt:
    """One that has a single domain."""

    xml: bytes
    how: str = "shut off"
    name: str = "web01"
    at: str = "qemu:///system"
    others: list[str] = field(default_factory=list)
    with_memory: list[str] = field(default_factory=list)
    volumes: dict[tuple[str, str], str] = field(default_factory=dict)

    def uri(self) -> str:
        return self.at

    def names(self) -> list[str]:
        return [*self.others, self.name]

    def saved(self) -> list[str]:
        return self.with_memory

    def state(self, domain: str) -> str:
        if domain not in (self.name, UUID, UUID.upper(), "3"):
            raise NoSuchDomain(domain)
        return self.how

    def describe(self, domain: str) -> bytes:
        return self.xml

    def volume_path(self, pool: str, volume: str) -> str:
        return self.volumes[pool, volume]


def found(*devices: str, may_run: bool = False, **libvirt: object) -> Resolved:
    return resolve("web01", FakeLibvirt(domain(*devices), **libvirt), may_run=may_run)  # type: ignore[arg-type]


def refused(kind: type[SourceError], *devices: str, **libvirt: object) -> str:
    with pytest.raises(kind) as refusal:
        found(*devices, **libvirt)
    assert type(refusal.value) is kind
    return str(refusal.value)


def test_a_domains_disks_are_sources_in_the_order_of_the_machine_each_with_its_format() -> None:
    one = found(BLOCK, OVERLAY, disk("vdc"))
    assert one.name == "web01"
    assert one.sources == (
        Source("/images/over.qcow2", Q),
        Source("/dev/vg0/web01-data", RAW),
        Source("/images/web01.raw", RAW),
    )
    assert one.words == "domain web01, shut off: disks vda, vdb, vdc"


def test_what_is_no_disk_is_left_out_and_told() -> None:
    one = found(CDROM, FLOPPY, disk(), "<hostdev/><hostdev/>", "<filesystem/>")
    assert one.sources == (Source("/images/web01.raw", RAW),)
    assert one.words == (
        "domain web01, shut off: disks vda; left out: sda (a CD-ROM), fda (a floppy),"
        " 2 devices of the host's, 1 folder of the host's"
    )


def test_a_volume_is_where_its_pool_has_it() -> None:
    one = found(VOLUME, volumes={("default", "web01.qcow2"): "/var/web01.qcow2"})
    assert one.sources == (Source("/var/web01.qcow2", Q),)


def test_a_volume_of_a_network_is_refused_as_one() -> None:
    line = refused(SourceUnsuitable, VOLUME, volumes={("default", "web01.qcow2"): "pool/web01"})
    assert line.startswith("domain web01: disk vdc is on network storage (volume pool/web01)")


@pytest.mark.parametrize(
    ("buses", "adapter"),
    [
        (["ide"], "ide"),
        (["ide", "ide"], "ide"),
        (["ide", "virtio"], "lsilogic"),
        (["virtio"], "lsilogic"),
        (["scsi"], "lsilogic"),
        (["sata"], "lsilogic"),
        ([""], "lsilogic"),
    ],
)
def test_an_adapter_suits_the_bus(buses: list[str], adapter: str) -> None:
    drives = [
        disk(f"hd{chr(97 + number)}", f"file='/{number}'", bus=bus)
        for number, bus in enumerate(buses)
    ]
    assert found(*drives, CDROM).adapter == adapter


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        ("running", "virsh shutdown web01"),
        ("idle", "virsh shutdown web01"),
        ("paused", "virsh resume web01"),
        ("pmsuspended", "virsh dompmwakeup web01"),
        ("in shutdown", "wait until it is shut off"),
        ("crashed", "virsh destroy web01"),
        ("no state", "virsh shutdown web01"),
    ],
)
def test_a_domain_that_is_not_shut_off_is_refused_unless_it_may_run(
    state: str, remedy: str
) -> None:
    line = refused(SourceBusy, disk(), how=state)
    assert line.startswith(f"domain web01 is {state}; ")
    assert remedy in line
    assert line.endswith("or pass --live")
    assert found(disk(), how=state, may_run=True).words.startswith(f"domain web01, {state}: ")


def test_a_domain_whose_memory_is_saved_is_not_taken_for_one_that_was_shut_down() -> None:
    line = refused(SourceBusy, disk(), with_memory=["db", "web01"])
    assert "virsh managedsave-remove web01" in line
    assert found(disk(), with_memory=["web01"], may_run=True).sources
    assert found(disk(), with_memory=["web"]).sources


def test_commands_that_are_advised_can_be_copied_whatever_the_name_is() -> None:
    libvirt = FakeLibvirt(domain(disk(), name="a b;c"), "running", "a b;c")
    with pytest.raises(SourceBusy, match=r"virsh shutdown 'a b;c',"):
        resolve("a b;c", libvirt, may_run=False)


def test_a_domain_that_is_not_there_is_answered_with_those_that_are() -> None:
    libvirt = FakeLibvirt(domain(disk()), others=["db01"])
    with pytest.raises(SourceMissing, match=r"web does not exist: .*system has db01, web01;") as no:
        resolve("web", libvirt, may_run=True)
    assert no.value.exit_code == 10
    libvirt.others = [f"db{number}" for number in range(1000)]
    with pytest.raises(SourceMissing, match="db9 …; another"):
        resolve("web", libvirt, may_run=True)


@pytest.mark.parametrize("asked", [UUID, UUID.upper()])
def test_a_domain_may_be_named_by_its_uuid(asked: str) -> None:
    assert resolve(asked, FakeLibvirt(domain(disk())), may_run=False).name == "web01"


def test_a_number_that_changes_from_start_to_start_is_no_name() -> None:
    with pytest.raises(UsageError, match="--domain web01"):
        resolve("3", FakeLibvirt(domain(disk()), "running"), may_run=True)


def test_no_name_is_no_domain() -> None:
    with pytest.raises(UsageError, match="virsh list"):
        resolve("", FakeLibvirt(domain(disk())), may_run=True)


@pytest.mark.parametrize("at", ["qemu+ssh://root@kvm2/system", "qemu://kvm2/system", "qemu://["])
def test_another_hosts_libvirt_has_no_disks_here(at: str) -> None:
    with pytest.raises(UsageError, match="another host"):
        found(disk(), at=at)


@pytest.mark.parametrize("at", ["qemu:///session", "test:///x.xml", "qemu+tcp://localhost/system"])
def test_this_hosts_libvirt_is_taken_by_whatever_way(at: str) -> None:
    assert found(disk(), at=at).sources


@pytest.mark.parametrize(
    ("drive", "words"),
    [
        (NETWORK, "vdb is on network storage (rbd); attach it to this host"),
        (NVME, "vdd is an NVMe device"),
        (disk("vda", "type='unix' path='/s'", kind="vhostuser"), "vda is served by another"),
        (disk("vda", "dev='/dev/vhost-vdpa-0'", kind="vhostvdpa"), "vda is a vDPA device"),
        (disk("vda", "dir='/folder'", kind="dir"), "vda is a folder"),
        (disk(kind="new"), "type that is not known here, new"),
        (disk(kind=""), "type that is not known here, none"),
        (disk(more="<shareable/>"), "vda is shareable"),
        (disk(more="<transient/>"), "vda is transient"),
        (disk(in_source="<encryption format='luks'/>"), "vda is encrypted; copy it"),
        (disk(in_source="<slices><slice/></slices>"), "vda is a part of a file"),
        (disk(driver="<driver type='qed'/>"), "vda is in the format qed"),
        (disk(driver="<driver type='luks'/>"), "vda is in the format luks"),
        (disk(source=""), "vda has no path on this host"),
        (disk(source="file='web01.raw'"), "vda has no path on this host"),
    ],
)
def test_a_disk_that_cannot_be_sent_is_refused_with_what_to_do(drive: str, words: str) -> None:
    line = refused(SourceUnsuitable, CDROM, drive, disk("vdz"))
    assert line.startswith("domain web01: disk ")
    assert words in line


def test_a_domain_without_disks_is_refused_with_what_it_has() -> None:
    assert refused(SourceUnsuitable) == "domain web01 has no disks to send"
    assert refused(SourceUnsuitable, CDROM).endswith("it has sda (a CD-ROM)")


def test_an_answer_that_is_no_domain_is_told_as_libvirts() -> None:
    with pytest.raises(LibvirtFailed, match="domain web01 is no XML"):
        resolve("web01", FakeLibvirt(b"<domain"), may_run=True)


# Of the commands.

CHOICE = Choice((Source("/a", RAW), Source("/b", Q)), "web01", "ide")


def work(vm: str = "", adapter: str = "") -> Work:
    return Work(
        receiver="esx",
        vm=vm,
        datastore="",
        provisioning="thin",
        format="vmfs",
        adapter=adapter,
        hardware_version=14,
        replace=False,
        live=False,
        until_downtime=None,
        order="fair",  # type: ignore[typeddict-item]  # as msgspec does not mind here
        limit=None,
        disk_limit=None,
        connections=4,
        compression="auto",
        patience=0.0,
        index_limit=0,
        congestion_control=None,
    )


def test_a_machine_is_called_as_its_domain_unless_told_otherwise() -> None:
    assert settle(work(), CHOICE)["vm"] == "web01"
    assert settle(work("other"), CHOICE)["vm"] == "other"


def test_an_adapter_that_was_chosen_is_kept() -> None:
    assert settle(work(), CHOICE)["adapter"] == "ide"
    assert settle(work(adapter="buslogic"), CHOICE)["adapter"] == "buslogic"
    assert settle(work("a"), Choice(CHOICE.sources))["adapter"] == "lsilogic"


def test_a_job_carries_the_format_of_each_source() -> None:
    spec = spec_of(CHOICE.sources, settle(work(), CHOICE))
    assert (spec.sources, spec.source_format) == (["/a", "/b"], [RAW, Q])
    assert spec.named_sources() == CHOICE.sources
    alike = spec_of((Source("/a", Q), Source("/b", Q)), settle(work(), CHOICE))
    assert alike.source_format is Q
    assert alike.named_sources() == (Source("/a", Q), Source("/b", Q))


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeLibvirt], None]:
    def use(fake: FakeLibvirt) -> None:
        monkeypatch.setattr("flatship_sender.domains.virsh.Virsh", lambda _connect: fake)

    return use


def test_a_domain_whose_name_no_vm_can_have_needs_another(
    libvirt: Callable[[FakeLibvirt], None], tmp_path: Path
) -> None:
    libvirt(FakeLibvirt(domain(disk(), name="web@1"), name="web@1"))
    words = ["send", "--domain", "web@1", "--to", "esx", "--state", str(tmp_path)]
    run = CliRunner().invoke(cli, words)
    assert run.exit_code == 2
    assert "choose another with --vm" in run.output


def test_what_is_submitted_for_later_may_still_run(
    libvirt: Callable[[FakeLibvirt], None], tmp_path: Path
) -> None:
    libvirt(FakeLibvirt(domain(disk()), "running"))
    words = ["submit", "--domain", "web01", "--to", "esx", "--state", str(tmp_path)]
    now = CliRunner().invoke(cli, words)
    assert "virsh shutdown web01" in str(now.exception)
    later = CliRunner().invoke(cli, [*words, "--not-before", "2h"])
    assert "domain web01, running: disks vda" in later.output
    assert "virsh shutdown" not in str(later.exception)  # there is no daemon, and that is all


@pytest.mark.parametrize(
    ("selection", "why"),
    [
        (Selection((), None, None, None), "name a SOURCE, or a domain"),
        (Selection(("/a",), None, "web01", None), "not both"),
        (Selection((), Q, "web01", None), "leave --source-format out"),
        (Selection(("/a",), None, None, "qemu:///system"), "name one"),
    ],
)
def test_options_about_disks_that_do_not_fit_together_are_refused(
    selection: Selection, why: str
) -> None:
    with pytest.raises(Exception, match=why):
        selection.choose(may_run=True)


def test_another_host_that_is_named_is_not_even_called(
    libvirt: Callable[[FakeLibvirt], None],
) -> None:
    libvirt(FakeLibvirt(domain(disk())))
    with pytest.raises(UsageError, match="another host"):
        Selection((), None, "web01", "qemu+ssh://kvm2/system").choose(may_run=True)


def test_a_wave_is_not_of_a_domain() -> None:
    words = ["plan", "--to", "esx", "--from", "http://localhost:1", "--domain", "web01"]
    run = CliRunner().invoke(cli, words)
    assert run.exit_code == 2
    assert "not of a --domain" in run.output


def test_named_sources_need_a_machine() -> None:
    run = CliRunner().invoke(cli, ["send", "x", "--to", "esx"])
    assert run.exit_code == 2
    assert "name the virtual machine with --vm" in run.output


def test_the_format_of_named_sources_is_that_of_all() -> None:
    choice = Selection(("/a", "/b"), Q, None, None).choose(may_run=False)
    assert choice == Choice((Source("/a", Q), Source("/b", Q)))
