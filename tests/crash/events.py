"""What happened while a device was logged, each with how far the log had come by then."""

import os
from pathlib import Path
from typing import TypeAlias

import msgspec

from crash.write_log import entry_count


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """The command of step ``step`` is about to run; what it does is logged after ``at``."""

    at: int
    step: int


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """The receiver is about to say that ``ranges``, (offset, length) in bytes, are durable."""

    at: int
    ranges: tuple[tuple[int, int], ...]


class Proven(msgspec.Struct, frozen=True, tag="proven"):
    """The receiver is about to say that the disk is proven."""

    at: int
    published: bool


Event: TypeAlias = Begun | Stored | Proven

_decoder = msgspec.json.Decoder(Event)


class Noting:
    """Appends events to a file, as several processes may do at once.

    Args:
        log: The device's log.
        events: The file.
    """

    def __init__(self, log: str | Path, events: str | Path) -> None:
        self.path = Path(events)
        self._log = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        self._events = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def position(self) -> int:
        """How many entries the log had at the device's last flush."""
        return entry_count(self._log)

    def note(self, event: Event) -> None:
        """Append an event."""
        os.write(self._events, msgspec.json.encode(event) + b"\n")

    def close(self) -> None:
        """Let go of the files."""
        os.close(self._log)
        os.close(self._events)


def read_events(path: Path) -> list[Event]:
    """All events, in order."""
    return [_decoder.decode(line) for line in path.read_bytes().splitlines()]
