"""Held-out rows through the model between two steps: the same numbers for the same weights at every layout.

Megatron's own schedule runs the engine's model chunks forward. Nothing of training is touched: no random number is
drawn, no gradient is made, and the step's running means see only the training set.

Source: megatron/core/pipeline_parallel/schedules.py (get_forward_backward_func), megatron-core 0.15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import nn

from nemo_probsft.adapters.megatron import micro_batches
from nemo_probsft.adapters.megatron.layout import columns, context_parallel_size, data_parallel
from nemo_probsft.adapters.megatron.metrics import MetricsWriter
from nemo_probsft.adapters.megatron.step import Group, TrainingStep
from nemo_probsft.config import Recipe
from nemo_probsft.loss import REPORT, token_loss
from nemo_probsft.run import best, validation
from nemo_probsft.run.log import METRIC
from nemo_probsft.run.prepare import Prepared

Batch = dict[str, torch.Tensor]
INPUTS = {"input_ids": "tokens", "position_ids": "position_ids", "attention_mask": "attention_mask", "labels": "labels"}


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
    run = get_forward_backward_func()
    rank, size = data_parallel()
    found: list[torch.Tensor] = []
    with _evaluated(chunks):
        for number in range(batches.num_steps):
            share = batches.of_step(number, rank, size)
            streams = [_stream(batches, share) for _ in chunks]
            found += run(
                forward_step_func=partial(_forward, step),
                data_iterator=streams if len(chunks) > 1 else streams[0],
                model=list(chunks),
                num_microbatches=len(share),
                seq_length=batches.max_length,
                micro_batch_size=batches.micro_batch_size,
                forward_only=True,
            )
    if not found:  # the loss is on the last stage
        return None
    sums = torch.stack(found).double().sum(0)
    torch.distributed.all_reduce(sums, group=group)
    return {name: (total, count) for name, (total, count) in zip(REPORT, sums.view(-1, 2).tolist(), strict=True)}


def _stream(batches: micro_batches.MicroBatches, share: list[list[micro_batches.Row]]) -> Iterator[Batch]:
    for rows in share:
        yield batches.collate([batches.rows[row] for row in rows])


def _forward(
    step: TrainingStep, stream: Iterator[Batch], chunk: nn.Module
) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Megatron's forward step: the chunk's output, and what makes the statistics of it on the last stage."""
    batch = next(step.head_rows.watch(stream))
    batch = {name: tensor.to(torch.cuda.current_device(), non_blocking=True) for name, tensor in batch.items()}
    if context_parallel_size() > 1:
        own = columns(batch["labels"].shape[1] // context_parallel_size()).to(batch["labels"].device)
        for name in ("tokens", "position_ids", "labels", "loss_mask"):
            batch[name] = batch[name][:, own]
    output = chunk(**{name: batch.get(key) for name, key in INPUTS.items()})

    def statistics(nll: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        objective = step.now(step.groups(batch["labels"]))
        loss_sum, num_tokens, report = token_loss(objective, -nll, batch["loss_mask"], step.denominator)
        return loss_sum, num_tokens, torch.cat([*report.values()])

    return output, statistics


@contextmanager
def _evaluated(chunks: Sequence[nn.Module]) -> Iterator[None]:
    """Without gradients and in evaluation mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for chunk in chunks for module in chunk.modules()]
    for chunk in chunks:
        chunk.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
