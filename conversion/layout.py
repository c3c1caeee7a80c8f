"""Join and split the fused tensors of Megatron-Core. Pure moves of rows: bit-exact in every dtype."""

import torch
from torch import Tensor

from conversion.families import Mapping, ModelSpec


def join(mapping: Mapping, parts: list[Tensor], spec: ModelSpec) -> Tensor:
    """Hugging Face tensors of one mapping -> the Megatron tensor, [rows, ...]."""
    if mapping.kind == "copy":
        return parts[0]
    if mapping.kind == "gate_up":
        return torch.cat(parts)
    grouped = [part.reshape(spec.num_query_groups, -1, *part.shape[1:]) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def split(mapping: Mapping, tensor: Tensor, spec: ModelSpec) -> list[Tensor]:
    """Inverse of `join`; the results are contiguous."""
    if mapping.kind == "copy":
        return [tensor]
    if mapping.kind == "gate_up":
        return list(tensor.chunk(2))
    grouped = tensor.reshape(spec.num_query_groups, -1, *tensor.shape[1:])
    heads_per_group = spec.num_heads // spec.num_query_groups
    sizes = [heads_per_group * spec.head_dim, spec.head_dim, spec.head_dim]
    return [part.flatten(0, 1).contiguous() for part in grouped.split(sizes, dim=1)]
