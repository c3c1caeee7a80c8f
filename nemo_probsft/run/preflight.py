"""What is checked before a process group starts: the files that a recipe names, its layout against the model's shape.

Runs in the process that starts the ranks. Imports no framework, except torch to count the GPUs.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nemo_probsft.config import Recipe, SourceConfig, dump, strictyaml
from nemo_probsft.data.rows import FORMATS, HUB_NAME
from nemo_probsft.run import attention, engines, prior, validation
from nemo_probsft.run.decisions import Decision
from nemo_probsft.run.engines import Engine
from nemo_probsft.run.model_files import check_model

# Keys that do not change what is learnt: a run may be continued with others.
LAYOUT = (
    *("parallel", "data.micro_batch_size", "data.packing", "trainer.devices", "trainer.num_nodes"),
    *("trainer.recompute", "trainer.attention_backend", "head.skip_rows", "head.chunk_tokens"),
)
REPORTING = ("checkpoint", "log", "export", "diagnose", "data.validation", "validate")
PREPARED = "prepared.json"  # what the ranks need; in a run directory from the moment when a run starts


def check(recipe: Recipe, here: bool = True) -> list[Decision]:
    """Refuse what cannot start. Raises ValueError in one line that names key, value, file and remedy.

    here: False for a run on other machines that share the files; this one's GPUs and packages say nothing about them.
    """
    chosen: str | None = None if recipe.engine == engines.AUTO else recipe.engine
    decisions = []
    if here:
        _refuse_missing_packages(recipe)
        _refuse_missing_gpus(recipe)
        found = engine(recipe)
        decisions, chosen = [Decision("engine", found.text, found.reason)], found.name
        attention.refuse(recipe, found.name, attention.this_machine())
    return decisions + [decision for part in parts(chosen) for decision in part(recipe)]


def parts(engine: str | None) -> list[Callable[[Recipe], list[Decision]]]:
    """The checks of `check` that hold on any machine, one by one: `train --plan` goes on after one that fails.

    engine: None if it is the one that another machine has.
    """
    model = partial(check_model, engine=engine)
    return [_objective, _head, _peft, _layout, attention.decide, model, _data, validation.check, _run_dir]


def engine(recipe: Recipe) -> Engine:
    """The engine of this run: what `engine` means here, or the one that it was started with.

    Raises ValueError if that is not installed, or not the one that the recipe asks for: checkpoints have another form.
    """
    started = _started_with(recipe)
    if started is not None and recipe.engine not in (engines.AUTO, started):
        problem = f"{recipe.engine}, but {recipe.run_dir} was started with {started}, whose checkpoints are of another "
        problem += f"form; use engine: {started}, or another run_dir, for example run_dir={recipe.run_dir}-2"
        raise recipe.error("engine", problem, "run_dir")
    try:
        if started is None:
            return engines.choose(recipe.engine)
        return engines.usable(started, f"{recipe.run_dir} was started with it")
    except ValueError as error:
        problem = str(error)
        if started:
            problem = f"{recipe.run_dir} was started with {error}; or train its last checkpoint in another run_dir"
        raise recipe.error("engine", problem) from None


def _started_with(recipe: Recipe) -> engines.Name | None:
    path = Path(recipe.run_dir) / PREPARED
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        started = found.get("engine", "nemo")  # the only one before there was a key
    except (OSError, ValueError, RecursionError, AttributeError):
        started = None
    if started not in engines.KINDS:
        raise recipe.error("run_dir", f"{path} names no engine; choose another, for example run_dir={recipe.run_dir}-2")
    return started


def _refuse_missing_packages(recipe: Recipe) -> None:
    cp = recipe.parallel.context_parallel_size
    if cp > 1 and importlib.util.find_spec("transformer_engine") is None:
        problem = f"{cp} needs the attention of Transformer Engine, which is not installed; install it or use 1"
        raise recipe.error("parallel.context_parallel_size", problem)
    if recipe.log.wandb is not None and importlib.util.find_spec("wandb") is None:
        project = strictyaml.show(recipe.log.wandb.project)
        raise recipe.error("log.wandb", f"project {project} needs the package wandb; install it, or remove the key")


def _objective(recipe: Recipe) -> list[Decision]:
    objective, spec = recipe.resolved.objective, recipe.resolved.spec
    reasons = {
        "target": "divided by all supervised tokens of the global batch",
        "kept": "divided by the tokens of the global batch that pass the threshold",
    }
    decisions = [
        Decision("objective", objective.key, f"f(p) = {objective.formula}, {reasons[recipe.resolved.denominator]}"),
        *prior.decided(recipe),
    ]
    keep = None if isinstance(recipe.objective, str) else recipe.objective.keep
    if keep is not None and keep.diagnosis is not None:
        assert isinstance(spec, dict)
        made_for = json.loads(Path(keep.diagnosis).read_text(encoding="utf-8"))
        source = f"{keep.diagnosis} of model {made_for.get('model')} on {made_for.get('data')}"
        for bound in ("min", "max"):
            if (percentile := getattr(keep, f"{bound}_percentile")) is not None:
                value = f"{percentile:g} is p = {spec['keep'][f'{bound}_p']:g}"
                decisions.append(Decision(f"objective.keep.{bound}_percentile", value, f"by {source}"))
    return decisions


def _head(recipe: Recipe) -> list[Decision]:
    head = recipe.head
    if not head.skip_rows:
        return [Decision("head", "every row", "head.skip_rows is false")]
    value = "only rows with a loss; backward, only rows with a gradient"
    reason = "exact: what is skipped is zero"
    if head.skip_below:
        value += f" above the smallest {head.skip_below:g} of all weight"
        reason = "NOT exact: head.skip_below asks for it; the share left out is logged as skipped_weight"
    if head.chunk_tokens:
        value += f"; logits of {head.chunk_tokens} tokens at a time, made again in the backward pass"
    return [Decision("head", value, reason)]


def _peft(recipe: Recipe) -> list[Decision]:
    if recipe.peft is None:
        return []
    value = f"LoRA of rank {recipe.peft.dim}, alpha {recipe.peft.alpha}"
    return [Decision("peft", value, "on the linear layers of attention and MLP; everything else is frozen")]


def _layout(recipe: Recipe) -> list[Decision]:
    tp, pp, cp = recipe.model_parallel_sizes
    trainer, data, dp = recipe.trainer, recipe.data, recipe.data_parallel_size
    return [
        Decision(
            "parallel",
            f"tensor {tp} x pipeline {pp} x context {cp} x data {dp}",
            f"{trainer.devices} devices on each of {trainer.num_nodes} node(s)",
        ),
        Decision(
            "data.global_batch_size",
            str(data.global_batch_size),
            "examples, in packed rows"
            if data.packing
            else f"micro-batch {data.micro_batch_size} x data-parallel {dp} x {recipe.num_micro_batches} micro-batches",
        ),
    ]


def _refuse_missing_gpus(recipe: Recipe) -> None:
    import torch

    if torch.cuda.is_available() and recipe.trainer.devices > torch.cuda.device_count():
        problem = (
            f"{recipe.trainer.devices} is more than the {torch.cuda.device_count()} GPUs of this machine; lower it"
        )
        raise recipe.error("trainer.devices", problem)


def _data(recipe: Recipe) -> list[Decision]:
    return [_source(recipe, source) for source in recipe.data.sources]


def _source(recipe: Recipe, source: SourceConfig) -> Decision:
    name, path = source.path, Path(source.path)
    if path.is_file():
        return _data_file(recipe, path, source)
    if path.is_dir():
        if not any((path / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
            problem = f"{name} is a directory without a saved data set; name a {' or '.join(FORMATS)} file in it"
            raise recipe.error("data.train", problem)
        return Decision("data.train", name, "data set written by datasets.save_to_disk")
    if path.suffix in FORMATS or not HUB_NAME.fullmatch(name) or Path(path.parts[0]).exists():
        problem = f"{name} does not exist; name a {' or '.join(FORMATS)} file or a Hugging Face data set"
        raise recipe.error("data.train", problem)
    split = source.split or recipe.data.split
    return Decision("data.train", name, f"no such file, so split {split} of that Hugging Face data set")


def _data_file(recipe: Recipe, path: Path, source: SourceConfig) -> Decision:
    size = path.stat().st_size
    if path.suffix not in FORMATS:
        raise recipe.error("data.train", f"{path} has ending {path.suffix!r}; use a {' or '.join(FORMATS)} file")
    if size == 0:
        raise recipe.error("data.train", f"{path} is empty; give it at least one row")
    if not os.access(path, os.R_OK):
        raise recipe.error("data.train", f"{path} cannot be read; change its permissions")
    every = [Path(entry.path) for entry in recipe.data.sources]
    if source.split is not None or (recipe.data.split != "train" and all(map(Path.is_file, every))):
        problem = f"{source.split or recipe.data.split} has no effect, data.train {path} is a file; remove it"
        raise recipe.error("data.split", problem, "data.train")
    first = f", its first {source.max_rows} rows" if source.max_rows else ""
    return Decision("data.train", str(path), f"file of {size} bytes{first}")


def _run_dir(recipe: Recipe) -> list[Decision]:
    path = Path(recipe.run_dir)
    if resumable(path, recipe):
        return [Decision("run_dir", str(path), "holds this run already: continues it")]
    upwards = [path, *path.absolute().parents]
    if dangling := next((parent for parent in upwards if parent.is_symlink() and not parent.exists()), None):
        raise recipe.error("run_dir", f"{path}: {dangling} is a link to nothing; name another")
    existing = next(parent for parent in upwards if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise recipe.error("run_dir", f"{path}: {existing} is not a writable directory; name another")
    return [Decision("run_dir", str(path), "new run")]


# What a diagnosis or a sweep leaves where no run was started.
NO_RUN_YET = ("diagnose", "base", "sweep.log", "sweep.stderr.log")


def resumable(run_dir: str | Path, recipe: Recipe) -> bool:
    """True when `run_dir` holds a run of this recipe, False when it holds nothing. Layout and reporting may differ.

    Raises ValueError when it holds anything else: a run directory is never overwritten.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir() or all(child.name in NO_RUN_YET for child in run_dir.iterdir()):
        return False
    source = run_dir / "run.yaml"
    remedy = "choose another, for example run_dir=" + str(run_dir) + "-2"
    try:
        saved = strictyaml.plain(strictyaml.parse(source.read_text(encoding="utf-8"), str))["recipe"]
        then = _flat(saved)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise recipe.error("run_dir", f"{run_dir} is not empty and holds no readable run.yaml; {remedy}") from None
    now = _flat(dump(recipe))
    free = (*LAYOUT, *REPORTING, "run_dir", "engine")  # `engine` looks after its own
    changed = [
        key
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]
    if changed:
        difference = f"{changed[0]} {then.get(changed[0])} there, {now.get(changed[0])} here"
        raise recipe.error("run_dir", f"{run_dir} holds another run ({difference}); {remedy}", changed[0])
    return True


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
