"""Lets the power fail while disks are received on real file systems, and looks what is left.

    python -m crash [--points N] [--seed N] [--layouts NAME,...] [--shard K/N] [--minutes N]

Exits 1 if a promise was not kept, 77 if this machine cannot log a device.
"""

import argparse
import signal
import sys
import time
from itertools import count
from typing import Final

from crash.campaign import LAYOUTS, Tally, run_recording
from crash.device import missing
from crash.report import write_results

CANNOT: Final = 77


def main() -> int:
    """The program."""
    options = _options()
    reason = missing()
    if reason is not None:
        print(f"crash: {reason}", file=sys.stderr)
        return CANNOT
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # unwinds
    tally = Tally()
    deadline = time.monotonic() + options.minutes * 60

    def enough() -> bool:
        stopped = options.stop_at_first and len(tally.violations) > 0
        over = tally.total >= options.points or time.monotonic() >= deadline
        return bool(stopped or over)

    shard, shards = options.shard
    for number in count(shard - 1, shards):
        layout = options.layouts[number // shards % len(options.layouts)]
        points = min(options.per_recording, options.points - tally.total)
        said = len(tally.violations)
        run_recording(layout, options.seed + number, points, tally, enough)
        for violation in tally.violations[said:]:
            print(f"VIOLATION {violation}", flush=True)
        print(tally, flush=True)
        if enough():
            break
    if options.record:
        print(f"recorded in {write_results(tally, sys.argv[1:], options.record)}")
    return 1 if tally.violations else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="crash", description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=200, help="power cuts to judge")
    parser.add_argument("--per-recording", type=int, default=100, help="of them on one log")
    parser.add_argument("--seed", type=int, default=1, help="of the first recording")
    parser.add_argument("--layouts", type=_layouts, default=LAYOUTS, help=", ".join(LAYOUTS))
    parser.add_argument("--shard", type=_shard, default=(1, 1), help="K/N: every Nth recording")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="at most so long")
    parser.add_argument("--stop-at-first", action="store_true", help="end at a violation")
    parser.add_argument("--record", metavar="NAME", help="write results/DATE-NAME.md")
    return parser.parse_args()


def _layouts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(LAYOUTS):
        raise argparse.ArgumentTypeError(f"no such layout: {', '.join(sorted(unknown))}")
    return names


def _shard(text: str) -> tuple[int, int]:
    shard, _, shards = text.partition("/")
    if not (shard.isdecimal() and shards.isdecimal() and 1 <= int(shard) <= int(shards)):
        raise argparse.ArgumentTypeError("expected K/N, K from 1 to N")
    return int(shard), int(shards)


if __name__ == "__main__":
    sys.exit(main())
