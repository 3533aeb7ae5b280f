"""What libvirt's XML says of a domain's disks. Pure: bytes in, nothing else is opened.

The XML holds names that whoever defined the domain has chosen. No tree is made of it: what
matters here is picked out as it goes by, so that memory follows the disks and not the text.
"""

import re
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from xml.parsers import expat

MAX_BYTES: Final = 4 << 20  # of XML; libvirt's own protocol carries no longer string
MAX_DEPTH: Final = 500  # elements within each other; libvirt allows chains of 200 images
MAX_DISKS: Final = 1024  # any kind of drive; a machine in vSphere has 256
MAX_TEXT: Final = 4096  # characters of a name or a path

_DISK: Final = "domain/devices/disk"
_TEXTS: Final = ("domain/name", "domain/uuid")
_COUNTED: Final = ("domain/devices/hostdev", "domain/devices/filesystem")
# Of a disk only these are looked at; what is in its <backingStore> and <mirror> is not it.
_WANTED: Final = frozenset(
    (
        "/boot",
        "/driver",
        "/encryption",
        "/shareable",
        "/source",
        "/source/encryption",
        "/source/slices",
        "/target",
        "/transient",
    )
)
_DEEPEST: Final = 5  # elements within each other, of those
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_TARGET: Final = re.compile(r"(fd|hd|sd|ubd|vd|xvd)([a-z]+)")

_Attributes: TypeAlias = dict[str, str]


class UnreadableDomain(ValueError):
    """It is no domain's XML; the text says why, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """One drive of a domain, in libvirt's words; what is not said is empty."""

    target: str  # the name in the guest, more or less: vda
    bus: str  # virtio, scsi, sata, ide …
    device: str  # disk, lun, cdrom, floppy
    kind: str  # what is behind it: file, block, volume, network …
    format: str  # raw, qcow2 …; raw is what libvirt takes for one that is not named
    path: str  # of a file or a block device
    pool: str
    volume: str
    protocol: str  # of a network: rbd, iscsi …
    boot: int | None  # the machine starts from the lowest
    shareable: bool
    transient: bool
    encrypted: bool
    sliced: bool  # it is a part of what is behind it

    @property
    def is_removable(self) -> bool:
        """Whether it is a drive for media and no disk."""
        return self.device in ("cdrom", "floppy")


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain, and its drives as the machine counts them."""

    name: str
    uuid: str
    disks: tuple[DomainDisk, ...]
    host_devices: int  # given to the guest as they are
    filesystems: int  # folders of the host that the guest sees


def parse_domain(xml: bytes) -> Domain:
    """Read what ``virsh dumpxml`` writes.

    The drive from which the machine starts, if it is named one by one, comes first; others
    follow by their targets, vdb before vdaa, buses in the order of the text.

    Raises:
        UnreadableDomain: It is none, or larger than any.
    """
    if len(xml) > MAX_BYTES:
        raise UnreadableDomain(f"has {len(xml)} bytes, more than libvirt can say of one")
    reading = _Reading()
    # The encoding is given: what the text claims of itself decides nothing.
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = reading.start
    parser.EndElementHandler = reading.end
    parser.CharacterDataHandler = reading.text
    parser.StartDoctypeDeclHandler = reading.doctype
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise UnreadableDomain(f"is no XML: {error}") from None
    return reading.domain()


@dataclass(slots=True)
class _Reading:
    """What was seen until now. ``drives`` maps places below a disk to their attributes."""

    path: list[str] = field(default_factory=list)
    drives: list[dict[str, _Attributes]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))

    def doctype(self, *_: object) -> None:
        # A DTD is what makes entities, and libvirt writes none.
        raise UnreadableDomain("has a document type, which libvirt never writes")

    def start(self, name: str, attributes: _Attributes) -> None:
        if not self.path and name != "domain":
            raise UnreadableDomain("is XML of something else than a domain")
        if len(self.path) >= MAX_DEPTH:
            raise UnreadableDomain(f"has elements more than {MAX_DEPTH} deep")
        self.path.append(name)
        if len(self.path) > _DEEPEST:
            return
        place = "/".join(self.path)
        if place in self.counts:
            self.counts[place] += 1
        elif place == _DISK:
            if len(self.drives) >= MAX_DISKS:
                raise UnreadableDomain(f"has more than {MAX_DISKS} drives")
            self.drives.append({"": _bounded(attributes)})
        elif place.startswith(_DISK) and (below := place.removeprefix(_DISK)) in _WANTED:
            self.drives[-1].setdefault(below, _bounded(attributes))

    def end(self, _name: str) -> None:
        self.path.pop()

    def text(self, text: str) -> None:
        if len(self.path) == 2 and (place := "/".join(self.path)) in _TEXTS:
            said = self.texts.get(place, "") + text
            self.texts.update(_bounded({place: said}))

    def domain(self) -> Domain:
        name, uuid = (self.texts.get(place, "") for place in _TEXTS)
        if not name:
            raise UnreadableDomain("has no name")
        hostdevs, filesystems = (self.counts[place] for place in _COUNTED)
        disks = _in_order([_disk(each) for each in self.drives])
        return Domain(name, uuid, disks, hostdevs, filesystems)


def _bounded(texts: _Attributes) -> _Attributes:
    if any(len(each) > MAX_TEXT for each in texts.values()):
        raise UnreadableDomain(f"has a name of more than {MAX_TEXT} characters")
    return texts


def _disk(said: dict[str, _Attributes]) -> DomainDisk:
    top, source, target = said[""], said.get("/source", {}), said.get("/target", {})
    if not target.get("dev"):
        raise UnreadableDomain("has a disk without a target")
    boot = said.get("/boot", {}).get("order", "")
    return DomainDisk(
        target=target["dev"],
        bus=target.get("bus", ""),
        device=top.get("device", "disk"),
        kind=top.get("type", ""),
        format=said.get("/driver", {}).get("type", "raw"),
        path=source.get("file") or source.get("dev") or "",
        pool=source.get("pool", ""),
        volume=source.get("volume", ""),
        protocol=source.get("protocol", ""),
        boot=int(boot) if _NUMBER.fullmatch(boot) else None,
        shareable="/shareable" in said,
        transient="/transient" in said,
        encrypted="/encryption" in said or "/source/encryption" in said,
        sliced="/source/slices" in said,
    )


def _in_order(disks: list[DomainDisk]) -> tuple[DomainDisk, ...]:
    ranks: dict[str, int] = {}

    def by_target(disk: DomainDisk) -> tuple[int, int, str]:
        match = _TARGET.fullmatch(disk.target)
        bus, letters = match.groups() if match else (disk.target, "")
        return ranks.setdefault(bus, len(ranks)), len(letters), letters

    ordered = sorted(disks, key=by_target)
    bootable = [each for each in ordered if each.boot is not None and not each.is_removable]
    if bootable:
        first = min(bootable, key=lambda each: each.boot or 0)
        ordered.remove(first)
        ordered.insert(0, first)
    return tuple(ordered)
