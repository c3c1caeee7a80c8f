"""The cells of docs/real as scores of items, by task, objective, learning rate and seed. Nothing here reads files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from evaluation.statistics import Difference, Estimate, estimate_over_seeds, paired_difference_over_seeds
from experiments.real import tasks
from experiments.real.plan import BASE, ON_CPU, ON_GPU, Setting
from nemo_probsft.objectives import Objective, ObjectiveError, parse_objective

Cell = Mapping[str, Any]
Pair = tuple[list[np.ndarray], list[np.ndarray]]  # [items, 1] per seed, of two objectives

TASKS = {task.name: task.what for task in tasks.TASKS.values()}
STRONG_NOISY = ("known_noisy", "copy_noisy")
WEAK_CLEAN = ("spell_backward", "caesar", "chain_sum")
LIKELIHOOD = ("math", "humaneval")

FIXED = ("original", "GeneralFamily-0.5", "p", "GeneralFamily-10", "OnlyTopLogP-0.2")
ADAPTIVE = ("prior", "adaptive", "adaptive-by-label", "adaptive-by-confidence")

MEASURES = {
    "sampled": "accuracy at T=1",
    "greedy": "greedy accuracy",
    "p": "mean p of held-out solutions",
    "nll": "mean -log p per token of held-out solutions",
}


@dataclass(frozen=True, eq=False)
class Runs:
    """One objective on one task at one learning rate, its cells by seed."""

    objective: str
    lr: float
    cells: Mapping[int, Cell]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.cells)

    def values(self, measure: str, part: str = "test", seeds: Sequence[int] | None = None) -> list[np.ndarray]:
        """[items, 1] per seed; the base model, which no seed has trained, is the same for all."""
        chosen = self.cells.values() if seeds is None else [self._cell(seed) for seed in seeds]
        return [item_values(cell[part], measure) for cell in chosen]

    def estimate(self, measure: str) -> Estimate:
        return _estimate(self, measure)

    def _cell(self, seed: int) -> Cell:
        return next(iter(self.cells.values())) if self.objective == BASE else self.cells[seed]


@cache
def _estimate(runs: Runs, measure: str) -> Estimate:
    return estimate_over_seeds(runs.values(measure))


def item_values(scores: Mapping[str, Any], measure: str) -> np.ndarray:
    """[items, 1], whose mean is the measure.

    A mean per token is a ratio of two sums over items. Each item stands with its influence on that ratio, so that
    what resamples items sees the spread of both sums.
    """
    if measure == "greedy":
        values = np.array([float(digit) for digit in scores["greedy"]])
    elif measure == "sampled":
        values = np.array(scores["sampled"], dtype=np.float64)
    else:
        sums, tokens = np.array(scores[measure], dtype=np.float64), np.array(scores["tokens"], dtype=np.float64)
        ratio = sums.sum() / tokens.sum()
        values = ratio + (sums - ratio * tokens) / tokens.mean()
    return values[:, None]


class Results:
    """Every cell, where the page looks for it. A later line of the same cell replaces an earlier one.

    Where some cells trained the whole model, those that trained its last layers only are left out.
    """

    def __init__(self, cells: Iterable[Cell], diagnoses: Mapping[str, Cell]) -> None:
        cells = list(cells)
        layers = {cell.get("trained_layers") for cell in cells}
        self.trained_layers = None if None in layers else max(layers, default=None)
        cells = [cell for cell in cells if cell.get("trained_layers") == self.trained_layers]
        self.cells = list({(c["task"], c["objective"], c["lr"], c["seed"]): c for c in cells}.values())
        self.diagnoses = diagnoses
        groups: dict[tuple[str, str], dict[float, dict[int, Cell]]] = {}
        for cell in sorted(self.cells, key=lambda cell: (cell["lr"], cell["seed"])):
            by_rate = groups.setdefault((cell["task"], cell["objective"]), {})
            by_rate.setdefault(cell["lr"], {})[cell["seed"]] = cell
        self._runs = {
            (task, objective): {lr: Runs(objective, lr, of_seed) for lr, of_seed in by_rate.items()}
            for (task, objective), by_rate in groups.items()
        }
        tasks = dict.fromkeys([*TASKS, *diagnoses, *(task for task, _ in groups)])
        seen = [task for task in tasks if task in diagnoses or any(task == of for of, _ in groups)]
        self.tasks = sorted(seen, key=lambda task: 1.0 if (p := self.mean_p(task)) is None else p)
        run = {objective for _, objective in groups} - {BASE}
        others = sorted(run - {*FIXED, *ADAPTIVE})
        self.fixed = [key for key in (*FIXED, *others) if key in run and not is_adaptive(key)]
        self.adaptive = [key for key in (*ADAPTIVE, *others) if key in run and is_adaptive(key)]
        self.objectives = [*self.fixed, *self.adaptive]

    def mean_p(self, task: str) -> float | None:
        """Of the training targets under the base model."""
        return self.diagnoses[task]["mean_p"] if task in self.diagnoses else None

    @property
    def all_rates(self) -> list[float]:
        return sorted({cell["lr"] for cell in self.cells if cell["objective"] != BASE})

    @property
    def setting(self) -> Setting:
        """Under which the cells were run."""
        return ON_GPU if self.trained_layers is None else ON_CPU

    def measures(self, task: str) -> tuple[str, str]:
        """The main one, and the second."""
        cell = next((cell for cell in self.cells if cell["task"] == task), None)
        by_likelihood = task in LIKELIHOOD if cell is None else "nll" in cell["test"]
        return ("p", "nll") if by_likelihood else ("sampled", "greedy")

    def main(self, task: str) -> str:
        return self.measures(task)[0]

    @property
    def judged(self) -> list[str]:
        """The tasks with cells whose answers are judged right or wrong."""
        run = {cell["task"] for cell in self.cells if cell["objective"] != BASE}
        return [task for task in self.tasks if task in run and self.main(task) == "sampled"]

    def rates(self, task: str, objective: str) -> Mapping[float, Runs]:
        """By learning rate, the smallest first."""
        return self._runs.get((task, objective), {})

    def base(self, task: str) -> Runs | None:
        return next(iter(self.rates(task, BASE).values()), None)

    def chosen(self, task: str, objective: str) -> Runs | None:
        """At the learning rate that is best on validation, of equal ones at the smallest.

        The means go over the seeds that every learning rate has, so that more seeds are no advantage.
        """
        runs = list(self.rates(task, objective).values())
        common = sorted(set.intersection(*(set(of.seeds) for of in runs))) if runs else []
        return max(runs, key=lambda of: self.validation(task, of, common or None), default=None)

    def validation(self, task: str, runs: Runs, seeds: Sequence[int] | None = None) -> float:
        """Mean accuracy at T=1, or minus mean -log p: higher is better."""
        measure, sign = ("sampled", 1) if self.main(task) == "sampled" else ("nll", -1)
        return sign * float(np.mean(runs.values(measure, "validation", seeds)))

    def pair(self, task: str, one: str, other: str, measure: str | None = None) -> Pair | None:
        return paired_values(self.chosen(task, one), self.chosen(task, other), measure or self.main(task))

    def best_fixed(self, task: str, *, by_test: bool = False) -> Runs | None:
        """The chosen runs with the best validation score, or the best mean of the main measure on the test items."""
        runs = [found for key in self.fixed if (found := self.chosen(task, key)) is not None]
        if by_test:
            return max(runs, key=lambda of: of.estimate(self.main(task)).mean, default=None)
        return max(runs, key=lambda of: self.validation(task, of), default=None)


def is_adaptive(objective: str) -> bool:
    """Whether the model decides what it is. What the package has no key for is a candidate of that kind."""
    try:
        return not isinstance(parse_objective(objective), Objective)
    except ObjectiveError:
        return True


def paired_values(one: Runs | None, other: Runs | None, measure: str) -> Pair | None:
    """Of the test items, for the seeds that both have; None where there are none."""
    if one is None or other is None:
        return None
    seeds = other.seeds if one.objective == BASE else one.seeds
    if BASE not in (one.objective, other.objective):
        seeds = tuple(seed for seed in one.seeds if seed in other.seeds)
    return (one.values(measure, seeds=seeds), other.values(measure, seeds=seeds)) if seeds else None


@cache
def difference(one: Runs | None, other: Runs | None, measure: str) -> Difference | None:
    """one - other, paired by item and seed."""
    pair = paired_values(one, other, measure)
    return None if pair is None else paired_difference_over_seeds(*pair)
