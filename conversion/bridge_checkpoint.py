"""What a checkpoint of Megatron-Bridge has besides its tensors: trackers, the state of training, run_config.yaml.

Read by `_load_checkpoint_from_path` (megatron/bridge/training/checkpointing.py) for `checkpoint.pretrained_checkpoint`,
and by `load_megatron_model` (training/model_load_save.py), which builds the model from run_config.yaml. Only settings
that differ from the defaults of their class are stored, so that every version with these classes can read them.
"""

from pathlib import Path
from typing import Any

import torch
import yaml

from conversion.checkpoint import RUN_CONFIG, TRACKER
from conversion.families import VOCAB_MULTIPLE, ModelSpec, parts_that_bridge_adds, rope_that_bridge_replaces
from conversion.torch_dist import save

ITERATION = "iter_0000000"
# Megatron-Core 0.18 reads the common state from common.pt; 0.19 writes it among the tensors and reads common.pt first.
COMMON_STATE = "common_state/shard_0_1"
_FUSIONS_OF_LLAMA = ("apply_rope_fusion", "bias_activation_fusion", "bias_dropout_fusion", "persist_layer_norm")


def refuse_what_bridge_changes(config: dict, file: Path) -> None:
    """Raises: ValueError if Megatron-Bridge would compute another function than transformers."""
    if problem := rope_that_bridge_replaces(config) or parts_that_bridge_adds(config):
        raise ValueError(f"{file}: {problem}; use another model, or NeMo 2 (--engine nemo)")


def write_state(root: Path, spec: ModelSpec, dtype: str) -> None:
    """Everything but the tensors, into `root` and its iteration. dtype: torch name of the weights.

    No path is written, which would be wrong as soon as the checkpoint moves to another machine.
    """
    iteration = root / ITERATION
    for file in (iteration / "train_state.pt", root / "latest_train_state.pt"):
        with file.open("wb") as stream:
            save(_train_state(), stream)
    text = yaml.safe_dump(_run_config(spec, dtype))
    (iteration / RUN_CONFIG).write_text(text, encoding="utf-8")
    (root / TRACKER).write_text("0", encoding="utf-8")


def common_state() -> dict[str, Any]:
    """The unsharded state of every rank: no progress, and how Megatron laid the tensors out."""
    return {
        "checkpoint_version": 3.0,
        "iteration": 0,
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }


def _train_state() -> dict[str, torch.Tensor]:
    """`TrainState.state_dict` of megatron/bridge/training/state.py before the first step."""
    counts = ("step", "consumed_train_samples", "skipped_train_samples", "consumed_valid_samples")
    return {
        **{name: torch.tensor(0) for name in counts},
        "floating_point_operations_so_far": torch.tensor(0.0),
        **{name: torch.tensor(False) for name in ("do_train", "do_valid", "do_test")},
    }


def _run_config(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    return {
        "_target_": "megatron.bridge.training.config.ConfigContainer",
        "checkpoint": {
            "_target_": "megatron.bridge.training.config.CheckpointConfig",
            "ckpt_format": "torch_dist",
            "fully_parallel_save": True,
            "save_optim": False,
            "save_rng": False,
        },
        "model": _model(spec, dtype),
        "peft": None,
        "tokenizer": None,
        "train": None,
    }


def _model(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """What `AutoBridge.to_megatron_provider` makes of config.json (`provider_bridge` of the Llama and Qwen bridges)."""
    scaling = spec.rope_scaling or {}
    fusions = dict.fromkeys(_FUSIONS_OF_LLAMA, True) if spec.model_type == "llama" else {}
    return {
        "_target_": "megatron.bridge.models.gpt_provider.GPTModelProvider",
        **spec.values,
        **fusions,
        "vocab_size": spec.vocab_size,
        # The largest power of two that divides it, as `make_vocab_size_divisible_by` says.
        "make_vocab_size_divisible_by": min(spec.vocab_size & -spec.vocab_size, VOCAB_MULTIPLE),
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "gated_linear_unit": True,
        "activation_func": _symbol("torch.nn.functional.silu"),
        "add_bias_linear": False,
        "add_qkv_bias": spec.qkv_bias,
        "qk_layernorm": spec.qk_norm,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "rope_scaling": bool(scaling),
        "rope_scaling_factor": scaling.get("factor", 1.0),
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "params_dtype": _symbol(f"torch.{dtype}"),
    }


def _symbol(name: str) -> dict[str, Any]:
    """A function or class that Bridge imports and does not call."""
    return {"_target_": name, "_call_": False}
