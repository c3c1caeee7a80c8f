"""The demo's Qwen2 in plain torch, without work that is done twice: the forward pass of `run`.

Tokens with the same tokens before them have the same hidden state. A batch of short rows has many of those (the start
of the prompt): every distinct one is a node that goes through the linear layers once; attention gathers them to rows.
The last layer is computed where there is a target only. Equal to transformers' forward pass (test_variants.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """[N, V] fp32: log p of every token where a target is; `model` is a Qwen2ForCausalLM with untied fp32 weights."""
    return head(model, hidden_states(model, batch), batch)


def head(model: Any, hidden: Tensor, batch: Packed) -> Tensor:
    """[N, V] fp32: log p of every token where a target is, from `hidden_states`."""
    return F.log_softmax(model.lm_head(hidden), dim=-1).index_select(0, batch.row_of_target)


def hidden_states(model: Any, batch: Packed) -> Tensor:
    """[P, H] fp32: what the head reads."""
    x = F.embedding(batch.tokens, model.model.embed_tokens.weight)
    cos, sin = (table[0].unsqueeze(1) for table in model.model.rotary_emb(x, batch.positions[None]))  # [U, 1, d]
    last = len(model.model.layers) - 1
    for i, layer in enumerate(model.model.layers):
        attended = _attention(layer, x, batch, cos, sin)
        home = batch.home
        if i == last:
            x, home = x.index_select(0, batch.predicting), home[batch.predicting]
        x = x + layer.self_attn.o_proj(attended.index_select(0, home))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.model.norm(x)


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
