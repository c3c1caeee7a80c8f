"""`make real-continuum`, or python -m experiments.real data|diagnose|run|page, in that order."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from experiments.real import diagnoses, grid, page, tasks
from experiments.real.plan import SEEDS
from experiments.real.scores import ADAPTIVE, FIXED


def main() -> int:
    """Returns 0, 1 when cells are missing still, 2 for an error that the user can mend."""
    options = _parser().parse_args()
    try:
        if options.command == "data":
            tasks.write_data(grid.WORK / "data", options.sets)
        elif options.command == "diagnose":
            diagnoses.diagnose(options.docs, _tasks(options))
        elif options.command == "run":
            return 0 if _run(options) else 1
        else:
            print(page.write(options.docs))
        return 0
    except (ValueError, OSError) as error:
        print(f"nemo-probsft: {error}", file=sys.stderr)
        return 2


def _tasks(options: argparse.Namespace) -> list[str]:
    names = options.task or list(tasks.TASKS)
    for name in names:
        if name not in tasks.TASKS:
            raise ValueError(f"--task: {name} is not a task of this grid; choose from {', '.join(tasks.TASKS)}")
    return names


def _run(options: argparse.Namespace) -> bool:
    return grid.run(
        options.docs,
        tasks=_tasks(options),
        objectives=options.objective or [*FIXED, *ADAPTIVE],
        seeds=options.seed or SEEDS,
        workers=options.workers or _workers(),
        minutes=options.minutes,
    )


def _workers() -> int:
    """On a GPU the steps of so small a model cost the host's time to launch them; a worker takes 6 GB there."""
    import torch

    cores = os.cpu_count() or 1
    return max(1, min(10, cores - 2)) if torch.cuda.is_available() else cores


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.real", description="The continuum on a real model.")
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="write the tasks' rows to runs/real/data")
    data.add_argument(
        "--sets", type=Path, metavar="DIR", help="of math_oai.jsonl and humaneval.jsonl; else from the hub"
    )
    diagnose = commands.add_parser(
        "diagnose", help="ask nemo-probsft diagnose where the tasks lie that have no line yet"
    )
    run = commands.add_parser("run", help="train and score the cells that have no line yet")
    run.add_argument("--objective", action="append", metavar="KEY", help="only this objective; repeatable")
    run.add_argument("--seed", action="append", type=int, metavar="N", help="only this seed; repeatable")
    run.add_argument(
        "--workers", type=int, metavar="N", help="cells at a time (default: a core each; up to 10 on a GPU)"
    )
    run.add_argument("--minutes", type=float, metavar="N", help="start no cell after that time")
    for command in (diagnose, run):
        command.add_argument("--task", action="append", metavar="NAME", help="only this task; repeatable")
    for command in (diagnose, run, commands.add_parser("page", help="write docs/real-continuum.md from the lines")):
        command.add_argument("--docs", type=Path, default=grid.DOCS, help=f"where the lines are (default: {grid.DOCS})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
