"""Puts the ranks' gradients together into Hugging Face's tensors, and measures the distance to a reference."""

from pathlib import Path

import torch

from conversion import layout
from conversion.families import ModelSpec, mappings

# Megatron's own layers have the norm beside the linear layer, Transformer Engine's within it.
LAYER_NORMS = {
    "decoder.layers.input_layernorm.weight": "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
    "decoder.layers.pre_mlp_layernorm.weight": "decoder.layers.mlp.linear_fc1.layer_norm_weight",
}


def load_ranks(output: Path, world_size: int) -> list[dict]:
    """What each rank saved. Raises AssertionError with the traceback of a rank that failed by itself."""
    errors = [path.read_text() for path in sorted(output.glob("rank-*.error"))]
    by_itself = [error for error in errors if "Connection closed by peer" not in error]
    assert not errors, (by_itself or errors)[0]
    return [torch.load(output / f"rank-{rank}.pt", weights_only=True) for rank in range(world_size)]


def hugging_face_gradients(ranks: list[dict], spec: ModelSpec) -> dict[str, torch.Tensor]:
    """{Hugging Face name: gradient}; every copy of a parameter on several ranks must hold the same gradient."""
    table = {mapping.megatron: mapping for mapping in mappings(spec)}
    for local, engine in LAYER_NORMS.items():
        table[local] = table[engine]
    if spec.tied:  # the last pipeline stage holds a second copy, as its output layer
        table["output_layer.weight"] = table["embedding.word_embeddings.weight"]
    gradients: dict[str, torch.Tensor] = {}
    for (name, layer), gradient in whole(ranks, "parameters").items():
        mapping = table[name]
        parts = layout.split(mapping, gradient[: mapping.shape[0]], spec)
        assert not gradient[mapping.shape[0] :].any(), f"{name}: the padding of the vocabulary has a gradient"
        for hf_name, part in zip(mapping.hf, parts, strict=True):
            _put(gradients, hf_name.format(layer), part)
    expected = {hf.format(layer) for m in table.values() for hf in m.hf for layer in range(spec.num_layers)}
    assert gradients.keys() == expected, gradients.keys() ^ expected
    return gradients


def whole(ranks: list[dict], kind: str) -> dict[tuple, torch.Tensor]:
    """{(Megatron name, layer): what the ranks saved as `kind`, joined over tensor parallelism}."""
    shards: dict[tuple, dict[int, torch.Tensor]] = {}
    dims = {}
    for rank in ranks:
        for name, layer, dim, tensor in rank[kind]:
            key = (name, layer)
            dims[key] = dim
            _put(shards.setdefault(key, {}), rank["tp"] if dim is not None else 0, tensor)
    return {key: _join(key[0], [by_rank[r] for r in sorted(by_rank)], dims[key]) for key, by_rank in shards.items()}


def _join(name: str, shards: list[torch.Tensor], dim: int | None) -> torch.Tensor:
    if dim is None:
        return shards[0]
    if name.endswith(
        ("linear_fc1.weight", "linear_fc1.adapter.linear_out.weight")
    ):  # each rank holds its gate rows, then its up rows
        gates, ups = zip(*(shard.chunk(2) for shard in shards), strict=True)
        return torch.cat([*gates, *ups])
    return torch.cat(shards, dim)


def _put(table: dict, key, value: torch.Tensor) -> None:
    if key in table:
        # Sums in another order differ in the last bits; a copy that missed a reduction differs by far more.
        assert relative_error(value, table[key]) < 1e-6, f"copies of {key} differ"
    else:
        table[key] = value


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|, in the Euclidean norm."""
    difference, size = (found.double() - expected.double()).norm(), expected.double().norm()
    return float(difference / size) if size else float(difference)


def worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> tuple[float, str]:
    """The largest relative error of a parameter, and its name."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    return max((relative_error(found[name], expected[name]), name) for name in expected)


def overall(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative error of all parameters as one vector."""
    return relative_error(
        *(torch.cat([table[name].flatten().double() for name in sorted(expected)]) for table in (found, expected))
    )
