"""Sources of a model's tensors with one face: Hugging Face names, read in blocks of rows.

`tensors`: name -> (dtype, shape), in the order that reads each file once; `blocks()`: every row once, as (name, first
row, rows), in the cheapest order; `read(name, first, count)`: any rows. What is read is checked to be finite.
"""

import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from conversion import layout
from conversion.dtypes import Tensors, cast, check_dtype, finite
from conversion.families import ModelSpec, hf_shapes, mappings, mappings_by_layer
from conversion.lora import Adapters
from conversion.safetensors_io import INDEX, SINGLE, indexed_files, read_index, read_rows
from conversion.torch_dist import TorchDistReader, global_shape

BLOCK_BYTES = 64 << 20
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
# A buffer that old transformers versions saved; it is computed from config.json.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_PICKLED = ("pytorch_model*.bin", "pytorch_model*.pt", "model*.bin", "model*.pt")


class Weights(Protocol):
    tensors: Tensors

    def blocks(self) -> Iterator[tuple[str, int, Tensor]]: ...

    def read(self, name: str, first: int, count: int) -> Tensor: ...


class HFWeights:
    """The tensors of a Hugging Face directory, checked against config.json."""

    def __init__(self, directory: Path, spec: ModelSpec):
        """Raises: ValueError if weights are missing, damaged, pickled or not those of `spec`."""
        _refuse_pickled(directory)
        _refuse_adapter(directory)
        self._directory = directory
        self._infos = read_index(directory)
        _warn_of_index(directory, {info.file.name for info in self._infos.values()})
        self.tensors = self._check({name: (info.dtype, info.shape) for name, info in self._infos.items()}, spec)

    def blocks(self) -> Iterator[tuple[str, int, Tensor]]:
        for name, (dtype, shape) in self.tensors.items():
            for first, count in row_blocks(dtype, shape):
                yield name, first, self.read(name, first, count)

    def read(self, name: str, first: int, count: int) -> Tensor:
        info = self._infos[name]
        rows = torch.empty(count, *info.shape[1:], dtype=info.dtype)
        read_rows(info, first, rows)
        return finite(rows, f"{self._directory}: {name}")

    def read_into(self, out: Tensor, name: str, first: int) -> None:
        """Fill `out` with rows of the tensor from `first` on, in the dtype of `out`."""
        info = self._infos[name]
        if out.dtype != info.dtype:
            out.copy_(cast(self.read(name, first, len(out)), out.dtype, name))
            return
        read_rows(info, first, out)
        finite(out, f"{self._directory}: {name}")

    def _check(self, tensors: Tensors, spec: ModelSpec) -> Tensors:
        """`tensors` in the order of `hf_shapes`; leaves out what the model computes by itself, with a warning."""
        expected = hf_shapes(spec)
        unexpected = sorted(tensors.keys() - expected.keys())
        redundant = [name for name in unexpected if _DERIVED.fullmatch(name) or self._is_tied_copy(name, tensors, spec)]
        if redundant:
            warnings.warn(
                f"{self._directory}: left out {', '.join(redundant)}, which the model computes itself", stacklevel=2
            )
        unexpected = [name for name in unexpected if name not in redundant]
        missing = sorted(expected.keys() - tensors.keys())
        if missing:
            raise ValueError(
                f"{self._directory}: {len(missing)} tensors that config.json asks for are missing, e.g. {missing[0]}; "
                "restore the model, or use another"
            )
        if unexpected:
            raise ValueError(
                f"{self._directory}: {len(unexpected)} tensors are not part of this {spec.model_type} model, "
                f"e.g. {unexpected[0]}; restore the model, or use another"
            )
        for name, shape in expected.items():
            check_dtype(f"{self._directory}: {name}", tensors[name][0])
            if tensors[name][1] != shape:
                raise ValueError(
                    f"{self._directory}: {name} has shape {tensors[name][1]}, config.json asks for {shape}; "
                    "take both from the same model"
                )
        return {name: tensors[name] for name in expected}

    def _is_tied_copy(self, name: str, tensors: Tensors, spec: ModelSpec) -> bool:
        embedding = "model.embed_tokens.weight"
        if name != "lm_head.weight" or not spec.tied or embedding not in tensors:
            return False
        if tensors[name] == tensors[embedding] and all(
            torch.equal(self.read(name, *rows), self.read(embedding, *rows)) for rows in row_blocks(*tensors[name])
        ):
            return True
        raise ValueError(
            f"{self._directory}: tie_word_embeddings is true, but lm_head.weight differs from the embedding; set it to "
            "false in config.json to keep both"
        )


