"""What is checked before a process group starts: the files that a recipe names, its layout against the model's shape.

Runs in the process that starts the ranks. Imports no framework, except torch to count the GPUs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_probsft.checkpoints import is_nemo
from nemo_probsft.config import Recipe, dump, resolve_objective
from nemo_probsft.rows import FORMATS, HUB_NAME

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# Keys that do not change what is learnt: a run may be continued with others.
LAYOUT = ("parallel", "data.micro_batch_size", "trainer.devices", "trainer.num_nodes", "trainer.recompute")
REPORTING = ("checkpoint", "log", "export", "diagnose")


@dataclass(frozen=True)
class Decision:
    """Something the recipe left open or that follows from several keys, with the reason."""

    key: str
    value: str
    reason: str


@dataclass(frozen=True)
class Shape:
    """What tensor and pipeline parallelism divide, as read from `source`; context_length 0 is unknown."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_size: int
    context_length: int
    source: Path


def check(recipe: Recipe) -> list[Decision]:
    """Refuse what cannot start. Raises ValueError in one line that names key, value, file and remedy."""
    return [*_objective(recipe), *_layout(recipe), *_model(recipe), _data(recipe), _run_dir(recipe)]


def _objective(recipe: Recipe) -> list[Decision]:
    objective, denominator = resolve_objective(recipe)
    reasons = {
        "target": "divided by all supervised tokens of the global batch",
        "kept": "divided by the tokens of the global batch that pass the threshold",
    }
    decisions = [Decision("objective", objective.key, f"f(p) = {objective.formula}, {reasons[denominator]}")]
    keep = None if isinstance(recipe.objective, str) else recipe.objective.keep
    if keep is not None and keep.diagnosis is not None:
        made_for = json.loads(Path(keep.diagnosis).read_text(encoding="utf-8"))
        source = f"{keep.diagnosis} of model {made_for.get('model')} on {made_for.get('data')}"
        for bound, p in (("min", objective.min_p), ("max", objective.max_p)):
            if (percentile := getattr(keep, f"{bound}_percentile")) is not None:
                value = f"{percentile:g} is p = {p:g}"
                decisions.append(Decision(f"objective.keep.{bound}_percentile", value, f"by {source}"))
    return decisions


def _layout(recipe: Recipe) -> list[Decision]:
    tp, pp, cp = recipe.model_parallel_sizes
    if cp > 1 and importlib.util.find_spec("transformer_engine") is None:
        problem = f"{cp} needs the attention of Transformer Engine, which is not installed; install it or use 1"
        raise recipe.error("parallel.context_parallel_size", problem)
    trainer, data, dp = recipe.trainer, recipe.data, recipe.data_parallel_size
    _refuse_missing_gpus(recipe)
    return [
        Decision(
            "parallel",
            f"tensor {tp} x pipeline {pp} x context {cp} x data {dp}",
            f"{trainer.devices} devices on each of {trainer.num_nodes} node(s)",
        ),
        Decision(
            "data.global_batch_size",
            str(data.global_batch_size),
            f"micro-batch {data.micro_batch_size} x data-parallel {dp} x {recipe.num_micro_batches} micro-batches",
        ),
    ]


def _refuse_missing_gpus(recipe: Recipe) -> None:
    import torch

    if torch.cuda.is_available() and recipe.trainer.devices > torch.cuda.device_count():
        problem = (
            f"{recipe.trainer.devices} is more than the {torch.cuda.device_count()} GPUs of this machine; lower it"
        )
        raise recipe.error("trainer.devices", problem)


def _model(recipe: Recipe) -> list[Decision]:
    name = recipe.model.path
    path = Path(name)
    if path.is_dir():
        if recipe.model.revision is not None:
            problem = f"{recipe.model.revision} has no effect, model.path {name} is a directory; remove it"
            raise recipe.error("model.revision", problem, "model.path")
        return check_model_directory(recipe, path)
    # A hub name's first part is an organisation; a first part that is a directory here is a path with a typo.
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) or Path(path.parts[0]).exists():
        problem = f"{name} is not a directory; name a Hugging Face model, its directory, or a NeMo checkpoint"
        raise recipe.error("model.path", problem)
    revision = recipe.model.revision or "the newest revision"
    return [Decision("model.path", name, f"no such directory, so {revision} of that model on the Hugging Face hub")]


