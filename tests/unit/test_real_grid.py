"""experiments.real.grid: which cells are missing, and which learning rate seed 0 chooses."""

from __future__ import annotations

from dataclasses import asdict

from experiments.real import grid
from experiments.real.grid import BASE, COMMON_LR, LRS, Cell


def line(cell: Cell, validation: list[float], test: list[float] = ()) -> dict:
    return asdict(cell) | {"validation": {"sampled": validation}, "test": {"sampled": list(test)}}


def missing(lines, **changes) -> list[Cell]:
    return grid.missing(lines, **{"tasks": ["caesar"], "objectives": ["p"], "seeds": (0, 1, 2)} | changes)


def test_the_base_and_every_rate_with_seed_0_come_first():
    assert missing([]) == [Cell("caesar", BASE, 0.0, 0), *(Cell("caesar", "p", lr, 0) for lr in LRS)]


def test_other_seeds_are_trained_at_the_common_rate_and_at_that_of_the_best_validation_score():
    best = LRS[-1]
    assert best != COMMON_LR
    # The best test score is another rate's, and nobody may look at it.
    lines = [line(Cell("caesar", "p", lr, 0), [0.9 if lr == best else 0.2], [1 - 0.9 * (lr == best)]) for lr in LRS]
    lines.append(line(Cell("caesar", BASE, 0.0, 0), [0.1]))
    wanted = [Cell("caesar", "p", lr, seed) for seed in (1, 2) for lr in sorted((COMMON_LR, best))]
    assert missing(lines) == wanted
    lines.append(line(wanted[0], [0.5]))
    assert missing(lines) == wanted[1:]
    assert missing(lines[:2]) == [Cell("caesar", BASE, 0.0, 0), Cell("caesar", "p", LRS[2], 0)]


def test_of_equal_scores_the_smaller_rate_is_chosen():
    lines = [line(Cell("caesar", "p", lr, 0), [0.5, 0.5]) for lr in reversed(LRS)]
    assert grid.best_lr(lines, "caesar", "p") == min(LRS)
    assert grid.best_lr(lines, "caesar", "original") is None


def test_likelihood_is_a_mean_over_tokens():
    scores = {"nll": [2.0, 10.0], "p": [1.0, 1.0], "tokens": [2, 18]}
    assert grid.validation_score({"validation": scores}) == -12 / 20
