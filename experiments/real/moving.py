"""What an objective that moves has seen so far, in a loop in plain torch: the package's, and candidates for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_probsft.objectives import (
    Adaptive,
    Moment,
    Objective,
    RunningMean,
    label_means,
    objective_at,
    parse_objective,
)


@dataclass(frozen=True)
class Now:
    """A training step's N targets, and what an objective may look at beside their p; only `logp` has a gradient."""

    logp: Tensor  # [N] fp32
    top: Tensor  # [N] fp32: the largest log-probability over the vocabulary
    entropy: Tensor  # [N] fp32, nats
    labels: Tensor  # [N] int64
    example: Tensor  # [N] int64: the row of the batch
    position: Tensor  # [N] int64: in the answer, from 0
    source: Tensor  # [N] int64: the data set
    hidden: Tensor  # [N, H]: what the LM head reads
    base_logp: Tensor | None  # [N] fp32: of the model before training, where an objective asks for it
    base_top: Tensor | None  # [N] fp32: its largest log-probability
    fraction: float  # of the run: 0 at the first step, 1 at the last

    @property
    def p(self) -> Tensor:
        return self.logp.detach().exp()


class Moving:
    """Of a recipe's objective: the one of each step, from the steps before."""

    needs_base = False

    def __init__(self, key: str, num_labels: int, device: torch.device | str) -> None:
        self.of = parse_objective(key)
        self.running_p = RunningMean(self.of.decay) if isinstance(self.of, Adaptive) else RunningMean()
        self.label_means = label_means(self.of, num_labels)
        if self.label_means is not None:
            self.label_means.to(device)

    def objective(self, now: Now) -> Objective:
        if self.label_means is not None:
            return self.label_means.objective_of(now.labels, self.running_p.value)
        return objective_at(self.of, Moment(now.fraction, self.running_p.value))

    def see(self, now: Now) -> None:
        """After the step."""
        if isinstance(self.of, Adaptive):
            self.running_p.add(float(now.p.mean()))
        if self.label_means is not None:
            self.label_means.see(now.labels, now.logp, torch.ones_like(now.labels))
            self.label_means.end_step()
