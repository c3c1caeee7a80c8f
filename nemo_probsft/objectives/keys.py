"""The names of objectives: the paper's keys, the recipe form, and what is said of anything else."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from nemo_probsft.objectives.forms import FORMS, THRESHOLD_KEYS, make_objective, number_text
from nemo_probsft.objectives.moving import ADAPTIVE_KEYS, CONSTANTS, GROUPS, Adaptive, Path, Scheduled, along, path_text
from nemo_probsft.objectives.prior import Prior
from nemo_probsft.objectives.steps import AnyObjective

_NUMBER_PATTERN = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_NUMBER = re.compile(_NUMBER_PATTERN, re.ASCII)
_CONSTANT = rf"-({_NUMBER_PATTERN})"

_PLAIN_KEYS = {"logp": ("nll", None), "p": ("power", 1.0)} | {
    form.key: (name, None) for name, form in FORMS.items() if form.parameter is None
}
_PRIOR_CONSTANTS = {"low": Prior.low, "high": Prior.high}
_MEASURED_KEYS = ADAPTIVE_KEYS | {"prior": _PRIOR_CONSTANTS}  # by p: of the model as it is, or as it was
_PARAMETER_KEYS = {form.key.removesuffix("-{}"): name for name, form in FORMS.items() if form.parameter is not None}

_MEASURED_NAMES = {"adaptive": {"by", "shrinkage", *CONSTANTS}, "prior": set(_PRIOR_CONSTANTS)}  # -> keys of a mapping

OBJECTIVE_KEYS = (
    *("original", "logp", "p"),
    *(f"{prefix}-{FORMS[name].parameter}" for prefix, name in _PARAMETER_KEYS.items()),
    *(f"{prefix}-q" for prefix in THRESHOLD_KEYS),
    *(key for key in _PLAIN_KEYS if key not in ("original", "logp", "p")),
    *_MEASURED_KEYS,
)
"""Every key with its parameter's name. Any key without a threshold also takes an interval, KEY@min_p..max_p, and any
number may move over the training steps: GeneralFamily-0to1."""


class ObjectiveError(ValueError):
    """key: of the recipe ("objective.keep.min_p"). problem: what is wrong there, the value, what to do."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


def parse_objective(spec: str | Mapping) -> AnyObjective:
    """Objective from a key ("GeneralFamily-10", "OnlyTopLogP-0.2", "focal-2@0.1..0.9", "adaptive") or from the recipe
    form {"name": "power", "alpha": 10, "keep": {"min_p": 0.2, "max_p": 1}}, where {"schedule": {"alpha": [0, 1]}} moves
    what it names over the training steps, as "GeneralFamily-0to1" does.

    Raises: ObjectiveError, a ValueError, for anything else; it names the value and lists the keys.
    """
    if isinstance(spec, str):
        return _from_key(spec)
    if isinstance(spec, Mapping):
        return _from_mapping(spec)
    raise ObjectiveError("objective", f"{spec!r} is neither a key nor a mapping; {_keys_text()}")


def _from_key(key: str) -> AnyObjective:
    base, at, interval = key.partition("@")
    prefix, dash, number = base.partition("-")
    where = repr(key)
    min_p: Path = (0.0,)
    max_p: Path = (1.0,)
    parameter: Path | None
    if at:
        low, dots, high = interval.partition("..")
        if not dots or prefix in THRESHOLD_KEYS:
            raise ObjectiveError("objective", f"{where}: an interval is written KEY@min_p..max_p, once; {_keys_text()}")
        min_p, max_p = _path(low, f"{where}: min_p"), _path(high, f"{where}: max_p")
    if prefix in ("adaptive", "prior"):
        return _measured_from_key(base, min_p, max_p, where)
    if base in _PLAIN_KEYS:
        name, alpha = _PLAIN_KEYS[base]
        parameter = None if alpha is None else (alpha,)
    elif dash and prefix in _PARAMETER_KEYS:
        name, parameter = _PARAMETER_KEYS[prefix], _path(number, f"{where}: the number after '-'")
    elif dash and prefix in THRESHOLD_KEYS:
        name, alpha, bound = THRESHOLD_KEYS[prefix]
        parameter = None if alpha is None else (alpha,)
        q = _path(number, f"{where}: the threshold")
        min_p, max_p = (q, max_p) if bound == "min_p" else (min_p, q)
    else:
        raise ObjectiveError("objective", f"unknown objective {key!r}{_did_you_mean(prefix)}; {_keys_text()}")
    return _checked(name, parameter, min_p, max_p, where)


