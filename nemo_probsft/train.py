"""`nemo-probsft train RECIPE`: prepare, say what will be done and why, start the ranks, export."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from conversion.checkpoint import last_checkpoint, step_of
from nemo_probsft import config
from nemo_probsft.command_line import add_recipe
from nemo_probsft.config import Recipe
from nemo_probsft.progress import Progress
from nemo_probsft.run import best, decisions, engines, log, prepare, ranks
from nemo_probsft.run.prepare import Prepared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a recipe. If the run was interrupted, the same command resumes it from its last checkpoint.\n"
        "`train` starts a process for each of trainer.devices; under torchrun or srun it joins theirs."
    )
    add_recipe(parser)
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print what would be done and the memory that a GPU needs; train and write nothing",
    )


def run(options: argparse.Namespace) -> None:
    if options.plan:
        from nemo_probsft.plan.show import preview

        preview(options.recipe, options.overrides)
    else:
        train(options.recipe, options.overrides)


def train(path: str, overrides: Sequence[str] = ()) -> Path:
    """Train a recipe to its end, or go on where it was. Returns the run directory. Raises ValueError for the user."""
    from nemo_probsft.run import audit  # imports torch

    recipe = config.load(path, overrides)
    run_dir = Path(recipe.run_dir)
    if ranks.inside_ranks():
        _train_rank(recipe)
        return run_dir
    ranks.refuse_many_nodes(recipe)
    prepared, found = prepare.prepare(recipe)
    decisions.show(found)
    if not finished(run_dir, prepared):
        ranks.hold(run_dir).close()
        with Progress(f"train {run_dir}", prepared.num_steps, "steps", done=_start(run_dir)) as progress:
            follow = log.Follower(progress, run_dir)
            try:
                ranks.run_ranks(["train", path, *overrides], recipe.trainer.devices, run_dir / "logs", follow)
            except RuntimeError as error:
                raise RuntimeError(f"{error}; {_where_it_goes_on(run_dir)}") from None
        assert finished(run_dir, prepared), f"the ranks ended without checkpoint {prepared.num_steps} in {run_dir}"
    _keep_best(recipe)
    audit.check(run_dir, recipe.resolved)
    if recipe.export.at_end:
        print(f"exported: {export(recipe, prepared)}")
    return run_dir


def finished(run_dir: Path, prepared: Prepared) -> bool:
    return _start(run_dir) == prepared.num_steps


def _start(run_dir: Path) -> int:
    """The step of the last checkpoint, from which a run continues."""
    last = last_checkpoint(run_dir / "checkpoints")
    return 0 if last is None else step_of(last)


def _where_it_goes_on(run_dir: Path) -> str:
    last = last_checkpoint(run_dir / "checkpoints")
    return (
        f"the same command continues from {last}"
        if last
        else "no checkpoint is complete yet, so it starts from the beginning"
    )


def _train_rank(recipe: Recipe) -> None:
    ranks.end_with_torchrun()
    if os.environ["RANK"] == "0" and prepare.already(recipe) is None:  # started by hand under torchrun or srun
        decisions.show(prepare.prepare(recipe)[1])
    prepared = prepare.wait_for(recipe)
    run_dir = Path(recipe.run_dir)
    with ranks.hold(run_dir) if os.environ["RANK"] == "0" else contextlib.nullcontext():
        from nemo_probsft.run import audit

        engines.trainer_of(prepared.engine).fit(recipe, prepared)
        if os.environ["RANK"] == "0":
            _keep_best(recipe)
            audit.check(run_dir, recipe.resolved)
            if recipe.export.at_end and not ranks.started_here():
                print(f"exported: {export(recipe, prepared)}")


def _keep_best(recipe: Recipe) -> None:
    """The last checkpoint may be the best; a kill may have come before it was looked at."""
    if recipe.checkpoint.keep_best is not None:
        best.update(Path(recipe.run_dir), recipe.checkpoint.keep_best)


def export(recipe: Recipe, prepared: Prepared) -> Path:
    """The last checkpoint as a Hugging Face directory, `run_dir`/export, that says where it came from."""
    import conversion

    run_dir = Path(recipe.run_dir)
    target = run_dir / "export"
    if not target.exists():
        checkpoint = last_checkpoint(run_dir / "checkpoints")
        assert checkpoint is not None
        provenance = yaml.safe_load((run_dir / prepare.RUN).read_text(encoding="utf-8"))
        dtype = {"bf16": "bfloat16", "fp32": "float32", None: None}[recipe.export.dtype]
        conversion.export_hf(
            checkpoint, target, base=Path(prepared.hf), dtype=dtype, provenance=provenance, progress=True
        )
    return target
