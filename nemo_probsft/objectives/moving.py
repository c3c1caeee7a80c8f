"""Objectives that move while a model trains. What is fixed is how they move; `at` gives the objective of one step.

The power family goes from -log p, which learns what the model does not know, to 1 - p, which leans on what it knows, as
alpha goes from 0 to 1. `Scheduled` moves alpha, or a threshold, by the clock, `Adaptive` by how probable the targets
have become: all of them together or, where a task has a part that is known and one that is new, in groups: those with
the same label, or those at which the model is equally sure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_probsft.objectives.forms import FORMS, Objective, make_objective, number_text

Path = tuple[float, ...]  # values at even distances over the training steps, linear in between; one value does not move


class Moment(NamedTuple):
    """A training step, as far as objectives depend on it."""

    fraction: float  # of the run: 0 at the first step, 1 at the last
    running_p: float  # RunningMean of the steps before


@dataclass(frozen=True)
class Scheduled:
    """A form whose parameter or thresholds follow a path that is fixed in advance."""

    name: str
    parameter: Path | None = None
    min_p: Path = (0.0,)
    max_p: Path = (1.0,)

    def at(self, moment: Moment) -> Objective:
        parameter = None if self.parameter is None else along(self.parameter, moment.fraction)
        thresholds = (along(path, moment.fraction) for path in (self.min_p, self.max_p))
        return make_objective(self.name, parameter, *thresholds)

    @property
    def has_threshold(self) -> bool:
        """At any step."""
        return max(self.min_p) > 0 or min(self.max_p) < 1

    def moving(self, moment: Moment) -> dict[str, float]:
        """What moves, and where it is now."""
        paths = {str(FORMS[self.name].parameter): self.parameter, "min_p": self.min_p, "max_p": self.max_p}
        return {name: along(path, moment.fraction) for name, path in paths.items() if path and len(path) > 1}

    @property
    def key(self) -> str:
        """FORM-AtoB@AtoB..AtoB, without what is not there."""
        base = FORMS[self.name].key.format(path_text(self.parameter or ()))
        if (self.min_p, self.max_p) == ((0.0,), (1.0,)):
            return base
        return f"{base}@{path_text(self.min_p)}..{path_text(self.max_p)}"

    @property
    def formula(self) -> str:
        """f(p) at the corners of the longest path."""
        count = max(map(len, (self.parameter or (), self.min_p, self.max_p)))
        formulas = [self.at(Moment(i / (count - 1), 0.0)).formula for i in range(count)]
        return f"from {' to '.join(formulas)} over the training steps"


@dataclass(frozen=True)
class Adaptive:
    """(1 - p^a)/a with a = clip((m - low)/(high - low), 0, 1), m the running mean of p: -log p while the targets are
    improbable, 1 - p once the model knows them. m is a number, no gradient flows through it.

    by: None, m is that of all targets; else each group of them has its own (`GroupMeans`), in which that of all counts
    as `shrinkage` targets. "label": groups have the same label. "confidence": groups have the largest probability over
    the vocabulary in the same of NUM_BINS equal bins, so that m says how often the model is right when it is this sure.
    """

    low: float = 0.3
    high: float = 0.7
    decay: float = 0.9
    by: str | None = None
    shrinkage: float = 10.0
    min_p: float = 0.0
    max_p: float = 1.0

    def at(self, moment: Moment) -> Objective:
        """Of all targets; with `by`, of a group that was not seen yet."""
        return make_objective("power", self.alpha(moment.running_p), self.min_p, self.max_p)

    def alpha(self, running_p: float) -> float:
        return min(1.0, max(0.0, (running_p - self.low) / (self.high - self.low)))

    def moving(self, moment: Moment) -> dict[str, float]:
        """What moves, and where it is now."""
        return {"alpha": self.alpha(moment.running_p), "running_p": moment.running_p}

    @property
    def key(self) -> str:
        """adaptive or adaptive-by-GROUP, followed by its constants where they are not the defaults."""
        name = "adaptive" if self.by is None else f"adaptive-by-{self.by}"
        defaults = ADAPTIVE_KEYS[name]
        constants = [getattr(self, constant) for constant in defaults]
        base = "-".join([name, *map(number_text, constants if constants != list(defaults.values()) else ())])
        return f"{base}@{number_text(self.min_p)}..{number_text(self.max_p)}" if self.has_threshold else base

    @property
    def has_threshold(self) -> bool:
        return self.min_p > 0 or self.max_p < 1

    @property
    def formula(self) -> str:
        low, width, decay = (number_text(x) for x in (self.low, round(self.high - self.low, 12), self.decay))
        kept = self.at(Moment(0.0, 0.0)).formula.removeprefix("-log p")
        mean = f"m the running mean of p (decay {decay})"
        if self.by is not None:
            mean += f" of {GROUPS[self.by]} and of {number_text(self.shrinkage)} tokens of the mean of all"
        return f"(1 - p^a)/a{kept}, a = clip((m - {low})/{width}, 0, 1), {mean}"


NUM_BINS = 10  # of the confidence
GROUPS = {"label": "the token's label", "confidence": f"the model's confidence in {NUM_BINS} bins"}  # in words

# Constants of each key, in its order, and their defaults
CONSTANTS = {"low": Adaptive.low, "high": Adaptive.high, "decay": Adaptive.decay}
ADAPTIVE_KEYS = {"adaptive": CONSTANTS} | {
    f"adaptive-by-{group}": CONSTANTS | {"shrinkage": Adaptive.shrinkage} for group in GROUPS
}


@dataclass
class RunningMean:
    """Exponentially weighted mean over steps, corrected for its start: after one step it is that step's value.

    Two floats, so that a resumed run goes on with the same bits.
    """

    decay: float = Adaptive.decay
    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> None:
        self.total = self.decay * self.total + (1 - self.decay) * value
        self.weight = self.decay * self.weight + (1 - self.decay)

    @property
    def value(self) -> float:
        """0 before the first step."""
        return self.total / self.weight if self.weight else 0.0


class GroupMeans:
    """Running mean of p for each group of tokens, for an objective with `by`: decayed sums of p over decayed counts.

    The sums over a step are exact, so the order of micro-batches, ranks and atomic additions does not change a bit.
    """

    def __init__(self, objective: Adaptive, num_groups: int) -> None:
        self.objective = objective
        self.sums = torch.zeros(2, num_groups, dtype=torch.float64)  # of p, and the number of tokens
        self.step = torch.zeros_like(self.sums)  # those of the running step alone, first on this rank, then of all

    @property
    def by_confidence(self) -> bool:
        return self.objective.by == "confidence"

    def groups(self, labels: Tensor, top_logp: Tensor | None) -> Tensor:
        """The group of each token [...] int64. top_logp: fp32 [...], log p of the likeliest token, by confidence."""
        if not self.by_confidence:
            return labels
        assert top_logp is not None
        return (top_logp.exp() * NUM_BINS).nan_to_num().long().clamp(max=NUM_BINS - 1)

    def see(self, groups: Tensor, logp: Tensor, loss_mask: Tensor) -> None:
        """A micro-batch of the running step, each [...]; groups outside of the loss mask may be anything."""
        add_exactly(self.step, groups, logp, loss_mask)

    def end_step(self) -> None:
        """`step` holds the sums over the global batch by now."""
        self.sums.mul_(self.objective.decay).add_(self.step)
        self.step.zero_()

    def objective_of(self, groups: Tensor, overall: float) -> Objective:
        """Of tokens of these groups [...], given the running mean of p over all."""
        alphas = self._alphas(overall)[groups.clamp(min=0)]
        return Objective("power", alphas, self.objective.min_p, self.objective.max_p)

    def mean_alpha(self, overall: float) -> Tensor:
        """Over the tokens that the means are made of, fp64 []; 0 before there are any."""
        count = self.sums[1]
        total = count.sum()
        return torch.where(total > 0, (self._alphas(overall) * count).sum() / total, 0.0)

    def _alphas(self, overall: float) -> Tensor:
        """[num_groups] fp32."""
        total, count = self.sums
        low, high, shrinkage = self.objective.low, self.objective.high, self.objective.shrinkage
        return ramp((total + shrinkage * overall) / (count + shrinkage), low, high)

    def to(self, device: torch.device | str | int) -> None:
        self.sums, self.step = self.sums.to(device), self.step.to(device)


def add_exactly(sums: Tensor, groups: Tensor, logp: Tensor, loss_mask: Tensor) -> None:
    """Add p and 1 of each target to the two rows of `sums`, fp64 [2, num_groups], in the column of its group.

    groups int64, logp and loss_mask [...]; groups outside of the loss mask may be anything. Every p is rounded to a
    multiple of 2^-30. The sums are then exact up to 2^23 tokens of a group, so that no order changes a bit.
    """
    valid = loss_mask != 0
    index = torch.where(valid, groups, 0).flatten()
    p = torch.where(valid, logp.detach().double().exp(), 0.0)
    sums[0].index_add_(0, index, (p * 2**30).round().flatten() / 2**30)
    sums[1].index_add_(0, index, valid.double().flatten())


def ramp(mean: Tensor, low: float, high: float) -> Tensor:
    """alpha of a mean probability, fp32: 0 up to `low`, 1 from `high` on."""
    return ((mean - low) / (high - low)).clamp(0, 1).float()


def along(path: Path, fraction: float) -> float:
    """The path's value at a fraction in [0, 1] of the way."""
    if len(path) == 1:
        return path[0]
    place = fraction * (len(path) - 1)
    left = min(int(place), len(path) - 2)
    return path[left] * (left + 1 - place) + path[left + 1] * (place - left)


def path_text(path: Path) -> str:
    return "to".join(map(number_text, path))
