"""Which models are refused before anything starts: from their files alone, without loading weights or an engine."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conversion.bridge_config import read_run_config
from conversion.checkpoint import advice, is_checkpoint, kind_of, weights_directory
from conversion.nemo_context import Context, read_context
from nemo_probsft.config import Recipe
from nemo_probsft.config.exactness import refused_setting
from nemo_probsft.run.decisions import Decision

if TYPE_CHECKING:
    from conversion.families import ModelSpec

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
KINDS = {
    "huggingface": "Hugging Face directory",
    "nemo": "NeMo checkpoint",
    "bridge": "Megatron-Bridge checkpoint",
}
EXPORT = "export it with `nemo-probsft convert export` and train from that directory"


def check_model(recipe: Recipe, engine: str | None = None) -> list[Decision]:
    """The directory that model.path names, or what a hub name will be downloaded as. Raises ValueError, one line.

    engine: nemo or bridge; None where that is not known yet, and only what both refuse is refused.
    """
    name = recipe.model.path
    path = Path(name)
    if path.is_dir():
        if recipe.model.revision is not None:
            problem = f"{recipe.model.revision} has no effect, model.path {name} is a directory; remove it"
            raise recipe.error("model.revision", problem, "model.path")
        return check_model_directory(recipe, path, engine)
    # A hub name's first part is an organisation; a first part that is a directory here is a path with a typo.
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) or Path(path.parts[0]).exists():
        problem = f"{name} is not a directory; name a Hugging Face model, its directory, or a checkpoint of an engine"
        raise recipe.error("model.path", problem)
    revision = recipe.model.revision or "the newest revision"
    return [Decision("model.path", name, f"no such directory, so {revision} of that model on the Hugging Face hub")]


def check_model_directory(recipe: Recipe, path: Path, engine: str | None = None) -> list[Decision]:
    """A Hugging Face directory (also one just downloaded) or a checkpoint, and the layout against its shape."""
    files = _model_files(recipe, path)
    spec, context_length = _model_spec(recipe, files, engine)
    _refuse_layout(recipe, spec, files / "config.json")
    if not any((files / name).is_file() for name in TOKENIZER_FILES):
        problem = f"{files} has no tokenizer ({', '.join(TOKENIZER_FILES)}); save the model's tokenizer there"
        raise recipe.error("model.path", problem)
    (_refuse_checkpoint if is_checkpoint(path) else _refuse_weights)(recipe, path, spec)
    decisions = [Decision("model.path", str(path), KINDS[kind_of(path) or ""])]
    if 0 < context_length < recipe.data.max_length:
        source = files / "config.json"
        reason = f"longer than the {context_length} positions of {source}: positions beyond are untrained"
        decisions.append(Decision("data.max_length", str(recipe.data.max_length), reason))
    return decisions


def model_shape(recipe: Recipe) -> ModelSpec:
    """The model's tensors by its config.json, which is all it needs to be on this disk, once the layout divides them.

    Raises ValueError, one line.
    """
    path = Path(recipe.model.path)
    files = _model_files(recipe, path) if path.is_dir() else _cached_config(recipe).parent
    spec, _ = _model_spec(recipe, files, None)
    _refuse_layout(recipe, spec, files / "config.json")
    return spec


def _cached_config(recipe: Recipe) -> Path:
    from huggingface_hub import try_to_load_from_cache

    check_model(recipe)  # refuses what is no hub name
    name = recipe.model.path
    found = try_to_load_from_cache(name, "config.json", revision=recipe.model.revision)
    if not isinstance(found, str):
        remedy = f"fetch it (hf download {name} config.json), or name a directory that has it"
        raise recipe.error("model.path", f"{name} is not on this disk, and its config.json is needed; {remedy}")
    return Path(found)


def _model_files(recipe: Recipe, path: Path) -> Path:
    """Where a model directory keeps config.json."""
    if kind_of(path) == "huggingface":
        return path
    if is_checkpoint(path):
        return _files_of_checkpoint(recipe, path)
    kinds = "config.json (Hugging Face) nor complete weights/ and context/ (NeMo) nor a complete iter_N (Bridge)"
    raise recipe.error("model.path", f"{path} has neither {kinds}; {advice(path) or 'name a model'}")


def _model_spec(recipe: Recipe, files: Path, engine: str | None) -> tuple[ModelSpec, int]:
    """What config.json says about the tensors, and its number of positions (0: not said)."""
    from conversion.families import model_spec, parts_that_bridge_adds, rope_that_bridge_replaces

    source = files / "config.json"
    try:
        config = json.loads(source.read_text(encoding="utf-8"))
        architecture = (config.get("architectures") or ["none"])[0]
        unsupported = _unsupported(architecture, config)
        context_length = int(config.get("max_position_embeddings") or 0)
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        problem = f"{source} is not a model's configuration ({type(error).__name__}: {error}); restore it"
        raise recipe.error("model.path", problem.replace("\n", " ")) from None
    if architecture not in ARCHITECTURES:
        problem = f"{source} has architecture {architecture}; use one of {', '.join(ARCHITECTURES)}"
        raise recipe.error("model.path", problem)
    if unsupported:
        raise recipe.error("model.path", f"{source} sets {unsupported}; use another model")
    try:
        spec, other = model_spec(config), rope_that_bridge_replaces(config) or parts_that_bridge_adds(config)
    except (ValueError, TypeError, AttributeError) as error:
        problem = f"{source}: {error}; use another model"
        raise recipe.error("model.path", problem) from None
    if engine == "bridge" and other:
        raise recipe.error("model.path", f"{source} sets {other}; use engine: nemo, or another model", "engine")
    return spec, context_length


def _unsupported(architecture: str, config: dict[str, Any]) -> str | None:
    """A setting that changes the model's function or its loss, and that no conversion carries over."""
    ignored = "which Megatron would ignore"
    if any(layer != "full_attention" for layer in config.get("layer_types") or []):
        return f"layer_types other than full_attention, {ignored}"
    if config.get("num_nextn_predict_layers"):
        return "num_nextn_predict_layers: each of them adds a loss of its own to the objective"
    flags = ["use_sliding_window"] if architecture != "LlamaForCausalLM" else ["attention_bias", "mlp_bias"]
    flags.append("attention_dropout")
    return next((f"{flag}: {json.dumps(config[flag])}, {ignored}" for flag in flags if config.get(flag)), None)


