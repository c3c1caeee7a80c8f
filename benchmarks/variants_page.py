"""docs/variants.md from the lines of benchmarks/variants.py: tables of accuracy with intervals, beside the text."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.variants_objectives import OURS, PUBLISHED, variant
from benchmarks.variants_tasks import BREAKS, CONTINUUM, Task
from evaluation.statistics import Estimate, estimate

Line = dict[str, Any]
TEXT = Path(__file__).with_name("variants_text.md")  # what the tables are read as; {continuum} and {breaks} are tables


def read(lines: Path) -> list[Line]:
    """The finished cells; a last line that a kill cut off is left out."""
    if not lines.exists():
        return []
    text = lines.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in text if line.endswith("\n")]


def write(lines: Path, page: Path) -> None:
    cells = read(lines)
    objectives = list(dict.fromkeys(cell["objective"] for cell in cells))
    parts = {
        "continuum": _table(cells, objectives, CONTINUUM, "sampled"),
        "greedy": _table(cells, objectives, CONTINUUM, "greedy"),
        "breaks": _table(cells, objectives, BREAKS, "sampled"),
        "formulas": "\n".join(f"| `{key}` | {_source(key)} | {variant(key).formula} |" for key in objectives),
        "base": ", ".join(f"`{task}` {p:.2f}" for task, p in _base_p(cells).items()),
        "tasks": "\n".join(f"- `{task.name}`: {task.what}" for task in CONTINUUM + BREAKS),
        "versions": "; ".join(sorted({cell["versions"] for cell in cells})),
        "dates": " and ".join(sorted({cell["date"] for cell in cells})),
        "count": str(len(cells)),
    }
    text = TEXT.read_text(encoding="utf-8")
    for name, part in parts.items():
        assert f"{{{name}}}" in text, name
        text = text.replace(f"{{{name}}}", part)
    page.write_text(text, encoding="utf-8")


def pooled(cells: Iterable[Line], score: str) -> Estimate:
    """Mean over the test items of all seeds, which are different items, with its interval over items."""
    items = [float(item) for cell in cells for item in cell["items"][score]]
    return estimate(np.array(items)[:, None])


def _table(cells: list[Line], objectives: list[str], tasks: tuple[Task, ...], score: str) -> str:
    """Accuracy in % with its interval and the number of seeds; bold where no other's interval lies above."""
    by_cell = defaultdict(list)
    for cell in cells:
        by_cell[cell["task"], cell["objective"]].append(cell)
    seen = [task.name for task in tasks if any(name == task.name for name, _ in by_cell)]
    estimates = {key: pooled(group, score) for key, group in by_cell.items() if key[0] in seen}
    highest = {name: max(e.low for (task, _), e in estimates.items() if task == name) for name in seen}
    rows = [f"| objective | {' | '.join(seen)} |", f"|---|{'---|' * len(seen)}"]
    for objective in objectives:
        texts = []
        for name in seen:
            if (name, objective) not in estimates:
                texts.append("")
                continue
            e, seeds = estimates[name, objective], len(by_cell[name, objective])
            mean = f"{100 * e.mean:.1f}"
            mean = f"**{mean}**" if e.high >= highest[name] else mean
            texts.append(f"{mean} [{100 * e.low:.1f}, {100 * e.high:.1f}]{f' x{seeds}' if seeds > 1 else ''}")
        if any(texts):
            rows.append(f"| `{objective}` | {' | '.join(texts)} |")
    return "\n".join(rows)


def _base_p(cells: list[Line]) -> dict[str, float]:
    """Mean p of each task's first batch of seed 0 under the base model."""
    return {cell["task"]: cell["first_p"] for cell in reversed(cells) if cell["seed"] == 0}


def _source(key: str) -> str:
    return "published" if key in PUBLISHED else "here" if key in OURS else "recipe key"
