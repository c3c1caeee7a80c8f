"""The objective in a training loop, as far as no framework owns it. NeMo's reduction and Bridge's functor call it.

A step is `begin`, `loss` once a micro-batch, `reduce` on the last pipeline stage, `end`. Process groups are arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from nemo_probsft.adapters.megatron import guards
from nemo_probsft.adapters.megatron.rows import HeadRows
from nemo_probsft.adapters.megatron.statistics import REPORT, STATISTICS_LENGTH, add_weights, loss_function, summarise
from nemo_probsft.config import ResolvedObjective
from nemo_probsft.objectives import Adaptive, Moment, Objective, RunningMean, label_means, objective_at
from nemo_probsft.ops import HeadReport

Group = torch.distributed.ProcessGroup


class TrainingStep:
    """Holds what an objective needs to know of training: where it stands, and the running means of p.

    num_labels: the size of the vocabulary, without padding. examples(step, micro_batch), both counted from 0: which one
    of the training set each position of this rank's micro-batch belongs to, int64 [b, 1] where a row is an example, or
    [b, s]; asked only to name them in an error, if it is given.
    """

    def __init__(
        self,
        resolved: ResolvedObjective,
        *,
        num_steps: int,
        num_labels: int,
        examples: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        self.objective, self.denominator = resolved.objective, resolved.denominator
        self.num_steps, self.examples = num_steps, examples
        self.running_p = RunningMean(self.objective.decay) if isinstance(self.objective, Adaptive) else RunningMean()
        self.label_means = label_means(self.objective, num_labels)
        self.head = HeadReport()  # the head hook adds to it; see `hook.install_target_logprob`
        self.head_rows = HeadRows(find_zeros=self.objective.has_threshold)  # and takes from this what it needs to know
        self.number = 0  # of the step being trained, from 1
        self.micro_batches: list[torch.Tensor] = []  # statistics of those seen in this step
        self.statistics = torch.zeros(STATISTICS_LENGTH)  # the last step's sums over the global batch
        self.measured: dict[str, Any] | None = None  # for `run.audit`: in the first step of this start, and in the last

    def to(self, device: torch.device | str | int) -> None:
        """Move what the loss reads, once the device is known."""
        if self.label_means is not None:
            self.label_means.to(device)

    def begin(self, number: int) -> None:
        """Before the first micro-batch of step `number`, from 1."""
        self.number, self.micro_batches = number, []
        if number == self.num_steps:
            self.measured = None

    def loss(
        self, nll: torch.Tensor, labels: torch.Tensor, loss_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Megatron's (loss_sum, num_tokens int32) of a micro-batch; nll fp32, labels int64, loss_mask, all [b, s].

        Raises FloatingPointError, which names step, rank, micro-batch and examples, where log p is no number.
        """
        loss_sum, num_tokens, statistics = loss_function(self.now(labels), self.denominator, nll, loss_mask)
        self.micro_batches.append(statistics)
        self._refuse_what_is_no_number(loss_sum, nll, loss_mask)
        if self.label_means is not None:
            self.label_means.see(labels, -nll, loss_mask)
        if self.measured is None:
            self.measured = guards.measure(self.objective, self.moment, self.denominator, nll.device)
        return loss_sum, num_tokens

    def _refuse_what_is_no_number(self, loss_sum: torch.Tensor, nll: torch.Tensor, loss_mask: torch.Tensor) -> None:
        if guards.finite(loss_sum, nll, loss_mask):
            return
        micro_batch = len(self.micro_batches)
        examples = np.array([[f"row {i} of the micro-batch"] for i in range(len(nll))])
        if self.examples is not None:
            examples = self.examples(self.number - 1, micro_batch - 1)
        place = f"step {self.number}, rank {torch.distributed.get_rank()}, micro-batch {micro_batch}"
        raise FloatingPointError(f"{place}: {guards.describe(loss_sum, nll, loss_mask, examples)}")

    def reduce(self, group: Group | None) -> torch.Tensor:
        """The step's mean objective, fp32 []. One all-reduce over the data and context parallel ranks of `group`."""
        self.statistics = torch.stack(self.micro_batches).sum(0)
        add_weights(self.statistics, self.head)
        if self.label_means is None:
            torch.distributed.all_reduce(self.statistics, group=group)
        else:
            of_labels = self.label_means.step
            both = torch.cat([self.statistics.double(), of_labels.flatten()])
            torch.distributed.all_reduce(both, group=group)
            self.statistics = both[:STATISTICS_LENGTH].float()
            of_labels.copy_(both[STATISTICS_LENGTH:].view_as(of_labels))
        return self.statistics[0] / self.statistics[1].clamp(min=1)

    def end(self) -> None:
        """After `reduce`. Reads the statistics only where the objective needs them: that waits for the device."""
        if isinstance(self.objective, Adaptive):
            total, count = self.statistics[2 * REPORT.index("p") :][:2].tolist()
            if count:
                self.running_p.add(total / count)
        if self.label_means is not None:
            self.label_means.end_step()

    @property
    def moment(self) -> Moment:
        return Moment((self.number - 1) / max(1, self.num_steps - 1), self.running_p.value)

    def now(self, labels: torch.Tensor) -> Objective:
        """The objective of this step for tokens with these labels, [b, s]."""
        if self.label_means is not None:
            return self.label_means.objective_of(labels, self.running_p.value)
        return objective_at(self.objective, self.moment)

    def metrics(self) -> dict[str, float]:
        """What metrics.jsonl says of this step, after `reduce` and before `end`."""
        return summarise(self.statistics) | self.moving

    @property
    def moving(self) -> dict[str, float]:
        """What moves, and where it is in this step."""
        if isinstance(self.objective, Objective):
            return {}
        moving = self.objective.moving(self.moment)
        if self.label_means is not None:
            moving["alpha"] = self.label_means.mean_alpha(self.running_p.value)
        return moving

    def state(self, pipeline_group: Group | None, last_stage: int, device: torch.device | str | int) -> dict[str, Any]:
        """The running means, for a checkpoint. Every rank calls it; last_stage: global rank of the last pipeline stage.

        Only the last stage has them, from the statistics that are reduced anyway. The others learn them here, because
        the common part of a checkpoint comes from rank 0, which may be of the first stage.
        """
        mean = self.running_p
        state = torch.tensor([mean.total, mean.weight], dtype=torch.float64, device=device)
        torch.distributed.broadcast(state, src=last_stage, group=pipeline_group)
        mean.total, mean.weight = state.tolist()
        if self.label_means is None:
            return {"total": mean.total, "weight": mean.weight}
        torch.distributed.broadcast(self.label_means.sums, src=last_stage, group=pipeline_group)
        return {"total": mean.total, "weight": mean.weight, "by_label": self.label_means.sums.clone().cpu()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.running_p.total, self.running_p.weight = state["total"], state["weight"]
        if self.label_means is not None:
            self.label_means.sums.copy_(state["by_label"])
