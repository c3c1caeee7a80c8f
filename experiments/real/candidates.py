"""Objectives that need not be chosen, tried on the real model: (1 - p^a)/a with an alpha for each token of a step.

All are `adaptive` with another m: a = clip((m - 0.3)/0.4, 0, 1), where m is the p to be expected of a token *like this
one*, learned from the steps before. They differ in what "like this one" is: the same label, a model as sure as here, a
hidden state as here. A token's own p does not enter its alpha, `Threshold` apart: a wrong answer looks like a new one.

Everything stays on the device of the tensors it is given; nothing waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_probsft.objectives import Adaptive

PRIOR_TOKENS = 10.0  # for how many tokens of a class the mean of what it is part of counts
CONTEXT_PRIOR_TOKENS = 0.3  # the same for a direction of the hidden state
NUM_LABELS = 49_152  # of SmolLM2, and more than the demo has
NUM_BINS = 10
NUM_SOURCES = 16
TIE = 1e-5  # nats between log p of the target and of the likeliest token, where they are the same token


@dataclass(frozen=True)
class Now:
    """The N targets of a training step, under the model before its update; all on one device, no gradient."""

    logp: Tensor  # [N] fp32, nats, of the target
    top: Tensor  # [N] fp32, nats, of the likeliest token
    labels: Tensor  # [N] int64
    source: Tensor  # [N] int64, from 0: the data file of the example's row
    hidden: Tensor  # [N, H] any float dtype, what the head reads

    @property
    def p(self) -> Tensor:
        """[N] float64."""
        return self.logp.double().exp()


class Mean:
    """m of all tokens: running mean of p, decayed sums over decayed counts; 0 before the first step."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)  # of p, and the number of tokens

    def of(self, now: Now) -> Tensor:
        """m of each token, [N] float64, from the steps before."""
        self.sums = self.sums.to(now.logp.device)
        return (self.sums[0] / self.sums[1].clamp_min(1)).expand(now.logp.shape)

    def see(self, now: Now) -> None:
        """Called once a step, after `of`."""
        self.sums = Adaptive.decay * self.sums + _p_and_one(now).sum(1)


class ByClass:
    """m of `count` classes: a class's running mean p, in which m by `above` counts as `prior_tokens` tokens."""

    def __init__(
        self, above: Estimate, class_of: Callable[[Now], Tensor], count: int, prior_tokens: float = PRIOR_TOKENS
    ) -> None:
        self.above = above
        self.class_of = class_of  # [N] int64
        self.prior_tokens = prior_tokens
        self.sums = torch.zeros(2, count, dtype=torch.float64)

    def of(self, now: Now) -> Tensor:
        self.sums = self.sums.to(now.logp.device)
        total, count = self.sums[:, self.class_of(now)]
        return (total + self.prior_tokens * self.above.of(now)) / (count + self.prior_tokens)

    def see(self, now: Now) -> None:
        self.above.see(now)
        step = torch.zeros_like(self.sums).index_add_(1, self.class_of(now), _p_and_one(now))
        self.sums = Adaptive.decay * self.sums + step


class ByContext:
    """m by a linear function of the hidden state: ridge regression of p less its running mean on the hidden state at
    unit length, with decayed normal equations in float64. The length makes the penalty a number of tokens, as in
    `ByClass`: n tokens in one direction move m by n/(n + prior_tokens) of the way to their mean p.

    num_features: how many random projections of the hidden state to take; None takes the hidden state.
    """

    def __init__(self, num_features: int | None = None, prior_tokens: float = CONTEXT_PRIOR_TOKENS) -> None:
        self.num_features = num_features
        self.prior_tokens = prior_tokens
        self.mean = Mean()
        self.signs: Tensor | None = None  # [H, num_features] fp32, of the projections
        self.gram: Tensor | None = None  # [F, F]: x^T x
        self.moments: Tensor | None = None  # [F, 2]: x^T p, x^T 1

    def of(self, now: Now) -> Tensor:
        m = self.mean.of(now)
        if self.gram is None:
            return m
        eye = torch.eye(len(self.gram), dtype=m.dtype, device=m.device)
        factor, _ = torch.linalg.cholesky_ex(self.gram + self.prior_tokens * eye)  # without waiting for its verdict
        residual = self.moments @ torch.stack((torch.ones_like(m[0]), -m[0]))
        return (m + self._features(now) @ torch.cholesky_solve(residual[:, None], factor)[:, 0]).clamp(0, 1)

    def see(self, now: Now) -> None:
        self.mean.see(now)
        x = self._features(now)
        gram, moments = x.T @ x, x.T @ _p_and_one(now).T
        self.gram = gram if self.gram is None else Adaptive.decay * self.gram + gram
        self.moments = moments if self.moments is None else Adaptive.decay * self.moments + moments

    def _features(self, now: Now) -> Tensor:
        """[N, F] float64 of unit length, rounded to 2^-15: a step's sums are exact, whatever their order."""
        x = now.hidden.float()
        if self.num_features is not None:
            if self.signs is None:
                generator = torch.Generator().manual_seed(0)
                signs = torch.randint(0, 2, (x.shape[1], self.num_features), generator=generator) * 2 - 1
                self.signs = signs.to(x)
            x = x @ self.signs
        return (torch.nn.functional.normalize(x.double(), dim=-1) * 2**15).round() / 2**15


Estimate = Mean | ByClass | ByContext


class State:
    """What an objective remembers of the steps before; on the device of what it sees."""

    def __init__(self, estimate: Estimate) -> None:
        self.estimate = estimate

    def alpha(self, now: Now) -> Tensor:
        """[N] fp32 in [0, 1], from the steps before; 0, which is -log p, at the first one."""
        return ramp(self.estimate.of(now))

    def see(self, now: Now) -> None:
        """Called once a step, after `alpha`."""
        self.estimate.see(now)


