"""LoRA's adapters against float64: the reference is the merged model, and the chain rule to the two factors."""

import json
from pathlib import Path

import torch

from conversion import layout
from conversion.families import Mapping, ModelSpec, mappings, model_spec
from tests.support.parity_cases import LORA_ALPHA, LORA_DIM
from tests.support.parity_gradients import whole
from tests.support.parity_reference import Reference

SCALE = LORA_ALPHA / LORA_DIM


def adapter_gradients(ranks: list[dict]) -> dict[tuple, torch.Tensor]:
    """{(Megatron name, layer): gradient} of every parameter that is trained."""
    return whole(ranks, "parameters")


def merged_reference(directory: Path, ranks: list[dict]) -> Reference:
    """The base model in float64 with alpha / dim * out @ in added to every adapted weight."""
    reference, spec = Reference(directory), _spec(directory)
    parameters = dict(reference.model.named_parameters())
    with torch.no_grad():
        for mapping, layer, factors in _adapted(ranks, spec):
            product = SCALE * factors["out"] @ factors["in"]
            for name, part in zip(mapping.hf, layout.split(mapping, product, spec), strict=True):
                parameters[name.format(layer)] += part
    return reference


def expected_gradients(
    directory: Path, ranks: list[dict], gradients: dict[str, torch.Tensor]
) -> dict[tuple, torch.Tensor]:
    """From the gradients of the merged weights: d in = s out^T dW, d out = s dW in^T."""
    expected = {}
    spec = _spec(directory)
    for mapping, layer, factors in _adapted(ranks, spec):
        weight = _fuse(mapping, [gradients[name.format(layer)] for name in mapping.hf], spec)
        stem = mapping.megatron.removesuffix(".weight") + ".adapter.linear_"
        expected[f"{stem}in.weight", layer] = SCALE * factors["out"].t() @ weight
        expected[f"{stem}out.weight", layer] = SCALE * weight @ factors["in"].t()
    return expected


def _adapted(ranks: list[dict], spec: ModelSpec):
    """(mapping, layer, {"in": [dim, in], "out": [out, dim]}) of each adapted weight, float64."""
    values = whole(ranks, "adapters")
    for mapping in mappings(spec):
        stem = mapping.megatron.removesuffix(".weight") + ".adapter.linear_"
        for layer in range(spec.num_layers):
            if (f"{stem}in.weight", layer) in values:
                yield mapping, layer, {end: values[f"{stem}{end}.weight", layer].double() for end in ("in", "out")}


def _fuse(mapping: Mapping, parts: list[torch.Tensor], spec: ModelSpec) -> torch.Tensor:
    if mapping.by_group:
        return torch.cat([part.reshape(spec.num_query_groups, -1, part.shape[-1]) for part in parts], 1).flatten(0, 1)
    return torch.cat(parts)


def _spec(directory: Path) -> ModelSpec:
    return model_spec(json.loads((directory / "config.json").read_text()))
