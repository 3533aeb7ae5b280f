"""Fuzzing guided by coverage: libFuzzer, by way of atheris, in a process of its own.

libFuzzer ends the process that it runs in, and says what it did on standard error.
"""

import importlib.util
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Final

from fuzz import bounds, corpus, harness
from fuzz.record import Outcome
from fuzz.target import Target

PACKAGES: Final = ["flatship_protocol", "flatship_receiver", "flatship_sender", "flatship_service"]
HEADROOM: Final = 1 << 30  # bytes of address space; libFuzzer keeps its corpus in memory
MAX_LENGTH: Final = 4096  # bytes of an input, unless a seed is longer
HANG: Final = 60  # seconds for one input
GRACE: Final = 120.0  # seconds beyond its own that a process may take to begin and to end
MERGE: Final = 300.0  # seconds
STRUCTURED: Final = 3  # one in so many mutations is the format's own, the others are libFuzzer's


def available() -> bool:
    """Whether atheris is installed."""
    return importlib.util.find_spec("atheris") is not None


def fuzz(target: Target, folder: Path, seconds: int, inputs: int) -> Outcome:
    """Give ``target`` inputs for so long, or so many (0: any number).

    Args:
        target: One of ``targets``.
        folder: Where its inputs are kept from run to run; made if need be.
        seconds: Of the clock.
        inputs: At most.
    """
    seeds, found, crashes = (folder / name for name in ("seeds", "found", "crashes"))
    found.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(exist_ok=True)
    _fill(seeds, harness.known_inputs(target))
    before = set(crashes.iterdir())
    started = time.monotonic()
    said = _libfuzzer(
        target,
        folder / "fuzz.log",
        seconds + GRACE,
        *(f"-max_total_time={seconds}", f"-runs={inputs or -1}", "-print_final_stats=1"),
        *(f"-artifact_prefix={crashes}/", str(found), str(seeds)),
    )
    fresh = sorted(set(crashes.iterdir()) - before)
    return Outcome(
        inputs=_last(r"stat::number_of_executed_units:\s*(\d+)", said),
        seconds=time.monotonic() - started,
        coverage=_last(r"\bcov: (\d+)", said),
        crash=str(fresh[0]) if fresh else "",
    )


def minimised(target: Target, folder: Path) -> set[bytes]:
    """Of what was found in ``folder``, what reaches all that all of it and the seeds reach."""
    minimal = folder / "minimal"
    seeds = [*target.seeds, *corpus.read_regressions(target.name)]
    _fill(minimal, seeds)
    _fill(folder / "kept", corpus.read(target.name))
    sources = (str(minimal), str(folder / "found"), str(folder / "kept"))
    _libfuzzer(target, folder / "merge.log", MERGE, "-merge=1", *sources)
    return {path.read_bytes() for path in minimal.iterdir()} - set(seeds)


def _fill(folder: Path, inputs: list[bytes]) -> None:
    """Make ``folder`` hold these inputs and no others."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for number, data in enumerate(inputs):
        (folder / f"{number:04}").write_bytes(data)


def _libfuzzer(target: Target, log: Path, patience: float, *arguments: str) -> str:
    """Run ``main`` of this module in a process of its own; returns what it wrote."""
    command = [sys.executable, "-m", "fuzz.guided", target.name, *arguments]
    with log.open("wb") as file:
        subprocess.run(command, stdout=file, stderr=file, timeout=patience, check=False)
    return log.read_text(encoding="utf-8", errors="replace")


def _last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def main(name: str, arguments: list[str]) -> None:
    """Hand over to libFuzzer, which does not return."""
    import atheris

    with atheris.instrument_imports(include=PACKAGES):
        from fuzz.targets import BY_NAME

    target = BY_NAME[name]
    tally = harness.Tally()
    structured = harness.mutator(target, time.time_ns())
    random = Random(time.time_ns())

    def try_one(data: bytes) -> None:
        harness.give(target, data, tally)
        if target.repair is not None:
            harness.give(target, target.repair(data), tally)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        if random.randrange(STRUCTURED) == 0:
            return structured.changed(data)[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    longest = max(MAX_LENGTH, *(2 * len(seed) for seed in target.seeds))
    options = [f"-max_len={longest}", f"-timeout={HANG}", "-rss_limit_mb=0"]
    again = f"{shlex.quote(sys.executable)} -m fuzz.guided {name}"  # what -merge runs, in a shell
    atheris.Setup([again, *options, *arguments], try_one, custom_mutator=mutate)
    with bounds.limited_memory(HEADROOM):
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
