"""What the base model knows of each training file, before the first step, for an objective that goes by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from nemo_probsft.adapters.megatron import micro_batches
from nemo_probsft.adapters.megatron.forward import Batch, looked_at
from nemo_probsft.adapters.megatron.layout import holds_the_loss
from nemo_probsft.adapters.megatron.step import Group, TrainingStep
from nemo_probsft.config import Recipe
from nemo_probsft.data.tokens import TokenizedDataset
from nemo_probsft.run import prior
from nemo_probsft.run.prepare import Prepared


def measure(
    number: int,
    recipe: Recipe,
    prepared: Prepared,
    step: TrainingStep,
    chunks: Sequence[nn.Module],
    group: Group | None,
) -> None:
    """Before step `number`, from 1: the training files go through the model, if it is the first one and asks for them.

    Every rank calls it. chunks: of this rank, with the hook on -log p. group: the data and context parallel ranks.
    Writes prior.json into the run's directory.
    """
    means = step.file_means
    if number != 1 or means is None:
        return
    dataset = TokenizedDataset.load(Path(prepared.examples))
    file_of = torch.from_numpy(dataset.files()).to(torch.cuda.current_device())
    means.sums.zero_()

    def look(nll: torch.Tensor, batch: Batch) -> torch.Tensor:
        means.see(file_of[batch["examples"]].expand(nll.shape), -nll, batch["loss_mask"])
        return means.sums

    if looked_at(micro_batches.of_files(recipe, prepared), chunks, step.head_rows, look):
        step.know(group)
    if holds_the_loss():
        prior.write(recipe, dataset, means.sums.tolist(), means.alphas.tolist())
