"""The held-out rows of a run: looked for, tokenised once, and when they are measured."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from nemo_probsft.config import Recipe
from nemo_probsft.data import mixture, rows, tokens
from nemo_probsft.data.tokens import TokenizedDataset
from nemo_probsft.run.decisions import Decision


def check(recipe: Recipe) -> list[Decision]:
    """Refuse what cannot be validated on, and a best checkpoint that nobody could tell. Raises ValueError."""
    from nemo_probsft.objectives import Objective, Prior  # with torch

    if recipe.validate is None:
        return []
    assert recipe.data.validation is not None
    path = Path(recipe.data.validation)
    if path.suffix not in rows.FORMATS or not path.is_file():
        problem = f"{path} is no {' or '.join(rows.FORMATS)} file; name one"
        raise recipe.error("data.validation", problem)
    if path.stat().st_size == 0 or not os.access(path, os.R_OK):
        raise recipe.error("data.validation", f"{path} is empty or cannot be read; give it at least one row")
    if recipe.checkpoint.keep_best == "objective" and not isinstance(recipe.resolved.objective, Objective | Prior):
        moves = f"{recipe.resolved.objective.key} moves, so its values at two steps do not compare"
        raise recipe.error("checkpoint.keep_best", f"objective: {moves}; use nll or p", "objective")
    often = f"before the first step, every {recipe.validate.every_steps} steps and after the last"
    return [Decision("data.validation", str(path), f"validated {often}")]


def tokenized(recipe: Recipe, tokenizer: Any, vocab_size: int, cache_dir: Path, settings: dict[str, Any]) -> Path:
    """The directory of the tokenised rows. settings: of `tokens.of_source`, as for the training set."""
    assert recipe.data.validation is not None
    try:
        directory = mixture.tokenized([mixture.Source(recipe.data.validation)], tokenizer, cache_dir, **settings)
        tokens.check_ids(TokenizedDataset.load(directory), vocab_size)
    except ValueError as error:
        raise ValueError(f"data.validation: {error}") from None
    return directory


def found(recipe: Recipe, dataset: TokenizedDataset, num_steps: int) -> list[Decision]:
    """What was tokenised. Raises ValueError where only the last step is validated and saved."""
    assert recipe.validate is not None
    best, every, saved = recipe.checkpoint.keep_best, recipe.validate.every_steps, recipe.checkpoint.every_steps
    if best is not None and math.lcm(every, saved) >= num_steps:
        problem = (
            f"{best}, but of {num_steps} steps only the last is both validated (validate.every_steps {every}) and "
            f"saved (checkpoint.every_steps {saved}); make one a multiple of the other, below {num_steps}"
        )
        raise recipe.error("checkpoint.keep_best", problem, "validate.every_steps", "checkpoint.every_steps")
    targets = dataset.num_targets()[: recipe.validate.max_examples]
    size = f"{len(targets)} of {len(dataset)} examples, {int(targets.sum())} targets"
    return [Decision("validate", size, f"{count(recipe, num_steps)} validations; never trained on")]


def count(recipe: Recipe, num_steps: int) -> int:
    return sum(is_due(recipe, step, num_steps) for step in range(num_steps + 1))


def is_due(recipe: Recipe, step: int, num_steps: int) -> bool:
    """Whether the model is validated after `step` steps of training."""
    if recipe.validate is None:
        return False
    return step % recipe.validate.every_steps == 0 or step == num_steps
