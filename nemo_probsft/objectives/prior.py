"""An objective that is fixed by what the base model knows: one alpha of the power family for each training file.

Source: the continuum of arXiv 2510.00526, on which -log p is best where the base model's mean p is low, and 1 - p where
it is high. The paper chooses by hand, for a whole data set; here each file's mean chooses, before the first step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_probsft.objectives.forms import Objective, make_objective, number_text
from nemo_probsft.objectives.moving import Moment, add_exactly, ramp

ENOUGH_TOKENS = 20_000  # targets of a file that are measured: mean p is then known to about 0.015, alpha to 0.04


@dataclass(frozen=True)
class Prior:
    """(1 - p^a)/a with an alpha for each training file, which does not move: a = clip((m - low)/(high - low), 0, 1), m
    the mean of p over the file's targets under the base model.
    """

    low: float = 0.3
    high: float = 0.7
    min_p: float = 0.0
    max_p: float = 1.0

    def at(self, moment: Moment) -> Objective:
        """Of rows that are in no training file. moment.running_p: the base model's mean p of all files."""
        return make_objective("power", self.alpha(moment.running_p), self.min_p, self.max_p)

    def alpha(self, mean_p: float) -> float:
        return min(1.0, max(0.0, (mean_p - self.low) / (self.high - self.low)))

    def moving(self, moment: Moment) -> dict[str, float]:
        return {}

    @property
    def has_threshold(self) -> bool:
        return self.min_p > 0 or self.max_p < 1

    @property
    def key(self) -> str:
        """prior or, where its constants are not the defaults, prior-LOW-HIGH."""
        constants = [self.low, self.high]
        base = "-".join(["prior", *map(number_text, constants if constants != [Prior.low, Prior.high] else ())])
        return f"{base}@{number_text(self.min_p)}..{number_text(self.max_p)}" if self.has_threshold else base

    @property
    def formula(self) -> str:
        low, width = (number_text(x) for x in (self.low, round(self.high - self.low, 12)))
        kept = self.at(Moment(0.0, 0.0)).formula.removeprefix("-log p")
        return f"(1 - p^a)/a{kept}, a = clip((m - {low})/{width}, 0, 1), m the base model's mean p of the training file"


class FileMeans:
    """Mean p of each training file under the base model: sums of p over counts of targets, fp64 [2, num_files].

    They are exact, as in `GroupMeans`: no layout changes a bit but by what it rounds in p.
    """

    def __init__(self, objective: Prior, num_files: int) -> None:
        self.objective = objective
        self.sums = torch.zeros(2, num_files, dtype=torch.float64)

    def see(self, files: Tensor, logp: Tensor, loss_mask: Tensor) -> None:
        """A micro-batch under the base model, each [...]; files int64, anything outside of the loss mask."""
        add_exactly(self.sums, files, logp, loss_mask)

    @property
    def alphas(self) -> Tensor:
        """[num_files] fp32. Every file has been seen."""
        return ramp(self.sums[0] / self.sums[1], self.objective.low, self.objective.high)

    def objective_of(self, files: Tensor) -> Objective:
        """Of tokens of these files [...], int64; anything may stand outside of the loss mask."""
        alphas = self.alphas[files.clamp(min=0)]
        return Objective("power", alphas, self.objective.min_p, self.objective.max_p)

    @property
    def mean(self) -> float:
        """Of p over all targets seen. Waits for the device."""
        total, count = self.sums.sum(1).tolist()
        return total / count

    def to(self, device: torch.device | str | int) -> None:
        self.sums = self.sums.to(device)
