"""Held-out rows through the model between two steps. The step's running means see only the training set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from nemo_probsft.adapters.megatron import micro_batches
from nemo_probsft.adapters.megatron.forward import Batch, looked_at
from nemo_probsft.adapters.megatron.metrics import MetricsWriter
from nemo_probsft.adapters.megatron.step import Group, TrainingStep
from nemo_probsft.config import Recipe
from nemo_probsft.loss import REPORT, token_loss
from nemo_probsft.run import best, validation
from nemo_probsft.run.log import METRIC
from nemo_probsft.run.prepare import Prepared


class Validation:
    """Between `reduce` and `end` of a step, so that the objective is that of the step; nothing without held-out rows.

    Every rank has one and calls it at the same places.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, step: TrainingStep, writer: MetricsWriter) -> None:
        self.recipe, self.step, self.writer = recipe, step, writer
        self.batches = None if recipe.validate is None else micro_batches.held_out(recipe, prepared)

    def after_step(self, chunks: Sequence[nn.Module], group: Group | None) -> None:
        """After the step's metrics are written, before its checkpoint: whoever resumes from that has both."""
        self._validate(self.step.number, chunks, group)

    def before_step(self, number: int, chunks: Sequence[nn.Module], group: Group | None) -> None:
        """Before step `number`, from 1: the base model is validated, or the last checkpoint looked at.

        That is complete by now, and no later one has taken its place.
        """
        if number == 1:
            self.step.begin(1)
            self._validate(0, chunks, group)
        keep_best = self.recipe.checkpoint.keep_best
        was_saved = number > 1 and (number - 1) % self.recipe.checkpoint.every_steps == 0
        if keep_best is not None and was_saved and torch.distributed.get_rank() == 0:
            best.update(Path(self.recipe.run_dir), keep_best)

    def _validate(self, number: int, chunks: Sequence[nn.Module], group: Group | None) -> None:
        if self.batches is None or not validation.is_due(self.recipe, number, self.step.num_steps):
            return
        pairs = measure(self.batches, self.step, chunks, group)
        if pairs is not None:
            values = {METRIC + name: total / count if count else 0.0 for name, (total, count) in pairs.items()}
            self.writer.write_row({"step": number, **values, f"{METRIC}num_tokens": int(pairs["nll"][1])})


def measure(
    batches: micro_batches.MicroBatches, step: TrainingStep, chunks: Sequence[nn.Module], group: Group | None
) -> dict[str, tuple[float, float]] | None:
    """[sum, count] of each of REPORT over all rows of `batches`, on the last pipeline stage; None on the others.

    chunks: of this rank, with the hook on -log p. group: the data and context parallel ranks, over which one all-reduce
    of 8 float64 goes.
    """

    def look(nll: torch.Tensor, batch: Batch) -> torch.Tensor:
        objective = step.held_out(batch["labels"])
        _, _, report = token_loss(objective, -nll, batch["loss_mask"], step.denominator)
        return torch.cat([*report.values()])

    found = looked_at(batches, chunks, step.head_rows, look)
    if not found:  # the loss is on the last stage
        return None
    sums = torch.stack(found).double().sum(0)
    torch.distributed.all_reduce(sums, group=group)
    return {name: (total, count) for name, (total, count) in zip(REPORT, sums.view(-1, 2).tolist(), strict=True)}
