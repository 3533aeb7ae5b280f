"""Series of faults: schedule after schedule, some at once, until enough faults have happened.

A seed means the same schedule in every run. As a program it plays a long series and keeps an
account of it in ``results``; see CONTRIBUTING.md.
"""

import argparse
import itertools
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import call_play
import kill_play
import link_play
import queue_play
from stages import Stage, stage

LANES: Final = 4  # schedules at once
RESULTS: Final = Path(__file__).parent / "results"

Play = Callable[[Stage, int], int]
"""Plays what a seed means; returns how many faults happened, and raises what does not hold."""


@dataclass(frozen=True)
class Series:
    """A kind of fault: what it is called in figures, and how its schedules are played."""

    faults: str
    play: Play
    bounds: str


SERIES: Final[Mapping[str, Series]] = {
    "kills": Series(
        "kills", kill_play.play, "Either end killed by SIGKILL at seeded moments, and what is left."
    ),
    "calls": Series(
        "failed calls", call_play.play, "System calls of either end that fail, by strace(1)."
    ),
    "links": Series(
        "harms", link_play.play, "Cuts, half-closes, delays, flipped bits and misplaced records."
    ),
    "queue": Series(
        "killed daemons",
        queue_play.play,
        "The sender's daemon killed at seeded moments, with 20 jobs in its queue.",
    ),
}


@dataclass
class Account:
    """What came of a series.

    ``failures`` has, by seed, what did not hold; the logs of those are kept.
    """

    schedules: int = 0
    faults: int = 0
    seconds: float = 0.0
    failures: dict[int, str] = field(default_factory=dict)


def run_series(
    play: Play, seeds: Iterator[int], enough: int, folder: Path, lanes: int = LANES
) -> Account:
    """Play seeds in turn until ``enough`` faults have happened.

    Args:
        play: Plays one.
        seeds: They are named by whatever fails.
        enough: Faults.
        folder: Below it are the stages; one on which a schedule failed is kept as it is.
        lanes: How many are played at once, each on a stage of its own.
    """
    account, turn = Account(), threading.Lock()
    begun = time.monotonic()

    def next_seed() -> int | None:
        with turn:
            return None if account.faults >= enough else next(seeds, None)

    def lane(_: int) -> None:
        seed = next_seed()
        while seed is not None:
            with ExitStack() as cleanup:
                place = folder / f"from-{seed}"
                on = cleanup.enter_context(stage(place))
                while seed is not None and _play_one(play, on, seed, account, turn):
                    seed = next_seed()
                if seed is None:
                    cleanup.callback(shutil.rmtree, place)
                    return
            seed = next_seed()

    with ThreadPoolExecutor(lanes) as executor:
        list(executor.map(lane, range(lanes)))
    account.seconds = time.monotonic() - begun
    return account


def _play_one(play: Play, on: Stage, seed: int, account: Account, turn: threading.Lock) -> bool:
    try:
        faults, failure = play(on, seed), None
    except Exception:  # whatever it was, it is this seed's failure, and the others go on
        faults, failure = 0, traceback.format_exc()
    with turn:
        account.schedules += 1
        account.faults += faults
        if failure is not None:
            account.failures[seed] = f"seed {seed}, logs in {on.folder}:\n{failure}"
    return failure is None


def main() -> int:
    """Play a long series; exits 1 if anything did not hold."""
    parser = argparse.ArgumentParser(prog="series", description=__doc__)
    parser.add_argument("series", choices=SERIES)
    parser.add_argument("--faults", type=int, default=1000, help="how many are enough")
    parser.add_argument("--seed", type=int, default=1, help="the first")
    parser.add_argument("--schedules", type=int, help="play no more than this many seeds")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th seed, from I on")
    parser.add_argument("--lanes", type=int, default=LANES, help="schedules at once")
    arguments = parser.parse_args()
    shard, shards = (int(number) for number in arguments.shard.split("/"))
    seeds: Iterator[int] = itertools.count(arguments.seed + shard, shards)
    if arguments.schedules is not None:
        seeds = itertools.islice(seeds, arguments.schedules)
    series = SERIES[arguments.series]
    folder = Path(tempfile.mkdtemp(prefix=f"flatship-{arguments.series}-"))
    account = run_series(series.play, seeds, arguments.faults, folder, arguments.lanes)
    for failure in account.failures.values():
        print(failure, file=sys.stderr)
    path = _keep(arguments, series, account)
    print(
        f"{account.faults} {series.faults} in {account.schedules} schedules,"
        f" {account.seconds:.0f} s; {len(account.failures)} did not hold; {path}"
    )
    if not account.failures:
        shutil.rmtree(folder)
    return 1 if account.failures else 0


def _keep(arguments: argparse.Namespace, series: Series, account: Account) -> Path:
    from benchmarks import report

    body = [
        f"| schedules | {series.faults} | seconds | did not hold |",
        "|---|---|---|---|",
        f"| {account.schedules} | {account.faults} | {account.seconds:.0f}"
        f" | {len(account.failures)} |",
        *(f"\nSeed {seed} did not hold." for seed in sorted(account.failures)),
    ]
    name = arguments.series + ("" if arguments.shard == "0/1" else f"-{arguments.shard}")
    command = ["make", "faults", f'FAULTS_ARGS="{" ".join(sys.argv[1:])}"']
    return report.write(name.replace("/", "-of-"), series.bounds, command, body, RESULTS)


if __name__ == "__main__":
    sys.exit(main())
