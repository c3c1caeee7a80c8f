"""Convert between Hugging Face directories and checkpoints of NeMo 2 or Megatron-Bridge, in blocks of rows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from conversion import layout
from conversion.bridge_checkpoint import COMMON_STATE, ITERATION, common_state, refuse_what_bridge_changes, write_state
from conversion.checkpoint import HF_FILES, is_bridge, iteration_directory
from conversion.dtypes import Tensors, cast, dtype_name, parse_dtype
from conversion.families import ModelSpec, extra_state_keys, mappings, mappings_by_layer
from conversion.generation import add_stop_tokens
from conversion.hf_files import copy_model_files, set_config_dtype
from conversion.model_card import base_model, end_tokens, read_record, write_card
from conversion.nemo_context import write_context
from conversion.open import Model, open_checkpoint, open_model
from conversion.peft_adapter import write_adapter
from conversion.safetensors_io import SHARD_BYTES, ShardedWriter, state_dict_order
from conversion.torch_dist import TorchDistWriter, global_shape
from conversion.weights import BLOCK_BYTES, Weights, num_bytes, read_into, row_blocks
from nemo_probsft.progress import Progress
from nemo_probsft.staging import Snapshot, existing_directory, staged_directory, system_errors_in_one_line

Engine = Literal["nemo", "bridge"]


@dataclass(frozen=True)
class _Layout:
    """Where a checkpoint has its parts, and what its keys begin with."""

    weights: str
    files: str
    prefix: str


_LAYOUTS = {
    "nemo": _Layout("weights", HF_FILES, "module."),
    "bridge": _Layout(ITERATION, f"{ITERATION}/{HF_FILES}", ""),
}
_SILENT_SECONDS = 1.0  # a short conversion shows no progress


@system_errors_in_one_line()
def import_hf(
    source: Path,
    target: Path,
    *,
    engine: Engine = "nemo",
    base: Path | None = None,
    dtype: torch.dtype | str | None = None,
    progress: bool = False,
) -> None:
    """Convert a Hugging Face model directory, or a checkpoint of either engine, into a checkpoint of `engine`.

    A checkpoint holds exactly the rows of config.json's vocabulary. If a tensor-parallel size needs padding, Megatron
    adds rows of zeros when it loads. Adapters are merged; the optimizer's state is left out.
    base: as for `export_hf`. dtype: None keeps each tensor's own.
    Cost: memory for a few blocks of 64 MiB, or for the largest stored chunk, whatever the size of the model.
    Raises: ValueError, one line; nothing is left behind.
    """
    if engine not in _LAYOUTS:
        raise ValueError(f"engine {engine!r} is not supported; choose one of {', '.join(_LAYOUTS)}")
    source, target, dtype = existing_directory(source), Path(target).absolute(), parse_dtype(dtype)
    before = Snapshot(source)
    model = open_model(source, base)
    snapshot, spec, place = Snapshot(*model.directories), model.spec, _LAYOUTS[engine]
    if engine == "bridge":
        refuse_what_bridge_changes(model.config, model.files / "config.json")
    outputs = {name: (dtype or own, shape) for name, (own, shape) in model.weights.tensors.items()}
    _check_one_dtype(outputs, spec)
    total = num_bytes(outputs)
    with staged_directory(target, total) as partial, byte_progress("import", total, progress) as bar:
        (partial / place.weights).mkdir()
        writer = TorchDistWriter(partial / place.weights)
        for key, block, first, shape, layer in _fused_blocks(model.weights, spec, outputs):
            writer.add_rows(f"{place.prefix}{key}", block, first, shape, layer)
            bar.advance(block.nbytes)
        _add_extra_state(writer, spec, place.prefix)
        common = _nemo_common_state() if engine == "nemo" else common_state()
        if engine == "bridge":
            writer.add_object(COMMON_STATE, common)
        writer.close(common)
        copy_model_files(model.files, partial / place.files)
        weights_dtype = max({own for own, _ in outputs.values()}, key=lambda kind: (kind.itemsize, str(kind)))
        if engine == "nemo":
            write_context(partial / "context", spec, dtype_name(weights_dtype), _tokenizer_path(partial))
        else:
            write_state(partial, spec, dtype_name(weights_dtype))
        before.check()
        snapshot.check()


@system_errors_in_one_line()
def export_hf(
    source: Path,
    target: Path,
    *,
    base: Path | None = None,
    dtype: torch.dtype | str | None = None,
    adapter: bool = False,
    provenance: dict | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = False,
) -> None:
    """Convert a checkpoint of NeMo 2 or Bridge (imported, or saved in training) into a Hugging Face directory.

    Leaves out the optimizer's state and the padding of the vocabulary. Merges LoRA adapters into their base (`base` if
    it is a checkpoint, else the one that the engine noted); adapter: write the adapters alone, for `peft`.
    base: the Hugging Face directory or the imported checkpoint that training started from, for config.json and the
    tokenizer; a checkpoint that has them needs none. dtype: None keeps the checkpoint's.
    provenance: written to run.yaml and the model card (README.md); None: the run.yaml of the run directory that
    `source` lies in, if there is one.
    Cost: memory for the largest stored chunk of a tensor, whatever the size of the model.
    Raises: ValueError, one line; nothing is left behind.
    """
    source, target, dtype = existing_directory(source), Path(target).absolute(), parse_dtype(dtype)
    source = iteration_directory(source) if is_bridge(source) else source
    checkpoint = open_checkpoint(source, base)
    snapshot = Snapshot(*checkpoint.directories)
    provenance = read_record(source) if provenance is None else provenance
    if adapter:
        _export_adapter(checkpoint, source, target, dtype, provenance, snapshot)
    else:
        write_hf(checkpoint, source, target, dtype, provenance, snapshot, shard_bytes, progress)


def write_hf(
    model: Model,
    source: Path,
    target: Path,
    dtype: torch.dtype | None = None,
    provenance: dict | None = None,
    snapshot: Snapshot | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = False,
) -> None:
    """The opened `source` as a new Hugging Face directory."""
    weights = model.weights
    outputs = {name: (dtype or own, shape) for name, (own, shape) in weights.tensors.items()}
    total = num_bytes(outputs)
    with staged_directory(target, total) as partial, byte_progress("export", total, progress) as bar:
        writer = ShardedWriter(partial, state_dict_order(outputs), shard_bytes)
        for name, first, rows in weights.blocks():
            block = cast(rows, dtype, name)
            writer.write(name, first, block)
            bar.advance(block.nbytes)
        writer.close()
        copy_model_files(model.files, partial)
        set_config_dtype(partial / "config.json", model.config, {kind for kind, _ in outputs.values()})
        if provenance is not None:
            stop = add_stop_tokens(partial, end_tokens(provenance).values())
            write_card(partial, model.config, provenance, source.name, [] if stop is None else [stop])
        if snapshot is not None:
            snapshot.check()


def _export_adapter(
    checkpoint: Model,
    source: Path,
    target: Path,
    dtype: torch.dtype | None,
    provenance: dict | None,
    snapshot: Snapshot,
) -> None:
    adapters = checkpoint.adapters
    if adapters is None:
        raise ValueError(f"{source}: has no LoRA adapters; export it without --adapter (adapter=True)")
    with staged_directory(target, adapters.num_bytes) as partial:
        write_adapter(partial, adapters, base_model(provenance), lambda tensor, name: cast(tensor, dtype, name))
        if provenance is not None:
            write_card(partial, checkpoint.config, provenance, source.name)
        snapshot.check()


def byte_progress(title: str, total: int, shown: bool) -> Progress:
    """Bytes done and time left, on stderr; nothing unless `shown`."""
    return Progress(title, total, unit="B", after=_SILENT_SECONDS if shown else math.inf)


def _fused_blocks(
    weights: Weights, spec: ModelSpec, outputs: Tensors
) -> Iterator[tuple[str, Tensor, int, tuple[int, ...], int | None]]:
    """(key, rows, first row, shape in the checkpoint, layer) of Megatron's tensors; the next block takes the memory."""
    buffer = bytearray(BLOCK_BYTES)
    for mapping, layer in mappings_by_layer(spec):
        names = mapping.names(layer)
        dtype = outputs[names[0]][0]
        shape = global_shape(mapping.shape, None if layer is None else spec.num_layers)
        for first, count in row_blocks(dtype, mapping.shape):
            block = _view(buffer, dtype, (count, *mapping.shape[1:]))
            filled = 0
            for part, own_first, own_count in layout.pieces(mapping, spec, first, count):
                read_into(weights, block[filled : filled + own_count], names[part], own_first)
                filled += own_count
            yield mapping.megatron, block, first, shape, layer