class TorchDistWeights:
    """The tensors of a NeMo 2 or Bridge checkpoint under their Hugging Face names, without the vocabulary's padding."""

    def __init__(self, reader: TorchDistReader, spec: ModelSpec):
        """Raises: ValueError if the checkpoint does not hold exactly the tensors of `spec`."""
        self._reader, self._spec = reader, spec
        self._check()
        self._home = {
            name: (mapping, layer, part)
            for mapping, layer in mappings_by_layer(spec)
            for part, name in enumerate(mapping.names(layer))
        }
        self.tensors = {
            name: (reader.dtype(self._home[name][0].megatron), shape) for name, shape in hf_shapes(spec).items()
        }

    def blocks(self) -> Iterator[tuple[str, int, Tensor]]:
        for mapping, layer in mappings_by_layer(self._spec):
            names = mapping.names(layer)
            for first, count in self._reader.row_blocks(mapping.megatron, layer, mapping.shape[0]):
                block = self._reader.read(mapping.megatron, layer, first, count)
                wanted = list(layout.pieces(mapping, self._spec, first, count))
                for (part, own_first, _), rows in zip(wanted, block.split([w.count for w in wanted]), strict=True):
                    yield names[part], own_first, finite(rows, f"{self._reader.directory}: {names[part]}")

    def read(self, name: str, first: int, count: int) -> Tensor:
        mapping, layer, part = self._home[name]
        found = [
            self._reader.read(mapping.megatron, layer, *rows)
            for rows in layout.locate(mapping, self._spec, layout.Rows(part, first, count))
        ]
        return finite(found[0] if len(found) == 1 else torch.cat(found), f"{self._reader.directory}: {name}")

    def _check(self) -> None:
        reader, spec = self._reader, self._spec
        expected = {m.megatron: global_shape(m.shape, spec.num_layers if m.layered else None) for m in mappings(spec)}
        missing, unexpected = sorted(expected.keys() - set(reader)), sorted(set(reader) - expected.keys())
        if missing or unexpected:
            problem = f"{missing[0]} is missing" if missing else f"{unexpected[0]} is not part of the model"
            raise ValueError(
                f"{reader.directory}: {problem}; the checkpoint and this config.json ({spec.model_type}) belong to "
                "different models"
            )
        for key, shape in expected.items():
            check_dtype(f"{reader.directory}: {key}", reader.dtype(key))
            stored = reader.shape(key)
            if key in _VOCABULARY and stored[0] > shape[0]:
                stored = (shape[0], *stored[1:])
            if stored != shape:
                raise ValueError(
                    f"{reader.directory}: {key} has shape {reader.shape(key)}, config.json asks for {shape}; they "
                    "belong to different models"
                )


class MergedWeights:
    """The tensors of a base with LoRA adapters: W + scale * B @ A, computed in fp32 and rounded once to W's dtype."""

    def __init__(self, base: Weights, adapters: Adapters):
        self._base, self._adapters = base, adapters
        self.tensors = base.tensors

    def blocks(self) -> Iterator[tuple[str, int, Tensor]]:
        for name, first, rows in self._base.blocks():
            yield name, first, self._merge(name, first, rows)

    def read(self, name: str, first: int, count: int) -> Tensor:
        return self._merge(name, first, self._base.read(name, first, count))

    def _merge(self, name: str, first: int, rows: Tensor) -> Tensor:
        if name not in self._adapters:
            return rows
        return finite(self._adapters.merge(name, first, rows), f"{name}, merged with its adapter,")


def read_into(weights: Weights, out: Tensor, name: str, first: int) -> None:
    """Fill `out` with rows of a tensor from `first` on, in the dtype of `out`."""
    if isinstance(weights, HFWeights):
        weights.read_into(out, name, first)  # without memory of its own
    else:
        out.copy_(cast(weights.read(name, first, len(out)), out.dtype, name))


def row_blocks(dtype: torch.dtype, shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """(first, count) of blocks of rows of at most BLOCK_BYTES, which bounds the memory whatever the model."""
    count = max(1, BLOCK_BYTES // (math.prod(shape[1:]) * dtype.itemsize))
    return ((first, min(count, shape[0] - first)) for first in range(0, shape[0], count))


def num_bytes(tensors: Tensors) -> int:
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in tensors.values())


def _refuse_pickled(directory: Path) -> None:
    pickled = sorted(file for pattern in _PICKLED for file in directory.glob(pattern))
    if pickled and not list(directory.glob("*.safetensors")):
        raise ValueError(
            f"{pickled[0]}: pickled weights can run code when they are loaded, so only safetensors are read; if you "
            "trust the file, convert it first: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )


def _refuse_adapter(directory: Path) -> None:
    """transformers loads the model that an adapter names, and the adapter, in place of the weights beside it."""
    file = directory / "adapter_config.json"
    if file.is_file():
        raise ValueError(
            f"{file}: transformers would load this PEFT adapter on the model that it names, not the weights beside it; "
            "move it away, or merge it first: model.merge_and_unload()"
        )


def _warn_of_index(directory: Path, read: set[str]) -> None:
    """Where model.safetensors lies beside an index of other files, transformers and vLLM load different weights."""
    index = directory / INDEX
    if SINGLE not in read or not index.is_file():
        return
    named = indexed_files(index)
    if named != read:
        warnings.warn(
            f"{directory}: {SINGLE} is read, as transformers does, not the files that {INDEX} names; vLLM reads those, "
            "so remove whichever is older",
            stacklevel=2,
        )