def check_model_directory(recipe: Recipe, path: Path) -> list[Decision]:
    """A Hugging Face directory (also one just downloaded) or a NeMo checkpoint, and the layout against its shape."""
    if (path / "config.json").is_file():
        shape, kind = _huggingface_shape(recipe, path), "Hugging Face directory"
    elif is_nemo(path):
        found = _nemo_shape(path / "context" / "model.yaml")
        if found is None:
            return [Decision("model.path", str(path), "NeMo checkpoint; its shape is not known before it is loaded")]
        shape, kind = found, "NeMo checkpoint"
    else:
        problem = (
            f"{path} has neither config.json (Hugging Face) nor complete weights/ and context/ (NeMo); name a model"
        )
        raise recipe.error("model.path", problem)
    _refuse_shape(recipe, shape)
    decisions = [Decision("model.path", str(path), kind)]
    if 0 < shape.context_length < recipe.data.max_length:
        reason = f"longer than the {shape.context_length} positions of {shape.source}: positions beyond are untrained"
        decisions.append(Decision("data.max_length", str(recipe.data.max_length), reason))
    return decisions


def _huggingface_shape(recipe: Recipe, path: Path) -> Shape:
    source = path / "config.json"
    try:
        config = json.loads(source.read_text(encoding="utf-8"))
        names = config.get("architectures") or ["none"]
        shape = Shape(
            num_layers=int(config["num_hidden_layers"]),
            num_heads=int(config["num_attention_heads"]),
            num_kv_heads=int(config.get("num_key_value_heads") or config["num_attention_heads"]),
            ffn_size=int(config["intermediate_size"]),
            context_length=int(config.get("max_position_embeddings", 0)),
            source=source,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"{source} is not a model's configuration ({type(error).__name__}: {error}); restore it"
        raise recipe.error("model.path", problem.replace("\n", " ")) from None
    if names[0] not in ARCHITECTURES:
        problem = f"{source} has architecture {names[0]}; use one of {', '.join(ARCHITECTURES)}"
        raise recipe.error("model.path", problem)
    if unsupported := _unsupported(names[0], config):
        raise recipe.error("model.path", f"{source} sets {unsupported}, which NeMo would ignore; use another model")
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        problem = f"{path} has no tokenizer ({', '.join(TOKENIZER_FILES)}); save the model's tokenizer there"
        raise recipe.error("model.path", problem)
    _refuse_weights(recipe, path)
    return shape


def _unsupported(architecture: str, config: dict[str, Any]) -> str | None:
    """A setting that changes the model's function and that NeMo's importers (2.7) do not read."""
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default" and (architecture, kind) != ("LlamaForCausalLM", "llama3"):
        return f"rope_scaling {kind}"
    if "rope_parameters" in config and "rope_theta" not in config:
        return "rope_parameters without rope_theta (the format of transformers 5)"
    flags = ["use_sliding_window"] if architecture != "LlamaForCausalLM" else ["attention_bias", "mlp_bias"]
    return next((f"{flag}: true" for flag in flags if config.get(flag)), None)


def _refuse_weights(recipe: Recipe, path: Path) -> None:
    if not any(path.glob("*.safetensors")):
        problem = f"{path} has no .safetensors weights; convert it (other formats can run code when they are loaded)"
        raise recipe.error("model.path", problem)
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, TypeError, KeyError, AttributeError):
        raise recipe.error("model.path", f"{index} is not an index of weights; download the model again") from None
    if missing := sorted(str(shard) for shard in shards if not (path / str(shard)).is_file()):
        raise recipe.error("model.path", f"{path} lacks {missing[0]}, which its index names; download the model again")