def _view(buffer: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor in the first bytes of `buffer`: new memory for every block would cost as much as reading it."""
    return torch.frombuffer(buffer, dtype=dtype, count=math.prod(shape)).reshape(shape)


def _add_extra_state(writer: TorchDistWriter, spec: ModelSpec, prefix: str) -> None:
    """An empty tensor each, as TransformerEngineBaseModule.get_extra_state returns for modules without FP8."""
    for key, layered in extra_state_keys(spec):
        count = spec.num_layers if layered else 1
        for index in range(count):
            writer.add_object(f"{prefix}{key}/shard_{index}_{count}", torch.empty(0, dtype=torch.uint8))


def _check_one_dtype(tensors: Tensors, spec: ModelSpec) -> None:
    """Raises: ValueError if tensors that Megatron stores as one, the layers stacked, have different dtypes."""
    for mapping in mappings(spec):
        layers = range(spec.num_layers) if mapping.layered else [None]
        first, *others = (name for layer in layers for name in mapping.names(layer))
        for name in others:
            if tensors[name][0] != tensors[first][0]:
                own, other = dtype_name(tensors[name][0]), dtype_name(tensors[first][0])
                raise ValueError(
                    f"{name} is {own}, {first} is {other}, but Megatron stores them as one tensor; choose a dtype "
                    "(--dtype)"
                )


def _tokenizer_path(checkpoint: Path) -> str | None:
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    has_tokenizer = any((checkpoint / HF_FILES / name).exists() for name in names)
    return f"../{HF_FILES}" if has_tokenizer else None


def _nemo_common_state() -> dict:
    """What NeMo's importer stores besides tensors: no training progress, and how Megatron laid the tensors out."""
    return {
        "epoch": 0,
        "global_step": 0,
        "state_dict": {},
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }
