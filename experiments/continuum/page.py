"""docs/continuum.md and its figures, from the committed cells and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from evaluation.statistics import Difference, Estimate, estimate_over_seeds, paired_difference_over_seeds
from experiments import drawing
from experiments.continuum import figures
from experiments.continuum.cells import read_cells, read_diagnoses
from experiments.wording import entry, points, verdict, versions
from nemo_probsft.objectives import Objective, parse_objective

TITLES = {
    "strong": "strong: additions that the base model knows, 30 % wrong answers in training",
    "intermediate": "intermediate: these additions and the clean cipher, half of the tokens each; tested on both",
    "weak": "weak: a letter cipher that the base model has never seen",
    "weak_noisy": "weak_noisy: the cipher, 30 % wrong answers in training",
    "weak_two_ciphers": "weak_two_ciphers: the cipher, 30 % of the training answers by another cipher",
}
FIXED = ("original", "GeneralFamily-0.1", "GeneralFamily-0.5", "p", "GeneralFamily-10", "OnlyTopLogP-0.2")
ADAPTIVE = ("adaptive", "adaptive-by-label")

CLOSE = 0.05  # the paper's Table 2 has p within 1.7 points of -log p; the intervals here are wider than that
ABOVE = 0.2  # how far above every fixed objective `adaptive` is meant to be where the task is new and noisy
NEW_AND_NOISY = ("weak_noisy", "weak_two_ciphers")
SQUARED_ODDS = (
    "Why an alpha of 0.5 resists wrong answers: if the targets are distributed as q, the mean of (1 - p^a)/a with",
    "a < 1 is smallest at p proportional to q^(1/(1 - a)). -log p ends at q itself, 0.5 squares the odds, 1 - p takes",
    "the likeliest. Wrong answers that spread over many labels vanish in the square. Wrong answers that agree with",
    "each other do not: see `weak_two_ciphers`, a task of `python -m experiments.continuum --task weak_two_ciphers`.",
    "[variants.md](variants.md) has it with other seeds; its runs of 200 steps also show how much longer a fixed 0.5",
    "takes.",
)
INTRODUCTION = (
    "# The continuum, measured",
    "",
    "`make continuum` (`FULL=1` for the full grid) fine-tunes the demo's base model of 0.6 M parameters with the",
    "real NeMo and Megatron, and evaluates it with the real vLLM. This page is written from",
    "docs/continuum/cells.jsonl; the command runs the cells that are missing there.",
)
METHOD = (
    "Intervals: 95 % bootstrap over items, and over seeds where there are several. Differences are paired by item",
    "and seed; p comes from sign flips over items. A seed draws the order of training; the rows, the base model and",
    "the sampler's seed are the same for all.",
)


@dataclass(frozen=True)
class Scores:
    """The cells of one objective on one task: [items, 1] per seed, the share of right answers."""

    seeds: tuple[int, ...]
    sampled: list[np.ndarray]
    greedy: list[np.ndarray]

    @cached_property
    def accuracy(self) -> Estimate:
        return estimate_over_seeds(self.sampled)

    @cached_property
    def greedy_accuracy(self) -> Estimate:
        return estimate_over_seeds(self.greedy)


def write(docs: Path) -> Path:
    """Write `docs`.md, and the figures into `docs`. Returns the page."""
    cells, diagnoses = read_cells(docs), read_diagnoses(docs)
    table = _scores(cells)
    page = docs.with_suffix(".md")
    tasks = [task for task in diagnoses if any(of == task for of, _ in table)]
    objectives = sorted({objective for _, objective in table}, key=_order)
    if cells:
        adaptive = {
            key: {task: table[task, key].accuracy for task in tasks if (task, key) in table} for key in ADAPTIVE
        }
        over_alpha = figures.over_alpha(_points_over_alpha(table, tasks), adaptive)
        drawing.save(over_alpha, docs / "alpha.png")
        heat_map = figures.heat_map(_means(table, tasks, objectives), tasks, objectives)
        drawing.save(heat_map, docs / "heat_map.png")
    page.write_text("\n".join(_lines(cells, diagnoses, table, tasks, objectives)) + "\n", encoding="utf-8")
    return page


def _scores(cells: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Scores]:
    table: dict[tuple[str, str], Scores] = {}
    for name in dict.fromkeys((cell["task"], cell["objective"]) for cell in cells):
        own = sorted((c for c in cells if (c["task"], c["objective"]) == name), key=lambda cell: cell["seed"])
        sampled = [np.array(cell["sampled"])[:, None] / cell["samples_per_item"] for cell in own]
        greedy = [np.array([float(digit) for digit in cell["greedy"]])[:, None] for cell in own]
        table[name] = Scores(tuple(cell["seed"] for cell in own), sampled, greedy)
    return table


def _lines(cells, diagnoses, table, tasks, objectives) -> list[str]:
    if not cells:
        return [*INTRODUCTION, "", "No cell has been run yet."]
    return [
        *INTRODUCTION,
        "",
        *_summary(cells),
        "",
        "## The tasks under the base model",
        "",
        *_tasks(diagnoses, tasks),
        "",
        "## Accuracy at T=1, %",
        "",
        *_table(table, tasks, objectives, "accuracy"),
        "",
        "## Accuracy, greedy, %",
        "",
        *_table(table, tasks, objectives, "greedy_accuracy"),
        "",
        "![Accuracy at T=1 over alpha](continuum/alpha.png)",
        "",
        "![Accuracy at T=1, task x objective](continuum/heat_map.png)",
        "",
        "## What reproduces",
        "",
        *_claims(table, tasks),
        "",
        "## An objective that need not be chosen",
        "",
        *_goals(table, tasks),
        "",
        *SQUARED_ODDS,
        "",
        "## Versions",
        "",
        *versions(cells),
    ]


def _summary(cells) -> list[str]:
    steps = ", ".join(map(str, sorted({cell["steps"] for cell in cells})))
    dates = sorted({cell["date"] for cell in cells})
    answers = f"200 test items, {cells[0]['samples_per_item']} answers each at T=1"
    return [f"{len(cells)} cells, {steps} steps of batch 64 at 3e-4, {dates[0]} to {dates[-1]}. {answers}.", *METHOD]


def _tasks(diagnoses, tasks) -> list[str]:
    lines = ["| task | mean p of the targets | region |", "|---|---|---|"]
    for task in tasks:
        found = diagnoses[task]
        low, high = found["interval_95"]
        lines.append(
            f"| {TITLES.get(task, task)} | {found['mean_p']:.3f} [{low:.3f}, {high:.3f}] | {found['region']} |"
        )
    return lines


def _table(table, tasks, objectives, decoding: str) -> list[str]:
    lines = ["| objective | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    for objective in objectives:
        entries = []
        for task in tasks:
            scores = table.get((task, objective))
            entries.append("-" if scores is None else entry(getattr(scores, decoding), scores.seeds))
        lines.append(f"| {objective} | " + " | ".join(entries) + " |")
    return lines


def _claims(table, tasks) -> list[str]:
    """Each claim with its difference; that it holds is decided by the interval, not by the mean."""
    claims = [
        ("strong", "p", "original", "where the base model knows the task, p is above -log p"),
        ("weak", "original", "p", "where it knows nothing, -log p is above p"),
        ("weak", "original", "OnlyTopLogP-0.2", "and above the threshold"),
    ]
    lines = []
    for task, better, worse, text in claims:
        found = _difference(table, task, better, worse)
        if found is not None:
            lines.append(f"- {text} (`{task}`: {better} - {worse}): {points(found)}; {verdict(found)}.")
    found = _difference(table, "intermediate", "p", "original")
    if found is not None:
        text = f"in between, they are within {100 * CLOSE:.0f} points of each other (`intermediate`: p - original)"
        lines.append(f"- {text}: {points(found)}; {verdict(found, within=CLOSE)}.")
    return lines


def _goals(table, tasks) -> list[str]:
    """Of `adaptive` against the best fixed objective of the default grid, by its mean at T=1."""
    lines = []
    for adaptive in ADAPTIVE:
        for task in tasks:
            fixed = {key: table[task, key].accuracy for key in FIXED if (task, key) in table}
            best = max(fixed, key=lambda key: fixed[key].mean, default=None)
            found = None if best is None else _difference(table, task, adaptive, best)
            if best is None or found is None:
                continue
            if task in NEW_AND_NOISY:
                reached = "reached" if found.low >= ABOVE else "missed" if found.high < ABOVE else "not decided"
                goal = f"{100 * ABOVE:.0f} points above every fixed one: {reached}"
            else:
                inside = table[task, adaptive].accuracy.mean >= fixed[best].low
                goal = f"not below the interval of the best fixed one: {'reached' if inside else 'missed'}"
            lines.append(f"- {adaptive} on `{task}` against {best}: {points(found)}; {goal}.")
    return lines


def _difference(table, task: str, a: str, b: str) -> Difference | None:
    """Over the seeds that both have."""
    if (task, a) not in table or (task, b) not in table:
        return None
    one, other = table[task, a], table[task, b]
    both = [seed for seed in one.seeds if seed in other.seeds]
    if not both:
        return None
    pairs = [(one.sampled[one.seeds.index(seed)], other.sampled[other.seeds.index(seed)]) for seed in both]
    return paired_difference_over_seeds([left for left, _ in pairs], [right for _, right in pairs])


def _alpha(objective: str) -> float | None:
    """The exponent of the family's members; None for the others."""
    parsed = parse_objective(objective)
    if not isinstance(parsed, Objective) or (parsed.min_p, parsed.max_p) != (0.0, 1.0):
        return None
    if parsed.name == "nll":
        return 0.0
    assert not isinstance(parsed.parameter, Tensor)
    return parsed.parameter if parsed.name == "power" else None


def _order(objective: str) -> tuple:
    alpha = _alpha(objective)
    return (objective in ADAPTIVE, alpha is None, alpha or 0.0, objective)


def _points_over_alpha(table, tasks) -> dict[str, dict[float, Estimate]]:
    return {
        task: {
            alpha: scores.accuracy
            for (of, key), scores in sorted(table.items(), key=lambda item: _order(item[0][1]))
            if of == task and (alpha := _alpha(key)) is not None
        }
        for task in tasks
    }


def _means(table, tasks, objectives) -> np.ndarray:
    """[tasks, objectives] in %, NaN where there is no cell."""
    means = np.full((len(tasks), len(objectives)), np.nan)
    for (task, objective), scores in table.items():
        means[tasks.index(task), objectives.index(objective)] = 100 * scores.accuracy.mean
    return means
