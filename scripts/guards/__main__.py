"""Removes one guard after another, in a copy of the tree, and sees a test fail for each.

A guard that no test misses is one that the next change may lose without
anybody noticing. The copy is removed at the end; the checkout stays as it is.
Exits 1 if a guard is not missed, or is no longer where this list says.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import of_daemon
import of_domains
import of_receiver
import of_sender
import of_the_rest
from guard import LONG, POWER_CUTS, Guard

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("protocol", "sender", "receiver", "service")

GUARDS = (
    *of_receiver.GUARDS,
    *of_sender.GUARDS,
    *of_daemon.GUARDS,
    *of_domains.GUARDS,
    *of_the_rest.GUARDS,
)

ORDER = (
    "a chunk is on record only after its flush",
    "STORED only after the flush",
    "what is written again is off the record first",
    "an image's folder is synced",
)
GUARDS_OF_ORDER = tuple(
    replace(guard, name=f"{guard.name}, when the power fails", tests=(POWER_CUTS,), timeout=LONG)
    for guard in GUARDS
    if guard.name in ORDER
)


def main() -> int:
    """Try every guard and print the table."""
    missing, guards = 0, (*GUARDS, *GUARDS_OF_ORDER)
    with tempfile.TemporaryDirectory(prefix="flatship-guards-") as name:
        tree = Path(name)
        _copy(tree)
        print("| guard | without it |\n|---|---|")
        for guard in guards:
            verdict = _without(guard, tree)
            missing += verdict is None
            print(f"| {guard.name} | {verdict or '**no test fails**'} |", flush=True)
    print(f"\n{len(guards) - missing} passed, {missing} failed")
    return 1 if missing else 0


def _copy(tree: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for file in listed:
        if (ROOT / file).is_file():
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, tree / file)


def _without(guard: Guard, tree: Path) -> str | None:
    """The test that failed without the guard; None if none did."""
    path = tree / guard.file
    whole = path.read_text()
    if whole.count(guard.code) != 1:
        raise SystemExit(f"guards: {guard.file} has {guard.code!r} {whole.count(guard.code)} times")
    path.write_text(whole.replace(guard.code, guard.without))
    try:
        return _first_failure(guard, tree)
    finally:
        path.write_text(whole)


def _first_failure(guard: Guard, tree: Path) -> str | None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(tree / package) for package in PACKAGES),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *guard.tests]
    try:
        finished = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=guard.timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"hangs for more than {guard.timeout:.0f} s"
    failed = [line for line in finished.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return f"`{failed[0].split()[1].rpartition('::')[2]}`" if failed else None


if __name__ == "__main__":
    sys.exit(main())