def _nemo_shape(source: Path) -> Shape | None:
    """None for a checkpoint whose model.yaml is missing or was written by something else than NeMo 2.x."""
    try:
        config = yaml.safe_load(source.read_text(encoding="utf-8"))["config"]
        return Shape(
            num_layers=int(config["num_layers"]),
            num_heads=int(config["num_attention_heads"]),
            num_kv_heads=int(config.get("num_query_groups") or config["num_attention_heads"]),
            ffn_size=int(config["ffn_hidden_size"]),
            context_length=0,  # seq_length there is that of its training run
            source=source,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return None


def _refuse_shape(recipe: Recipe, shape: Shape) -> None:
    tp, pp, _ = recipe.model_parallel_sizes
    divided = {"attention heads": shape.num_heads, "key-value heads": shape.num_kv_heads, "ffn units": shape.ffn_size}
    limit = min(shape.num_heads, shape.num_kv_heads)
    fits = [str(n) for n in range(1, limit + 1) if all(count % n == 0 for count in divided.values())]
    for name, count in divided.items():
        if count % tp:
            problem = f"{tp} does not divide the {count} {name} of {shape.source}; use one of {', '.join(fits)}"
            raise recipe.error("parallel.tensor_model_parallel_size", problem)
    vp = recipe.parallel.virtual_pipeline_model_parallel_size or 1
    if shape.num_layers % (pp * vp):
        stages = f"{pp}" if vp == 1 else f"{pp} x virtual {vp}"
        key, other = "parallel.pipeline_model_parallel_size", "parallel.virtual_pipeline_model_parallel_size"
        fits = [str(n) for n in range(1, shape.num_layers // vp + 1) if shape.num_layers % (n * vp) == 0]
        remedy = f"use one of {', '.join(fits)}" if fits else f"set {other} to null"
        problem = f"{stages} does not divide the {shape.num_layers} layers of {shape.source}; {remedy}"
        raise recipe.error(key, problem, other)


def _data(recipe: Recipe) -> Decision:
    name, path = recipe.data.train, Path(recipe.data.train)
    if path.is_file():
        return _data_file(recipe, path)
    if path.is_dir():
        if not any((path / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
            problem = f"{name} is a directory without a saved data set; name a {' or '.join(FORMATS)} file in it"
            raise recipe.error("data.train", problem)
        return Decision("data.train", name, "data set written by datasets.save_to_disk")
    if path.suffix in FORMATS or not HUB_NAME.fullmatch(name) or Path(path.parts[0]).exists():
        problem = f"{name} does not exist; name a {' or '.join(FORMATS)} file or a Hugging Face data set"
        raise recipe.error("data.train", problem)
    return Decision("data.train", name, f"no such file, so split {recipe.data.split} of that Hugging Face data set")


def _data_file(recipe: Recipe, path: Path) -> Decision:
    size = path.stat().st_size
    if path.suffix not in FORMATS:
        raise recipe.error("data.train", f"{path} has ending {path.suffix!r}; use a {' or '.join(FORMATS)} file")
    if size == 0:
        raise recipe.error("data.train", f"{path} is empty; give it at least one row")
    if not os.access(path, os.R_OK):
        raise recipe.error("data.train", f"{path} cannot be read; change its permissions")
    if recipe.data.split != "train":
        problem = f"{recipe.data.split} has no effect, data.train {path} is a file; remove it"
        raise recipe.error("data.split", problem, "data.train")
    return Decision("data.train", str(path), f"file of {size} bytes")


def _run_dir(recipe: Recipe) -> Decision:
    path = Path(recipe.run_dir)
    if resumable(path, recipe):
        return Decision("run_dir", str(path), "holds this run already: continues it")
    existing = next(parent for parent in [path, *path.absolute().parents] if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise recipe.error("run_dir", f"{path}: {existing} is not a writable directory; name another")
    return Decision("run_dir", str(path), "new run")


def resumable(run_dir: str | Path, recipe: Recipe) -> bool:
    """True when `run_dir` holds a run of this recipe, False when it holds nothing. Layout and reporting may differ.

    Raises ValueError when it holds anything else: a run directory is never overwritten.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir() or all(child.name == "diagnose" for child in run_dir.iterdir()):
        return False
    source = run_dir / "run.yaml"
    remedy = "choose another, for example run_dir=" + str(run_dir) + "-2"
    try:
        saved = yaml.safe_load(source.read_text(encoding="utf-8"))["recipe"]
        then = _flat(saved)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        raise recipe.error("run_dir", f"{run_dir} is not empty and holds no readable run.yaml; {remedy}") from None
    now = _flat(dump(recipe))
    free = (*LAYOUT, *REPORTING, "run_dir")
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
