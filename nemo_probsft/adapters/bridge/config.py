"""Recipe -> Bridge's ConfigContainer.

Sources: megatron/bridge/training/config.py, models/conversion/auto_bridge.py, models/gpt_provider.py,
megatron-bridge 0.6.2.
"""

from __future__ import annotations

import torch
from megatron.bridge import AutoBridge
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.peft.lora import LoRA
from megatron.bridge.training import config as bridge
from megatron.bridge.training.mixed_precision import bf16_mixed
from transformers import AutoConfig

from nemo_probsft.adapters.bridge import cpu
from nemo_probsft.adapters.bridge.data import SFTData
from nemo_probsft.adapters.megatron.settings import (
    ddp_settings,
    model_settings,
    optimizer_settings,
    parallel_settings,
    parameter_dtype,
)
from nemo_probsft.config import Recipe
from nemo_probsft.run.prepare import Prepared

NEVER = 1 << 30


def container(
    recipe: Recipe, prepared: Prepared, data: SFTData, checkpoint: bridge.CheckpointConfig
) -> bridge.ConfigContainer:
    """Training of `prepared.num_steps` steps on `data`."""
    decay = recipe.optim.weight_decay
    cfg = bridge.ConfigContainer(
        model=_model(recipe, prepared),
        train=bridge.TrainingConfig(
            train_iters=prepared.num_steps,
            global_batch_size=data.micro_batches.num_rows,
            micro_batch_size=recipe.data.micro_batch_size,
        ),
        validation=bridge.ValidationConfig(eval_iters=0),
        optimizer=bridge.OptimizerConfig(**optimizer_settings(recipe)),
        # The learning rate is set by `RecipeStep`; Bridge's own schedule stands still. It counts rows, of which a run
        # that goes on at another layout, or without packing, may have another number.
        scheduler=bridge.SchedulerConfig(
            lr_decay_style="constant",
            start_weight_decay=decay,
            end_weight_decay=decay,
            override_opt_param_scheduler=True,
        ),
        ddp=bridge.DistributedDataParallelConfig(**ddp_settings()),
        dataset=data,
        logger=bridge.LoggerConfig(log_interval=NEVER, logging_level=30, skip_train_metrics_log=True),
        tokenizer=bridge.TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=prepared.vocab_size - 1),  # adds 1
        checkpoint=checkpoint,
        rng=bridge.RNGConfig(seed=1 + recipe.trainer.seed),  # which Bridge wants to be positive
        peft=None if recipe.peft is None else LoRA(dim=recipe.peft.dim, alpha=recipe.peft.alpha, dropout=0.0),
        mixed_precision=bf16_mixed() if recipe.trainer.precision == "bf16" else None,
    )
    if not torch.cuda.is_available():
        cpu.settle(cfg)
    return cfg


def _model(recipe: Recipe, prepared: Prepared) -> GPTModelProvider:
    """Bridge's description of the model of `prepared.hf`, with the recipe's settings."""
    config = AutoConfig.from_pretrained(prepared.hf, trust_remote_code=recipe.model.trust_remote_code)
    provider = AutoBridge.from_hf_config(config).to_megatron_provider(load_weights=False)
    dtype = parameter_dtype(recipe)
    settings = model_settings(recipe, prepared.vocab_size) | parallel_settings(recipe)
    settings |= {
        "params_dtype": dtype,
        "bf16": dtype is torch.bfloat16,
        "fp16": False,
        "autocast_dtype": dtype,
        "make_vocab_size_divisible_by": 1,
    }
    for name, value in settings.items():
        assert hasattr(provider, name), name
        setattr(provider, name, value)
    return provider
