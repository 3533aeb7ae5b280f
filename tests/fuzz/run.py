"""The long run: each decoder for some seconds, going on from what the last run found."""

import argparse
import sys
from pathlib import Path
from typing import Final

from fuzz import corpus, guided, harness, record, unguided
from fuzz.record import Outcome
from fuzz.target import Target
from fuzz.targets import BY_NAME

WORK: Final = Path(".cache/fuzz")
SECONDS: Final = 15  # a decoder
MAX_KEPT: Final = 24  # inputs a decoder, the smallest first
MAX_KEPT_SIZE: Final = 512  # bytes


def main() -> int:
    """Do what the command line asks for; 1 if a decoder broke."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description=__doc__)
    parser.add_argument("--seconds", type=int, default=SECONDS, help=f"a decoder; else {SECONDS}")
    parser.add_argument("--inputs", type=int, default=0, help="a decoder, at most; else any number")
    parser.add_argument(
        "--only", action="append", choices=BY_NAME, metavar="DECODER", help="may be repeated"
    )
    parser.add_argument("--keep", action="store_true", help="put what was found into the corpora")
    parser.add_argument("--replay", nargs=2, metavar=("DECODER", "FILE"), help="one input, once")
    arguments = parser.parse_args()
    if arguments.replay:
        return replay(*arguments.replay)
    targets = [BY_NAME[name] for name in arguments.only or BY_NAME]
    return run(targets, arguments.seconds, arguments.inputs, keep=arguments.keep)


def replay(name: str, file: str) -> int:
    """Give a decoder the input in a file, as it is and repaired; what comes out is raised."""
    target = BY_NAME[name]
    data = Path(file).read_bytes()
    repaired = [target.repair(data)] if target.repair else []
    tally = harness.give_all(target, [data, *repaired])
    print(f"{name}: accepted {tally.accepted}, refused {tally.refused}")
    return 0


def run(targets: list[Target], seconds: int, inputs: int, *, keep: bool) -> int:
    """Give each decoder its time, one after the other, and write the record."""
    means = "guided by coverage (atheris)"
    if not guided.available():
        means = "from the seeded mutator, without regard to coverage"
        print(f"There is no atheris for this Python ({sys.version.split()[0]}): inputs are {means}")
    outcomes: dict[str, Outcome] = {}
    for target in targets:
        folder = WORK / target.name
        fuzz = guided.fuzz if guided.available() else unguided.fuzz
        outcome = outcomes[target.name] = fuzz(target, folder, seconds, inputs)
        print(f"{target.name:24} {outcome.inputs:>11,} inputs {outcome.seconds:6.0f} s", flush=True)
        if outcome.crash:
            again = f"--replay {target.name} {outcome.crash}"
            print(f"    broke; once more: make fuzz FUZZ_ARGS='{again}'", flush=True)
        if keep and guided.available():
            found = sorted(guided.minimised(target, folder), key=len)
            small = [data for data in found if len(data) <= MAX_KEPT_SIZE]
            corpus.keep_found(target.name, small[:MAX_KEPT])
    print(record.write(outcomes, means, ["-m", "fuzz.run", *sys.argv[1:]]))
    return 1 if any(outcome.crash for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
