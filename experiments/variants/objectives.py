"""Objectives beyond those that recipes can name: weights that look at more than the target's p (docs/variants.md).

Every one is a function f(p) of the target's own p whose alpha, or whose weight on -log p, depends on more: the other
tokens, the steps before, the whole distribution, the base model. All of that is numbers to the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from experiments.real import candidates
from nemo_probsft.objectives import (
    Adaptive,
    AnyObjective,
    GroupMeans,
    Moment,
    Objective,
    RunningMean,
    group_means,
    objective_at,
    parse_objective,
)

PROMPT_CLASSES = 10
STALLED_STEPS = 100  # of `plateau`, until alpha is 1
PLATEAU_GAIN = 0.01  # of the fast mean over the slow one: less is no progress


class ClassMeans:
    """Running mean of p of each of `count` classes of tokens; a class that a step does not have keeps its mean."""

    def __init__(self, count: int) -> None:
        self.total, self.weight = torch.zeros(count), torch.zeros(count)

    def add(self, classes: Tensor, p: Tensor) -> None:
        seen = torch.bincount(classes, minlength=len(self.total))
        decay = torch.where(seen > 0, Adaptive.decay, 1.0)
        mean = torch.bincount(classes, p, len(self.total)) / seen.clamp_min(1)
        self.total = decay * self.total + (1 - decay) * mean
        self.weight = decay * self.weight + (1 - decay)

    def value(self) -> Tensor:
        """[count] fp32: 0 for a class that was never seen."""
        return self.total / self.weight.clamp_min(1e-9)


@dataclass
class Running:
    """What is known of the steps before: decayed means of p, of its median, of the model's confidence, and by class."""

    num_labels: int
    group_means: GroupMeans | None = None  # of a recipe's objective that has some
    candidate: candidates.State | None = None  # of an objective of the real model's continuum
    p: RunningMean = field(default_factory=lambda: RunningMean(0.9))
    slow_p: RunningMean = field(default_factory=lambda: RunningMean(0.98))
    median_p: RunningMean = field(default_factory=lambda: RunningMean(0.9))
    confidence: RunningMean = field(default_factory=lambda: RunningMean(0.9))
    stalled: int = 0  # steps, not in a row, at which p was no longer rising

    def __post_init__(self) -> None:
        self.by_label = ClassMeans(self.num_labels)
        self.by_prompt = ClassMeans(PROMPT_CLASSES)

    @torch.no_grad()
    def add(self, now: Now) -> None:
        self.p.add(float(now.p.mean()))
        self.slow_p.add(float(now.p.mean()))
        self.median_p.add(float(now.p.median()))
        self.confidence.add(float(now.confidence.mean()))
        self.stalled += self.p.value - self.slow_p.value < PLATEAU_GAIN
        self.by_label.add(now.labels, now.p)
        self.by_prompt.add(now.prompt_class, now.p)
        if self.group_means is not None:
            self.group_means.see(now.labels, now.logp, torch.ones_like(now.labels))
            self.group_means.end_step()
        if self.candidate is not None:
            self.candidate.see(now.as_candidates_see_it)


@dataclass(frozen=True)
class Now:
    """A training step's N targets, and what an objective may look at beside their p."""

    logp: Tensor  # [N] fp32, the only one with a gradient
    log_probs: Tensor  # [N, V] fp32: the whole distribution
    labels: Tensor  # [N] int64
    example: Tensor  # [N] int64, from 0
    prompt_class: Tensor  # [N] int64: of PROMPT_CLASSES; 0 where the objective does not ask
    source: Tensor  # [N] int64: the part of a mixture
    hidden: Tensor  # [N, H] fp32: what the head reads
    base_logp: Tensor | None  # [N] fp32 under the model before training, where the objective asks for it
    running: Running
    fraction: float  # of the run: 0 at the first step, 1 at the last

    @property
    def p(self) -> Tensor:
        return self.logp.detach().exp()

    @property
    def confidence(self) -> Tensor:
        """[N]: sum of the squared probabilities, which is the p that the model itself expects of its target."""
        return self.log_probs.detach().mul(2).exp().sum(-1)

    @property
    def as_candidates_see_it(self) -> candidates.Now:
        return candidates.Now(
            logp=self.logp.detach(),
            top=self.log_probs.max(-1).values,
            labels=self.labels,
            source=self.source,
            hidden=self.hidden,
        )

    def example_mean(self, values: Tensor) -> Tensor:
        """[N]: the mean over the targets of the same example."""
        totals = torch.zeros(int(self.example.max()) + 1).index_add(0, self.example, values)
        return (totals / torch.bincount(self.example))[self.example]


