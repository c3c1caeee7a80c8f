"""Recipe -> Bridge's ConfigContainer.

Sources: megatron/bridge/training/config.py, models/conversion/auto_bridge.py, models/gpt_provider.py,
megatron-bridge 0.6.2.
"""

from __future__ import annotations

import torch
from megatron.bridge import AutoBridge
from megatron.bridge.models.gpt_provider import GPTModelProvider, local_layer_spec
from megatron.bridge.peft.lora import LoRA
from megatron.bridge.training.config import (
    CheckpointConfig,
    ConfigContainer,
    DistributedDataParallelConfig,
    DistributedInitConfig,
    LoggerConfig,
    OptimizerConfig,
    RNGConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainingConfig,
    ValidationConfig,
)
from megatron.bridge.training.mixed_precision import bf16_mixed
from transformers import AutoConfig

from nemo_probsft.adapters.bridge.data import SFTData
from nemo_probsft.adapters.megatron.settings import ddp_settings, model_settings, optimizer_settings
from nemo_probsft.config import Recipe
from nemo_probsft.run.prepare import Prepared

NEVER = 1 << 30


def container(recipe: Recipe, prepared: Prepared, data: SFTData, checkpoint: CheckpointConfig) -> ConfigContainer:
    """Training of `prepared.num_steps` steps on `data`."""
    cuda = torch.cuda.is_available()
    return ConfigContainer(
        model=_model(recipe, prepared),
        train=TrainingConfig(
            train_iters=prepared.num_steps,
            global_batch_size=recipe.data.global_batch_size,
            micro_batch_size=recipe.data.micro_batch_size,
        ),
        validation=ValidationConfig(eval_iters=0),
        optimizer=OptimizerConfig(**optimizer_settings(recipe)),
        # The recipe's schedule is set at the start of every step (`trainer.Schedule`); Bridge's stands still.
        scheduler=SchedulerConfig(
            lr_decay_style="constant",
            start_weight_decay=recipe.optim.weight_decay,
            end_weight_decay=recipe.optim.weight_decay,
        ),
        ddp=DistributedDataParallelConfig(**ddp_settings()),
        dataset=data,
        logger=LoggerConfig(log_interval=NEVER, tensorboard_dir=None, logging_level=30, skip_train_metrics_log=True),
        tokenizer=TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=prepared.vocab_size - 1),  # it adds one
        checkpoint=checkpoint,
        dist=DistributedInitConfig(distributed_backend="nccl" if cuda else "gloo"),
        rng=RNGConfig(seed=1 + recipe.trainer.seed),  # which Bridge wants to be positive
        peft=None if recipe.peft is None else LoRA(dim=recipe.peft.dim, alpha=recipe.peft.alpha, dropout=0.0),
        mixed_precision=bf16_mixed() if recipe.trainer.precision == "bf16" else None,
    )


def _model(recipe: Recipe, prepared: Prepared) -> GPTModelProvider:
    """Bridge's description of the model of `prepared.hf`, with the recipe's settings."""
    config = AutoConfig.from_pretrained(prepared.hf, trust_remote_code=recipe.model.trust_remote_code)
    provider = AutoBridge.from_hf_config(config).to_megatron_provider(load_weights=False)
    parallel = recipe.parallel
    dtype = torch.bfloat16 if recipe.trainer.precision == "bf16" else torch.float32
    settings = model_settings(recipe, prepared.vocab_size) | {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline_model_parallel_size,
        "context_parallel_size": parallel.context_parallel_size,
        "sequence_parallel": parallel.sequence_parallel and parallel.tensor_model_parallel_size > 1,
        "pipeline_dtype": dtype,
        "params_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
        "fp16": False,
        "autocast_dtype": dtype,
        "make_vocab_size_divisible_by": 1,
    }
    if not torch.cuda.is_available():
        settings["transformer_layer_spec"] = local_layer_spec
    for name, value in settings.items():
        assert hasattr(provider, name), name
        setattr(provider, name, value)
    return provider