def _refuse_weights(recipe: Recipe, path: Path, spec: ModelSpec) -> None:
    from conversion.weights import HFWeights

    if not any(path.glob("*.safetensors")):
        problem = f"{path} has no .safetensors weights; convert it (other formats can run code when they are loaded)"
        raise recipe.error("model.path", problem)
    try:
        HFWeights(path, spec)
    except (ValueError, RecursionError) as error:
        raise recipe.error("model.path", str(error)) from None


def _files_of_checkpoint(recipe: Recipe, path: Path) -> Path:
    """Where a checkpoint keeps config.json and tokenizer of the Hugging Face model that it was made from."""
    from conversion.checkpoint import model_files_directory

    try:
        return model_files_directory(path)
    except ValueError:
        problem = (
            f"{path} has no config.json in hf/ or context/hf/, so it could not be exported again; make it from the "
            "Hugging Face directory with `nemo-probsft convert import`"
        )
        raise recipe.error("model.path", problem) from None


def _refuse_checkpoint(recipe: Recipe, path: Path, spec: ModelSpec) -> None:
    """A checkpoint that would train something else than f(p) of this model, or run code when it is loaded."""
    from conversion.lora import is_lora
    from conversion.torch_dist import TorchDistReader
    from conversion.weights import TorchDistWeights

    directory = weights_directory(path)
    try:
        context = _context(path, directory)
        weights = TorchDistReader(directory)
        filled = weights.filled_extra_state()
        adapters = context.adapters or is_lora(weights)
        if not adapters:
            TorchDistWeights(weights, spec)
    except ValueError as error:
        raise recipe.error("model.path", str(error)) from None
    except (AttributeError, TypeError, KeyError, IndexError, OverflowError) as error:  # the index of the weights
        problem = f"{directory} is damaged ({type(error).__name__}: {error}); copy the checkpoint again"
        raise recipe.error("model.path", problem.replace("\n", " ")) from None
    if reason := refused_setting(context.settings):
        raise recipe.error("model.path", f"{path} was made with {reason}; {EXPORT}")
    if adapters:
        problem = f"{path} holds adapters (LoRA) of another checkpoint; {EXPORT}, which merges them"
        raise recipe.error("model.path", problem)
    if context.trust_remote_code and not recipe.model.trust_remote_code:
        problem = f"{path} has a tokenizer with trust_remote_code; set model.trust_remote_code: true, or {EXPORT}"
        raise recipe.error("model.path", problem)
    if filled:
        problem = f"{path} holds pickled state of Transformer Engine ({filled}), which can run code; {EXPORT}"
        raise recipe.error("model.path", problem)


def _context(path: Path, directory: Path) -> Context:
    """What the checkpoint's engine would build from it. Bridge takes the tokenizer from the recipe's own settings."""
    if kind_of(path) == "nemo":
        return read_context(path / "context")
    return Context(read_run_config(directory), adapters=False, trust_remote_code=False)


def _refuse_layout(recipe: Recipe, spec: ModelSpec, source: Path) -> None:
    tp, pp, _ = recipe.model_parallel_sizes
    divided = {
        "attention heads": spec.num_heads,
        "key-value heads": spec.num_query_groups,
        "ffn units": spec.ffn_hidden_size,
    }
    fits = _divisors(math.gcd(*divided.values()))
    for name, count in divided.items():
        if count % tp:
            problem = f"{tp} does not divide the {count} {name} of {source}; use one of {', '.join(fits)}"
            raise recipe.error("parallel.tensor_model_parallel_size", problem)
    vp = recipe.parallel.virtual_pipeline_model_parallel_size or 1
    if spec.num_layers % (pp * vp):
        stages = f"{pp}" if vp == 1 else f"{pp} x virtual {vp}"
        key, other = "parallel.pipeline_model_parallel_size", "parallel.virtual_pipeline_model_parallel_size"
        fits = _divisors(spec.num_layers // vp) if spec.num_layers % vp == 0 else []
        remedy = f"use one of {', '.join(fits)}" if fits else f"set {other} to null"
        problem = f"{stages} does not divide the {spec.num_layers} layers of {source}; {remedy}"
        raise recipe.error(key, problem, other)


def _divisors(number: int) -> list[str]:
    return [str(n) for n in range(1, min(number, 1024) + 1) if number % n == 0]
