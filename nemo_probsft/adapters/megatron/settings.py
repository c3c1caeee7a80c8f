"""What any Megatron configuration must say for a recipe, whatever engine builds the model."""

from __future__ import annotations

import math
from typing import Any

import torch

from nemo_probsft.adapters.megatron.micro_batches import round_up
from nemo_probsft.config import Recipe

FUSIONS_THAT_NEED_CUDA = (
    "apply_rope_fusion",
    "bias_activation_fusion",
    "bias_dropout_fusion",
    "masked_softmax_fusion",
    "gradient_accumulation_fusion",
    "persist_layer_norm",
)
"""Settings of a Megatron configuration whose kernels need CUDA, Apex or TE; unfused computes the same."""
WITHOUT_CUDA = {
    **dict.fromkeys(FUSIONS_THAT_NEED_CUDA, False),
    # Megatron frees an output once its sending has begun. A CUDA stream keeps the memory until it has been sent;
    # gloo would send what comes to lie there next.
    "deallocate_pipeline_outputs": False,
}


def model_settings(recipe: Recipe, vocab_size: int) -> dict[str, Any]:
    """Fields of a TransformerConfig or of an engine's subclass of it; vocab_size: rows of the embedding on disk."""
    tp, pp, _ = recipe.model_parallel_sizes
    from megatron.core.transformer.enums import AttnBackend  # not before `cpu.install`

    backend = AttnBackend[recipe.trainer.attention_backend]
    settings: dict[str, Any] = {
        "attention_backend": backend,
        "seq_length": recipe.data.max_length,
        "calculate_per_token_loss": True,
        "cross_entropy_loss_fusion": False,  # its place is taken by ops.target_logprob
        # A vocabulary that tp does not divide gets zero rows at its end; target_logprob gives them no probability.
        "vocab_size": round_up(vocab_size, tp),
    }
    if pp > 1:
        # Micro-batches have the length of their longest example. Megatron then refuses the default expert dispatcher,
        # which a dense model's configuration has, too.
        settings |= {"variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall"}
    if recipe.parallel.virtual_pipeline_model_parallel_size is not None:
        # Megatron-LM's arguments.py demands this at pp 2, Megatron-Core does not: in one batch of sends between two
        # stages, which are each other's previous and next, an activation is taken for a gradient.
        settings |= {"overlap_p2p_comm": True, "batch_p2p_comm": False}
    if recipe.trainer.recompute != "none":
        settings["recompute_granularity"] = recipe.trainer.recompute
    if recipe.trainer.recompute == "full":
        settings |= {"recompute_method": "uniform", "recompute_num_layers": 1}
    if recipe.data.packing:
        settings["apply_rope_fusion"] = True  # unfused, each layer asks the device for the examples' lengths
    if backend is AttnBackend.local:
        settings["masked_softmax_fusion"] = False  # its kernels are Apex's
    if not torch.cuda.is_available():
        settings |= WITHOUT_CUDA
    return settings


def parallel_settings(recipe: Recipe) -> dict[str, Any]:
    """How the ranks divide the model, and the dtype of what pipeline stages send: fields that both engines have."""
    parallel, dtype = recipe.parallel, parameter_dtype(recipe)
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size,
        "context_parallel_size": parallel.context_parallel_size,
        "sequence_parallel": parallel.sequence_parallel and parallel.tensor_model_parallel_size > 1,
        "pipeline_dtype": dtype if parallel.pipeline_model_parallel_size > 1 else None,
    }


def parameter_dtype(recipe: Recipe) -> torch.dtype:
    return torch.bfloat16 if recipe.trainer.precision == "bf16" else torch.float32


def ddp_settings() -> dict[str, Any]:
    """Fields of a DistributedDataParallelConfig. The gradient is a sum: nothing is averaged in a collective."""
    return {
        "check_for_nan_in_grad": True,
        "grad_reduce_in_fp32": True,
        "use_distributed_optimizer": torch.cuda.is_available(),  # on a CPU it does not run
        "average_in_collective": False,
    }


def optimizer_settings(recipe: Recipe) -> dict[str, Any]:
    """Fields of an OptimizerConfig: Adam as the recipe has it."""
    optim = recipe.optim
    return {
        "optimizer": "adam",
        "lr": optim.lr,
        "min_lr": optim.min_lr,
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1],
        "adam_eps": optim.eps,
        "clip_grad": optim.clip_grad,
        "bf16": recipe.trainer.precision == "bf16",
        "use_distributed_optimizer": torch.cuda.is_available(),
    }


def warmup_steps(recipe: Recipe, num_steps: int) -> int:
    """Of `num_steps` optimizer steps."""
    return round(recipe.optim.warmup_ratio * num_steps)


def learning_rate(recipe: Recipe, step: int, num_steps: int) -> float:
    """That of optimizer step `step`, from 0: warmup from lr / (warmup + 1), then the recipe's schedule to min_lr.

    Bit for bit the numbers of nemo.core.optim.lr_scheduler (WarmupPolicy, CosineAnnealing, WarmupAnnealing) in
    nemo-toolkit 2.7, which the NeMo engine uses itself.
    """
    optim, warmup = recipe.optim, warmup_steps(recipe, num_steps)
    if step <= warmup and warmup > 0:
        return optim.lr * ((step + 1) / (warmup + 1))
    if optim.schedule == "constant":
        return optim.lr
    if optim.schedule == "linear":
        return optim.min_lr + (1 - (step - warmup) / (num_steps - warmup)) * (optim.lr - optim.min_lr)
    mult = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))
    return (optim.lr - optim.min_lr) * mult + optim.min_lr
