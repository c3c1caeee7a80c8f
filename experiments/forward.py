"""A decoder of transformers (Qwen2, Llama) in plain torch, without work that is done twice.

Tokens with the same tokens before them have the same hidden state. A batch of short rows has many of those (the start
of the prompt): every distinct one is a node that goes through the linear layers once; attention gathers them to rows.
The last layer is computed where there is a target only. Equal to transformers' forward pass (test_variants.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_probsft.data.tokens import Example


@dataclass(frozen=True)
class Packed:
    """U nodes of b rows with at most s positions, and N targets in the order of the rows."""

    tokens: Tensor  # [U] int64
    positions: Tensor  # [U] int64
    grid: Tensor  # [b, s] int64: the node at each position; node 0 after a row's end, where no real position looks
    home: Tensor  # [U] int64: one place of each node in the flattened grid
    predicting: Tensor  # [P] int64: nodes whose next token is a target
    row_of_target: Tensor  # [N] int64: into `predicting`
    labels: Tensor  # [N] int64
    example: Tensor  # [N] int64: the row, from 0 to b - 1

    def to(self, device: torch.device | str) -> Packed:
        return Packed(*(getattr(self, field.name).to(device) for field in fields(self)))


def pack(examples: Sequence[Example]) -> Packed:
    rows, masks = ([array.tolist() for array in arrays] for arrays in zip(*examples, strict=True))
    width = max(map(len, rows)) - 1
    nodes: dict[tuple[int, int], int] = {}
    tokens, positions, home = [], [], []
    grid = []
    predicting: dict[int, int] = {}
    targets = []
    for i, (ids, mask) in enumerate(zip(rows, masks, strict=True)):
        node, places = -1, [0] * width
        for t, token in enumerate(ids[:-1]):
            node = nodes.setdefault((node, token), len(nodes))
            if node == len(tokens):
                tokens.append(token)
                positions.append(t)
                home.append(i * width + t)
            places[t] = node
            if mask[t]:
                targets.append((predicting.setdefault(node, len(predicting)), ids[t + 1], i))
        grid.append(places)
    row_of_target, labels, example_of = torch.tensor(targets).unbind(1)
    return Packed(
        torch.tensor(tokens),
        torch.tensor(positions),
        torch.tensor(grid),
        torch.tensor(home),
        torch.tensor(list(predicting)),
        row_of_target,
        labels,
        example_of,
    )


def log_probs(model: Any, batch: Packed) -> Tensor:
    """[N, V] fp32: log p of every token where a target is; `model` is a causal language model with fp32 weights."""
    return head(model, hidden(model, batch), batch)


def head(model: Any, hidden: Tensor, batch: Packed) -> Tensor:
    """[N, V] fp32: log p of every token where a target is, from `hidden`."""
    return F.log_softmax(model.lm_head(hidden), dim=-1).index_select(0, batch.row_of_target)


def hidden(model: Any, batch: Packed, states: Tensor | None = None, first: int = 0) -> Tensor:
    """[P, H]: what the head reads, at `predicting`.

    With `states` [U, H], the nodes' input to layer `first`, it starts there, and layers before it get no gradient.
    """
    x = F.embedding(batch.tokens, model.model.embed_tokens.weight) if states is None else states
    layers = model.model.layers[first:]
    rotary = _rotary(model, batch, x)
    for layer in layers[:-1]:
        x = _layer(layer, x, batch, rotary, batch.home)
    x = _layer(layers[-1], x, batch, rotary, batch.home[batch.predicting], batch.predicting)
    return model.model.norm(x)


@torch.no_grad()
def states_before(model: Any, batch: Packed, layer: int) -> Tensor:
    """[U, H]: the nodes' input to a layer."""
    x = F.embedding(batch.tokens, model.model.embed_tokens.weight)
    rotary = _rotary(model, batch, x)
    for each in model.model.layers[:layer]:
        x = _layer(each, x, batch, rotary, batch.home)
    return x


def _rotary(model: Any, batch: Packed, x: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [U, 1, d]."""
    cos, sin = (table[0].unsqueeze(1) for table in model.model.rotary_emb(x, batch.positions[None]))
    return cos, sin


def _layer(layer: Any, x: Tensor, batch: Packed, rotary, home: Tensor, nodes: Tensor | None = None) -> Tensor:
    """The output of a layer at all nodes, or at some, whose places in the grid are `home`."""
    attended = _attention(layer, x, batch, *rotary).index_select(0, home)
    x = (x if nodes is None else x.index_select(0, nodes)) + layer.self_attn.o_proj(attended)
    return x + layer.mlp(layer.post_attention_layernorm(x))


def _attention(layer: Any, x: Tensor, batch: Packed, cos: Tensor, sin: Tensor) -> Tensor:
    """[b * s, heads * d]: causal attention of every row, before the output projection."""
    attention = layer.self_attn
    normed = layer.input_layernorm(x)
    q, k, v = (
        projection(normed).unflatten(-1, (-1, attention.head_dim))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = (u * cos + torch.cat((-u[..., u.shape[-1] // 2 :], u[..., : u.shape[-1] // 2]), -1) * sin for u in (q, k))
    b, s = batch.grid.shape
    q, k, v = (
        u.flatten(1).index_select(0, batch.grid.flatten()).view(b, s, *u.shape[1:]).transpose(1, 2) for u in (q, k, v)
    )
    k, v = (u.repeat_interleave(attention.num_key_value_groups, dim=1) for u in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b * s, -1)
