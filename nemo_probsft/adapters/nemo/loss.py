"""The objective in NeMo's training loop: the reduction that computes it, and what installs, moves and saves it.

Source: nemo/lightning/megatron_parallel.py (MaskedTokenLossReduction), nemo-toolkit 2.6-2.7. `adapters.nemo`, which
makes NeMo importable without CUDA, is imported before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.utils import get_batch_on_this_cp_rank
from nemo.lightning.megatron_parallel import MaskedTokenLossReduction

from nemo_probsft.adapters.megatron import guards
from nemo_probsft.adapters.megatron.hook import (
    REPORT,
    STATISTICS_LENGTH,
    add_weights,
    check_config,
    install_target_logprob,
    loss_function,
)
from nemo_probsft.adapters.nemo.data import SFTData
from nemo_probsft.config import HeadConfig
from nemo_probsft.objectives import Adaptive, AnyObjective, Moment, Objective, RunningMean, label_means, objective_at
from nemo_probsft.ops import HeadReport


class ObjectiveReduction(MaskedTokenLossReduction):
    """NeMo's loss reduction with f(p) for -log p; `statistics` holds the last step's sums over the global batch.

    num_labels: the size of the vocabulary, without padding.
    """

    def __init__(
        self, objective: AnyObjective, denominator: str, data: SFTData, num_steps: int, num_labels: int
    ) -> None:
        super().__init__()
        self.data = data
        self.objective = objective
        self.denominator = denominator
        self.num_steps = num_steps
        self.running_p = RunningMean(objective.decay) if isinstance(objective, Adaptive) else RunningMean()
        self.label_means = label_means(objective, num_labels)
        self.statistics = torch.zeros(STATISTICS_LENGTH)
        self.head = HeadReport()
        self.step = self.micro_batch = 0  # the one being trained and how many of its micro-batches were seen
        self.measured: dict[str, Any] | None = None

    def begin(self, step: int) -> None:
        """Step counts from 1. What is measured is the first of this start, and the last."""
        self.step, self.micro_batch = step, 0
        if step == self.num_steps:
            self.measured = None

    def end(self) -> None:
        """After `reduce`. Only where the objective asks for it, since it waits for the step's statistics."""
        if isinstance(self.objective, Adaptive):
            total, count = self.statistics[2 * REPORT.index("p") :][:2].tolist()
            if count:
                self.running_p.add(total / count)
        if self.label_means is not None:
            self.label_means.end_step()

    @property
    def moment(self) -> Moment:
        return Moment((self.step - 1) / max(1, self.num_steps - 1), self.running_p.value)

    def now(self, labels: torch.Tensor) -> Objective:
        """The objective of this step for tokens with these labels, [b, s]."""
        if self.label_means is not None:
            return self.label_means.objective_of(labels, self.running_p.value)
        return objective_at(self.objective, self.moment)

    @property
    def moving(self) -> dict[str, float]:
        """What moves, and where it is in this step."""
        if isinstance(self.objective, Objective):
            return {}
        moving = self.objective.moving(self.moment)
        if self.label_means is not None:
            moving["alpha"] = self.label_means.mean_alpha(self.running_p.value)
        return moving

    def forward(
        self, batch: dict[str, torch.Tensor], forward_out: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """forward_out: -log p of each target, [b, s] fp32 -> Megatron's 3-tuple."""
        labels, loss_mask = batch["labels"], batch["loss_mask"]
        loss_sum, num_tokens, statistics = loss_function(self.now(labels), self.denominator, forward_out, loss_mask)
        self.micro_batch += 1
        if not guards.finite(loss_sum, forward_out, loss_mask):
            examples = self.data.examples(self.step - 1, self.micro_batch - 1).tolist()
            place = f"step {self.step}, rank {torch.distributed.get_rank()}, micro-batch {self.micro_batch}"
            raise FloatingPointError(f"{place}: {guards.describe(loss_sum, forward_out, loss_mask, examples)}")
        if self.label_means is not None:
            self.label_means.see(labels, -forward_out, loss_mask)
        if self.measured is None:
            self.measured = guards.measure(self.objective, self.moment, self.denominator, forward_out.device)
        return loss_sum, num_tokens, {"statistics": statistics}

    def reduce(self, losses_reduced_per_micro_batch: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """The step's mean objective. One all-reduce over data and context parallel ranks, in place of NeMo's own."""
        self.statistics = torch.stack([out["statistics"] for out in losses_reduced_per_micro_batch]).sum(0)
        add_weights(self.statistics, self.head)
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        if self.label_means is None:
            torch.distributed.all_reduce(self.statistics, group=group)
        else:
            step = self.label_means.step
            both = torch.cat([self.statistics.double(), step.flatten()])
            torch.distributed.all_reduce(both, group=group)
            self.statistics = both[:STATISTICS_LENGTH].float()
            step.copy_(both[STATISTICS_LENGTH:].view_as(step))
        return self.statistics[0] / self.statistics[1].clamp(min=1)


class CollectLogp(MaskedTokenLossReduction):
    """Forward-only reduction that keeps log p of every target of this rank, its example, its place there, its label."""

    def __init__(self, data: SFTData, num_micro_batches: int) -> None:
        super().__init__(validation_step=True)
        self.data, self.num_micro_batches = data, num_micro_batches  # the latter of a step
        self.logp: list[torch.Tensor] = []
        self.example: list[np.ndarray] = []
        self.position: list[np.ndarray] = []  # of the target among the tokens of its example
        self.label: list[torch.Tensor] = []
        self.head = HeadReport()

    def forward(
        self, batch: dict[str, torch.Tensor], forward_out: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        supervised = batch["loss_mask"] > 0
        examples = self.data.examples(*divmod(len(self.logp), self.num_micro_batches))
        row, column = supervised.nonzero(as_tuple=True)
        self.logp.append(-forward_out[row, column].cpu())
        self.example.append(examples[row.cpu().numpy()])
        self.position.append(1 + _columns(supervised.shape[1])[column.cpu()].numpy())
        self.label.append(batch["labels"][row, column].cpu())
        return forward_out.sum() * 0, supervised.sum().int(), {}

    def reduce(self, losses_reduced_per_micro_batch: Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        return torch.zeros((), device=torch.cuda.current_device())


def _columns(num_columns: int) -> torch.Tensor:
    """[num_columns] int64: where in the sequence this rank's columns lie, which context parallelism divides."""
    whole = torch.arange(num_columns * parallel_state.get_context_parallel_world_size())
    return get_batch_on_this_cp_rank({"columns": whole[None]})["columns"][0]


class InstallObjective(pl.Callback):
    """Hooks `target_logprob` and the reduction into every pipeline chunk once all exist and their weights are restored.

    NeMo makes virtual pipeline stages itself, each with a reduction of its own: -log p, unless it is replaced here.
    """

    def __init__(self, vocab_size: int, reduction: ObjectiveReduction | CollectLogp, head: HeadConfig) -> None:
        self.vocab_size, self.reduction, self.head = vocab_size, reduction, head

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install(trainer.strategy, "_training_loss_reduction")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install(trainer.strategy, "_validation_loss_reduction")

    def _install(self, strategy: Any, attribute: str) -> None:
        chunks = strategy.megatron_parallel
        for chunk in chunks:
            check_config(chunk.config)
            setattr(chunk, attribute, self.reduction)
        tp_group = parallel_state.get_tensor_model_parallel_group()
        said = install_target_logprob(chunks, self.vocab_size, tp_group, self.head, self.reduction.head)
        if said is not None and holds_the_loss():
            print(f"row skipping in the LM head is {said}", flush=True)


class MoveObjective(pl.Callback):
    """Tells the reduction where training stands, and puts the running means of p into checkpoints.

    The last pipeline stage has them from the statistics that are reduced anyway. The others learn them when a
    checkpoint is written: there its common part comes from rank 0, which may be of the first stage.
    """

    def __init__(self, reduction: ObjectiveReduction) -> None:
        self.reduction = reduction

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.reduction.label_means is not None:
            self.reduction.label_means.to(torch.cuda.current_device())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.reduction.begin(trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.reduction.end()

    def state_dict(self) -> dict[str, Any]:
        mean, by_label = self.reduction.running_p, self.reduction.label_means
        state = torch.tensor([mean.total, mean.weight], dtype=torch.float64, device=torch.cuda.current_device())
        _from_last_stage(state)
        mean.total, mean.weight = state.tolist()
        if by_label is None:
            return {"total": mean.total, "weight": mean.weight}
        _from_last_stage(by_label.sums)
        return {"total": mean.total, "weight": mean.weight, "by_label": by_label.sums.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reduction.running_p.total, self.reduction.running_p.weight = state_dict["total"], state_dict["weight"]
        if self.reduction.label_means is not None:
            self.reduction.label_means.sums.copy_(state_dict["by_label"])


def _from_last_stage(tensor: torch.Tensor) -> None:
    torch.distributed.broadcast(
        tensor,
        src=parallel_state.get_pipeline_model_parallel_last_rank(),
        group=parallel_state.get_pipeline_model_parallel_group(),
    )


def holds_the_loss() -> bool:
    """True on the one rank that writes: last pipeline stage, first of its tensor, data and context parallel groups."""
    return (
        parallel_state.is_pipeline_last_stage(ignore_virtual=True)
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
    )
