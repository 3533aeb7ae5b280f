"""What one ``send`` command asks for, and what became of it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypedDict

from flatship_protocol.endpoint import Endpoint
from flatship_protocol.errors import TransferError, UsageError
from flatship_protocol.messages import Adapter, DiskFormat, Provisioning
from flatship_protocol.names import check_name
from flatship_sender.client import Lifetime
from flatship_sender.compression import Policy
from flatship_sender.page_indexes import DEFAULT_LIMIT
from flatship_sender.persistence import DEFAULT_PATIENCE
from flatship_sender.progress import TransferProgress
from flatship_sender.receivers import Receiver
from flatship_sender.sharing import Precedence
from flatship_sender.sources.containers import ImageFormat
from flatship_service.keys import Identity

DEFAULT_CONNECTIONS: Final = 4
MAX_CONNECTIONS: Final = 14  # receivers allow 16: two more while connections are replaced
MAX_DISKS: Final = 256  # of a machine in vSphere, and in a session at the receiver

# In the words of commands and of jobs.
FORMATS: Final = {
    "vmfs": DiskFormat.VMFS,
    "monolithicFlat": DiskFormat.MONOLITHIC_FLAT,
    "twoGbMaxExtentFlat": DiskFormat.TWO_GB_MAX_EXTENT_FLAT,
}
PROVISIONINGS: Final = {kind.name.lower(): kind for kind in Provisioning}
ADAPTERS: Final = {kind.name.lower(): kind for kind in Adapter}
HARDWARE_VERSIONS: Final = (8, 9, 10, 11, 13, 14, 17, 20)


class Work(TypedDict):
    """What a command or a job says of its work, in its own words; all but the disks."""

    receiver: str
    vm: str  # empty for that of a domain
    datastore: str
    provisioning: str
    format: str
    adapter: str  # empty for what suits the disks
    hardware_version: int
    replace: bool
    live: bool
    snapshot: bool
    snapshot_size: int | None
    until_downtime: float | None
    order: Precedence
    limit: int | None
    disk_limit: int | None
    connections: int
    compression: Policy
    patience: float
    index_limit: int
    congestion_control: str | None


@dataclass(frozen=True, slots=True)
class Source:
    """A disk to send: where it is, and what it is said to be; None to recognise it."""

    path: str
    format: ImageFormat | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What the disks become at the receiver."""

    vm: str
    datastore: str
    format: DiskFormat
    provisioning: Provisioning
    adapter: Adapter
    hardware_version: int
    replace: bool


@dataclass(frozen=True, slots=True)
class SendOptions:
    """How disks are sent.

    ``limit`` is in bytes per second on the wire, over all connections, ``disk_limit``
    likewise, for each disk. ``patience`` is how many seconds without progress a lost
    session is tried again; 0 for not at all. ``index_limit`` is how many bytes what is
    known of pages may take, of all disks. ``until_downtime`` is how many seconds the final pass may
    take: live passes are made until it does; None for a single one. ``congestion_control``
    is TCP's, None for the file's. ``precedence`` is how the disks share the link. ``in_doubt``
    is set where an earlier run may have published the very same disks. With ``snapshot`` volumes
    are read by way of one, for which a thick one gives ``snapshot_size`` bytes of its group; None
    for the usual.
    """

    connections: int
    compression: Policy
    limit: int | None
    live: bool
    dry_run: bool
    http: Endpoint | None
    lifetime: Lifetime = field(default_factory=Lifetime)
    patience: float = DEFAULT_PATIENCE
    index_limit: int = DEFAULT_LIMIT
    disk_limit: int | None = None
    until_downtime: float | None = None
    congestion_control: str | None = None
    precedence: Precedence = Precedence.FAIR
    in_doubt: bool = False
    snapshot: bool = False
    snapshot_size: int | None = None


def target_of(work: Work) -> Target:
    """What that work makes of its disks."""
    return Target(
        work["vm"],
        work["datastore"],
        FORMATS[work["format"]],
        PROVISIONINGS[work["provisioning"]],
        ADAPTERS[work["adapter"]],
        work["hardware_version"],
        work["replace"],
    )


def options_of(
    work: Work, *, dry_run: bool = False, http: Endpoint | None = None, in_doubt: bool = False
) -> SendOptions:
    """How that work sends its disks, with what it does not say of itself."""
    return SendOptions(
        work["connections"],
        work["compression"],
        work["limit"],
        work["live"],
        dry_run,
        http,
        patience=work["patience"],
        index_limit=work["index_limit"],
        disk_limit=work["disk_limit"],
        until_downtime=work["until_downtime"],
        congestion_control=work["congestion_control"],
        precedence=work["order"],
        snapshot=work["snapshot"],
        snapshot_size=work["snapshot_size"],
        in_doubt=in_doubt,
    )


@dataclass(frozen=True, slots=True)
class Order:
    """One command's work: which disks go where, how, and as whom.

    ``command`` is the command line for a shell, told to whoever has to repeat it.
    ``config`` is the configuration file, None for the system's.
    """

    sources: tuple[Source, ...]
    receiver: Receiver
    identity: Identity
    state: Path
    target: Target
    options: SendOptions
    command: str = "the same command"
    config: Path | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the disks, and what ended the session early, if anything did."""

    progress: TransferProgress
    failure: TransferError | None

    @property
    def exit_code(self) -> int:
        """That of the first disk that failed, or of the session; 0 if all went well."""
        codes = [disk.exit_code for disk in self.progress.disks if disk.exit_code]
        if self.failure is not None:
            codes.append(self.failure.exit_code)
        return codes[0] if codes else 0


def disk_names(vm: str, count: int) -> list[str]:
    """Base names of a VM's disks, as the machine expects them: vm, vm_1, vm_2 …"""
    return [vm if number == 0 else f"{vm}_{number}" for number in range(count)]


def check_names(order: Order) -> None:
    """Refuse names, and so many disks, that no receiver would take.

    Raises:
        UsageError: There are too many disks.
        NameRefused: VM, disk or datastore cannot be called that.
    """
    target = order.target
    if len(order.sources) > MAX_DISKS:
        raise UsageError(
            f"{len(order.sources)} disks are more than a virtual machine can have, {MAX_DISKS};"
            " send those of each machine by a command of its own"
        )
    for name in disk_names(target.vm, len(order.sources)):
        check_name(name)
    if target.datastore:
        check_name(target.datastore)


def distinct(sources: Sequence[Source]) -> Sequence[Source]:
    """Refuse one disk named twice, which is a slip and would be sent as two."""
    seen: dict[tuple[int, int], str] = {}
    for source in sources:
        path = source.path
        try:
            status = os.stat(path)
        except OSError:
            continue  # whoever opens it says why
        disk = (0, status.st_rdev) if status.st_rdev else (status.st_dev, status.st_ino)
        if disk in seen:
            raise UsageError(f"{path} and {seen[disk]} are the same disk; name it once")
        seen[disk] = path
    return sources
