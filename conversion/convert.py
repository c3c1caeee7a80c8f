"""Convert between a Hugging Face directory and a NeMo 2 checkpoint, one tensor at a time."""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from conversion import layout
from conversion.card import write_card
from conversion.context import write_context
from conversion.families import ModelSpec, extra_state_keys, model_spec
from conversion.lora import MergedReader, base_checkpoint, is_lora, lora_scale
from conversion.progress import Progress
from conversion.safetensors_io import SHARD_BYTES, ShardedWriter
from conversion.staging import existing_directory, staged_directory, unchanged
from conversion.torch_dist import TorchDistReader, TorchDistWriter, global_shape
from conversion.weights import (
    HFWeights,
    NeMoWeights,
    groups,
    hf_names,
    is_finite,
    num_bytes,
    read_config,
    state_dict_order,
)

HF_FILES = "hf"  # folder of an imported checkpoint that keeps config.json, tokenizer, ... byte for byte
_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def import_hf(
    source: Path,
    target: Path,
    *,
    dtype: torch.dtype | str | None = None,
    allow_pickle: bool = False,
    progress: bool = False,
) -> None:
    """Convert a Hugging Face model directory into a NeMo 2 checkpoint: `weights/`, `context/` and `hf/`.

    The checkpoint holds exactly the rows of config.json's vocabulary; Megatron fills the padding that a tensor
    parallel size needs with zeros when it loads. dtype: None keeps each tensor's own.
    Cost: memory for a few tensors, whatever the size of the model.
    Raises: ValueError, one line; nothing is left behind.
    """
    source, target, dtype = existing_directory(source), Path(target).absolute(), _parse_dtype(dtype)
    spec = model_spec(read_config(source))
    weights = HFWeights(source, spec, allow_pickle)
    outputs = {name: (dtype or own, shape) for name, (own, shape) in weights.tensors.items()}
    total = num_bytes(outputs)
    with (
        staged_directory(target, total) as partial,
        unchanged([*weights.files, source / "config.json"]),
        Progress("import", total, progress) as bar,
    ):
        (partial / "weights").mkdir()
        writer = TorchDistWriter(partial / "weights")
        for mapping, layer in groups(spec):
            parts = [_cast(weights.read(name), dtype, name) for name in hf_names(mapping, layer)]
            tensor = layout.join(mapping, parts, spec)
            shape = global_shape(mapping.shape, None if layer is None else spec.num_layers)
            writer.add_tensor(f"module.{mapping.megatron}", tensor, shape, layer)
            bar.advance(tensor.nbytes)
        _add_extra_state(writer, spec)
        writer.close(_common_state())
        copy_model_files(source, partial / HF_FILES)
        weights_dtype = max({own for own, _ in outputs.values()}, key=lambda kind: (kind.itemsize, str(kind)))
        write_context(partial / "context", spec, _name(weights_dtype), _tokenizer_path(partial))


def export_hf(
    source: Path,
    target: Path,
    *,
    base: Path | None = None,
    dtype: torch.dtype | str | None = None,
    provenance: dict | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = False,
) -> None:
    """Convert a NeMo 2 checkpoint (imported, or saved in training) into a Hugging Face directory.

    base: the Hugging Face directory or imported checkpoint the training started from; it gives config.json and
    the tokenizer. Not needed for a checkpoint that has them. Optimizer state and padded vocabulary rows are left out;
    LoRA adapters are merged into their base (`base` when it is a checkpoint, else the one NeMo noted).
    dtype: None keeps the checkpoint's. provenance: written to run.yaml and the model card (README.md).
    Raises: ValueError, one line; nothing is left behind.
    """
    source, target, dtype = existing_directory(source), Path(target).absolute(), _parse_dtype(dtype)
    reader, base = open_checkpoint(source, base)
    files = model_files_directory(source, base)
    config = read_config(files)
    weights = NeMoWeights(reader, model_spec(config))
    outputs = {name: (dtype or own, shape) for name, (own, shape) in weights.tensors.items()}
    total = num_bytes(outputs)
    with (
        staged_directory(target, total) as partial,
        unchanged(weights.files),
        Progress("export", total, progress) as bar,
    ):
        writer = ShardedWriter(partial, state_dict_order(outputs), shard_bytes)
        for name in outputs:
            tensor = _cast(weights.read(name), dtype, name)
            writer.write(name, tensor)
            bar.advance(tensor.nbytes)
        writer.close()
        copy_model_files(files, partial)
        _set_config_dtype(partial / "config.json", config, {kind for kind, _ in outputs.values()})
        if provenance is not None:
            write_card(partial, config, provenance)


