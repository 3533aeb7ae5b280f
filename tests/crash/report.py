"""Where the record of a long run is kept, and what must stand beside it to mean anything."""

import datetime
import os
import platform
import re
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from crash.campaign import Tally
from crash.power_cut import IN_ORDER, REORDERED, TORN

_RESULTS: Final = Path(__file__).parent / "results"
_KINDS: Final = (IN_ORDER, REORDERED, TORN)
_PROGRAMS: Final = (("qemu-storage-daemon", "--version"), ("mkfs.ext4", "-V"), ("mkfs.xfs", "-V"))


def write_results(tally: Tally, arguments: Sequence[str], name: str) -> Path:
    """Write ``results/YYYY-MM-DD-name.md``, over an earlier one of the same day.

    Args:
        tally: What was judged.
        arguments: The command line, without the interpreter.
        name: Part of the file name.
    """
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    path = _RESULTS / f"{today}-{name}.md"
    lines = [f"# Power cuts, {today}", "", f"{tally}.", "", *_table(tally), ""]
    if tally.violations:
        lines += ["## Violations", "", *(f"- {violation}" for violation in tally.violations), ""]
    lines += ["## Conditions", "", *(f"- {line}" for line in _conditions())]
    lines += [f"- command: `python -m crash {' '.join(arguments)}`"]
    _RESULTS.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def _table(tally: Tally) -> Iterator[str]:
    yield f"| file systems | {' | '.join(_KINDS)} |"
    yield "|---" * (1 + len(_KINDS)) + "|"
    for layout in sorted({layout for layout, _ in tally.cuts}):
        counts = (str(tally.cuts[layout, kind]) for kind in _KINDS)
        yield f"| {layout} | {' | '.join(counts)} |"


def _conditions() -> Iterator[str]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    yield f"CPU: {model[1] if model else platform.machine()}, {os.cpu_count()} cores"
    yield f"kernel: {platform.release()}"
    yield f"CPython {platform.python_version()}; SQLite {sqlite3.sqlite_version}"
    for program in _PROGRAMS:
        said = subprocess.run(program, capture_output=True, text=True, check=False)
        yield (said.stdout + said.stderr).splitlines()[0]
    yield f"Flatship {version('flatship')}, revision {_revision()}"


def _revision() -> str:
    command = ("git", "describe", "--always", "--dirty")
    said = subprocess.run(command, cwd=_RESULTS.parent, capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"
