"""docs/variants.md from the lines that `run` wrote: tables of accuracy with intervals, and what they say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.statistics import Estimate, estimate
from experiments.jsonl import read
from experiments.variants.objectives import LEARNED, OURS, PUBLISHED, variant
from experiments.variants.tasks import BREAKS, CONTINUUM, TASKS, Task

Line = dict[str, Any]
MIXTURES = tuple(TASKS[name] for name in ("mixed_10", "mixed_20_copies", "weak_noisy_batch_8"))
TEXT = Path(__file__).with_name("page.md")  # {name} stands for what `write` calls so


def write(lines: Path, page: Path) -> None:
    cells = read(lines)
    short, long = ([cell for cell in cells if cell["steps"] == steps] for steps in (200, 500))
    seen = {cell["task"] for cell in cells}
    parts = {
        "continuum": _table(short, CONTINUUM, "sampled"),
        "continuum_greedy": _table(short, CONTINUUM, "greedy"),
        "long": _table(long, CONTINUUM + BREAKS, "sampled"),
        "breaks": _table([cell for cell in short if cell["seed"] == 0], BREAKS, "sampled"),
        "seeds": _table(_with_seeds(short, MIXTURES, (0, 1, 2)), MIXTURES, "sampled"),
        "formulas": "\n".join(_formula_row(key) for key in dict.fromkeys(cell["objective"] for cell in cells)),
        "tasks": "\n".join(_task_row(task, cells) for task in CONTINUUM + BREAKS if task.name in seen),
        "untried": ", ".join(
            f"`{key}`" for key in PUBLISHED | OURS | LEARNED if all(cell["objective"] != key for cell in cells)
        ),
        "versions": "; ".join(sorted({cell["versions"] for cell in cells})),
        "dates": " and ".join(sorted({cell["date"] for cell in cells})),
        "count": str(len(cells)),
    }
    text = TEXT.read_text(encoding="utf-8")
    for name, part in parts.items():
        assert f"{{{name}}}" in text, f"{TEXT.name} does not use {name}"
        text = text.replace(f"{{{name}}}", part)
    page.write_text(text, encoding="utf-8")


def _with_seeds(cells: list[Line], tasks: tuple[Task, ...], seeds: tuple[int, ...]) -> list[Line]:
    """Those of objectives that were run on all of the tasks with all of the seeds."""
    wanted = {(task.name, seed) for task in tasks for seed in seeds}
    done = defaultdict(set)
    for cell in cells:
        done[cell["objective"]].add((cell["task"], cell["seed"]))
    return [cell for cell in cells if wanted <= done[cell["objective"]] and (cell["task"], cell["seed"]) in wanted]


def pooled(cells: Iterable[Line], score: str) -> Estimate:
    """Mean over the test items of all seeds, which are different items, with its interval over items."""
    items = [float(item) for cell in cells for item in cell["items"][score]]
    return estimate(np.array(items)[:, None])


def _table(cells: list[Line], tasks: tuple[Task, ...], score: str) -> str:
    """Accuracy in % with its interval; bold where no other objective's interval lies above; the best on average first.

    Objectives that were run on more of the tasks come before those that were run on fewer.
    """
    by_objective: dict[str, dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell["task"] in {task.name for task in tasks}:
            by_objective[cell["objective"]][cell["task"]].append(cell)
    rows = {
        objective: {task: (pooled(group, score), len(group)) for task, group in groups.items()}
        for objective, groups in by_objective.items()
    }
    columns = [task.name for task in tasks if any(task.name in row for row in rows.values())]
    highest = {task: max(row[task][0].low for row in rows.values() if task in row) for task in columns}
    order = sorted(rows, key=lambda key: (-len(rows[key]), -np.mean([e.mean for e, _ in rows[key].values()])))
    lines = [f"| objective | {' | '.join(f'`{task}`' for task in columns)} |", f"|---|{'---|' * len(columns)}"]
    for objective in order:
        texts = [_cell_text(rows[objective].get(task), highest[task]) for task in columns]
        lines.append(f"| `{objective}` | {' | '.join(texts)} |")
    return "\n".join(lines)


def _cell_text(measured: tuple[Estimate, int] | None, highest: float) -> str:
    if measured is None:
        return ""
    e, seeds = measured
    mean = f"{100 * e.mean:.1f}"
    mean = f"**{mean}**" if e.high >= highest else mean
    return f"{mean} [{100 * e.low:.1f}, {100 * e.high:.1f}]{f', {seeds} seeds' if seeds > 1 else ''}"


def _formula_row(key: str) -> str:
    source = "published" if key in PUBLISHED else "own" if key in OURS | LEARNED else "recipe key"
    return f"| `{key}` | {source} | {variant(key).formula} |"


def _task_row(task: Task, cells: list[Line]) -> str:
    """With the mean p of the first batch of the first seed, which the base model gives it."""
    first_p = next(cell["first_p"] for cell in cells if cell["task"] == task.name and cell["seed"] == 0)
    return f"| `{task.name}` | {task.what} | {first_p:.2f} |"