def _measured_from_key(base: str, min_p: Path, max_p: Path, where: str) -> Adaptive | Prior:
    name = max(filter(base.startswith, _MEASURED_KEYS), key=len)
    defaults = _MEASURED_KEYS[name]
    rest = base.removeprefix(name)
    given = re.fullmatch(_CONSTANT * len(defaults), rest, re.ASCII)
    if rest and given is None:
        form = "-".join([name, *map(str.upper, defaults)])
        raise ObjectiveError("objective", f"{where}: the constants of {name} are written {form}, or all left out")
    constants = dict(zip(defaults, map(float, given.groups()), strict=True)) if given else defaults
    if name == "prior":
        return _checked_prior(constants, min_p, max_p, where)
    by = name.removeprefix("adaptive").removeprefix("-by-") or None
    return _checked_adaptive(by, constants, min_p, max_p, where)


def _from_mapping(spec: Mapping) -> AnyObjective:
    name = spec.get("name")
    if not isinstance(name, str) or name not in (*FORMS, *_MEASURED_NAMES):
        problem = f"{name!r} is not one of {', '.join((*FORMS, *_MEASURED_NAMES))}; as a string, {_keys_text()}"
        raise ObjectiveError("objective.name", problem)
    wanted = FORMS[name].parameter if name in FORMS else None
    if "denominator" in spec:
        problem = "is an argument of token_loss, not part of an objective; pass it there"
        raise ObjectiveError("objective.denominator", problem)
    own = {"schedule"} | ({wanted} if wanted else set()) if name in FORMS else _MEASURED_NAMES[name]
    _refuse_others(spec, {"name", "keep"} | own, "objective", f"{name!r} ")
    keep, schedule = (_mapping(spec, key) for key in ("keep", "schedule"))
    if percentiles := [bound for bound in keep if bound in ("min_percentile", "max_percentile")]:
        problem = "is a percentile; resolve it to a probability with a diagnose report first"
        raise ObjectiveError(f"objective.keep.{percentiles[0]}", problem)
    _refuse_others(keep, {"min_p", "max_p"}, "objective.keep")
    _refuse_others(schedule, {"min_p", "max_p"} | ({wanted} if wanted else set()), "objective.schedule")
    min_p, max_p = (
        _fixed_or_scheduled(keep, schedule, bound, f"objective.keep.{bound}") or (float(default),)
        for bound, default in (("min_p", 0), ("max_p", 1))
    )
    if name == "adaptive":
        return _adaptive_from_mapping(spec, min_p, max_p)
    if name == "prior":
        return _checked_prior(_numbers(spec, _PRIOR_CONSTANTS), min_p, max_p, "'prior'")
    parameter = _fixed_or_scheduled(spec, schedule, wanted, f"objective.{wanted}") if wanted else None
    if wanted and parameter is None:
        raise ObjectiveError("objective", f"{name!r} needs {wanted!r}, {FORMS[name].domain_text}; add it")
    return _checked(name, parameter, min_p, max_p, repr(name))


def _adaptive_from_mapping(spec: Mapping, min_p: Path, max_p: Path) -> Adaptive:
    constants = _numbers(spec, (*CONSTANTS, "shrinkage"))
    by = spec.get("by")
    if by not in (None, *GROUPS):
        raise ObjectiveError("objective.by", f"is {by!r}; choose from {', '.join(GROUPS)}")
    if by is None and "shrinkage" in spec:
        by = "label"
    return _checked_adaptive(by, constants, min_p, max_p, "'adaptive'")


def _numbers(spec: Mapping, keys: Iterable[str]) -> dict[str, float]:
    return {key: _number(spec[key], f"objective.{key}") for key in keys if key in spec}


def _mapping(spec: Mapping, key: str) -> Mapping:
    value = spec.get(key) or {}
    if not isinstance(value, Mapping):
        example = "{min_p: 0.2}" if key == "keep" else "{alpha: [0, 1]}"
        raise ObjectiveError(f"objective.{key}", f"{value!r} is not a mapping; write {key}: {example}")
    return value


def _fixed_or_scheduled(fixed: Mapping, schedule: Mapping, name: str, where: str) -> Path | None:
    moves = f"objective.schedule.{name}"
    if name in fixed and name in schedule:
        raise ObjectiveError(moves, f"moves {where}, which is given, too; remove one")
    if name not in schedule:
        return (_number(fixed[name], where),) if name in fixed else None
    values = schedule[name]
    if not isinstance(values, list | tuple) or len(values) < 2:
        raise ObjectiveError(moves, f"is {values!r}, not a list of two numbers or more; write {name}: [0, 1]")
    return tuple(_number(value, moves) for value in values)


