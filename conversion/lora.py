"""NeMo LoRA checkpoints: only the adapters are stored, with the path of the base checkpoint beside them."""

import json
from pathlib import Path

import torch
from torch import Tensor

from conversion.torch_dist import TorchDistReader

_ADAPTER = ".adapter."


class MergedReader:
    """A `TorchDistReader` of the base whose weights include the adapters: W + alpha / dim * out @ in.

    The product is computed in fp32 and rounded once to the dtype of the base weight.
    """

    def __init__(self, base: TorchDistReader, adapters: TorchDistReader, scale: float):
        """Raises: ValueError when an adapter does not belong to a weight of the base."""
        self.directory = adapters.directory
        self._base, self._adapters, self._scale = base, adapters, scale
        self._adapted = {key.split(_ADAPTER)[0] + ".weight" for key in adapters}
        for key in sorted(self._adapted):
            if key not in base:
                raise ValueError(f"{adapters.directory}: an adapter for {key}, which {base.directory} does not have")

    def __iter__(self):
        return iter(self._base)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._base.shape(key)

    def dtype(self, key: str) -> torch.dtype:
        return self._base.dtype(key)

    def read(self, key: str, layer: int | None = None, num_rows: int | None = None) -> Tensor:
        weight = self._base.read(key, layer, num_rows)
        if key not in self._adapted:
            return weight
        stem = key.removesuffix(".weight") + _ADAPTER
        linear_in, linear_out = (
            self._adapters.read(f"{stem}linear_{end}.weight", layer).float() for end in ("in", "out")
        )
        if (linear_out.shape[0], linear_in.shape[1]) != weight.shape:
            raise ValueError(
                f"{self.directory}: the adapter of {key} has shapes {tuple(linear_in.shape)}, {tuple(linear_out.shape)}"
            )
        return torch.addmm(weight.float(), linear_out, linear_in, alpha=self._scale).to(weight.dtype)


def is_lora(reader: TorchDistReader) -> bool:
    return any(_ADAPTER in key for key in reader)


def base_checkpoint(weights: Path) -> Path:
    """The checkpoint the adapters were trained on, as NeMo noted it. Raises: ValueError when it is not there."""
    note = weights / "adapter_metadata.json"
    if not note.exists():
        raise ValueError(f"{note}: missing; the checkpoint holds LoRA adapters but does not say for which base")
    path = Path(json.loads(note.read_text(encoding="utf-8"))["model_ckpt_path"])
    if not path.exists():
        raise ValueError(
            f"{path}: the base of the LoRA checkpoint is gone; give the imported base checkpoint as base (--base)"
        )
    return path


def lora_scale(checkpoint: Path) -> float:
    """alpha / dim from the LoRA settings that NeMo keeps in context/io.json."""
    file = checkpoint / "context" / "io.json"
    try:
        objects = json.loads(file.read_text(encoding="utf-8"))["objects"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{file}: missing or damaged; it holds alpha and dim of the LoRA adapters") from error
    settings = _lora_settings(objects)
    if settings is None:
        raise ValueError(f"{file}: no LoRA settings; alpha and dim of the adapters are unknown")
    return settings.get("alpha", 32) / settings.get("dim", 32)  # 32: the defaults of nemo.collections.llm.peft.LoRA


def _lora_settings(objects: dict) -> dict | None:
    for entry in objects.values():
        metadata = entry.get("metadata")
        if not isinstance(metadata, dict) or metadata.get("type") != "ref":
            continue
        target = objects[metadata["key"]]["items"][0][1]
        if isinstance(target, dict) and target.get("name") == "LoRA":
            items = ((path.split("'")[1], value) for path, value in entry["items"] if path.startswith("Attr("))
            return {name: value["value"] for name, value in items if value.get("type") == "leaf"}
    return None
