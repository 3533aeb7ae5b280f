"""Holds the forecast of a transfer against what it took."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from flatship_sender.downtimes import Disk
from flatship_sender.forecast.record import Forecasts
from flatship_sender.forecast.truth import Judged
from flatship_sender.progress import TransferProgress

WHOLE: Final = 0.9  # of what was sent must have crossed the wire, or it was no whole transfer


def judge(
    state: Path,
    progress: TransferProgress,
    disks: Sequence[Disk],
    when: float,
    warn: Callable[[str], None],
) -> Judged | None:
    """What came of the forecast for a transfer; None without one, or if it was another transfer.

    A forecast is of all the data in one go, so it says nothing of a transfer that was interrupted,
    or of one of which the receiver had most before. It stays for the next one, then.

    Args:
        state: The sender's state folder.
        progress: The transfer's, at its end.
        disks: Its disks, in order.
        when: Now, since 1970.
        warn: Told what cannot be read or written.
    """
    downtime = progress.downtime
    if downtime is None or progress.reconnections:
        return None
    literal = sum(disk.literal for disk in progress.disks)
    if literal < WHOLE * sum(disk.sent + disk.held for disk in progress.disks):
        return None
    forecasts = Forecasts(state, warn)
    forecast = forecasts.pending(progress.receiver, progress.vm, disks, when)
    if forecast is None:
        return None
    return forecasts.conclude(
        progress.receiver, progress.vm, forecast, downtime.seconds, progress.wire, when
    )
