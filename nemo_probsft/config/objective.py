"""The objective that a recipe asks for, with every percentile turned into a probability."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_probsft.config import strictyaml
from nemo_probsft.config.recipe import KeepConfig, ObjectiveConfig, Recipe, ResolvedObjective

Percentiles = Callable[[KeepConfig, float, str], float]  # (keep, percentile, key for errors) -> probability


def resolve(recipe: Recipe, percentiles: Percentiles) -> ResolvedObjective:
    """Raises ValueError in one line, with the key's place, for anything that is not an objective."""
    from nemo_probsft.objectives import ObjectiveError, parse_objective  # imports torch, which `config` must not

    given = recipe.objective
    try:
        if isinstance(given, str):
            return ResolvedObjective(parse_objective(given), "target", given)
        spec = specification(given, percentiles)
        return ResolvedObjective(parse_objective(spec), given.denominator, spec)
    except ObjectiveError as error:
        raise recipe.error(error.key, error.problem, "objective") from None


def any_rising(keep: KeepConfig, percentile: float, key: str) -> float:
    """A stand-in for `probability_at` where the diagnosis need not exist yet: which bound is lower stays the same."""
    return percentile / 100


def specification(objective: ObjectiveConfig, percentiles: Percentiles) -> dict[str, Any]:
    """What `parse_objective` takes: name, numbers, thresholds as probabilities, and what moves."""
    given = dataclasses.asdict(objective) | {"denominator": None, "keep": None}
    spec = {key: value for key, value in given.items() if value is not None}
    if objective.schedule is not None:
        spec["schedule"] = {key: list(path) for key, path in spec["schedule"].items() if path is not None}
    if objective.keep is not None:
        spec["keep"] = _keep_spec(objective.keep, percentiles)
    return spec


def _keep_spec(keep: KeepConfig, percentiles: Percentiles) -> dict[str, float]:
    from nemo_probsft.objectives import ObjectiveError

    spec = {}
    for bound in ("min", "max"):
        p, percentile = getattr(keep, f"{bound}_p"), getattr(keep, f"{bound}_percentile")
        key = f"objective.keep.{bound}_percentile"
        if p is not None and percentile is not None:
            raise ObjectiveError(key, f"{percentile:g} and {bound}_p {p:g} are both given; remove one")
        if percentile is not None and keep.diagnosis is None:
            remedy = "run `nemo-probsft diagnose RECIPE` and name its JSON file in objective.keep.diagnosis"
            raise ObjectiveError(key, f"{percentile:g} needs the model's probabilities; {remedy}")
        if p is not None or percentile is not None:
            spec[f"{bound}_p"] = p if percentile is None else percentiles(keep, percentile, key)
    if keep.diagnosis is not None and keep.min_percentile is None and keep.max_percentile is None:
        problem = "has no effect without min_percentile or max_percentile; remove it"
        raise ObjectiveError("objective.keep.diagnosis", f"{strictyaml.show(keep.diagnosis)} {problem}")
    return spec


def probability_at(keep: KeepConfig, percentile: float, key: str) -> float:
    """The probability below which `percentile` % of the target tokens lie, by the diagnosis."""
    from nemo_probsft.objectives import ObjectiveError

    path, remedy = Path(str(keep.diagnosis)), "make it with `nemo-probsft diagnose RECIPE`"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["percentiles"]
        known = {float(name): float(p) for name, p in table.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else "is not a diagnosis"
        raise ObjectiveError("objective.keep.diagnosis", f"{path} {reason}; {remedy}") from None
    if percentile not in known:
        choices = ", ".join(f"{q:g}" for q in sorted(known))
        raise ObjectiveError(key, f"{percentile:g} is not in {path}; choose from {choices}, or {remedy}")
    return known[percentile]
