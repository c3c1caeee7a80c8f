"""`make real-continuum`, or python -m experiments.real run|page."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from experiments.real import grid


def main() -> int:
    """Returns 0, 1 when cells are missing still, 2 for an error that the user can mend."""
    options = _parser().parse_args()
    try:
        if options.command == "run":
            return 0 if _run(options) else 1
        from experiments.real import page

        print(page.write(options.docs))
        return 0
    except (ValueError, OSError) as error:
        print(f"nemo-probsft: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> bool:
    names = options.task or list(grid.TASKS)
    for name in names:
        if name not in grid.TASKS:
            raise ValueError(f"--task: {name} is not a task of this grid; choose from {', '.join(grid.TASKS)}")
    return grid.run(
        options.docs,
        tasks=names,
        objectives=options.objective or [*grid.FIXED, *grid.MOVING],
        seeds=options.seed or grid.SEEDS,
        workers=options.workers or _workers(),
        minutes=options.minutes,
    )


def _workers() -> int:
    """On a GPU a process a core, less two: what a small model's step costs is the host's time to launch it."""
    import torch

    return max(1, min(12, (os.cpu_count() or 1) - 2)) if torch.cuda.is_available() else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.real", description="The continuum on a real model.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and score the cells that have no line yet")
    run.add_argument("--task", action="append", metavar="NAME", help="only this task; repeatable")
    run.add_argument("--objective", action="append", metavar="KEY", help="only this objective; repeatable")
    run.add_argument("--seed", action="append", type=int, metavar="N", help="only this seed; repeatable")
    run.add_argument("--workers", type=int, metavar="N", help="cells at a time (default: 1 on a CPU, else up to 12)")
    run.add_argument("--minutes", type=float, metavar="N", help="start no cell after that time")
    page = commands.add_parser("page", help="write docs/real-continuum.md from the lines")
    for command in (run, page):
        command.add_argument("--docs", type=Path, default=grid.DOCS, help=f"where the lines are (default: {grid.DOCS})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
