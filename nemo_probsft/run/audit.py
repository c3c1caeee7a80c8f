"""The objective that the loss really computed: put into run.yaml by the loss itself, compared at the end of a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from nemo_probsft.config import ResolvedObjective, strictyaml
from nemo_probsft.files import write_atomically
from nemo_probsft.objectives import Moment, Objective, objective_at

RUN = "run.yaml"
RECORD = "objective_in_use"
PROBES = (0.0123, 0.2345, 0.5432, 0.7654, 0.9876)  # probabilities that nobody has as a threshold


def record(run_dir: Path, measured: dict[str, Any]) -> None:
    """Write into run.yaml what `adapters.megatron.guards.measure` found."""
    path = run_dir / RUN
    described = yaml.safe_load(path.read_text(encoding="utf-8"))
    write_atomically(path, strictyaml.dump(described | {RECORD: measured}))


def check(run_dir: Path, resolved: ResolvedObjective) -> None:
    """Raises RuntimeError if the record is missing, or if it is of another objective than the recipe's."""
    objective, denominator = resolved.objective, resolved.denominator
    path = run_dir / RUN
    found = yaml.safe_load(path.read_text(encoding="utf-8")).get(RECORD, {})
    then = objective_at(objective, Moment(**found.get("moment", {"fraction": 0.0, "running_p": 0.0})))
    expected = {"key": objective.key, "denominator": denominator, "probes": _expected(then, denominator)}
    for name, value in expected.items():
        if not _equal(found.get(name), value):
            problem = f"{RECORD}.{name} is {found.get(name)}, but the recipe means {value}"
            raise RuntimeError(f"{path}: {problem}; do not use the trained model, and report this")


def _expected(objective: Objective, denominator: str) -> list[list[float]]:
    """A row for each of PROBES: p, f(p), s_f(p), and whether the denominator counts the token."""
    import torch

    rows = []
    for p in PROBES:
        logp = torch.tensor(p).log()
        kept = bool(objective.keep(logp))
        value, weight = (float(f(logp)) if kept else 0.0 for f in (objective.value, objective.weight))
        rows.append([p, value, weight, int(kept or denominator == "target")])
    return rows


def _equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        same_length = isinstance(found, list) and len(found) == len(expected)
        return same_length and all(map(_equal, found, expected))
    if isinstance(expected, str):
        return bool(found == expected)
    return isinstance(found, int | float) and math.isclose(found, expected, rel_tol=1e-5)