@dataclass(frozen=True)
class Power:
    """(1 - p^a)/a with an alpha [N] or [] for each token; -log p where it is 0."""

    formula: str
    alpha: Callable[[Now], Tensor]
    needs_prompts: bool = False

    def value(self, now: Now) -> Tensor:
        a = self.alpha(now)
        nonzero = torch.where(a == 0, 1.0, a)
        return torch.where(a == 0, -now.logp, -torch.expm1(nonzero * now.logp) / nonzero)

    def weight(self, now: Now) -> Tensor:
        return torch.exp(self.alpha(now) * now.logp.detach())


@dataclass(frozen=True)
class Weighted:
    """-w log p with a weight w [N] that is a number to the gradient."""

    formula: str
    weight_of: Callable[[Now], Tensor]
    needs_base: bool = False

    def value(self, now: Now) -> Tensor:
        return -self.weight_of(now) * now.logp

    def weight(self, now: Now) -> Tensor:
        return self.weight_of(now)


@dataclass(frozen=True)
class Named:
    """An objective that recipes can name."""

    objective: AnyObjective

    @property
    def formula(self) -> str:
        return self.objective.formula

    def value(self, now: Now) -> Tensor:
        objective = self._at(now)
        return torch.where(objective.keep(now.logp), objective.value(now.logp), 0.0)

    def weight(self, now: Now) -> Tensor:
        objective = self._at(now)
        return objective.weight(now.logp.detach()) * objective.keep(now.logp)

    def _at(self, now: Now):
        if now.running.group_means is not None:
            return now.running.group_means.objective_of(now.labels, now.running.p.value)
        return objective_at(self.objective, Moment(now.fraction, now.running.p.value))


@dataclass(frozen=True)
class Learned:
    """A candidate of the real model's continuum."""

    candidate: candidates.Candidate

    @property
    def formula(self) -> str:
        return self.candidate.formula

    def value(self, now: Now) -> Tensor:
        return self._at(now).value(now.logp)

    def weight(self, now: Now) -> Tensor:
        return self._at(now).weight(now.logp.detach())

    def _at(self, now: Now) -> Objective:
        assert now.running.candidate is not None
        return Objective("power", now.running.candidate.alpha(now.as_candidates_see_it))


Variant = Power | Weighted | Named | Learned


def variant(key: str) -> Variant:
    """One of VARIANTS, or any key of a recipe. Raises: ValueError for anything else."""
    return VARIANTS[key] if key in VARIANTS else Named(parse_objective(key))


def running(objective: Variant, num_labels: int) -> Running:
    """Before the first step."""
    if isinstance(objective, Named):
        return Running(num_labels, group_means=group_means(objective.objective, num_labels))
    if isinstance(objective, Learned):
        return Running(num_labels, candidate=objective.candidate.start())
    return Running(num_labels)


def ramp(m: Tensor | float) -> Tensor:
    """`adaptive`'s alpha of a mean probability."""
    return ((torch.as_tensor(m) - Adaptive.low) / (Adaptive.high - Adaptive.low)).clamp(0, 1)


def _cayley(now: Now) -> Tensor:
    a0 = 0.5 * now.p.mean()
    return (a0 + (1 - a0) * now.p / (2 - now.p)).clamp(1e-3, 1)


def _talr(now: Now) -> Tensor:
    nll = now.example_mean(-now.logp.detach())
    first_of_each = torch.ones_like(now.example, dtype=torch.bool)
    first_of_each[1:] = now.example[1:] != now.example[:-1]
    tau = nll[first_of_each].median().clamp_min(1e-2)
    return torch.exp(now.logp.detach() / tau)


