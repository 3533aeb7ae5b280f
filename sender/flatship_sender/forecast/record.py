"""Forecasts that were made, what came of them, and what that says of the next one.

``plan`` leaves a forecast for a machine and a receiver; the full pass that follows is held against
it, and what it took in terms of the forecast is noted for the receiver. The median of the last ones
corrects the next forecast, within bounds, and less while there are few: one transfer at an odd hour
says little. How far they lie apart is how sure the next one is. None of it is needed to send: what
cannot be read or written is warned about and done without.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from flatship_sender.claims import file_name
from flatship_sender.downtimes import Disk
from flatship_sender.forecast.truth import Judged, Quantiles
from flatship_service import files

FOLDER: Final = "forecasts"
HISTORY: Final = "history.jsonl"
VERSION: Final = 1
MAX_FILE: Final = 1 << 20  # bytes of a file that are looked at
MAX_HISTORY: Final = 500  # lines
RECENT: Final = 20  # of a receiver's, that a correction is made of
STALE: Final = 7 * 86400.0  # seconds after which a forecast is of another time
UNSURE: Final = 0.10  # standard deviation of the logarithm, before anything is known
SUREST: Final = 0.03
PRIOR: Final = 3  # past transfers that what is not known counts for
LARGEST: Final = log(2.0)  # no correction is by more than that
MAD_TO_DEVIATION: Final = 1.4826  # of a normal distribution
Z90: Final = 1.2816  # standard deviations below which nine of ten lie


class Forecast(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``plan`` foresaw. ``raw_seconds`` and ``raw_wire`` are before any correction.

    ``made`` counts from 1970; ``limit`` is in bytes a second on the wire, null for none.
    """

    made: float
    disks: list[Disk]
    seconds: Quantiles
    wire: Quantiles
    raw_seconds: float
    raw_wire: float
    limit: float | None


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    when: float
    receiver: str
    vm: str
    seconds_ratio: float  # the truth in terms of what was foreseen before any correction
    wire_ratio: float


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    forecast: Forecast


@dataclass(frozen=True, slots=True)
class Correction:
    """By how much to correct a forecast, how unsure it is, and from how many transfers."""

    factor: float = 1.0
    deviation: float = UNSURE  # of the logarithm
    of: int = 0


def correction(ratios: Sequence[float]) -> Correction:
    """What past ratios of truth to forecast say of the next one. Pure."""
    logs = [log(ratio) for ratio in ratios if ratio > 0][-RECENT:]
    if not logs:
        return Correction()
    middle = median(logs)
    shrunk = middle * len(logs) / (len(logs) + 1)
    off = MAD_TO_DEVIATION * median(abs(each - middle) for each in logs)
    deviation = (len(logs) * off + PRIOR * UNSURE) / (len(logs) + PRIOR)
    return Correction(exp(min(LARGEST, max(-LARGEST, shrunk))), max(SUREST, deviation), len(logs))


def quantiles(expected: float, deviation: float) -> Quantiles:
    """Of a quantity whose logarithm is spread by ``deviation`` about that of ``expected``."""
    return Quantiles(expected, expected * exp(Z90 * deviation))


class Forecasts:
    """The forecasts in a sender's state folder.

    Args:
        state: The folder.
        warn: Told what cannot be read or written.
    """

    def __init__(self, state: Path, warn: Callable[[str], None]) -> None:
        self._folder = state / FOLDER
        self._warn = warn

    def keep(self, receiver: str, vm: str, forecast: Forecast) -> None:
        """Note a forecast in place of an earlier one of that machine."""
        path = self._folder / file_name(receiver, vm)
        try:
            files.make_private_folder(self._folder)
            files.replace(path, msgspec.json.encode(_Record(version=VERSION, forecast=forecast)))
        except OSError as error:
            self._warn(f"{path} cannot be written: {error.strerror or error}")

    def pending(self, receiver: str, vm: str, disks: Sequence[Disk], now: float) -> Forecast | None:
        """The forecast for these very disks, if one was made of late."""
        path = self._folder / file_name(receiver, vm)
        try:
            with path.open("rb") as file:
                record = msgspec.json.decode(file.read(MAX_FILE), type=_Record)
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
            self._warn(f"{path} is not readable: {error}; going on without the forecast")
            return None
        known = record.version == VERSION and record.forecast.disks == list(disks)
        fresh = 0 <= now - record.forecast.made <= STALE
        return record.forecast if known and fresh else None

    def conclude(
        self, receiver: str, vm: str, forecast: Forecast, took: float, sent: int, when: float
    ) -> Judged:
        """Hold a forecast against the truth, learn from it, and forget it.

        Args:
            receiver: Its name.
            vm: The machine's.
            forecast: What was foreseen.
            took: Seconds.
            sent: Bytes of records.
            when: Since 1970.
        """
        line = _Line(
            version=VERSION,
            when=when,
            receiver=receiver,
            vm=vm,
            seconds_ratio=took / max(forecast.raw_seconds, 1e-3),
            wire_ratio=max(sent, 1) / max(forecast.raw_wire, 1.0),
        )
        path = self._folder / HISTORY
        try:
            files.make_private_folder(self._folder)
            with files.locked(self._folder / ".lock"):
                before = path.read_bytes().splitlines() if path.exists() else []
                lines = [*before[1 - MAX_HISTORY :], msgspec.json.encode(line)]
                files.replace(path, b"\n".join(lines) + b"\n")
            (self._folder / file_name(receiver, vm)).unlink(missing_ok=True)
        except OSError as error:
            self._warn(f"{path} cannot be written: {error.strerror or error}")
        return Judged(
            made=forecast.made,
            seconds=forecast.seconds,
            wire=forecast.wire,
            took=took,
            sent=sent,
            ratio=took / max(forecast.seconds.p50, 1e-3),
            wire_ratio=sent / max(forecast.wire.p50, 1.0),
            within_p90=took <= forecast.seconds.p90,
        )

    def corrections(self, receiver: str) -> tuple[Correction, Correction]:
        """What past transfers to a receiver say of seconds, and of bytes on the wire."""
        lines = self._history(receiver)
        return (
            correction([line.seconds_ratio for line in lines]),
            correction([line.wire_ratio for line in lines]),
        )

    def _history(self, receiver: str) -> list[_Line]:
        path = self._folder / HISTORY
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._warn(f"{path} is not readable: {error}; going on without past forecasts")
            return []
        lines = []
        for text in data.splitlines():
            try:
                line = msgspec.json.decode(text, type=_Line)
            except (UnicodeDecodeError, msgspec.MsgspecError):
                continue  # one that was damaged takes no other with it
            if line.version == VERSION and line.receiver == receiver:
                lines.append(line)
        return lines[-RECENT:]
