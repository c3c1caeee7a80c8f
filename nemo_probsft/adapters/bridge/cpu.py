"""The real Megatron-Bridge on a machine without CUDA: Megatron-Core's patches, and those of Bridge itself."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from nemo_probsft.adapters.megatron import cpu
from nemo_probsft.adapters.megatron.cpu import Patch, stand_in
from nemo_probsft.adapters.megatron.settings import WITHOUT_CUDA

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer


def _patch_transformer_engine() -> None:
    import megatron.core.models.gpt  # asks whether there is a Transformer Engine, and must be told the truth

    # ModelOpt and Megatron say at length what is not installed.
    with stand_in("transformer_engine", "pytorch"), warnings.catch_warnings(action="ignore"):
        import megatron.bridge  # noqa: F401


def _patch_cuda_assertion() -> None:
    from megatron.bridge.training import setup
    from megatron.bridge.training.initialize import initialize_megatron

    setup.initialize_megatron = functools.partial(initialize_megatron, allow_no_cuda=True)


def _replace(module: str, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(importlib.import_module(module), name, value)


def _probe_cuda_assertion() -> None:
    from megatron.bridge.training import setup

    if not isinstance(setup.initialize_megatron, functools.partial):
        setup.initialize_megatron(cfg=None)


def _probe_lora_layers() -> object:
    from megatron.bridge.peft import utils

    return utils.HAVE_TE and isinstance(torch.nn.Module(), utils.TEColumnParallelLinear)


_INITIALIZE = "megatron.bridge.training.initialize"
_patch = functools.partial(Patch, package="megatron-bridge", versions=">=0.5,<0.7")
PATCHES = (
    *cpu.PATCHES,
    _patch(
        name="transformer_engine",
        upstream="megatron.bridge.peft.lora_layers",
        reason="`import megatron.bridge` imports Transformer Engine for LoRA's layers, whether it is there or not",
        apply=_patch_transformer_engine,
        probe=lambda: importlib.import_module("megatron.bridge"),
    ),
    _patch(
        name="cuda_assertion",
        upstream=f"{_INITIALIZE}.initialize_megatron",
        reason="asserts that there is CUDA; its argument allow_no_cuda is never passed by `setup`",
        apply=_patch_cuda_assertion,
        probe=_probe_cuda_assertion,
    ),
    _patch(
        name="compile_helpers",
        upstream="megatron.core.datasets.utils.compile_helpers",
        reason="runs `make` on a Makefile that megatron-core's wheel lacks, and exits; the wheel has the result",
        apply=_replace(_INITIALIZE, "compile_helpers", lambda: None),
        probe=lambda: importlib.import_module(_INITIALIZE).compile_helpers(),
    ),
    _patch(
        name="bridge_lora_layers",
        upstream="megatron.bridge.peft.utils.HAVE_TE",
        reason="True without Transformer Engine: Megatron's module for it can be imported, its classes are mocks",
        apply=_replace("megatron.bridge.peft.utils", "HAVE_TE", False),
        probe=_probe_lora_layers,
    ),
)


def install() -> None:
    """Apply `PATCHES` in order, before anything imports Bridge. Raises ValueError where CUDA is present."""
    cpu.install(PATCHES)


def settle(cfg: ConfigContainer) -> None:
    """Make a configuration one that trains without CUDA, and start gloo: Bridge takes a process group that is there."""
    from megatron.bridge.models.gpt_provider import local_layer_spec

    vars(cfg.model).update(WITHOUT_CUDA, transformer_layer_spec=local_layer_spec)
    cfg.ddp.use_distributed_optimizer = cfg.optimizer.use_distributed_optimizer = False
    cfg.dist.distributed_backend = "gloo"
    torch.distributed.init_process_group("gloo")
