"""What people are told of a disk on its way: rates, ratios, times left. Pure.

All of it is computed from progress objects and the time at which they were looked at.
"""

from typing import Final

from flatship_sender.progress import (
    FINAL_STATES,
    DiskProgress,
    TransferProgress,
    TransferState,
    Waiting,
)
from flatship_sender.stalls import WaitsFor
from flatship_service.meter import ETA_SPAN, Meter, seconds_left
from flatship_service.printable import printable
from flatship_service.units import format_duration, format_rate, format_size

UNKNOWN: Final = "-"

_STALLS: Final = {
    WaitsFor.RECEIVER: "no word from the receiver",
    WaitsFor.STORAGE: "the receiver answers, its storage does not get on",
    WaitsFor.LINK: "nothing comes from the receiver; is the link up, and its host?",
    WaitsFor.SOURCE: "the source does not give its data",
}

AT_WORK: Final = (TransferState.OPENING, TransferState.SENDING, TransferState.PROVING)


class DiskMeters:
    """The meters of one disk: its data on their way, then its proof."""

    def __init__(self) -> None:
        self.moved = Meter()
        self._proved = Meter()

    def look(self, disk: DiskProgress, now: float) -> None:
        """Take the disk's counts at ``now``; time spent in other states slows no rate."""
        if disk.state is TransferState.SENDING:
            self.moved.add(now, moved(disk))
        elif disk.state is TransferState.PROVING:
            self._proved.add(now, disk.proved)

    def rate(self, disk: DiskProgress) -> float | None:
        """Bytes of the disk a second: sent and stored, or re-read while it is proven."""
        if disk.state is TransferState.SENDING:
            return self.moved.rate()
        return self._proved.rate() if disk.state is TransferState.PROVING else None

    def eta(self, disk: DiskProgress) -> float | None:
        """Seconds until the present stage ends; None while that is unknown."""
        if disk.state is TransferState.SENDING:
            return seconds_left(disk.remaining, self.moved.rate(ETA_SPAN))
        if disk.state is TransferState.PROVING:
            return seconds_left(disk.to_prove - disk.proved, self._proved.rate(ETA_SPAN))
        return None


class TransferMeters:
    """The meters of a transfer and of its disks, by their index."""

    def __init__(self) -> None:
        self.disks: list[DiskMeters] = []
        self.wire = Meter()
        self.moved = Meter()

    def look(self, progress: TransferProgress, now: float) -> None:
        """Take all counts at ``now``; disks may have been added since the last look."""
        self.disks += [DiskMeters() for _ in progress.disks[len(self.disks) :]]
        for meters, disk in zip(self.disks, progress.disks, strict=True):
            meters.look(disk, now)
        self.wire.add(now, progress.wire)
        if any(disk.state is TransferState.SENDING for disk in progress.disks):
            self.moved.add(now, sum(moved(disk) for disk in progress.disks))


def total(progress: TransferProgress, meters: TransferMeters) -> str:
    """How all disks stand together.

    What is left of them is taken to go on as the last minute did, zeros and what the
    receiver holds included: the time left is wrong for a minute where that changes.
    """
    size = sum(disk.size for disk in progress.disks)
    live = [disk for disk in progress.disks if disk.state not in FINAL_STATES]
    remaining = sum(disk.remaining for disk in live)
    done = sum(disk.size - disk.remaining for disk in progress.disks)
    facts = [f"{percent(done, size)} of {format_size(size)}"]
    if live and (wire_rate := meters.wire.rate()) is not None:
        facts.append(f"{format_rate(wire_rate)} on the wire")
    if live and progress.limit is not None:
        facts.append(f"limit {format_rate(progress.limit)}")
    eta = seconds_left(remaining, meters.moved.rate(ETA_SPAN))
    if remaining and eta is not None and progress.stall is None:
        facts.append(f"{format_duration(eta)} left")
    if altered := sum(disk.changed for disk in progress.disks):
        facts.append(changed(altered, sum(disk.kept for disk in progress.disks)))
    if copied := sum(disk.known for disk in progress.disks):
        facts.append(known(copied))
    return f"total: {', '.join(facts)}"


def moved(disk: DiskProgress) -> int:
    """Bytes that took time: read and found zero or held, or stored at the receiver.

    Holes are left out. They are skipped in an instant, and a rate that
    counts them promises an end that the data behind them will not keep.
    """
    return disk.skipped_zero + disk.held + disk.acked


def percent(part: int, whole: int) -> str:
    """Write a share rounded down: ``100%`` means all of it."""
    return f"{min(100, part * 100 // whole) if whole else 100}%"


def compression_ratio(sent: int, payload: int) -> float | None:
    """Bytes of chunks for each byte of payload; None before the first."""
    return sent / payload if sent and payload else None


def format_ratio(ratio: float | None) -> str:
    """Write a ratio: ``3.4x``, ``120x``."""
    if ratio is None:
        return UNKNOWN
    return f"{ratio:.1f}x" if ratio < 100 else f"{ratio:.0f}x"


def format_eta(seconds: float | None) -> str:
    """Write the time left, or that it is unknown."""
    return UNKNOWN if seconds is None else format_duration(seconds)


def format_state(disk: DiskProgress) -> str:
    """Write the state, and how far the proof is."""
    if disk.state is TransferState.PROVING and disk.to_prove:
        return f"proving {percent(disk.proved, disk.to_prove)}"
    return disk.state.value


def failure(disk: DiskProgress) -> str | None:
    """Why the disk failed, on one line; None if it did not."""
    return None if disk.error is None else printable(disk.error)


def changed(size: int, kept: int) -> str:
    """What to say when the source is no longer what an earlier run has read.

    Args:
        size: Bytes of the chunks that changed.
        kept: Bytes of them that are as they were.
    """
    if not kept:
        return f"changed since the interrupted run: {format_size(size)}, sent again"
    pages = format_size(max(0, size - kept))
    return f"changed since the earlier run: {pages} in pages of {format_size(size)} in chunks"


def known(size: int) -> str:
    """What to say of ``size`` bytes that the receiver copies from what it was sent before."""
    return f"known to the receiver: {format_size(size)}, not sent"


def stall(progress: TransferProgress, now: float) -> str | None:
    """What to say while nothing gets on; None while something does."""
    if progress.stall is None:
        return None
    still_for = format_duration(max(0.0, now - progress.stall.since))
    return f"no progress for {still_for}: {_STALLS[progress.stall.waits_for]}"


def waiting_times(waiting: Waiting, now: float) -> str:
    """When the next try is, and when the last one."""
    left = waiting.next_try - now
    following = f"next try in {format_duration(left)}" if left >= 0.5 else "trying now"
    return f"{following}, giving up in {format_duration(max(0.0, waiting.gives_up - now))}"


def waiting_reasons(waiting: Waiting) -> str:
    """Why the session was lost, and why there is no other yet; on one line."""
    last_try = "" if waiting.last_try is None else f"; last try: {printable(waiting.last_try)}"
    return f"connection lost ({printable(waiting.reason)}){last_try}"
