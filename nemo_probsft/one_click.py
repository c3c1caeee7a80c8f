"""`nemo-probsft one-click RECIPE --tasks t`: diagnose the base model, sweep the shortlist of its region, compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from nemo_probsft import config
from nemo_probsft.demo import command
from nemo_probsft.sweep import import_base, link_base, plan_sweep, show_plan, sweep


def one_click(
    path: str, overrides: Sequence[str], seeds: str, evaluation: Sequence[str], jobs: int, drop_checkpoints: bool
) -> bool:
    """Each part is complete or absent, so the same command goes on after an interruption.

    Returns False when a cell failed. Raises ValueError for the user.
    """
    recipe = config.load(path, overrides, own_objective=False)
    plan_sweep(path, overrides, "original", seeds, evaluation, jobs, drop_checkpoints)  # refuses before it diagnoses
    directory = Path(recipe.diagnose.output or Path(recipe.run_dir) / "diagnose")
    known = (directory / "diagnose.json").exists()
    if not known:
        link_base(import_base(recipe), directory)
        command("diagnose", path, *overrides)
    found = json.loads((directory / "diagnose.json").read_text(encoding="utf-8"))
    if known:
        print(f"from {directory}: mean p {found['mean_p']:.3f}, {found['region']['name']}: {found['region']['rule']}")
    keys = [entry["objective"] for entry in found["shortlist"]]
    planned = plan_sweep(path, overrides, ",".join(keys), seeds, evaluation, jobs, drop_checkpoints)
    show_plan(planned)
    return sweep(planned)
