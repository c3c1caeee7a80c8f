"""A recipe is read: a YAML file, a mapping or an OmegaConf DictConfig, with `key=value` overrides.

`load` refuses, in one line that names place, key, value and remedy, every unknown, missing, duplicate, mistyped or
out-of-range key and every combination that cannot train. Paths in a recipe are relative to the working directory. What
needs other files than the recipe is checked by `preflight`, except the diagnosis of a percentile and the file of a chat
template: both are read here, and their content becomes a part of the recipe.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_probsft.config import mapping, objective, strictyaml
from nemo_probsft.config.combinations import MIXED
from nemo_probsft.config.exactness import REFUSED_KEYS
from nemo_probsft.config.recipe import MAX_INT32, ObjectiveConfig, Recipe
from nemo_probsft.config.strictyaml import Node

MAX_BYTES = 1 << 20  # of a recipe


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), own_objective: bool = True) -> Recipe:
    """A recipe and `key=value` overrides -> a complete Recipe, its objective resolved. Raises ValueError in one line.

    source: path of a YAML file, mapping of plain values, or OmegaConf DictConfig. The same is refused in all three.
    own_objective: False for what does not train the recipe's objective, such as `diagnose`, which may be about to write
        the file that a percentile needs. The objective is then only checked, and `original` stands in its place.
    """
    tree, name = _source(source)
    for text in _once_each(overrides):
        tree = strictyaml.override(tree, text)
    tree = _with_chat_template(_with_defaults(tree, name))
    _refuse_mixture(tree)
    recipe = dataclasses.replace(strictyaml.build(Recipe, tree, REFUSED_KEYS), tree=tree)
    _refuse_paths(recipe)
    _refuse_what_cannot_train(recipe)
    _refuse_layout(recipe)
    _refuse_validation(recipe)
    _refuse_packing(recipe)
    _refuse_head(recipe)
    _refuse_peft(recipe)
    _refuse_attention(recipe)
    if not own_objective:
        objective.resolve(recipe, objective.any_rising)
        recipe = dataclasses.replace(recipe, objective="original")
    return dataclasses.replace(recipe, _resolved=objective.resolve(recipe, objective.probability_at))


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data: every key present, percentiles resolved, loadable again."""
    plain = dataclasses.asdict(dataclasses.replace(recipe, tree=None, _resolved=None))
    del plain["tree"], plain["_resolved"]
    plain["optim"]["betas"] = list(recipe.optim.betas)
    if isinstance(recipe.data.train, tuple):
        plain["data"]["train"] = list(plain["data"]["train"])
    resolved = recipe.resolved
    plain["objective"] = resolved.objective.key
    if resolved.denominator != "target":
        assert isinstance(resolved.spec, dict), "a key has no denominator"
        plain["objective"] = {**resolved.spec, "denominator": resolved.denominator}
    return plain


def _source(source: str | Path | Mapping[str, Any]) -> tuple[Node, str | None]:
    """The values with their places, and the name of the file that they stand in."""
    if not isinstance(source, str | Path):
        return mapping.tree(source), None
    return strictyaml.parse(_read(Path(source)), lambda line: f"{source}:{line}"), Path(source).stem


def _read(path: Path) -> str:
    try:
        return _page(path, "recipe")
    except IsADirectoryError:
        raise ValueError(f"{path}: is a directory; name a recipe file in it") from None
    except FileNotFoundError:
        siblings = sorted(entry.name for entry in path.parent.glob("*.y*ml"))
        close = difflib.get_close_matches(path.name, siblings, n=1)
        hint = f"did you mean {path.with_name(close[0])}?" if close else "name an existing recipe file"
        raise ValueError(f"{path}: no such recipe; {hint}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); name a readable recipe file") from None


def _page(path: Path, kind: str) -> str:
    """A file of UTF-8 text. Raises OSError, or ValueError for bytes that are none or too many."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: is longer than {MAX_BYTES} bytes; name a {kind}, which is a page")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the {kind} as UTF-8 text") from None


def _once_each(overrides: Sequence[str]) -> Sequence[str]:
    sections = [name for name, kind in strictyaml.schema(Recipe).items() if dataclasses.is_dataclass(kind)]
    keys = [text.partition("=")[0] for text in overrides]
    for number, (key, text) in enumerate(zip(keys, overrides, strict=True)):
        where = strictyaml.override_place(text)
        if key in sections:
            raise ValueError(f"{where}: {key} is a section; override its keys one by one, for example {key}.KEY=VALUE")
        if key in keys[:number]:
            raise ValueError(f"{where}: {strictyaml.show(key)} is overridden twice; keep one")
    return overrides


def _with_defaults(tree: Node, name: str | None) -> Node:
    """Fill in what depends on another key, or on the name of the recipe's file; without one, run_dir must be given."""
    given = strictyaml.plain(tree)
    if not isinstance(given, dict):
        return tree
    if given.get("run_dir") is None and name is not None:
        tree = strictyaml.put(tree, "run_dir", Node(str(Path("runs", name)), tree.where))
    data = given.get("data")
    if given.get("validate") is None and isinstance(data, dict) and data.get("validation") is not None:
        tree = strictyaml.put(tree, "validate", Node({}, tree.where))
    trainer = given.get("trainer", {})
    if isinstance(trainer, dict) and trainer.get("epochs") is None and trainer.get("max_steps") is None:
        tree = strictyaml.put(tree, "trainer.epochs", Node(1, tree.where))
    return tree


