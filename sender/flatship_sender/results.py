"""What a transfer came to: for programs as JSON, for people as a table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from flatship_protocol.constants import CHUNK_SIZE
from flatship_sender import figures
from flatship_sender.convergence import Downtime, PassReport
from flatship_sender.forecast.truth import Judged, hindsight
from flatship_sender.pass_words import downtime_line
from flatship_sender.progress import DiskProgress, TransferProgress, TransferState
from flatship_service.printable import as_unicode, printable
from flatship_service.units import format_duration, format_size

SCHEMA_VERSION: Final = 1

Amount = TypeVar("Amount", int, float)

_HEADINGS: Final = ("DISK", "SIZE", "DATA", "ON THE WIRE", "RATIO", "TIME", "STATE")


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes never sent: ``hole`` was not even read, ``zero`` was read and is zero."""

    hole: int
    zero: int


class Bytes(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bytes went. ``sent`` is before compression, ``payload`` after it, by codec.

    ``held`` was at the receiver before the last session began. ``changed`` was there too, but
    is another in the source now, and was sent again; ``kept`` is that part of it, and of ``sent``,
    that did not cross the wire: pages that are as they were. ``known`` is the part of ``sent`` that
    did not because the receiver has it elsewhere. ``wanted`` was sent a second time, in whole
    chunks, because the receiver had not all that it was to keep or copy. ``resent`` is that part
    of ``sent`` which was lost with a session before it was acknowledged.
    """

    read: int
    skipped: Skipped
    held: int
    changed: int
    kept: int
    known: int
    wanted: int
    sent: int
    resent: int
    payload: dict[str, int]
    wire: int


class Seconds(msgspec.Struct, frozen=True, kw_only=True):
    """``total`` is on the clock. Stages overlap and have several workers: they may add to more."""

    total: float
    stages: dict[str, float]


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a disk failed. ``code`` names an error of SPEC.md, in lower case."""

    code: str
    exit_code: int
    message: str


class DiskResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one disk.

    ``ratio`` is ``sent`` without ``kept`` and ``known`` to all of ``payload``, null if nothing was
    sent.
    ``root`` is the root digest in hexadecimal, null before the end of the pass.
    """

    source: str
    target: str
    size: int
    capacity: int | None
    state: str
    published: bool
    bytes: Bytes
    ratio: float | None
    seconds: Seconds
    root: str | None
    error: Failure | None


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the disks; ``bytes.wire`` adds what the session itself put on the wire."""

    disks: int
    published: int
    failed: int
    size: int
    bytes: Bytes
    ratio: float | None
    seconds: Seconds


class SendResult(msgspec.Struct, frozen=True, kw_only=True):
    """What ``send --json`` prints. Sizes in bytes, times in seconds.

    ``reconnections`` counts the sessions that took the place of a lost one. ``passes`` are the
    live ones; ``downtime`` is that of a final one, null unless all disks were published.
    ``forecast`` is what ``plan`` had foreseen of a whole transfer, beside the truth.
    """

    schema_version: int = SCHEMA_VERSION
    receiver: str
    vm: str
    connections: int
    reconnections: int
    passes: list[PassReport]
    downtime: Downtime | None
    forecast: Judged | None
    disks: list[DiskResult]
    totals: Totals


def from_progress(progress: TransferProgress) -> SendResult:
    """Take the result of a transfer that has ended, well or not."""
    return SendResult(
        receiver=as_unicode(progress.receiver),
        vm=as_unicode(progress.vm),
        connections=progress.connections,
        reconnections=progress.reconnections,
        passes=list(progress.passes),
        downtime=progress.downtime,
        forecast=progress.forecast,
        disks=[_disk(disk) for disk in progress.disks],
        totals=_totals(progress),
    )


def to_json(result: SendResult) -> bytes:
    """Encode on one line, which the newline at its end completes."""
    return msgspec.json.encode(result) + b"\n"


def render_table(result: SendResult) -> str:
    """Write the result for people: a line a disk, why any failed, no newline at the end."""
    rows = [_HEADINGS, *(_row(disk) for disk in result.disks)]
    if len(result.disks) > 1:
        rows.append(_total_row(result.totals))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [_aligned(row, widths) for row in rows]
    lines += [
        f"{printable(disk.target)}: {disk.size} bytes became {disk.capacity}, for a virtual disk"
        " has whole MiB; the rest is zeros"
        for disk in result.disks
        if disk.capacity is not None and disk.capacity != disk.size
    ]
    lines += [
        f"{printable(disk.target)} {disk.state}: {disk.error.message}"
        for disk in result.disks
        if disk.error
    ]
    lines += [
        f"{printable(disk.target)}: {figures.changed(disk.bytes.changed, disk.bytes.kept)}"
        for disk in result.disks
        if disk.bytes.changed
    ]
    lines += [
        f"{printable(disk.target)}: {figures.known(disk.bytes.known)}"
        for disk in result.disks
        if disk.bytes.known
    ]
    if result.downtime is not None and result.downtime.exposed is not None:
        lines.append(downtime_line(result.downtime))
    if result.forecast is not None:
        lines.append(hindsight(result.forecast))
    if result.reconnections:
        times = "once" if result.reconnections == 1 else f"{result.reconnections} times"
        resent = format_size(result.totals.bytes.resent)
        lines.append(f"connected again {times}; {resent} had to be sent again, or may have had to")
    return "\n".join(lines)


def _disk(disk: DiskProgress) -> DiskResult:
    return DiskResult(
        source=as_unicode(disk.source),
        target=as_unicode(disk.target),
        size=disk.size,
        capacity=disk.capacity,
        state=disk.state.value,
        published=disk.state is TransferState.PUBLISHED,
        bytes=_bytes([disk], disk.wire),
        ratio=_ratio([disk]),
        seconds=_seconds([disk], disk.seconds),
        root=None if disk.root is None else disk.root.hex(),
        error=_failure(disk),
    )


def _failure(disk: DiskProgress) -> Failure | None:
    message = figures.failure(disk)
    if message is None:
        return None
    code = "internal" if disk.error_code is None else disk.error_code.name.lower()
    return Failure(code=code, exit_code=disk.exit_code, message=message)


def _totals(progress: TransferProgress) -> Totals:
    disks = progress.disks
    states = [disk.state for disk in disks]
    begun = [disk for disk in disks if disk.started and disk.finished]
    total = (
        max(disk.finished for disk in begun) - min(disk.started for disk in begun) if begun else 0.0
    )
    return Totals(
        disks=len(disks),
        published=states.count(TransferState.PUBLISHED),
        failed=states.count(TransferState.FAILED),
        size=sum(disk.size for disk in disks),
        bytes=_bytes(disks, progress.wire),
        ratio=_ratio(disks),
        seconds=_seconds(disks, total),
    )


def _bytes(disks: Sequence[DiskProgress], wire: int) -> Bytes:
    return Bytes(
        read=sum(disk.read for disk in disks),
        skipped=Skipped(
            hole=sum(disk.skipped_hole for disk in disks),
            zero=sum(disk.skipped_zero for disk in disks),
        ),
        held=sum(disk.held for disk in disks),
        changed=sum(disk.changed for disk in disks),
        kept=sum(disk.kept for disk in disks),
        known=sum(disk.known for disk in disks),
        wanted=sum(disk.wanted for disk in disks) * CHUNK_SIZE,
        sent=sum(disk.sent for disk in disks),
        resent=sum(disk.resent for disk in disks),
        payload=_summed(disk.payload for disk in disks),
        wire=wire,
    )


def _ratio(disks: Sequence[DiskProgress]) -> float | None:
    ratio = figures.compression_ratio(
        sum(disk.literal for disk in disks), sum(disk.payload.total() for disk in disks)
    )
    return None if ratio is None else round(ratio, 3)


def _seconds(disks: Sequence[DiskProgress], total: float) -> Seconds:
    stages = _summed(disk.stage_seconds for disk in disks)
    return Seconds(
        total=round(total, 3),
        stages={stage: round(seconds, 3) for stage, seconds in stages.items()},
    )


def _summed(amounts: Iterable[Mapping[str, Amount]]) -> dict[str, Amount]:
    sums: dict[str, Amount] = {}
    for amount in amounts:
        for key, value in amount.items():
            sums[key] = sums[key] + value if key in sums else value
    return sums


def _row(disk: DiskResult) -> tuple[str, ...]:
    return (
        printable(disk.target),
        *_figures(disk.size, disk.bytes, disk.ratio, disk.seconds),
        disk.state,
    )


def _total_row(totals: Totals) -> tuple[str, ...]:
    state = f"{totals.published} of {totals.disks} published"
    return ("total", *_figures(totals.size, totals.bytes, totals.ratio, totals.seconds), state)


def _figures(
    size: int, counts: Bytes, ratio: float | None, seconds: Seconds
) -> tuple[str, str, str, str, str]:
    return (
        format_size(size),
        format_size(counts.sent - counts.kept - counts.known),
        format_size(counts.wire),
        figures.format_ratio(ratio),
        format_duration(seconds.total) if seconds.total else figures.UNKNOWN,
    )


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    first, *numbers, last = row
    cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
    return "  ".join([first.ljust(widths[0]), *cells, last]).rstrip()
