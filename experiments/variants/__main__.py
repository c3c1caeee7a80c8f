"""python -m experiments.variants run|page: run the cells that docs/variants.jsonl lacks; write the page from it.

`run` loads one base model, fine-tunes a copy of it for every (task, objective, seed), and appends a line of JSON with
the score of each test item.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from experiments import jsonl
from experiments.variants import page
from experiments.variants.objectives import variant
from experiments.variants.run import load_base, provenance, run
from experiments.variants.tasks import CONTINUUM, TASKS

WORK = Path("runs/variants")
LINES, PAGE = Path("docs/variants.jsonl"), Path("docs/variants.md")


def main() -> None:
    options = _parser().parse_args()
    if options.command == "page":
        page.write(LINES, PAGE)
    else:
        run_missing(options.tasks, options.objectives, options.seeds, options.steps, options.lines)


def run_missing(tasks: list[str], objectives: list[str], seeds: list[int], steps: int, lines: Path) -> None:
    """Run what has no line in `lines`, seed by seed, and print each result."""
    torch.set_num_threads(1)
    tokenizer, base = load_base(WORK)
    for seed in seeds:
        for objective in objectives:
            for name in tasks:
                cell = {"task": name, "objective": objective, "seed": seed, "steps": steps}
                if not _is_done(lines, cell):
                    line = cell | run(base, tokenizer, TASKS[name], variant(objective), seed, steps)
                    jsonl.append(lines, line | provenance())
                    shown = (f"{key} {line[key]:.3f}" for key in ("greedy", "sampled", "seconds"))
                    print(name, objective, seed, *shown, flush=True)


def _is_done(lines: Path, cell: dict[str, Any]) -> bool:
    return any(cell.items() <= line.items() for line in jsonl.read(lines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.variants", description="Variants of `adaptive`.")
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="train and score the cells that have no line yet")
    runs.add_argument("--tasks", type=_names, default=[task.name for task in CONTINUUM], help=f"of {', '.join(TASKS)}")
    runs.add_argument("--objectives", type=_names, required=True, help="keys of recipes, or of objectives.VARIANTS")
    runs.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0], help="0,1,2")
    runs.add_argument("--steps", type=int, default=500, help="of training (default: 500)")
    runs.add_argument("--lines", type=Path, default=LINES, help=f"read and append to this file (default: {LINES})")
    commands.add_parser("page", help=f"write {PAGE} from {LINES}")
    return parser


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    main()
