"""f(p), its weight on the gradient of -log p, and the interval of p that is kept: an objective at one training step.

An objective is a base form (with at most one parameter) and an interval of p outside of which a token is dropped.
The gradient of f with respect to the logits is that of -log p, multiplied per token by s_f(p) = -p f'(p), so a pair
(value, weight) defines training completely. Everything is written in terms of logp = log p.

Source: "Beyond Log Likelihood", arXiv 2510.00526 (forms, thresholds, and the keys of its reference code); DFT arXiv
2508.05629; TrSFT arXiv 2512.17636; CHORD arXiv 2508.11408; focal loss arXiv 1708.02002.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

UNLIKELIHOOD_EPS = 1e-3  # the reference code's offset in log(1 - p + eps)


def _one_minus_p(logp: Tensor) -> Tensor:
    return -torch.expm1(logp)


def _times_nll(factor: Tensor, logp: Tensor) -> Tensor:
    """-factor * logp for a factor that is 0 wherever p is: 0 at logp = -inf instead of NaN."""
    return -factor * logp.clamp_min(-1e4)


def _power_value(logp: Tensor, alpha: float | Tensor) -> Tensor:
    if isinstance(alpha, Tensor):
        nonzero = torch.where(alpha == 0, 1.0, alpha)
        return torch.where(alpha == 0, -logp, -torch.expm1(nonzero * logp) / nonzero)
    return -logp if alpha == 0 else -torch.expm1(alpha * logp) / alpha


def _power_weight(logp: Tensor, alpha: float | Tensor) -> Tensor:
    if isinstance(alpha, Tensor):
        return torch.where(alpha == 0, 1.0, torch.exp(alpha * logp))
    return torch.ones_like(logp) if alpha == 0 else torch.exp(alpha * logp)


def _unlikelihood_value(logp: Tensor) -> Tensor:
    p = logp.exp()
    return torch.where(p < 0.5, torch.log1p(UNLIKELIHOOD_EPS - p), torch.log(_one_minus_p(logp) + UNLIKELIHOOD_EPS))


def _focal_weight(logp: Tensor, gamma: float) -> Tensor:
    q = _one_minus_p(logp)
    # p * (-log p) / (1 - p), whose limit at p = 1 is 1
    ratio = torch.where(q == 0, 1.0, _times_nll(logp.exp(), logp) / q)
    return q**gamma * (1 + gamma * ratio)


def _trsft_value(logp: Tensor, alpha: float) -> Tensor:
    return -torch.expm1((logp - math.log(alpha)).clamp_max(0)) - logp.clamp_min(math.log(alpha))


class Form(NamedTuple):
    key: str  # of the objective without a threshold; {} takes the parameter
    parameter: str | None
    formula: str
    value: Callable[..., Tensor]  # of logp and the parameter
    weight: Callable[..., Tensor]
    domain: Callable[[float], bool] = lambda _: True
    domain_text: str = "a finite number"


FORMS = {
    "nll": Form("original", None, "-log p", lambda logp, _: -logp, lambda logp, _: torch.ones_like(logp)),
    "power": Form(
        "GeneralFamily-{}",
        "alpha",
        "(1 - p^{0})/{1}",
        _power_value,
        _power_weight,
        lambda a: a == 0 or 1e-30 <= abs(a) <= 1e30,
        "0, or between 1e-30 and 1e30 in magnitude",
    ),
    "convexity": Form(
        "convexity-{}",
        "alpha",
        "-p^{0}/{1}",
        lambda logp, a: -torch.exp(a * logp) / a,
        _power_weight,
        lambda a: 1e-30 <= abs(a) <= 1e30,
        "between 1e-30 and 1e30 in magnitude (use name: power for the limit at 0)",
    ),
    "unlikelihood": Form(
        "Unlikehood",
        None,
        f"log(1 - p + {UNLIKELIHOOD_EPS})",
        lambda logp, _: _unlikelihood_value(logp),
        lambda logp, _: logp.exp() / (_one_minus_p(logp) + UNLIKELIHOOD_EPS),
    ),
    "dft": Form("dft", None, "-sg(p) log p", lambda logp, _: _times_nll(logp.exp(), logp), lambda logp, _: logp.exp()),
    "focal": Form(
        "focal-{}",
        "gamma",
        "-(1 - p)^{} log p",
        lambda logp, g: -(_one_minus_p(logp) ** g) * logp,
        _focal_weight,
        lambda g: g >= 0,
        "at least 0",
    ),
    "trsft": Form(
        "trsft-{}",
        "alpha",
        "-log max(p, {0}) + max(0, 1 - p/{0})",
        _trsft_value,
        lambda logp, a: (logp - math.log(a)).clamp_max(0).exp(),
        lambda a: 0 < a <= 1,
        "in (0, 1]",
    ),
    "chord": Form(
        "chord",
        None,
        "-sg(p (1 - p)) log p",
        lambda logp, _: _times_nll(logp.exp() * _one_minus_p(logp), logp),
        lambda logp, _: logp.exp() * _one_minus_p(logp),
    ),
}


# The reference code's spellings that are not "<form>-<parameter>": key prefix -> (name, parameter, bound it sets)
THRESHOLD_KEYS = {
    "OnlyTopP": ("power", 1.0, "min_p"),
    "OnlyBottomP": ("power", 1.0, "max_p"),
    "OnlyTopLogP": ("nll", None, "min_p"),
    "OnlyBottomLogP": ("nll", None, "max_p"),
    "UnlikehoodTop": ("unlikelihood", None, "min_p"),
    "UnlikehoodBottom": ("unlikelihood", None, "max_p"),
}


class _Value(torch.autograd.Function):
    """f(logp) whose derivative is exactly -s_f, also where differentiating the formula would give 0 * inf."""

    @staticmethod
    def forward(ctx, logp: Tensor, objective: Objective) -> Tensor:
        ctx.save_for_backward(logp)
        ctx.objective = objective
        return objective._form.value(logp, objective.parameter)

    @staticmethod
    def backward(ctx, dvalue: Tensor):
        (logp,) = ctx.saved_tensors
        return -ctx.objective.weight(logp) * dvalue, None


@dataclass(frozen=True)
class Objective:
    """f(p), its weight on the NLL gradient, and its keep rule. Made by `parse_objective`; equal when the keys are.

    All methods take logp [...] (natural log, <= 0) and return the same shape in fp32 (float64 stays float64). The alpha
    of `power` may be a tensor of logp's shape, one for each token: such an objective lives for one micro-batch and has
    no key.
    """

    name: str
    parameter: float | Tensor | None = None
    min_p: float = 0.0
    max_p: float = 1.0

    @property
    def _form(self) -> Form:
        return FORMS[self.name]

    def value(self, logp: Tensor) -> Tensor:
        """f(p). Gradient: exactly -weight. The threshold is not applied (see `keep`)."""
        return _Value.apply(_at_least_fp32(logp), self)

    def weight(self, logp: Tensor) -> Tensor:
        """s_f(p) = -p f'(p) >= 0: what multiplies the NLL gradient of the token."""
        return self._form.weight(_at_least_fp32(logp), self.parameter)

    @torch.no_grad()
    def keep(self, logp: Tensor) -> Tensor:
        """Bool: min_p <= p <= max_p. NaN is kept, so that it shows in the loss instead of vanishing from it."""
        p = _at_least_fp32(logp).exp()
        return ~((p < self.min_p) | (p > self.max_p))

    @property
    def has_threshold(self) -> bool:
        return self.min_p > 0 or self.max_p < 1

    @property
    def key(self) -> str:
        """Canonical key: the paper's where it has one, else KEY@min_p..max_p."""
        if self.min_p == 0 or self.max_p == 1:
            bound, q = ("min_p", self.min_p) if self.max_p == 1 else ("max_p", self.max_p)
            for prefix, spelled in THRESHOLD_KEYS.items():
                if self.has_threshold and spelled == (self.name, self.parameter, bound):
                    return f"{prefix}-{number_text(q)}"
        base = "p" if (self.name, self.parameter) == ("power", 1.0) else self._with_parameter(self._form.key)
        return f"{base}@{number_text(self.min_p)}..{number_text(self.max_p)}" if self.has_threshold else base

    @property
    def formula(self) -> str:
        """f(p) for logs and plots, such as "(1 - p^10)/10 for p >= 0.2"."""
        formula = "1 - p" if (self.name, self.parameter) == ("power", 1.0) else self._with_parameter(self._form.formula)
        if not self.has_threshold:
            return formula
        low = f"{number_text(self.min_p)} <= p" if self.min_p > 0 else "p"
        if self.max_p < 1:
            return f"{formula} for {low} <= {number_text(self.max_p)}"
        return f"{formula} for p >= {number_text(self.min_p)}"

    def _with_parameter(self, template: str) -> str:
        if self.parameter is None:
            return template
        assert not isinstance(self.parameter, Tensor)
        number = number_text(self.parameter)
        return template.format(number, f"({number})" if self.parameter < 0 else number)


def make_objective(name: str, parameter: float | None, min_p: float, max_p: float) -> Objective:
    """The limit of the power family is `nll`, and -0.0 is 0.0, so that equal objectives compare equal."""
    if name == "power" and parameter == 0:
        name, parameter = "nll", None
    return Objective(name, parameter, min_p + 0.0, max_p + 0.0)


def _at_least_fp32(logp: Tensor) -> Tensor:
    return logp if logp.dtype == torch.float64 else logp.float()


def number_text(number: float) -> str:
    """Shortest text that parses back to the same float."""
    return repr(float(number)).removesuffix(".0")
