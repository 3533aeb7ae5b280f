"""``make api``: requests for a real daemon, as long as you like.

API_ARGS="--seconds 600 --seed 7"
"""

import argparse
import secrets
import sys

from api.trial import try_api


def main() -> int:
    """Try it; prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    arguments = parser.parse_args()
    trial = try_api(arguments.seconds, arguments.seed)
    print(trial.report)
    if "internal" in trial.log or "Traceback" in trial.log:
        print(trial.log)
        return 1
    return trial.exit_code


if __name__ == "__main__":
    sys.exit(main())
