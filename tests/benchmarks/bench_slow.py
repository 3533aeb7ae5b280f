"""Flatship and its peers over links of a set rate, in a network namespace; needs root.

    python -m benchmarks.bench_slow [SCENARIO...] [--rounds N] [--data MIB]

Each scenario's docstring says which bar it bounds; its result goes to ``results/``.
With ``--data`` a dense part of the guest stands for whole disks: it shows that a
scenario works; its figures say little, and are kept beside those of whole disks.
"""

import argparse
import sys
from collections.abc import Callable

from benchmarks import report
from benchmarks.disk import MIB
from benchmarks.plan import Plan
from benchmarks.processes import BenchmarkError, exit_when_terminated
from benchmarks.slow_forecasts import forecast
from benchmarks.slow_known import delta, second_guest
from benchmarks.slow_links import four_disks, levels, link_10, link_100
from benchmarks.slow_steps import steps

SCENARIOS: dict[str, Callable[[Plan], list[str]]] = {
    "link-100": link_100,
    "link-10": link_10,
    "levels": levels,
    "steps": steps,
    "delta": delta,
    "second-guest": second_guest,
    "four-disks": four_disks,
    "forecast": forecast,
}


def main() -> None:
    """Run the scenarios named on the command line, or all of them."""
    parser = argparse.ArgumentParser(prog="bench_slow", description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--rounds", type=int, help="instead of each scenario's own number")
    parser.add_argument("--data", type=int, metavar="MIB", help="of a part in place of the disks")
    chosen = parser.parse_args()
    if unknown := set(chosen.scenarios) - set(SCENARIOS):
        parser.error(
            f"unknown scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}"
        )
    exit_when_terminated()
    plan = Plan(chosen.rounds, chosen.data and chosen.data * MIB)
    arguments = ["python", "-m", "benchmarks.bench_slow"]
    options = [
        *(["--rounds", str(chosen.rounds)] if chosen.rounds else []),
        *(["--data", str(chosen.data)] if chosen.data else []),
    ]
    for name in chosen.scenarios or SCENARIOS:
        scenario = SCENARIOS[name]
        print(f"{name}: {scenario.__doc__}", file=sys.stderr)
        try:
            body = scenario(plan)
        except BenchmarkError as error:
            sys.exit(f"bench_slow: {name}: {error}")
        kept_as = name if plan.data is None else f"{name}-of-{chosen.data}MiB"
        path = report.write(kept_as, str(scenario.__doc__), [*arguments, name, *options], body)
        print(path.read_text())


if __name__ == "__main__":
    main()
