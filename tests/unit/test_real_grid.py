"""experiments.real.grid: which cells are missing, and which learning rate seed 0 chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pytest

from experiments.real import grid
from experiments.real.grid import ON_CPU, ON_GPU, Cell
from experiments.real.scores import BASE

LOW, MIDDLE, HIGH = ON_CPU.rates
BASE_CELL = Cell("caesar", BASE, 0.0, 0)
WITH_SEED_0 = [BASE_CELL, *(Cell("caesar", "p", lr, 0) for lr in ON_CPU.rates)]


def line(cell: Cell, validation: Sequence[float], test: Sequence[float] = ()) -> dict:
    scores = {"validation": {"sampled": list(validation)}, "test": {"sampled": list(test)}}
    return asdict(cell) | {"trained_layers": ON_CPU.trained_layers} | scores


def missing(lines, **changes) -> list[Cell]:
    return grid.missing(lines, **{"of": ON_CPU, "tasks": ["caesar"], "objectives": ["p"]} | changes)


@pytest.fixture
def seed_0():
    """Its lines. The best test score is another rate's than the best validation score; nobody may look at it."""
    return [line(cell, [0.9 if cell.lr == HIGH else 0.2], [0.1 if cell.lr == HIGH else 1.0]) for cell in WITH_SEED_0]


def test_the_base_and_every_rate_with_seed_0_come_first():
    assert missing([]) == WITH_SEED_0


def test_other_seeds_are_trained_at_the_best_rate_and_then_at_the_common_one(seed_0):
    assert ON_CPU.common_rate == MIDDLE
    wanted = [Cell("caesar", "p", lr, seed) for lr in (HIGH, MIDDLE) for seed in (1, 2)]
    assert missing(seed_0) == wanted
    assert missing([*seed_0, line(wanted[0], [0.5])]) == wanted[1:]
    assert missing(seed_0, seeds=(0, 2)) == wanted[1::2]
    assert missing(seed_0[:3]) == WITH_SEED_0[3:], "nothing is chosen before all rates are run"


def test_a_rate_that_is_the_common_one_is_trained_once(seed_0):
    lines = [row | {"validation": {"sampled": [float(row["lr"] == MIDDLE)]}} for row in seed_0]
    assert missing(lines) == [Cell("caesar", "p", MIDDLE, seed) for seed in (1, 2)]


def test_cells_of_another_setting_do_not_count(seed_0):
    assert ON_GPU.trained_layers is None
    assert missing(seed_0, of=ON_GPU) == [BASE_CELL, *(Cell("caesar", "p", lr, 0) for lr in ON_GPU.rates)]


def test_of_equal_scores_the_smaller_rate_is_chosen(seed_0):
    lines = [row | {"validation": {"sampled": [0.5, 0.5]}} for row in reversed(seed_0)]
    assert grid.best_rate(lines, ON_CPU, "caesar", "p") == LOW
    assert grid.best_rate(lines, ON_CPU, "caesar", "original") is None


def test_likelihood_is_a_mean_over_tokens():
    scores = {"nll": [2.0, 10.0], "p": [1.0, 1.0], "tokens": [2, 18]}
    assert grid.validation_score({"validation": scores}) == -12 / 20


def test_a_mixture_gives_as_many_rows_of_each_source():
    assert grid._evenly(["b", "b", "a", "b", "a", "a"], 4) == [0, 1, 2, 4]
    assert grid._evenly([""] * 5, 3) == [0, 1, 2]
