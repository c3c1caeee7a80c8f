"""NeMo's loss reductions with the shared step and the shared collector inside.

Source: nemo/lightning/megatron_parallel.py (MaskedTokenLossReduction), nemo-toolkit 2.6-2.7. `trainer`, which makes
NeMo importable without CUDA, is imported before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nemo.lightning.megatron_parallel import MaskedTokenLossReduction

from nemo_probsft.adapters.megatron import layout
from nemo_probsft.adapters.megatron.collect import CollectedLogp
from nemo_probsft.adapters.megatron.rows import HeadRows
from nemo_probsft.adapters.megatron.step import TrainingStep
from nemo_probsft.adapters.nemo.data import SFTData

Batch = dict[str, torch.Tensor]
ThreeTuple = tuple[torch.Tensor, torch.Tensor, dict[str, Any]]


class ObjectiveReduction(MaskedTokenLossReduction):
    """f(p) for -log p. The statistics stay in the step: NeMo only counts what `forward` returns for `reduce`."""

    def __init__(self, step: TrainingStep) -> None:
        super().__init__()
        self.step, self.head_rows = step, step.head_rows

    def forward(self, batch: Batch, forward_out: torch.Tensor) -> ThreeTuple:
        """forward_out: -log p of each target, [b, s] fp32 -> Megatron's 3-tuple."""
        return *self.step.loss(forward_out, batch["labels"], batch["loss_mask"]), {}

    def reduce(self, losses_reduced_per_micro_batch: Sequence[dict[str, Any]]) -> torch.Tensor:
        return self.step.mean  # reduced already: see `hook.reduce_before_gradients`


class CollectReduction(MaskedTokenLossReduction):
    """Forward-only: keeps log p of every target of this rank."""

    def __init__(self, data: SFTData, output: Path) -> None:
        super().__init__(validation_step=True)
        self.data, self.num_micro_batches = data, data.micro_batches.num_micro_batches
        self.head_rows = HeadRows()
        self.collected = CollectedLogp(output, self.head_rows)

    def forward(self, batch: Batch, forward_out: torch.Tensor) -> ThreeTuple:
        loss_mask = batch["loss_mask"]
        examples = self.data.examples(*divmod(len(self.collected.logp), self.num_micro_batches))
        self.collected.see(forward_out, batch["labels"], loss_mask, examples, layout.columns(loss_mask.shape[1]))
        return forward_out.sum() * 0, (loss_mask > 0).sum().int(), {}

    def reduce(self, losses_reduced_per_micro_batch: Sequence[dict[str, Any]]) -> torch.Tensor:
        return torch.zeros((), device=torch.cuda.current_device())
