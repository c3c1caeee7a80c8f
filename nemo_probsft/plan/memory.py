"""What a rank of a recipe holds, in bytes: arithmetic on shapes, before any tensor exists.

It counts what `adapters/megatron/settings.py` configures for both engines: bf16 weights (fp32 at trainer.precision
fp32), fp32 gradient buffers, Adam with fp32 master weights and moments, which Megatron's distributed optimizer divides
over the data and context parallel ranks (on CUDA; on a CPU it is off), and activations of Transformer Engine's layers
without dropout. It was compared with tensors that NeMo 2.7 made, tests/engines/test_plan_memory.py.

Sources: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", arXiv 2205.05198 (sections
4 and 5); Rajbhandari et al., "ZeRO", arXiv 1910.02054 (optimizer state); Megatron-Core 0.15: param_and_grad_buffer.py,
optimizer.py, distrib_optimizer.py, pipeline_parallel/schedules.py (micro-batches in flight). Not counted: CUDA's
context, NCCL's buffers, cuBLAS workspaces, fragmentation, and padding of at most 128 elements a tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from nemo_probsft.config import Recipe

if TYPE_CHECKING:
    from conversion.families import ModelSpec

FP32 = 4
ADAPTED = ("linear_qkv.weight", "linear_proj.weight", "linear_fc1.weight", "linear_fc2.weight")  # by both engines' LoRA


@dataclass(frozen=True)
class Setup:
    """What of a recipe decides on memory. Sizes are numbers of ranks, lengths are tokens."""

    tp: int
    pp: int
    vp: int  # 1: not virtual
    cp: int
    dp: int
    sequence_parallel: bool
    element: int  # bytes of a weight or an activation: 2 (bf16) or 4 (fp32)
    recompute: str  # none, selective, full
    lora_dim: int | None
    micro_batch: int  # examples
    length: int  # of the longest example
    num_micro_batches: int  # of a step and data-parallel rank
    num_targets: int  # rows with a loss in the largest micro-batch
    skip_rows: bool  # head.skip_rows
    chunk_tokens: int | None  # head.chunk_tokens
    drops_rows: bool  # the objective may give a target the gradient 0
    distributed_optimizer: bool = True
    attention_backend: str = "auto"  # trainer.attention_backend

    @property
    def tokens(self) -> int:
        """T: tokens of a micro-batch on one context-parallel rank."""
        return self.micro_batch * -(-self.length // self.cp)

    @property
    def norm_split(self) -> int:
        """Ranks that share what stands between the tensor-parallel layers: tp with sequence parallelism, else 1."""
        return self.tp if self.sequence_parallel else 1

    @property
    def fused_attention(self) -> bool:
        """Fused kernels, which keep no scores, take 16-bit floats only."""
        return self.element == 2 and self.attention_backend not in ("unfused", "local")


@dataclass(frozen=True)
class Rank:
    """Bytes on every rank of one pipeline stage at the peak of a step, which is its backward pass."""

    stage: int
    num_layers: int
    micro_batches: float  # whose activations it holds at once
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    working: int

    @property
    def parts(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self)[3:]}

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def setup(recipe: Recipe, *, length: int, num_targets: int, drops_rows: bool) -> Setup:
    """length: tokens of the longest example; num_targets: most rows with a loss in a micro-batch of a rank."""
    tp, pp, cp = recipe.model_parallel_sizes
    return Setup(
        tp=tp,
        pp=pp,
        vp=recipe.parallel.virtual_pipeline_model_parallel_size or 1,
        cp=cp,
        dp=recipe.data_parallel_size,
        sequence_parallel=recipe.parallel.sequence_parallel,
        element=2 if recipe.trainer.precision == "bf16" else FP32,
        recompute=recipe.trainer.recompute,
        lora_dim=None if recipe.peft is None else recipe.peft.dim,
        micro_batch=recipe.data.micro_batch_size,
        length=length,
        num_micro_batches=recipe.num_micro_batches,
        num_targets=num_targets,
        skip_rows=recipe.head.skip_rows,
        chunk_tokens=recipe.head.chunk_tokens,
        drops_rows=drops_rows,
        attention_backend=recipe.trainer.attention_backend,
    )


def ranks(spec: ModelSpec, s: Setup) -> list[Rank]:
    """One entry for every pipeline stage; all ranks of a stage hold as much."""
    return [_rank(spec, s, stage) for stage in range(s.pp)]


def _rank(spec: ModelSpec, s: Setup, stage: int) -> Rank:
    frozen, trained = parameters(spec, s, stage)
    last = stage == s.pp - 1
    in_flight = micro_batches_in_flight(s, stage)
    layers = spec.num_layers // s.pp
    activations = int(in_flight * layers * layer_activations(spec, s)) + (last and head_input(spec, s))
    return Rank(
        stage=stage,
        num_layers=layers,
        micro_batches=in_flight,
        weights=s.element * (frozen + trained),
        gradients=FP32 * trained,
        optimizer=optimizer_state(s, trained),
        activations=activations,
        logits=logits(spec, s) if last else 0,
        working=working(spec, s, head=last),
    )


def num_parameters(spec: ModelSpec) -> int:
    """Of the Hugging Face model: no padding, a tied embedding counted once."""
    from conversion.families import mappings

    return sum(math.prod(m.shape) * (spec.num_layers if m.layered else 1) for m in mappings(spec))


def padded_vocabulary(spec: ModelSpec, tp: int) -> int:
    """Rows of the embedding: conversion pads V to a multiple of 128, `adapters/nemo.py` that to one of tp."""
    from conversion.families import VOCAB_MULTIPLE

    padded = -(-spec.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return -(-padded // tp) * tp


def parameters(spec: ModelSpec, s: Setup, stage: int) -> tuple[int, int]:
    """(frozen, trained) parameters of one rank of a stage.

    The embedding is on the first stage, final norm and output layer on the last, which has a second copy of a tied
    embedding (with pp > 1). Tensor parallelism divides everything but the norms, LoRA's two factors included.
    """
    from conversion.families import mappings

    base = adapters = 0
    for mapping in mappings(spec):
        rows, *rest = mapping.shape
        if mapping.megatron.endswith(("word_embeddings.weight", "output_layer.weight")):
            rows = padded_vocabulary(spec, s.tp)
        count = _copies(spec, s, stage, mapping.megatron, mapping.layered)
        split = 1 if "norm" in mapping.megatron else s.tp
        base += count * math.prod((rows, *rest)) // split
        if s.lora_dim is not None and mapping.megatron.endswith(ADAPTED):
            adapters += count * s.lora_dim * (rows + rest[0]) // s.tp
    return (0, base) if s.lora_dim is None else (base, adapters)


def _copies(spec: ModelSpec, s: Setup, stage: int, name: str, layered: bool) -> int:
    first, last = stage == 0, stage == s.pp - 1
    if layered:
        return spec.num_layers // s.pp
    if name.startswith("embedding"):
        return int(first or (last and spec.tied))
    return int(last)


def optimizer_state(s: Setup, trained: int) -> int:
    """Bytes of Adam's two fp32 moments and, beside bf16 weights, of the fp32 master weights.

    8 (fp32) or 12 (bf16) bytes a trained parameter; the distributed optimizer divides it by dp x cp (ZeRO stage 1).
    """
    size = (3 if s.element == 2 else 2) * FP32 * trained
    return -(-size // (s.dp * s.cp)) if s.distributed_optimizer else size


def micro_batches_in_flight(s: Setup, stage: int) -> float:
    """Micro-batches whose activations a stage (from 0) holds, in units of all of its layers.

    1F1B: pp - stage, Megatron's warm-up and the one in work. Interleaved: its warm-up counts chunks of a stage, of
    2 (pp - stage - 1) + (vp - 1) pp and one; at stage 0 that is Korthikanti's pp (1 + (pp - 1) / (pp vp)).
    """
    if s.vp == 1:
        return min(s.pp - stage, s.num_micro_batches)
    chunks = 2 * (s.pp - stage - 1) + (s.vp - 1) * s.pp + 1
    return min(chunks, s.num_micro_batches * s.vp) / s.vp


def layer_activations(spec: ModelSpec, s: Setup) -> int:
    """Bytes that one layer keeps of one micro-batch for its backward pass.

    T tokens of `element` bytes e (Korthikanti's sb; without dropout's masks, with SwiGLU, grouped queries, rotation):
    - T e 4 H / n: the layer's input, the first norm's output, the input of the second norm, its output. n is tp with
      sequence parallelism, else 1. LoRA's adapters keep the norms' outputs of the whole sequence, so 1 there;
    - T e (Q + 2 K) / tp, q, k and v as one tensor, of which v is a view, and T e (Q + K) / tp, q and k rotated;
    - T e Q / tp: what attention returns;
    - T e 3 F / tp: gate and up, and their product;
    - 4 bytes a token and norm, and a token and head of flash attention (its log-sum-exp).
    Attention that is not fused (fp32) keeps the scores, T L e heads / tp for length L, unless recompute is selective.
    recompute full keeps the layer's input alone, T e H / n.
    """
    split = s.norm_split
    if s.recompute == "full":
        return s.tokens * s.element * spec.hidden_size // split
    norm_output_split = split if s.lora_dim is None else 1
    inputs = 2 * spec.hidden_size / split + 2 * spec.hidden_size / norm_output_split
    per_token = s.element * (inputs + (_attention_width(spec, s) + 3 * spec.ffn_hidden_size) / s.tp)
    per_token += 2 * FP32 / split
    if spec.qk_norm:
        per_token += FP32 * (spec.num_heads + spec.num_query_groups) / s.tp
    if s.lora_dim is not None:
        per_token += s.element * len(ADAPTED) * s.lora_dim
    if s.recompute != "selective":
        per_token += spec.num_heads / s.tp * (FP32 if s.fused_attention else s.element * s.length)
    return int(s.tokens * per_token)


def _attention_width(spec: ModelSpec, s: Setup) -> int:
    """Elements a token that attention keeps over all tensor-parallel ranks, besides its scores."""
    query, key = spec.num_heads * spec.head_dim, spec.num_query_groups * spec.head_dim
    if s.fused_attention or s.recompute == "selective" or query == key:
        return (query + 2 * key) + (query + key) + query
    # Keys and values are repeated for every head, so that the fused tensor is not needed; the norms of q and k need it.
    return 4 * query + (spec.qk_norm and query + 2 * key)


def head_input(spec: ModelSpec, s: Setup) -> int:
    """Bytes of the final norm's input on the last stage, and of the rows that enter the head, T or N, of H elements."""
    norm = s.tokens * (s.element * spec.hidden_size + FP32) // s.norm_split
    rows = s.num_targets if s.skip_rows else s.tokens // s.norm_split
    return norm + rows * s.element * spec.hidden_size


