"""What is asked of the queue, and what it keeps of each job. Pure.

Lengths and ranges are in the types, so that what a client sends is bounded where it is
decoded, and a description of the interface can be made of them.
"""

import posixpath
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Final, Literal, TypeAlias, cast

import msgspec

from flatship_protocol.constants import MAX_DISK_SIZE, MAX_NAME_LENGTH
from flatship_protocol.names import name_problem
from flatship_sender.compression import MAX_LEVEL, MIN_LEVEL
from flatship_sender.config import MIN_LIMIT
from flatship_sender.order import (
    DEFAULT_CONNECTIONS,
    MAX_CONNECTIONS,
    MAX_DISKS,
    Source,
    Work,
    disk_names,
)
from flatship_sender.page_indexes import DEFAULT_LIMIT
from flatship_sender.persistence import DEFAULT_PATIENCE
from flatship_sender.results import SendResult
from flatship_sender.sharing import Precedence
from flatship_sender.sources.containers import ImageFormat

MAX_PATH: Final = 4096  # bytes that Linux takes; characters here
MAX_KEY: Final = 200
MAX_PRIORITY: Final = 100
YEAR_10000: Final = 253_402_300_800  # Unix seconds; what comes later no calendar shows
_YEAR: Final = 366 * 86400.0
_INDEX_LIMIT: Final = 1 << 50


class JobState(StrEnum):
    """Where a job stands.

    ``waiting`` is a job that was tried, and will be again at its ``not_before``.
    """

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


Path: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PATH, pattern="^/")]
# The patterns of names are for descriptions: ``JobSpec`` checks them and says what is wrong.
_NAME: Final = r"[A-Za-z0-9_()-]([A-Za-z0-9._ ()-]*[A-Za-z0-9_()-])?"
Name: TypeAlias = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=MAX_NAME_LENGTH,
        extra_json_schema={"pattern": f"^{_NAME}$"},
    ),
]
Datastore: TypeAlias = Annotated[
    str,
    msgspec.Meta(max_length=MAX_NAME_LENGTH, extra_json_schema={"pattern": f"^({_NAME})?$"}),
]
Rate: TypeAlias = Annotated[int, msgspec.Meta(ge=MIN_LIMIT, lt=1 << 62)]
Time: TypeAlias = Annotated[float, msgspec.Meta(ge=0, lt=YEAR_10000)]
Level: TypeAlias = Annotated[int, msgspec.Meta(ge=MIN_LEVEL, le=MAX_LEVEL)]
# JSON Schema's $ is the end of the text, Python's may also stand before a last line break.
ReceiverName: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$(?!\n)", max_length=63)
]


class JobSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to send and how, in the words and with the defaults of ``send``.

    ``sources`` are absolute paths on the daemon's host. Rates are in bytes a second on the
    wire, ``until_downtime`` and ``patience`` in seconds, ``index_limit`` and ``snapshot_size`` in
    bytes. ``source_format`` is what the sources are, all of them, or in a list each of them; null
    to recognise it.

    Raises:
        ValueError: The parts do not fit together, or one cannot be a path or a name.
    """

    sources: Annotated[list[Path], msgspec.Meta(min_length=1, max_length=MAX_DISKS)]
    receiver: ReceiverName
    vm: Name
    source_format: (
        ImageFormat
        | Annotated[list[ImageFormat | None], msgspec.Meta(min_length=1, max_length=MAX_DISKS)]
        | None
    ) = None
    datastore: Datastore = ""
    format: Literal["vmfs", "monolithicFlat", "twoGbMaxExtentFlat"] = "vmfs"
    provisioning: Literal["thin", "thick", "eager"] = "thin"
    adapter: Literal["ide", "buslogic", "lsilogic"] = "lsilogic"
    hardware_version: Literal[8, 9, 10, 11, 13, 14, 17, 20] = 14
    replace: bool = False
    live: bool = False
    snapshot: bool = False
    snapshot_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_DISK_SIZE)] | None = None
    until_downtime: Annotated[float, msgspec.Meta(gt=0, le=_YEAR)] | None = None
    connections: Annotated[int, msgspec.Meta(ge=1, le=MAX_CONNECTIONS)] = DEFAULT_CONNECTIONS
    compression: Literal["auto", "off"] | Level = "auto"
    limit: Rate | None = None
    disk_limit: Rate | None = None
    order: Precedence = Precedence.FAIR
    patience: Annotated[float, msgspec.Meta(ge=0, le=_YEAR)] = DEFAULT_PATIENCE
    index_limit: Annotated[int, msgspec.Meta(ge=0, le=_INDEX_LIMIT)] = DEFAULT_LIMIT
    congestion_control: (
        Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_-]+$(?!\n)", max_length=15)] | None
    ) = None

    def __post_init__(self) -> None:
        """Refuse what no worker could send."""
        if self.until_downtime is not None and not self.live:
            raise ValueError(
                "until_downtime repeats passes over a source that is in use, so it needs live"
            )
        if self.snapshot and not self.live:
            raise ValueError("snapshot is for a volume that is in use, so it needs live")
        if self.snapshot_size is not None and not self.snapshot:
            raise ValueError("snapshot_size says how large a snapshot is, so it needs snapshot")
        for source in self.sources:
            _check_path(source)
        if len(paths_of(self.sources)) < len(self.sources):
            raise ValueError("a source is named twice; name it once")
        if len(self._formats()) != len(self.sources):
            raise ValueError(
                f"source_format lists {len(self._formats())} formats, and there are"
                f" {len(self.sources)} sources; give one for each, or one for all"
            )
        for name in disk_names(self.vm, len(self.sources)):
            _check("vm", name)
        if self.datastore:
            _check("datastore", self.datastore)

    def work(self) -> Work:
        """All of it but the sources."""
        # The names and types of Work are those of these fields.
        return cast("Work", {name: getattr(self, name) for name in Work.__annotations__})

    def named_sources(self) -> tuple[Source, ...]:
        """The sources, each with what it is."""
        return tuple(map(Source, self.sources, self._formats()))

    def _formats(self) -> list[ImageFormat | None]:
        said = self.source_format
        return said if isinstance(said, list) else [said] * len(self.sources)


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A job as it is asked for.

    Of those that may start the one with the larger ``priority`` does. ``not_before`` is in
    Unix seconds. The same ``key`` with the same contents is the same job, however often it
    is submitted.
    """

    spec: JobSpec
    priority: Annotated[int, msgspec.Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    not_before: Time | None = None
    key: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KEY)] | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the queue keeps of a job. Times are Unix seconds.

    ``attempts`` counts workers that were started for it; ``started`` is when the first was.
    ``by_uid`` is who submitted it. ``message`` says why it waits or failed, and what to do.
    ``wanted`` is set while a running job is being paused or cancelled. ``size`` is the sum of
    its sources in bytes, null while nobody knows. ``result`` is left out of lists.
    """

    id: int
    spec: JobSpec
    priority: int
    not_before: float | None
    key: str | None
    state: JobState
    attempts: int
    submitted: float
    started: float | None
    ended: float | None
    by_uid: int
    wanted: JobState | None = None
    message: str | None = None
    exit_code: int | None = None
    size: int | None = None
    result: SendResult | None = None


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker is given.

    ``state`` is the state folder, ``config`` the configuration file, null for the system's.
    ``in_doubt`` is set if an earlier worker may have published disks and nobody noted it.
    """

    job: int
    spec: JobSpec
    state: str
    config: str | None
    in_doubt: bool


def paths_of(sources: Iterable[str]) -> frozenset[str]:
    """Sources under one spelling each: /dev/vg0/web, whatever slashes and dots it came with.

    Links are left alone. To follow them is to ask a file system, which may hang, and what
    /dev/vg0/web leads to has another name after the next boot. Two jobs that read one disk by two
    names are slower, and no less right.
    """
    # POSIX leaves two leading slashes to the system, and normpath to itself; Linux has one root.
    return frozenset(posixpath.normpath("/" + source.lstrip("/")) for source in sources)


def _check_path(path: str) -> None:
    if "\0" in path:
        raise ValueError("a source's path holds a NUL")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError("a source's path is not UTF-8; send it with --alone") from None


def _check(what: str, name: str) -> None:
    if problem := name_problem(name):
        raise ValueError(f"{what} {name!r} {problem}; choose another name")
