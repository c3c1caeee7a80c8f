"""Which cells there are, and the order in which those without a line are run. Nothing here trains or reads files.

With seed 0 every objective is trained at three learning rates, and at more of them as long as the best is an outer one
of those tried. The other seeds are trained at the rate that was best on the validation rows with seed 0, and then, on a
GPU, at the common one. Nothing looks at the test rows before the page does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Line = Mapping[str, Any]  # of docs/real/cells.jsonl
BASE = "base"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """What a cell costs. trained_layers: the last ones; None trains all of the model. steps and batch_size: of tasks
    judged by their answers, and by their likelihood. num_train and num_held_out: rows that are taken of the files."""

    trained_layers: int | None
    rates: tuple[float, float, float]
    lower_rates: tuple[float, ...]  # tried one after the other, where the best of those before is the smallest
    higher_rates: tuple[float, ...]
    common_rate: float  # one for all objectives, as in the paper
    common_seeds: tuple[int, ...]  # that are trained at it even where another one is chosen
    steps: dict[str, int]
    batch_size: dict[str, int]
    num_train: int
    num_validation: int
    num_test: int


ON_GPU = Setting(
    trained_layers=None,
    rates=(3e-5, 1e-4, 3e-4),
    lower_rates=(1e-5,),
    higher_rates=(1e-3,),
    common_rate=1e-4,
    common_seeds=SEEDS,
    steps={"answer": 120, "likelihood": 60},
    batch_size={"answer": 32, "likelihood": 8},
    num_train=2000,
    num_validation=100,
    num_test=200,
)
ON_CPU = Setting(
    trained_layers=4,
    rates=(3e-4, 1e-3, 3e-3),
    lower_rates=(1e-4,),
    higher_rates=(1e-2,),
    common_rate=1e-3,
    common_seeds=(0,),
    steps={"answer": 100, "likelihood": 30},
    batch_size={"answer": 16, "likelihood": 4},
    num_train=800,
    num_validation=50,
    num_test=100,
)


@dataclass(frozen=True)
class Cell:
    """objective: a key, or BASE for the model as it is, whose rate and seed are 0."""

    task: str
    objective: str
    lr: float
    seed: int


def missing(
    lines: Iterable[Line],
    of: Setting,
    tasks: Sequence[str],
    objectives: Sequence[str],
    seeds: Sequence[int] = SEEDS,
) -> list[Cell]:
    """The cells without a line, in the order in which they are run; those of other seeds once seed 0 has chosen."""
    lines = [line for line in lines if line.get("trained_layers") == of.trained_layers]
    done = {Cell(line["task"], line["objective"], line["lr"], line["seed"]) for line in lines}
    pairs = [(task, key) for task in tasks for key in objectives]
    rates = {pair: rates_of(lines, of, *pair) for pair in pairs}
    others = [(pair, seed) for seed in seeds if seed != 0 for pair in pairs if rates[pair].chosen is not None]
    wanted = [Cell(task, BASE, 0.0, 0) for task in tasks]
    wanted += [Cell(*pair, lr, 0) for pair in pairs for lr in rates[pair].tried]
    wanted += [Cell(*pair, chosen, seed) for pair, seed in others if (chosen := rates[pair].chosen) is not None]
    wanted += [Cell(*pair, of.common_rate, seed) for pair, seed in others if seed in of.common_seeds]
    return [cell for cell in dict.fromkeys(wanted) if cell not in done]


class Rates(NamedTuple):
    """tried: with seed 0, or to be tried. chosen: None before all of them are."""

    tried: list[float]
    chosen: float | None


def rates_of(lines: Iterable[Line], of: Setting, task: str, objective: str) -> Rates:
    """Those of seed 0. The best has the highest validation score; of equal ones the smallest is it."""
    scores = {
        line["lr"]: validation_score(line)
        for line in lines
        if (line["task"], line["objective"], line["seed"]) == (task, objective, 0)
    }
    tried, lower, higher = list(of.rates), list(of.lower_rates), list(of.higher_rates)
    while set(tried) <= set(scores):
        best = max(sorted(tried), key=scores.__getitem__)
        if best == min(tried) and lower:
            tried.append(lower.pop(0))
        elif best == max(tried) and higher:
            tried.append(higher.pop(0))
        else:
            return Rates(tried, best)
    return Rates(tried, None)


def validation_score(line: Line) -> float:
    """Mean T=1 accuracy; where answers are judged by their likelihood, minus the mean -log p of their tokens."""
    scores = line["validation"]
    if "sampled" in scores:
        return float(np.mean(scores["sampled"]))
    return -sum(scores["nll"]) / sum(scores["tokens"])