def open_checkpoint(source: Path, base: Path | None) -> tuple[TorchDistReader | MergedReader, Path | None]:
    """The tensors of a checkpoint, LoRA merged, and where its model files are to be looked for (see `export_hf`)."""
    reader = TorchDistReader(weights_directory(source))
    if not is_lora(reader):
        return reader, base
    root = weights_directory(base) if base is not None else None
    if root is None or not (root / "metadata.json").exists():
        root = weights_directory(base_checkpoint(reader.directory))
    scale = lora_scale(weights_directory(source).parent)
    return MergedReader(TorchDistReader(root), reader, scale), base or root.parent


def weights_directory(checkpoint: Path) -> Path:
    """`weights/` of a NeMo 2 checkpoint; also accepts that folder itself."""
    return checkpoint / "weights" if (checkpoint / "weights").is_dir() else checkpoint


def model_files_directory(checkpoint: Path, base: Path | None = None) -> Path:
    """Where config.json and the tokenizer are: of `base` when given, else of the checkpoint itself.

    A checkpoint has them in `hf/` (imported) or in the copy of the tokenizer's folder that NeMo makes in `context/`.
    """
    if base is not None:
        root = existing_directory(base)
        roots = [root, root / HF_FILES, root / "context" / HF_FILES]
    else:
        root = weights_directory(checkpoint).parent
        roots = [root / HF_FILES, root / "context" / HF_FILES]
    for folder in roots:
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(
        f"{base or checkpoint}: no config.json; give the Hugging Face directory or imported checkpoint that the "
        "training started from as base (--base)"
    )


def model_files(directory: Path) -> list[Path]:
    """What a Hugging Face directory holds besides weights, relative: configuration, tokenizer, templates, licence."""
    found = []
    for file in sorted(directory.iterdir()):
        is_licence = file.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
        if file.is_file() and (is_licence or file.suffix in _SUFFIXES) and not file.name.endswith(".index.json"):
            found.append(Path(file.name))
    templates = directory / "additional_chat_templates"
    if templates.is_dir():
        found += [file.relative_to(directory) for file in sorted(templates.iterdir()) if file.is_file()]
    return found


def copy_model_files(source: Path, target: Path) -> None:
    for name in model_files(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _add_extra_state(writer: TorchDistWriter, spec: ModelSpec) -> None:
    """An empty tensor each: what TransformerEngineBaseModule.get_extra_state returns for modules without FP8."""
    for key, layered in extra_state_keys(spec):
        count = spec.num_layers if layered else 1
        for index in range(count):
            writer.add_object(f"module.{key}/shard_{index}_{count}", torch.empty(0, dtype=torch.uint8))


def _cast(tensor: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    if dtype is None or tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    if not is_finite(cast):
        raise ValueError(f"{name}: its numbers do not fit into {_name(dtype)}; choose another dtype")
    return cast


def _parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or dtype in _DTYPES.values():
        return dtype
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported; choose one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tokenizer_path(checkpoint: Path) -> str | None:
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    has_tokenizer = any((checkpoint / HF_FILES / name).exists() for name in names)
    return f"../{HF_FILES}" if has_tokenizer else None


def _set_config_dtype(file: Path, config: dict, written: set[torch.dtype]) -> None:
    """Change the dtype in config.json where it no longer says what the weights are; otherwise keep every byte."""
    key = "dtype" if "dtype" in config else "torch_dtype"
    if len(written) == 1 and config.get(key, "float32") != _name(*written):
        file.write_text(json.dumps(config | {key: _name(*written)}, indent=2) + "\n", encoding="utf-8")


def _common_state() -> dict:
    """What NeMo's importer stores besides tensors: no training progress, and how Megatron laid the tensors out."""
    return {
        "epoch": 0,
        "global_step": 0,
        "state_dict": {},
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }
