"""From a domain's name to disks that can be sent, or to a reason why not and what to do.

What libvirt says is of one moment. Whether somebody writes to a disk is looked at again when it is
opened, and when it has been read: a domain that starts in between is seen by that.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

from flatship_protocol.errors import SourceBusy, SourceMissing, SourceUnsuitable, UsageError
from flatship_sender.domains.virsh import LibvirtFailed, NoSuchDomain
from flatship_sender.domains.xml import Domain, DomainDisk, UnreadableDomain, parse_domain
from flatship_sender.order import Source
from flatship_sender.sources.containers import READABLE

MAX_SHOWN: Final = 10  # domains that are named for one that is not there
SHUT_OFF: Final = "shut off"

_BY_DRIVER: Final = {each.driver: each for each in READABLE}
_HERE: Final = ("", "localhost", "127.0.0.1", "::1")
_BY_PATH: Final = "send it by its path, in a command that names the others, too"
# State -> what ends it; {} is the domain's name.
_TO_SHUT_OFF: Final = {
    "paused": "resume it with virsh resume {0} and shut it down with virsh shutdown {0}",
    "pmsuspended": "wake it with virsh dompmwakeup {0} and shut it down with virsh shutdown {0}",
    "in shutdown": "wait until it is shut off",
    "crashed": "virsh destroy {0} ends it, and leaves its disks as a power failure would",
}
_SHUT_DOWN: Final = "shut it down with virsh shutdown {0}"
# Kind of a disk that this host cannot read as a file -> what it is, and what to do.
_ELSEWHERE: Final = {
    "dir": "is a folder that is shown as a disk; send an image of it by its path",
    "nvme": "is an NVMe device that was taken from this host; give it back with virsh"
    f" nodedev-reattach, then {_BY_PATH}",
    "vhostuser": "is served by another program, over vhost-user; stop the guest and send by its"
    " path what that program serves",
    "vhostvdpa": "is a vDPA device; attach it to this host as a block device, then " + _BY_PATH,
}


class Libvirt(Protocol):
    """What is asked of it; see ``Virsh``, which is one."""

    def uri(self) -> str:
        """Which one it is."""

    def names(self) -> list[str]:
        """All domains."""

    def saved(self) -> list[str]:
        """Those that are shut off with their memory saved."""

    def state(self, domain: str) -> str:
        """How a domain is."""

    def describe(self, domain: str) -> bytes:
        """A domain's XML."""

    def volume_path(self, pool: str, volume: str) -> str:
        """Where the host has a volume."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A domain's disks, in the order of the machine. ``adapter`` is in the words of commands."""

    name: str
    sources: tuple[Source, ...]
    adapter: str
    words: str  # what was found and left out, for the operator


def resolve(asked: str, libvirt: Libvirt, *, may_run: bool) -> Resolved:
    """Find a domain's disks.

    Args:
        asked: The domain, by its name or UUID.
        libvirt: The one that has it.
        may_run: It need not be shut off.

    Raises:
        UsageError: The name is none, or libvirt is that of another host.
        SourceMissing: There is no such domain.
        SourceBusy: It is not shut off, or its memory is saved.
        SourceUnsuitable: A disk cannot be sent, or there is none.
        LibvirtFailed: libvirt cannot be asked, or says what cannot be understood.
    """
    if not asked:
        raise UsageError("a domain has a name; see virsh list --all")
    check_here(libvirt.uri())
    try:
        # The state first: one that starts from now on is seen by its hold on the disks.
        state = libvirt.state(asked)
        domain = parse_domain(libvirt.describe(asked))
    except NoSuchDomain:
        raise SourceMissing(_not_there(asked, libvirt)) from None
    except UnreadableDomain as error:
        raise LibvirtFailed(f"what libvirt says of domain {asked} {error}") from error
    if asked != domain.name and asked.lower() != domain.uuid.lower():
        raise UsageError(
            f"{asked} is a number of domain {domain.name} until it is started again;"
            f" use its name: --domain {shlex.quote(domain.name)}"
        )
    if not may_run:
        _check_quiet(domain.name, state, libvirt)
    sent = [each for each in domain.disks if not each.is_removable]
    if not sent:
        raise SourceUnsuitable(
            f"domain {domain.name} has no disks to send{_left_out(domain, '; it has ')}"
        )
    sources = tuple(_source(domain.name, each, libvirt) for each in sent)
    adapter = "ide" if all(each.bus == "ide" for each in sent) else "lsilogic"
    names = ", ".join(each.target for each in sent)
    suits = f"; adapter {adapter}, as their bus is" if adapter == "ide" else ""
    left = _left_out(domain, "; left out: ")
    words = f"domain {domain.name}, {state}: disks {names}{suits}{left}"
    return Resolved(domain.name, sources, adapter, words)


