"""Where benchmark results are kept, and what must stand beside them to mean anything."""

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers import versions

_RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("blake3", "cryptography", "uvloop", "zstandard")


def write(
    name: str,
    bounds: str,
    arguments: Sequence[str],
    body: Iterable[str],
    results: Path = _RESULTS,
) -> Path:
    """Write ``results/YYYY-MM-DD-name.md``, over an earlier one of the same day.

    Args:
        name: Of the benchmark; part of the file name.
        bounds: One sentence: what the figures bound.
        arguments: The command line that made them, without the interpreter.
        body: Lines of Markdown.
        results: The folder, which is made.
    """
    path = beside(name, ".md", results)
    lines = [f"# {name}, {path.name[:10]}", "", bounds, "", *body, "", "## Conditions", ""]
    lines += [f"- {line}" for line in (*machine(), *versions())]
    lines += [f"- command: `{' '.join(arguments)}`"]
    path.write_text("\n".join(lines) + "\n")
    return path


def beside(name: str, suffix: str, results: Path = _RESULTS) -> Path:
    """Where today's result of that name is kept, or a picture for it; its folder is made."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    results.mkdir(exist_ok=True)
    return results / f"{today}-{name}{suffix}"


def machine() -> list[str]:
    """Processor, memory, load, versions and revision, a line each."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    packages = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    return [
        f"CPU: {model[1] if model else platform.machine()}, {os.cpu_count()} cores",
        f"memory: {int(memory[1]) >> 20 if memory else '?'} GiB; kernel: {platform.release()}",
        f"load average when written: {os.getloadavg()[0]:.1f}",
        f"CPython {platform.python_version()}; {packages}",
        f"Flatship {version('flatship')}, revision {_revision()}",
    ]


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    said = subprocess.run(command, cwd=_RESULTS.parent, capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"