def _checked_adaptive(by: str | None, constants: Mapping[str, float], min_p: Path, max_p: Path, where: str) -> Adaptive:
    """Raises ValueError where the rule has no meaning, or a threshold moves beside it."""
    adaptive = Adaptive(**constants, by=by, **_fixed_thresholds("adaptive", min_p, max_p, where))
    _check_ramp(adaptive, where)
    if not 0 <= adaptive.decay < 1:
        decay = number_text(adaptive.decay)
        raise ObjectiveError("objective", f"{where}: decay is {decay}, but must be in [0, 1)")
    if not 0 < adaptive.shrinkage < math.inf:
        raise ObjectiveError(
            "objective", f"{where}: shrinkage is {number_text(adaptive.shrinkage)} tokens, but must be above 0"
        )
    return adaptive


def _checked_prior(constants: Mapping[str, float], min_p: Path, max_p: Path, where: str) -> Prior:
    prior = Prior(**constants, **_fixed_thresholds("prior", min_p, max_p, where))
    _check_ramp(prior, where)
    return prior


def _fixed_thresholds(name: str, min_p: Path, max_p: Path, where: str) -> dict[str, float]:
    if len(min_p) + len(max_p) > 2:
        raise ObjectiveError("objective", f"{where}: the thresholds of {name} do not move; give one number each")
    _check_thresholds(min_p, max_p, where)
    return {"min_p": min_p[0] + 0.0, "max_p": max_p[0] + 0.0}


def _check_ramp(of: Adaptive | Prior, where: str) -> None:
    if not 0 <= of.low < of.high <= 1:
        low, high = number_text(of.low), number_text(of.high)
        raise ObjectiveError(
            "objective", f"{where}: low is {low} and high is {high}, but they must be probabilities, low below high"
        )


def _checked(name: str, parameter: Path | None, min_p: Path, max_p: Path, where: str) -> AnyObjective:
    form = FORMS[name]
    for value in parameter or ():
        if not (math.isfinite(value) and form.domain(value)):
            raise ObjectiveError(
                "objective", f"{where}: {form.parameter} is {number_text(value)}, but must be {form.domain_text}"
            )
    if parameter and min(parameter) < 0 < max(parameter) and not form.domain(0.0):
        raise ObjectiveError("objective", f"{where}: {form.parameter} goes through 0, but must be {form.domain_text}")
    _check_thresholds(min_p, max_p, where)
    if all(len(path) == 1 for path in (parameter or (0.0,), min_p, max_p)):
        return make_objective(name, parameter[0] if parameter else None, min_p[0], max_p[0])
    return Scheduled(name, parameter, _no_minus_zero(min_p), _no_minus_zero(max_p))


def _check_thresholds(min_p: Path, max_p: Path, where: str) -> None:
    for bound, path in (("min_p", min_p), ("max_p", max_p)):
        for q in path:
            if not 0 <= q <= 1:
                raise ObjectiveError(
                    "objective", f"{where}: threshold {bound} is {number_text(q)}, but a probability lies in [0, 1]"
                )
    corners = {i / (len(path) - 1) for path in (min_p, max_p) for i in range(len(path)) if len(path) > 1} or {0.0}
    if any(along(min_p, corner) > along(max_p, corner) for corner in corners):
        raise ObjectiveError(
            "objective", f"{where}: min_p {path_text(min_p)} > max_p {path_text(max_p)} keeps no token; swap them"
        )


def _no_minus_zero(path: Path) -> Path:
    return tuple(value + 0.0 for value in path)


def _path(text: str, what: str) -> Path:
    return tuple(_number(value, "objective", f"{what} ") for value in text.split("to"))


def _number(value: Any, key: str, what: str = "") -> float:
    if isinstance(value, (str, int, float)) and _NUMBER.fullmatch(str(value)):
        return float(value)
    raise ObjectiveError(key, f"{what}is {value!r}, not a number; {_keys_text()}")


def _refuse_others(given: Mapping, known: set[str], key: str, what: str = "") -> None:
    if unknown := [str(name) for name in given if name not in known]:
        raise ObjectiveError(key, f"{what}has unknown key {unknown[0]!r}; it takes {', '.join(sorted(known))}")


def _did_you_mean(prefix: str) -> str:
    names = {key.partition("-")[0].lower(): key for key in OBJECTIVE_KEYS}
    close = difflib.get_close_matches(prefix.lower(), names, n=1)
    return f" (did you mean {names[close[0]]}?)" if close else ""


def _keys_text() -> str:
    return f"the keys are {', '.join(OBJECTIVE_KEYS)}"
