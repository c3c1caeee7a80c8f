"""prior.json of a run: what the base model knew of each training file, and the alpha that `prior` made of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from nemo_probsft.config import Recipe
from nemo_probsft.data.tokens import TokenizedDataset
from nemo_probsft.files import write_atomically
from nemo_probsft.run.decisions import Decision

PRIOR = "prior.json"  # in a run directory


def decided(recipe: Recipe) -> list[Decision]:
    """What will be measured, if the objective asks for it."""
    from nemo_probsft.objectives import ENOUGH_TOKENS, Prior  # with torch

    if not isinstance(recipe.resolved.objective, Prior):
        return []
    value = f"of up to {ENOUGH_TOKENS:,} targets of each file of data.train"
    return [Decision("mean p of the base model", value, f"before the first step; {PRIOR} in run_dir has it")]


def write(recipe: Recipe, dataset: TokenizedDataset, sums: Sequence[Sequence[float]], alphas: Sequence[float]) -> None:
    """sums: of p and of targets for each file, alphas for each file, both in the data set's order of files."""
    names = [file.name for file in dataset.summary.files] or [recipe.data.name]
    found = [
        {"file": name, "num_tokens": int(count), "mean_p": total / count, "alpha": alpha, "seed": recipe.trainer.seed}
        for name, total, count, alpha in zip(names, *sums, alphas, strict=True)
        if count  # a small weight may leave nothing of a file
    ]
    write_atomically(Path(recipe.run_dir) / PRIOR, json.dumps(found, indent=2) + "\n")
