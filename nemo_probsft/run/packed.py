"""The packed rows of a run: counted once, before any rank starts, and described to the user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nemo_probsft.config import Recipe
from nemo_probsft.data import order
from nemo_probsft.data.packing import Packing, fill, most_rows
from nemo_probsft.data.tokens import TokenizedDataset
from nemo_probsft.run.decisions import Decision

NUM_SHOWN = 100  # steps from which the figures of a decision are taken


def packing(recipe: Recipe, num_rows: int) -> Packing:
    """Rows take as many positions as the longest example may."""
    return Packing(recipe.data.max_length - 1, num_rows, recipe.data.micro_batch_size)


def count_rows(recipe: Recipe, dataset: TokenizedDataset, num_steps: int) -> int:
    """Rows of every step. Cost: about 1 us for each example of each step."""
    lengths = _steps(recipe, dataset, range(num_steps))
    return most_rows(lengths, recipe.data.max_length - 1, recipe.row_multiple)


def decision(recipe: Recipe, dataset: TokenizedDataset, num_steps: int, num_rows: int) -> Decision:
    """How full the rows are, at some steps from all over the run."""
    shown = np.unique(np.linspace(0, num_steps - 1, NUM_SHOWN).round().astype(int)).tolist()
    dp, lengths = recipe.data_parallel_size, list(_steps(recipe, dataset, shown))
    found = fill(packing(recipe, num_rows), lengths, dp)
    value = f"{num_rows} rows a step instead of {recipe.data.global_batch_size}"
    reason = f"{found.padding:.1%} padding, without packing {found.unpacked:.1%}"
    if dp > 1:
        reason += f"; the data-parallel rank with most positions has {found.longest_rank:.3f} times the mean"
    return Decision("data.packing", value, reason)


def _steps(recipe: Recipe, dataset: TokenizedDataset, steps: Sequence[int]) -> Iterator[list[int]]:
    """Positions of each example, step by step."""
    positions, size, seed = dataset.positions(), recipe.data.global_batch_size, recipe.trainer.seed
    for step in steps:
        yield positions[order.step_indices(len(dataset), size, seed, step)].tolist()
