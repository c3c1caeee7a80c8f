"""`make continuum`, or python -m experiments.continuum [--full] [--task NAME] [--seed N]"""

from __future__ import annotations

import argparse
import sys

from experiments.continuum.grid import continuum


def main() -> int:
    """Returns 0, 1 when a cell failed, 2 for an error that the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m experiments.continuum", description="Objectives x tasks x seeds.")
    parser.add_argument("--full", action="store_true", help="more alphas, thresholds, noise levels and seeds: a night")
    parser.add_argument("--seed", type=int, action="append", metavar="N", help="only this seed; repeatable")
    parser.add_argument("--task", action="append", metavar="NAME", help="only this task of the full grid; repeatable")
    options = parser.parse_args()
    try:
        return 0 if continuum(full=options.full, seeds=options.seed, names=options.task) else 1
    except (ValueError, RuntimeError, OSError) as error:
        print(f"nemo-probsft: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
