"""The objective that a recipe asks for, with every percentile turned into a probability."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_probsft.config import strictyaml

if TYPE_CHECKING:
    from nemo_probsft.config import KeepConfig, ObjectiveConfig, Recipe
    from nemo_probsft.objectives import AnyObjective

Percentiles = Callable[["KeepConfig", float, str], float]  # (keep, percentile, key for errors) -> probability


def parse(recipe: Recipe, percentiles: Percentiles) -> tuple[AnyObjective, str]:
    from nemo_probsft.objectives import parse_objective  # imports torch, which `config` must not

    objective = recipe.objective
    try:
        if isinstance(objective, str):
            return parse_objective(objective), "target"
        return parse_objective(specification(objective, percentiles)), objective.denominator
    except ValueError as error:
        key, _, problem = str(error).partition(" ")
        if not key.startswith("objective"):
            key, problem = "objective", str(error)
        raise recipe.error(key.rstrip(":"), problem, "objective") from None


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
    spec = {}
    for bound in ("min", "max"):
        p, percentile = getattr(keep, f"{bound}_p"), getattr(keep, f"{bound}_percentile")
        key = f"objective.keep.{bound}_percentile"
        if p is not None and percentile is not None:
            raise ValueError(f"{key}: {percentile:g} and {bound}_p {p:g} are both given; remove one")
        if percentile is not None and keep.diagnosis is None:
            remedy = "run `nemo-probsft diagnose RECIPE` and name its JSON file in objective.keep.diagnosis"
            raise ValueError(f"{key}: {percentile:g} needs the model's probabilities; {remedy}")
        if p is not None or percentile is not None:
            spec[f"{bound}_p"] = p if percentile is None else percentiles(keep, percentile, key)
    if keep.diagnosis is not None and keep.min_percentile is None and keep.max_percentile is None:
        problem = "has no effect without min_percentile or max_percentile; remove it"
        raise ValueError(f"objective.keep.diagnosis: {strictyaml.show(keep.diagnosis)} {problem}")
    return spec


def probability_at(keep: KeepConfig, percentile: float, key: str) -> float:
    """The probability below which `percentile` % of the target tokens lie, by the diagnosis."""
    path, remedy = Path(str(keep.diagnosis)), "make it with `nemo-probsft diagnose RECIPE`"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["percentiles"]
        known = {float(name): float(p) for name, p in table.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else "is not a diagnosis"
        raise ValueError(f"objective.keep.diagnosis: {path} {reason}; {remedy}") from None
    if percentile not in known:
        choices = ", ".join(f"{q:g}" for q in sorted(known))
        raise ValueError(f"{key}: {percentile:g} is not in {path}; choose from {choices}, or {remedy}")
    return known[percentile]
