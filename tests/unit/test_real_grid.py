"""experiments.real.plan and grid: which cells are missing, and which learning rate seed 0 chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict

import pytest

from experiments.real import grid, plan
from experiments.real.plan import BASE, ON_CPU, ON_GPU, Cell

LOW, MIDDLE, HIGH = ON_CPU.rates
(LOWER,), (HIGHER,) = ON_CPU.lower_rates, ON_CPU.higher_rates
BASE_CELL = Cell("caesar", BASE, 0.0, 0)
WITH_SEED_0 = [BASE_CELL, *(Cell("caesar", "p", lr, 0) for lr in ON_CPU.rates)]


def line(cell: Cell, validation: Sequence[float], test: Sequence[float] = ()) -> dict:
    scores = {"validation": {"sampled": list(validation)}, "test": {"sampled": list(test)}}
    return asdict(cell) | {"trained_layers": ON_CPU.trained_layers} | scores


def missing(lines, **changes) -> list[Cell]:
    return plan.missing(lines, **{"of": ON_CPU, "tasks": ["caesar"], "objectives": ["p"]} | changes)


def seed_0(best: float) -> list[dict]:
    """Lines whose best validation score is at `best`. Their best test score is elsewhere; nobody may look at it."""
    return [line(cell, [0.9 if cell.lr == best else 0.2], [0.1 if cell.lr == best else 1.0]) for cell in WITH_SEED_0]


def test_the_base_and_every_rate_with_seed_0_come_first():
    assert missing([]) == WITH_SEED_0


def test_other_seeds_are_trained_at_the_best_rate_and_on_a_gpu_then_at_the_common_one():
    both = dataclasses.replace(ON_CPU, common_seeds=ON_GPU.common_seeds)
    assert both.common_rate == MIDDLE
    lines = [*seed_0(best=HIGH), line(Cell("caesar", "p", HIGHER, 0), [0.5])]
    wanted = [Cell("caesar", "p", lr, seed) for lr in (HIGH, MIDDLE) for seed in (1, 2)]
    assert missing(lines, of=both) == wanted
    assert missing(lines) == wanted[:2]
    assert missing([*lines, line(wanted[0], [0.5])], of=both) == wanted[1:]
    assert missing(lines, of=both, seeds=(0, 2)) == wanted[1::2]
    assert missing(lines[:3]) == WITH_SEED_0[3:], "nothing is chosen before all rates are run"


def test_a_rate_that_is_the_common_one_is_trained_once():
    assert missing(seed_0(best=MIDDLE)) == [Cell("caesar", "p", MIDDLE, seed) for seed in (1, 2)]


@pytest.mark.parametrize(("outer", "beyond"), [(LOW, LOWER), (HIGH, HIGHER)])
def test_where_an_outer_rate_is_the_best_the_one_beyond_it_is_tried(outer, beyond):
    lines = seed_0(best=outer)
    more = Cell("caesar", "p", beyond, 0)
    assert missing(lines) == [more]
    for score, chosen in ((0.1, outer), (0.95, beyond)):
        rates = plan.rates_of([*lines, line(more, [score])], ON_CPU, "caesar", "p")
        assert rates == ([*ON_CPU.rates, beyond], chosen)


def test_cells_of_another_setting_do_not_count():
    assert ON_GPU.trained_layers is None
    assert missing(seed_0(best=MIDDLE), of=ON_GPU) == [BASE_CELL, *(Cell("caesar", "p", lr, 0) for lr in ON_GPU.rates)]


def test_of_equal_scores_the_smaller_rate_is_chosen():
    lines = [row | {"validation": {"sampled": [0.5, 0.5]}} for row in reversed(seed_0(best=MIDDLE))]
    assert missing(lines) == [Cell("caesar", "p", LOWER, 0)]
    lines.append(line(Cell("caesar", "p", LOWER, 0), [0.4]))
    assert plan.rates_of(lines, ON_CPU, "caesar", "p").chosen == LOW
    assert plan.rates_of(lines, ON_CPU, "caesar", "original").chosen is None


def test_likelihood_is_a_mean_over_tokens():
    scores = {"nll": [2.0, 10.0], "p": [1.0, 1.0], "tokens": [2, 18]}
    assert plan.validation_score({"validation": scores}) == -12 / 20


def test_a_mixture_gives_as_many_rows_of_each_source():
    assert grid._evenly(["b", "b", "a", "b", "a", "a"], 4) == [0, 1, 2, 4]
    assert grid._evenly([""] * 5, 3) == [0, 1, 2]