def _with_chat_template(tree: Node) -> Node:
    """The content of the file in place of its name: the run, its run.yaml and its export do not depend on the file."""
    given = strictyaml.plain(tree)
    data = given.get("data") if isinstance(given, dict) else None
    name = data.get("chat_template") if isinstance(data, dict) else None
    if not isinstance(name, str) or "{" in name or not name.strip():
        return tree
    where = strictyaml.locate(tree, "data.chat_template")
    problem = f"{where}: data.chat_template: {strictyaml.show(name)}"
    if not name.isprintable():
        raise ValueError(f"{problem} is no Jinja text, which has braces, nor the name of a file; give one of them")
    try:
        text = _page(Path(name), "template")
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise ValueError(f"{problem} is no Jinja text, which has braces, nor a file ({reason}); give one") from None
    except ValueError as error:
        raise ValueError(f"{where}: data.chat_template: {error}") from None
    strictyaml.check_text(text, f"{problem}")
    return strictyaml.put(tree, "data.chat_template", Node(text, where))


def _refuse_mixture(tree: Node) -> None:
    objective = tree.value.get("objective") if isinstance(tree.value, dict) else None
    if objective is not None and isinstance(objective.value, list):
        raise ValueError(f"{objective.where}: objective: {strictyaml.show(objective)}: {MIXED}")


def _refuse_paths(recipe: Recipe) -> None:
    paths = [("run_dir", recipe.run_dir), ("model.path", recipe.model.path)]
    paths += [("data.train", source.path) for source in recipe.data.sources]
    paths += [("diagnose.output", recipe.diagnose.output or "."), ("data.validation", recipe.data.validation or ".")]
    if isinstance(recipe.objective, ObjectiveConfig) and recipe.objective.keep is not None:
        paths += [("objective.keep.diagnosis", recipe.objective.keep.diagnosis or ".")]
    for key, text in paths:
        # 255 bytes a name and 4096 a path are what Linux takes; a run's own files need some of the latter.
        fits = len(text.encode()) <= 2048 and all(len(part.encode()) <= 255 for part in Path(text).parts)
        if not text.isprintable() or not fits:
            raise recipe.error(key, f"{strictyaml.show(text)} is not a usable path; name one")
        if text.startswith("~"):
            raise recipe.error(key, f"{strictyaml.show(text)}: ~ is not expanded; write the directory itself")


def _refuse_what_cannot_train(recipe: Recipe) -> None:
    data, optim, trainer, export = recipe.data, recipe.optim, recipe.trainer, recipe.export
    if not data.sources:
        raise recipe.error("data.train", "[] names no data; give at least one file or data set")
    if data.prompt_key == data.response_key:
        problem = f"{strictyaml.show(data.response_key)} is data.prompt_key, too; name the field that holds the answer"
        raise recipe.error("data.response_key", problem, "data.prompt_key")
    if data.global_batch_size * data.max_length > MAX_INT32:
        problem = (
            f"{data.global_batch_size} x data.max_length {data.max_length} tokens are more than Megatron counts in "
            "int32, 2**31 - 1; lower one of them"
        )
        raise recipe.error("data.global_batch_size", problem, "data.max_length")
    if trainer.epochs is not None and trainer.max_steps is not None:
        problem = f"{trainer.max_steps} contradicts trainer.epochs {trainer.epochs}; set one of them to null"
        raise recipe.error("trainer.max_steps", problem, "trainer.epochs")
    if optim.schedule == "constant" and optim.min_lr != 0:
        problem = f"{optim.min_lr:g} has no effect with optim.schedule constant; remove it"
        raise recipe.error("optim.min_lr", problem, "optim.schedule")
    if optim.min_lr > optim.lr:
        problem = f"{optim.min_lr:g} is above optim.lr {optim.lr:g}, from which it decays; lower it"
        raise recipe.error("optim.min_lr", problem, "optim.lr")
    if export.dtype is not None and not export.at_end:
        problem = f"{export.dtype} has no effect without export.at_end; set export.at_end: true"
        raise recipe.error("export.dtype", problem, "export.at_end")


