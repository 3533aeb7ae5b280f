"""Folders that a benchmark works in, and its command lines without their names."""

import contextlib
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.disk import cache_folder


@dataclass(frozen=True, slots=True)
class Workplace:
    """Folders of one benchmark, removed after it."""

    scratch: Path  # keys, logs, state
    target: Path  # where copies are made

    def shown(self, commands: Iterable[str]) -> list[str]:
        """Command lines as a section of Markdown, with short names for the folders in them."""
        text = "\n".join(commands)
        for folder, shown_as in (
            (self.scratch, "scratch"),
            (self.target, "target"),
            (cache_folder(), "disks"),
            (Path(sys.executable).parent, ".venv/bin"),
        ):
            text = text.replace(str(folder), shown_as)
        return ["", "## Commands", "", "```", text, "```"]


@contextlib.contextmanager
def workplace(parent: Path) -> Iterator[Workplace]:
    """A workplace on the file system of ``parent``."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="flatship-bench-") as name:
        place = Workplace(Path(name, "scratch"), Path(name, "target"))
        place.scratch.mkdir()
        place.target.mkdir()
        yield place