def _infosft(now: Now) -> Tensor:
    q = now.p.clamp(1e-6, 1 - 1e-6)
    weight = q * (torch.logit(torch.tensor(0.93)) - torch.logit(q)).clamp_min(0)
    return weight / weight.mean().clamp_min(1e-6)


def _eaft(now: Now) -> Tensor:
    top = torch.log_softmax(now.log_probs.detach().topk(20).values, -1)
    return -(top.exp() * top).sum(-1) / torch.log(torch.tensor(20.0))


def _trim(now: Now) -> Tensor:
    m = now.running.p.value
    return (now.p >= torch.quantile(now.p, float(ramp(m)) * (1 - m))).float()


def _calibrated(now: Now) -> Tensor:
    """DEFT's alpha times how far the model's expectation of its own p comes true."""
    return (now.confidence * now.running.p.value / max(now.running.confidence.value, 1e-6)).clamp(0, 1)


PUBLISHED: dict[str, Variant] = {
    "DEFT": Power("power, a = sum of p_v^2 over the vocabulary", lambda now: now.confidence),
    "Cayley": Power("power, a = a0 + (1 - a0) p/(2 - p), a0 half of the batch's mean p", _cayley),
    "TALR": Weighted("-sg(p^(1/tau)) log p, tau the batch's median of the examples' mean -log p", _talr),
    "PriFT": Weighted("-p_base log p", lambda now: now.base_logp.exp(), needs_base=True),
    "EAFT": Weighted("-sg(H) log p, H the entropy of the 20 likeliest tokens over log 20", _eaft),
    "InfoSFT": Weighted("-sg(p [logit 0.93 - logit p]+) log p, weights of mean 1", _infosft),
}

OURS: dict[str, Variant] = {
    "per-token": Power("power, a = ramp(p) of the token itself", lambda now: ramp(now.p)),
    "per-example": Power("power, a = ramp of the example's mean p", lambda now: ramp(now.example_mean(now.p))),
    "per-label": Power(
        "power, a = ramp of the label's running mean p", lambda now: ramp(now.running.by_label.value())[now.labels]
    ),
    "per-prompt": Power(
        f"power, a = ramp of the running mean p of its prompt class: {PROMPT_CLASSES} quantiles of the prompts' log p",
        lambda now: ramp(now.running.by_prompt.value())[now.prompt_class],
        needs_prompts=True,
    ),
    "median": Power("power, a = ramp of the running median of p", lambda now: ramp(now.running.median_p.value)),
    "to-2": Power("power, a = 2 ramp(m)", lambda now: 2 * ramp(now.running.p.value)),
    "to-10": Power("power, a = 10 ramp(m)", lambda now: 10 * ramp(now.running.p.value)),
    "confidence": Power(
        "power, a = ramp of the running mean of sum p_v^2", lambda now: ramp(now.running.confidence.value)
    ),
    "calibrated": Power("power, a = (sum of p_v^2) m / its running mean", _calibrated),
    "DEFT-late": Power("power, a = ramp(m) sum of p_v^2", lambda now: ramp(now.running.p.value) * now.confidence),
    "plateau": Power(
        f"power, a = min(1, steps without progress of m / {STALLED_STEPS})",
        lambda now: torch.tensor(min(1.0, now.running.stalled / STALLED_STEPS)),
    ),
    "rising-threshold": Weighted(
        "-log p where p >= 0.2 ramp(m)", lambda now: (now.p >= 0.2 * ramp(now.running.p.value)).float()
    ),
    "trim": Weighted("-log p without the ramp(m) (1 - m) least probable tokens", _trim),
}

LEARNED: dict[str, Variant] = {  # from the steps before; nothing here shows the base model the training set
    name: Learned(candidate)
    for name, candidate in candidates.CANDIDATES.items()
    if not isinstance(candidate.start(), candidates.OfBase)
}

VARIANTS = PUBLISHED | OURS | LEARNED
