"""What live passes leave for the final one: their figures, and what became of projections.

A file for each machine and receiver keeps the last passes, so that a later command knows how
fast the source changes, and the final one what was projected for it. One file for all keeps
what final passes took, a line each. Neither is needed to send: what cannot be read or
written is warned about and done without.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from flatship_sender.claims import file_name
from flatship_sender.convergence import Downtime, PassFigures
from flatship_service import files

FOLDER: Final = "passes"
HISTORY: Final = "history.jsonl"
VERSION: Final = 1
MAX_RECORD: Final = 1 << 20  # bytes of a file that are looked at
MAX_HISTORY: Final = 500  # lines


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which disk a pass has read: ``source`` is its identity in hexadecimal, ``size`` in bytes."""

    source: str
    size: int


class _Version(msgspec.Struct):
    version: int


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    disks: list[Disk]
    passes: list[PassFigures]


class _Line(msgspec.Struct):
    version: int
    when: float  # seconds since 1970
    receiver: str
    vm: str
    disks: list[Disk]
    downtime: Downtime


class Downtimes:
    """The passes of one machine to one receiver, as the state folder has them.

    Args:
        state: The sender's state folder.
        receiver: Its name.
        vm: The machine's.
        disks: What is being read, in order; passes over other disks are forgotten.
        warn: Told what cannot be read or written.
    """

    def __init__(
        self,
        state: Path,
        receiver: str,
        vm: str,
        disks: Sequence[Disk],
        warn: Callable[[str], None],
    ) -> None:
        self._folder = state / FOLDER
        self._path = self._folder / file_name(receiver, vm)
        self._receiver = receiver
        self._vm = vm
        self._disks = list(disks)
        self._warn = warn

    def load(self) -> list[PassFigures]:
        """The last passes over these very disks, the oldest first; none if nothing is known."""
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_RECORD)
            version = msgspec.json.decode(data, type=_Version).version
            if version != VERSION:
                self._warn(
                    f"{self._path} is of version {version}, this program reads {VERSION};"
                    " going on without what it says of earlier passes"
                )
                return []
            record = msgspec.json.decode(data, type=_Record)
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
            self._warn(f"{self._path} is not readable: {error}; going on without earlier passes")
            return []
        return record.passes if record.disks == self._disks else []

    def save(self, passes: Sequence[PassFigures]) -> None:
        """Keep the last passes over these disks."""
        record = _Record(VERSION, self._disks, list(passes))
        try:
            files.make_private_folder(self._folder)
            files.replace(self._path, msgspec.json.encode(record))
        except OSError as error:
            self._warn(f"{self._path} cannot be written: {error.strerror or error}")

    def conclude(self, downtime: Downtime, when: float) -> None:
        """Note what a final pass took, at ``when`` (since 1970); its live passes are over."""
        line = _Line(VERSION, when, self._receiver, self._vm, self._disks, downtime)
        path = self._folder / HISTORY
        try:
            files.make_private_folder(self._folder)
            with files.locked(self._folder / ".lock"):
                before = path.read_bytes().splitlines() if path.exists() else []
                lines = [*before[1 - MAX_HISTORY :], msgspec.json.encode(line)]
                files.replace(path, b"\n".join(lines) + b"\n")
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self._warn(f"{path} cannot be written: {error.strerror or error}")
