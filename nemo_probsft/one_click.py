"""`nemo-probsft one-click RECIPE --tasks t`: diagnose the base model, sweep the shortlist of its region, compare."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from nemo_probsft import config
from nemo_probsft.command_line import add_recipe, options_of
from nemo_probsft.demo import command
from nemo_probsft.sweep import Options, add_options, import_base, link_base, plan_sweep, show_plan, sweep


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Diagnose the base model, then sweep the objectives that the diagnosis suggests, and write a report.\n"
        "The same command resumes what was interrupted."
    )
    add_recipe(parser)
    add_options(parser)


def run(options: argparse.Namespace) -> int:
    return 0 if one_click(options.recipe, options.overrides, options_of(Options, options)) else 1


def one_click(path: str, overrides: Sequence[str], options: Options) -> bool:
    """Each part is complete or absent, so the same command goes on after an interruption.

    Returns False when a cell failed. Raises ValueError for the user.
    """
    recipe = config.load(path, overrides, own_objective=False)
    plan_sweep(path, overrides, "original", options)  # refuses before it diagnoses
    directory = Path(recipe.diagnose.output or Path(recipe.run_dir) / "diagnose")
    known = (directory / "diagnose.json").exists()
    if not known:
        link_base(import_base(recipe), directory)
        command("diagnose", path, *overrides)
    found = json.loads((directory / "diagnose.json").read_text(encoding="utf-8"))
    if known:
        print(f"from {directory}: mean p {found['mean_p']:.3f}, {found['region']['name']}: {found['region']['rule']}")
    keys = [entry["objective"] for entry in found["shortlist"]]
    planned = plan_sweep(path, overrides, ",".join(keys), options)
    show_plan(planned)
    return sweep(planned)
