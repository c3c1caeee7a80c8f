"""The objectives: every one is a function f of the target token's probability p, written in terms of logp = log p.

An objective is a base form (with at most one parameter) and an interval of p outside of which a token is dropped.
The gradient of f with respect to the logits is that of -log p, multiplied per token by s_f(p) = -p f'(p), so a pair
(value, weight) defines training completely.

Source: "Beyond Log Likelihood", arXiv 2510.00526 (forms, thresholds, and the keys of its reference code); DFT arXiv
2508.05629; TrSFT arXiv 2512.17636; CHORD arXiv 2508.11408; focal loss arXiv 1708.02002.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

UNLIKELIHOOD_EPS = 1e-3  # the reference code's offset in log(1 - p + eps)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def _one_minus_p(logp: Tensor) -> Tensor:
    return -torch.expm1(logp)


def _times_nll(factor: Tensor, logp: Tensor) -> Tensor:
    """-factor * logp for a factor that is 0 wherever p is: 0 at logp = -inf instead of NaN."""
    return -factor * logp.clamp_min(-1e4)


def _power_value(logp: Tensor, alpha: float) -> Tensor:
    return -logp if alpha == 0 else -torch.expm1(alpha * logp) / alpha


def _power_weight(logp: Tensor, alpha: float) -> Tensor:
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


class _Form(NamedTuple):
    key: str  # of the objective without a threshold; {} takes the parameter
    parameter: str | None
    formula: str
    value: Callable[..., Tensor]  # of logp and the parameter
    weight: Callable[..., Tensor]
    domain: Callable[[float], bool] = lambda _: True
    domain_text: str = "a finite number"


_FORMS = {
    "nll": _Form("original", None, "-log p", lambda logp, _: -logp, lambda logp, _: torch.ones_like(logp)),
    "power": _Form(
        "GeneralFamily-{}",
        "alpha",
        "(1 - p^{0})/{1}",
        _power_value,
        _power_weight,
        lambda a: a == 0 or 1e-30 <= abs(a) <= 1e30,
        "0, or between 1e-30 and 1e30 in magnitude",
    ),
    "convexity": _Form(
        "convexity-{}",
        "alpha",
        "-p^{0}/{1}",
        lambda logp, a: -torch.exp(a * logp) / a,
        _power_weight,
        lambda a: 1e-30 <= abs(a) <= 1e30,
        "between 1e-30 and 1e30 in magnitude (use name: power for the limit at 0)",
    ),
    "unlikelihood": _Form(
        "Unlikehood",
        None,
        f"log(1 - p + {UNLIKELIHOOD_EPS})",
        lambda logp, _: _unlikelihood_value(logp),
        lambda logp, _: logp.exp() / (_one_minus_p(logp) + UNLIKELIHOOD_EPS),
    ),
    "dft": _Form("dft", None, "-sg(p) log p", lambda logp, _: _times_nll(logp.exp(), logp), lambda logp, _: logp.exp()),
    "focal": _Form(
        "focal-{}",
        "gamma",
        "-(1 - p)^{} log p",
        lambda logp, g: -(_one_minus_p(logp) ** g) * logp,
        _focal_weight,
        lambda g: g >= 0,
        "at least 0",
    ),
    "trsft": _Form(
        "trsft-{}",
        "alpha",
        "-log max(p, {0}) + max(0, 1 - p/{0})",
        _trsft_value,
        lambda logp, a: (logp - math.log(a)).clamp_max(0).exp(),
        lambda a: 0 < a <= 1,
        "in (0, 1]",
    ),
    "chord": _Form(
        "chord",
        None,
        "-sg(p (1 - p)) log p",
        lambda logp, _: _times_nll(logp.exp() * _one_minus_p(logp), logp),
        lambda logp, _: logp.exp() * _one_minus_p(logp),
    ),
}

# The reference code's spellings that are not "<form>-<parameter>": key prefix -> (name, parameter, bound it sets)
_THRESHOLD_KEYS = {
    "OnlyTopP": ("power", 1.0, "min_p"),
    "OnlyBottomP": ("power", 1.0, "max_p"),
    "OnlyTopLogP": ("nll", None, "min_p"),
    "OnlyBottomLogP": ("nll", None, "max_p"),
    "UnlikehoodTop": ("unlikelihood", None, "min_p"),
    "UnlikehoodBottom": ("unlikelihood", None, "max_p"),
}
_PLAIN_KEYS = {"logp": ("nll", None), "p": ("power", 1.0)} | {
    form.key: (name, None) for name, form in _FORMS.items() if form.parameter is None
}
_PARAMETER_KEYS = {form.key.removesuffix("-{}"): name for name, form in _FORMS.items() if form.parameter is not None}

OBJECTIVE_KEYS = (
    *("original", "logp", "p"),
    *(f"{prefix}-{_FORMS[name].parameter}" for prefix, name in _PARAMETER_KEYS.items()),
    *(f"{prefix}-q" for prefix in _THRESHOLD_KEYS),
    *(key for key in _PLAIN_KEYS if key not in ("original", "logp", "p")),
)
"""Every key with its parameter's name. Any key without a threshold also takes an interval: KEY@min_p..max_p."""


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

    All methods take logp [...] (natural log, <= 0) and return the same shape in fp32 (float64 stays float64).
    """

    name: str
    parameter: float | None = None
    min_p: float = 0.0
    max_p: float = 1.0

    @property
    def _form(self) -> _Form:
        return _FORMS[self.name]

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
            for prefix, spelled in _THRESHOLD_KEYS.items():
                if self.has_threshold and spelled == (self.name, self.parameter, bound):
                    return f"{prefix}-{_text(q)}"
        base = "p" if (self.name, self.parameter) == ("power", 1.0) else self._with_parameter(self._form.key)
        return f"{base}@{_text(self.min_p)}..{_text(self.max_p)}" if self.has_threshold else base

    @property
    def formula(self) -> str:
        """f(p) for logs and plots, such as "(1 - p^10)/10 for p >= 0.2"."""
        formula = "1 - p" if (self.name, self.parameter) == ("power", 1.0) else self._with_parameter(self._form.formula)
        if not self.has_threshold:
            return formula
        low = f"{_text(self.min_p)} <= p" if self.min_p > 0 else "p"
        if self.max_p < 1:
            return f"{formula} for {low} <= {_text(self.max_p)}"
        return f"{formula} for p >= {_text(self.min_p)}"

    def _with_parameter(self, template: str) -> str:
        if self.parameter is None:
            return template
        number = _text(self.parameter)
        return template.format(number, f"({number})" if self.parameter < 0 else number)


def parse_objective(spec: str | Mapping) -> Objective:
    """Objective from a key ("GeneralFamily-10", "OnlyTopLogP-0.2", "focal-2@0.1..0.9") or from the recipe form
    {"name": "power", "alpha": 10, "keep": {"min_p": 0.2, "max_p": 1}}.

    Raises: ValueError for anything else; the message names the value and lists the keys.
    """
    if isinstance(spec, str):
        return _from_key(spec)
    if isinstance(spec, Mapping):
        return _from_mapping(spec)
    raise ValueError(f"objective {spec!r} is neither a key nor a mapping; {_keys_text()}")


def _from_key(key: str) -> Objective:
    base, at, interval = key.partition("@")
    prefix, dash, number = base.partition("-")
    min_p, max_p = 0.0, 1.0
    if at:
        low, dots, high = interval.partition("..")
        if not dots or prefix in _THRESHOLD_KEYS:
            raise ValueError(f"objective {key!r}: an interval is written KEY@min_p..max_p, once; {_keys_text()}")
        min_p, max_p = _number(low, f"objective {key!r}: min_p"), _number(high, f"objective {key!r}: max_p")
    if base in _PLAIN_KEYS:
        name, parameter = _PLAIN_KEYS[base]
    elif dash and prefix in _PARAMETER_KEYS:
        name, parameter = _PARAMETER_KEYS[prefix], _number(number, f"objective {key!r}: the number after '-'")
    elif dash and prefix in _THRESHOLD_KEYS:
        name, parameter, bound = _THRESHOLD_KEYS[prefix]
        q = _number(number, f"objective {key!r}: the threshold")
        min_p, max_p = (q, 1.0) if bound == "min_p" else (0.0, q)
    else:
        raise ValueError(f"unknown objective {key!r}{_did_you_mean(prefix)}; {_keys_text()}")
    return _checked(name, parameter, min_p, max_p, f"objective {key!r}")


def _from_mapping(spec: Mapping) -> Objective:
    name = spec.get("name")
    if not isinstance(name, str) or name not in _FORMS:
        raise ValueError(f"objective.name {name!r} is not one of {', '.join(_FORMS)}; as a string, {_keys_text()}")
    wanted = _FORMS[name].parameter
    if "denominator" in spec:
        raise ValueError("objective.denominator is an argument of token_loss, not part of an objective; pass it there")
    _refuse_others(spec, {"name", "keep"} | ({wanted} if wanted else set()), f"objective {name!r}")
    if wanted and wanted not in spec:
        raise ValueError(f"objective {name!r} needs {wanted!r}, {_FORMS[name].domain_text}; add it")
    keep = spec.get("keep") or {}
    if not isinstance(keep, Mapping):
        raise ValueError(f"objective.keep {keep!r} is not a mapping; write keep: {{min_p: 0.2}}")
    if percentiles := [bound for bound in keep if bound in ("min_percentile", "max_percentile")]:
        raise ValueError(
            f"objective.keep.{percentiles[0]} is a percentile; resolve it to a probability with a diagnose report first"
        )
    _refuse_others(keep, {"min_p", "max_p"}, "objective.keep")
    return _checked(
        name,
        _number(spec[wanted], f"objective.{wanted}") if wanted else None,
        _number(keep.get("min_p", 0.0), "objective.keep.min_p"),
        _number(keep.get("max_p", 1.0), "objective.keep.max_p"),
        f"objective {name!r}",
    )


def _checked(name: str, parameter: float | None, min_p: float, max_p: float, where: str) -> Objective:
    form = _FORMS[name]
    if parameter is not None and not (math.isfinite(parameter) and form.domain(parameter)):
        raise ValueError(f"{where}: {form.parameter} is {_text(parameter)}, but must be {form.domain_text}")
    for bound, q in (("min_p", min_p), ("max_p", max_p)):
        if not 0 <= q <= 1:
            raise ValueError(f"{where}: threshold {bound} is {_text(q)}, but a probability lies in [0, 1]")
    if min_p > max_p:
        raise ValueError(f"{where}: min_p {_text(min_p)} > max_p {_text(max_p)} keeps no token; swap them")
    if name == "power" and parameter == 0:
        name, parameter = "nll", None  # the limit of the family, so that equal objectives compare equal
    return Objective(name, parameter, min_p + 0.0, max_p + 0.0)  # -0.0 becomes 0.0


def _at_least_fp32(logp: Tensor) -> Tensor:
    return logp if logp.dtype == torch.float64 else logp.float()


def _number(value: object, what: str) -> float:
    if isinstance(value, (str, int, float)) and _NUMBER.fullmatch(str(value)):
        return float(value)
    raise ValueError(f"{what} is {value!r}, not a number; {_keys_text()}")


def _text(number: float) -> str:
    """Shortest text that parses back to the same float."""
    return repr(float(number)).removesuffix(".0")


def _refuse_others(given: Mapping, known: set[str], where: str) -> None:
    if unknown := [str(key) for key in given if key not in known]:
        raise ValueError(f"{where} has unknown key {unknown[0]!r}; it takes {', '.join(sorted(known))}")


def _did_you_mean(prefix: str) -> str:
    names = {key.partition("-")[0].lower(): key for key in OBJECTIVE_KEYS}
    close = difflib.get_close_matches(prefix.lower(), names, n=1)
    return f" (did you mean {names[close[0]]}?)" if close else ""


def _keys_text() -> str:
    return f"the keys are {', '.join(OBJECTIVE_KEYS)}"