class OfBase(State):
    """alpha by what the base model knew: all training targets are seen at once, before the first step."""

    def know(self, base: Now) -> None:
        self.estimate.of(base)  # moves to its device
        self.estimate.see(base)

    def see(self, now: Now) -> None:
        """What the model has learned since does not count."""


class ByGap:
    """alpha by confidence, as far as the answers contradict the model where it is as sure as here. It does not work:
    a wrong answer has one wrong token in ten, which no mean over tokens tells from what is new.

    A calibrated model that is 95 % sure is right in 95 % of the cases. One that learns what is new stays calibrated,
    and keeps -log p; wrong answers leave it right less often than it expects. gap: the mean of the likeliest token's
    probability, less how often the target is that token.
    """

    smallest, largest = 0.05, 0.2  # gaps that make alpha 0, and all of what it is by confidence

    def __init__(self) -> None:
        self.estimate = by_confidence(Mean())
        self.sums = torch.zeros(3, NUM_BINS, dtype=torch.float64)  # of the likeliest p, of being it, number of tokens

    def alpha(self, now: Now) -> Tensor:
        self.sums = self.sums.to(now.logp.device)
        expected, right, count = self.sums[:, confidence_bin(now.top)]
        gap = (expected - right) / (count + PRIOR_TOKENS)
        share = ((gap - self.smallest) / (self.largest - self.smallest)).clamp(0, 1).float()
        return share * ramp(self.estimate.of(now))

    def see(self, now: Now) -> None:
        self.estimate.see(now)
        top = (now.top.double().exp() * 2**20).round() / 2**20
        seen = torch.stack((top, (now.logp >= now.top - TIE).double(), torch.ones_like(top)))
        step = torch.zeros_like(self.sums).index_add_(1, confidence_bin(now.top), seen)
        self.sums = Adaptive.decay * self.sums + step


class Threshold:
    """`OnlyTopLogP-0.2` as far as the model knows such tokens, -log p as far as it does not: the weight is p^(4a) below
    p = 0.2 and 1 above, with a of `by_confidence`. So what is half learned keeps all of its gradient.

    A token's own p enters here.
    """

    p = 0.2
    power = 4.0  # at a = 1 no weight below the threshold is more than 0.2^4

    def __init__(self) -> None:
        self.estimate = by_confidence(Mean())

    def alpha(self, now: Now) -> Tensor:
        return self.power * ramp(self.estimate.of(now)) * (now.p < self.p)

    def see(self, now: Now) -> None:
        self.estimate.see(now)


def _p_and_one(now: Now) -> Tensor:
    """[2, N] float64; p is rounded to 2^-20, so that a step's sums are exact, whatever their order."""
    p = (now.p * 2**20).round() / 2**20
    return torch.stack((p, torch.ones_like(p)))


def ramp(m: Tensor) -> Tensor:
    """`adaptive`'s alpha of a mean probability, fp32."""
    return ((m - Adaptive.low) / (Adaptive.high - Adaptive.low)).clamp(0, 1).float()


def confidence_bin(top: Tensor, count: int = NUM_BINS) -> Tensor:
    """[N] int64: bins of equal width of the largest probability, exp(`top`)."""
    return (top.exp() * count).long().clamp(0, count - 1)


def by_confidence(above: Estimate) -> ByClass:
    return ByClass(above, lambda now: confidence_bin(now.top), NUM_BINS)


def by_label(above: Estimate) -> ByClass:
    return ByClass(above, lambda now: now.labels, NUM_LABELS)


def by_source(above: Estimate) -> ByClass:
    return ByClass(above, lambda now: now.source, NUM_SOURCES)


class Candidate(NamedTuple):
    formula: str
    start: Callable[[], State | ByGap | Threshold]  # before the first step; a state serves one run


_POWER = "(1 - p^a)/a, a = clip((m - 0.3)/0.4, 0, 1), m the running mean of p (decay 0.9)"
_BIN = "tokens whose largest probability lies in the same tenth"
_RIDGE = "plus a ridge regression of what it leaves on the final hidden state (unit length, penalty 0.3, decay 0.9)"

CANDIDATES = {
    "by-confidence": Candidate(
        f"{_POWER} of {_BIN} and of 10 tokens of the mean of all", lambda: State(by_confidence(Mean()))
    ),
    "by-gap": Candidate(
        f"{_POWER} of {_BIN} and of 10 tokens of the mean of all; a times clip((g - 0.05)/0.15, 0, 1), g how much less "
        "often than it expects the model is right there",
        ByGap,
    ),
    "threshold-by-confidence": Candidate(
        "-sg(p^(4a)) log p below p = 0.2 and -log p above, a = clip((m - 0.3)/0.4, 0, 1), m the running mean of p "
        f"(decay 0.9) of {_BIN} and of 10 tokens of the mean of all",
        Threshold,
    ),
    "by-confidence-label": Candidate(
        f"{_POWER} of the token's label and of 10 tokens of m by confidence",
        lambda: State(by_label(by_confidence(Mean()))),
    ),
    "by-context": Candidate(f"{_POWER}, {_RIDGE}", lambda: State(ByContext())),
    "by-context-64": Candidate(
        "by-context with 64 random projections of the hidden state", lambda: State(ByContext(num_features=64))
    ),
    "by-source": Candidate(
        f"{_POWER} of the data file and of 10 tokens of the mean of all (an oracle)", lambda: State(by_source(Mean()))
    ),
    "prior-by-label": Candidate(
        "(1 - p^a)/a, a = clip((m - 0.3)/0.4, 0, 1), m the base model's mean p of the training targets of the token's "
        "label and of 10 of the mean of all",
        lambda: OfBase(by_label(Mean())),
    ),
}