def _refuse_validation(recipe: Recipe) -> None:
    keep_best, has_rows = recipe.checkpoint.keep_best, recipe.data.validation is not None
    if recipe.validate is not None and not has_rows:
        raise recipe.error("validate", "there are no rows to validate on; name a file in data.validation")
    if keep_best is not None and not has_rows:
        problem = f"{keep_best} is measured on held-out rows; name a file with some in data.validation"
        raise recipe.error("checkpoint.keep_best", problem)


def _refuse_packing(recipe: Recipe) -> None:
    cp = recipe.parallel.context_parallel_size
    if recipe.data.packing and cp > 1:
        problem = (
            f"true with parallel.context_parallel_size {cp}: Megatron-Core 0.15 would slice a row over the ranks as if "
            "it were one example; set one of them to its default"
        )
        raise recipe.error("data.packing", problem, "parallel.context_parallel_size")


def _refuse_head(recipe: Recipe) -> None:
    head = recipe.head
    if head.skip_rows:
        return
    for key, value in {"chunk_tokens": head.chunk_tokens, "skip_below": head.skip_below}.items():
        if value:
            problem = f"{value} has no effect, head.skip_rows is false; remove one of them"
            raise recipe.error(f"head.{key}", problem, "head.skip_rows")


def _refuse_peft(recipe: Recipe) -> None:
    tp = recipe.parallel.tensor_model_parallel_size
    if recipe.peft is None:
        return
    if recipe.peft.dim % tp:
        problem = f"{recipe.peft.dim} is not a multiple of tensor_model_parallel_size {tp}, which divides it"
        problem += f"; use {-(-recipe.peft.dim // tp) * tp}"
        raise recipe.error("peft.dim", problem, "parallel.tensor_model_parallel_size")
    if recipe.trainer.recompute == "full":
        problem = (
            "full would train nothing with peft: Megatron recomputes a layer only if its input needs a gradient, and a "
            "frozen embedding has none; use selective or none"
        )
        raise recipe.error("trainer.recompute", problem, "peft")


def _refuse_attention(recipe: Recipe) -> None:
    """What Transformer Engine would find no kernel for, with CUDA or without."""
    backend, cp = recipe.trainer.attention_backend, recipe.parallel.context_parallel_size
    if backend in ("flash", "fused") and recipe.trainer.precision == "fp32":
        problem = f"{backend} has no kernels for trainer.precision fp32; use auto or unfused, or precision bf16"
        raise recipe.error("trainer.attention_backend", problem, "trainer.precision")
    if backend in ("unfused", "local") and cp > 1:
        problem = f"{backend} attention cannot divide a sequence over context_parallel_size {cp}; use auto, or size 1"
        raise recipe.error("trainer.attention_backend", problem, "parallel.context_parallel_size")


def _refuse_layout(recipe: Recipe) -> None:
    parallel, data, trainer = recipe.parallel, recipe.data, recipe.trainer
    tp, pp, cp = recipe.model_parallel_sizes
    sizes = [f"parallel.{name}_parallel_size" for name in ("tensor_model", "pipeline_model", "context")]
    if trainer.devices * trainer.num_nodes % (tp * pp * cp):
        problem = (
            f"{trainer.devices} x num_nodes {trainer.num_nodes} is not a multiple of the {tp * pp * cp} devices of one "
            f"model copy (tensor {tp} x pipeline {pp} x context {cp}); change one of them"
        )
        raise recipe.error("trainer.devices", problem, "trainer.num_nodes", *sizes)
    step = data.micro_batch_size * recipe.data_parallel_size
    if data.global_batch_size % step:
        problem = (
            f"{data.global_batch_size} is not a multiple of {step} (micro_batch_size {data.micro_batch_size} x "
            f"data-parallel size {recipe.data_parallel_size}); use {max(1, data.global_batch_size // step) * step}"
        )
        raise recipe.error("data.global_batch_size", problem, "data.micro_batch_size", "trainer.devices", *sizes)
    if parallel.sequence_parallel and tp == 1:
        problem = "true needs tensor_model_parallel_size of at least 2 (Megatron refuses it at 1); set it to false"
        raise recipe.error("parallel.sequence_parallel", problem, sizes[0])
    if (vp := parallel.virtual_pipeline_model_parallel_size) is None:
        return
    key = "parallel.virtual_pipeline_model_parallel_size"
    if pp == 1:
        problem = f"{vp} needs pipeline_model_parallel_size of at least 2; raise that or set this to null"
        raise recipe.error(key, problem, sizes[1])
    if recipe.num_micro_batches % pp:
        problem = (
            f"{vp} needs the micro-batches of a step ({recipe.num_micro_batches}) in multiples of "
            f"pipeline_model_parallel_size {pp}; change data.micro_batch_size or set this to null"
        )
        raise recipe.error(key, problem, "data.micro_batch_size", sizes[1])