def check_here(uri: str) -> None:
    """Refuse another host's libvirt: the paths that it names are not here.

    Raises:
        UsageError: It is one.
    """
    try:
        host = urlsplit(uri).hostname or ""
    except ValueError:
        host = uri
    if host not in _HERE:
        raise UsageError(
            f"libvirt at {uri} is that of another host, and so are its disks;"
            " run flatship-sender there"
        )


def _not_there(asked: str, libvirt: Libvirt) -> str:
    names = libvirt.names()
    shown = ", ".join(names[:MAX_SHOWN]) + (" …" if len(names) > MAX_SHOWN else "")
    return (
        f"domain {asked} does not exist: libvirt at {libvirt.uri()} has {shown or 'none'};"
        " another libvirt is named with --connect"
    )


def _check_quiet(name: str, state: str, libvirt: Libvirt) -> None:
    quoted = shlex.quote(name)
    if state != SHUT_OFF:
        remedy = _TO_SHUT_OFF.get(state, _SHUT_DOWN).format(quoted)
        raise SourceBusy(f"domain {name} is {state}; {remedy}, or pass --live")
    if name in libvirt.saved():
        raise SourceBusy(
            f"domain {name} is saved in the middle of its work, as its disks are; start it and shut"
            f" it down, or give up what it had in memory with virsh managedsave-remove {quoted},"
            " or pass --live"
        )


def _left_out(domain: Domain, words: str) -> str:
    """What of a domain is not sent, after ``words``; empty if all of it is."""
    drives = [
        f"{each.target} (a {'floppy' if each.device == 'floppy' else 'CD-ROM'})"
        for each in domain.disks
        if each.is_removable
    ]
    left = [
        *drives,
        *_counted(domain.host_devices, "device", "of the host's"),
        *_counted(domain.filesystems, "folder", "of the host's"),
    ]
    return words + ", ".join(left) if left else ""


def _counted(count: int, what: str, whose: str) -> Sequence[str]:
    return [f"{count} {what}{'' if count == 1 else 's'} {whose}"] if count else []


def _source(domain: str, disk: DomainDisk, libvirt: Libvirt) -> Source:
    place = f"domain {domain}: disk {disk.target}"
    if problem := _problem(disk):
        raise SourceUnsuitable(f"{place} {problem}")
    path = disk.path
    if disk.kind == "volume":
        path = libvirt.volume_path(disk.pool, disk.volume)
        if not path.startswith("/"):
            raise SourceUnsuitable(f"{place} {_of_a_network(f'volume {path}')}")
    if not path.startswith("/"):
        raise SourceUnsuitable(f"{place} has no path on this host; see virsh domblklist {domain}")
    return Source(path, _BY_DRIVER[disk.format])


def _problem(disk: DomainDisk) -> str | None:
    """Why a disk cannot be sent, as a predicate, and what to do; None if it can."""
    if disk.kind == "network":
        return _of_a_network(disk.protocol or "no protocol")
    if disk.kind in _ELSEWHERE:
        return _ELSEWHERE[disk.kind]
    if disk.kind not in ("file", "block", "volume"):
        return f"is of a type that is not known here, {disk.kind or 'none'}; {_BY_PATH}"
    if disk.shareable:
        return f"is shareable: other guests may write to it; once none does, {_BY_PATH}"
    if disk.transient:
        return f"is transient: what the guest writes is thrown away; {_BY_PATH}"
    if disk.encrypted:
        return (
            "is encrypted; copy it with qemu-img convert into an image that is not, and send that"
        )
    if disk.sliced:
        return "is a part of a file; copy it with qemu-img dd into one of its own, and send that"
    if disk.format not in _BY_DRIVER:
        return f"is in the format {disk.format}; send a copy made by qemu-img convert"
    return None


def _of_a_network(what: str) -> str:
    return (
        f"is on network storage ({what}); attach it to this host as a block device, then {_BY_PATH}"
    )