def logits(spec: ModelSpec, s: Setup) -> int:
    """Bytes of the logits, which their gradient overwrites: rows x v, v = (padded V) / tp.

    head.skip_rows: N rows, those with a loss, and no padded columns, else all T. head.chunk_tokens bounds them. Where
    an objective leaves rows without a gradient (weight exactly 0, or below fp32), the others are copied for the
    backward pass: at most N more.
    """
    return math.prod(logits_shape(spec, s)) * s.element * (2 if _copies_logits(s) else 1)


def logits_shape(spec: ModelSpec, s: Setup) -> tuple[int, int]:
    """Rows and columns of the largest logits of a rank."""
    shard = padded_vocabulary(spec, s.tp) // s.tp
    if not s.skip_rows:
        return s.tokens, shard
    return min(s.num_targets, s.chunk_tokens or s.num_targets), min(shard, spec.vocab_size)


def _copies_logits(s: Setup) -> bool:
    return s.skip_rows and s.drops_rows and s.chunk_tokens is None


def working(spec: ModelSpec, s: Setup, *, head: bool) -> int:
    """Bytes of the largest short-lived tensors of a backward pass; an estimate, unlike the rest.

    A layer: gradients of gate, up and product, T e 3 F / tp, and with sequence parallelism the gathered input and its
    gradient, T e 2 H; recompute full has the layer's activations again. The head on rows: gradient of the rows, N e H,
    and of the weight before it is added to the buffer, 4 v H.
    """
    gathered = 2 * spec.hidden_size if s.sequence_parallel else spec.hidden_size
    layer = s.tokens * s.element * (3 * spec.ffn_hidden_size // s.tp + gathered)
    if s.recompute == "full":
        layer += layer_activations(spec, replace(s, recompute="none"))
    if not head:
        return layer
    rows = (s.num_targets if s.skip_rows else s.tokens) * s.element * spec.hidden_size
    weight = s.skip_rows and s.lora_dim is None
    shard = padded_vocabulary(spec, s.tp) // s.tp
    gather = s.tokens * s.element * spec.hidden_size if s.sequence_parallel else 0
    return max(layer, rows + gather + (FP32 * shard * spec.hidden_size if weight else 0))


def checkpoint_bytes(spec: ModelSpec, s: Setup) -> int:
    """Bytes on disk of one checkpoint: trained weights and the whole optimizer state, each tensor once.

    With LoRA that is the adapters'. Metadata, some hundred KiB, are not counted.
    """
    whole = replace(s, tp=1, pp=1, vp=1, cp=1, dp=1, sequence_parallel=False)
    _, trained = parameters(spec, whole, 0)
    if s.lora_dim is None:
        trained += (
            (1 if spec.tied else 2) * spec.hidden_size * (padded_vocabulary(spec, s.tp) - padded_vocabulary(spec, 1))
        )
    return s.element * trained + optimizer_state(whole, trained)
