"""LoRA checkpoints of NeMo 2 and Bridge: only the adapters are stored, with the path of their base beside them."""

import json
from pathlib import Path

import torch
from torch import Tensor

from conversion import layout
from conversion.families import Mapping, ModelSpec, mappings
from conversion.lora_settings import LoraSettings
from conversion.torch_dist import TorchDistReader

_ADAPTER = ".adapter."
_FACTORS = {"linear_in.weight", "linear_out.weight"}


class Adapters:
    """The LoRA factors of a checkpoint, by the name of the Hugging Face weight that each pair changes.

    A fused weight of Megatron has one pair: all its parts share A, and each has its own rows of B.
    """

    def __init__(self, reader: TorchDistReader, spec: ModelSpec, settings: LoraSettings):
        """Raises: ValueError if an adapter is not plain LoRA or does not belong to a weight of the model."""
        self.dim, self.alpha, self.dropout = settings.dim, settings.alpha, settings.dropout
        self._reader, self._spec = reader, spec
        self._home: dict[str, tuple[Mapping, int | None, int]] = {}
        for mapping in _adapted(reader, spec):
            for layer in range(spec.num_layers) if mapping.layered else [None]:
                for part, name in enumerate(mapping.hf):
                    self._home[name.format(layer)] = mapping, layer, part
            self._check_shapes(mapping)

    def __contains__(self, name: str) -> bool:
        return name in self._home

    def __iter__(self):
        return iter(self._home)

    @property
    def num_bytes(self) -> int:
        """Of the factors of all weights, A counted for each that shares it."""
        sizes = ((mapping.shapes[part], mapping) for mapping, _, part in self._home.values())
        return sum(self.dim * sum(shape) * self._reader.dtype(_keys(mapping)[0]).itemsize for shape, mapping in sizes)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A [dim, columns] and B [rows, dim] of the weight `name`: W changes by alpha / dim * B @ A."""
        mapping, layer, part = self._home[name]
        key_in, key_out = _keys(mapping)
        fused = self._reader.read(key_out, layer, 0, mapping.shape[0])
        return self._reader.read(key_in, layer, 0, self.dim), layout.split(mapping, fused, self._spec)[part]

    def merge(self, name: str, first: int, rows: Tensor) -> Tensor:
        """Rows of the weight `name` from `first` on, with its adapter; fp32, rounded once."""
        a, b = (factor.float() for factor in self.factors(name))
        return torch.addmm(rows.float(), b[first : first + len(rows)], a, alpha=self.alpha / self.dim).to(rows.dtype)

    def _check_shapes(self, mapping: Mapping) -> None:
        layers = [self._spec.num_layers] if mapping.layered else []
        rows, columns = mapping.shape
        for key, shape in zip(_keys(mapping), ([*layers, self.dim, columns], [*layers, rows, self.dim]), strict=True):
            if self._reader.shape(key) != tuple(shape):
                raise ValueError(
                    f"{self._reader.directory}: {key} has shape {self._reader.shape(key)}, but LoRA of dim {self.dim} "
                    f"on this model has {tuple(shape)}; name the base that it was trained on (--base)"
                )


def is_lora(reader: TorchDistReader) -> bool:
    return any(_ADAPTER in key for key in reader)


def noted_base(weights: Path) -> Path:
    """The checkpoint the adapters were trained on, as NeMo noted it. Raises: ValueError if it is not there."""
    note = weights / "adapter_metadata.json"
    try:
        path = Path(json.loads(note.read_text(encoding="utf-8"))["model_ckpt_path"])
    except FileNotFoundError as error:
        raise ValueError(f"{note}: missing; name the imported base checkpoint (--base)") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{note}: damaged; name the imported base checkpoint (--base)") from error
    if not path.exists():
        raise ValueError(f"{path}: the base of the LoRA checkpoint is gone; name the imported base checkpoint (--base)")
    return path


def _keys(mapping: Mapping) -> tuple[str, str]:
    stem = mapping.megatron.removesuffix(".weight") + _ADAPTER
    return f"{stem}linear_in.weight", f"{stem}linear_out.weight"


def _adapted(reader: TorchDistReader, spec: ModelSpec) -> list[Mapping]:
    table = {mapping.megatron: mapping for mapping in mappings(spec)}
    found: dict[str, set[str]] = {}
    for key in reader:
        weight, _, factor = key.partition(_ADAPTER)
        found.setdefault(f"{weight}.weight", set()).add(factor)
    for weight, factors in sorted(found.items()):
        if factors != _FACTORS:
            # CanonicalLoRA adds q, k and v to the fused output one after the other, not by query group as the weights
            # are (LoRALinearSplitQKV.forward): no adapter of q_proj, k_proj and v_proj computes the same.
            raise ValueError(
                f"{reader.directory}: {weight} has adapter tensors {', '.join(sorted(factors))}; only "
                "LoRA is supported, not CanonicalLoRA, DoRA or mixed checkpoints"
            )
        if weight not in table or len(table[weight].shapes[0]) != 2:
            problem = f"an adapter for {weight}, which the model does not have"
            raise ValueError(f"{reader.directory}: {problem}; name the base that it was trained on (--base)")
    return [table[weight] for weight in found]
