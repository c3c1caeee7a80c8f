"""The real NeMo 2 on a machine without CUDA: Megatron-Core's patches, and those of NeMo itself."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from nemo_probsft.adapters.megatron import cpu
from nemo_probsft.adapters.megatron.cpu import Patch


def _patch_checkpoint_devices() -> None:
    from nemo.lightning.io import pl

    pl._fix_tensors_device = lambda checkpoint: checkpoint


def _patch_lora_linear() -> None:
    from nemo.collections.llm.peft import lora

    lora.te = SimpleNamespace(Linear=None)  # no layer's class is None


def _patch_lora_layers() -> None:
    from nemo.collections.llm.peft import utils

    utils.HAVE_TE = False


def _probe_checkpoint_devices() -> object:
    from nemo.lightning.io import pl

    return pl._fix_tensors_device({})


def _probe_lora_linear() -> object:
    from nemo.collections.llm.peft import lora

    return torch.nn.Module is lora.te.Linear


def _probe_lora_layers() -> object:
    from nemo.collections.llm.peft import utils

    return utils.HAVE_TE and isinstance(torch.nn.Module(), utils.TECL)


PATCHES = (
    *cpu.PATCHES,
    Patch(
        name="checkpoint_devices",
        package="nemo-toolkit",
        versions=">=2.6,<3",
        upstream="nemo.lightning.io.pl._fix_tensors_device",
        reason="asserts that CUDA is initialised on every checkpoint load",
        apply=_patch_checkpoint_devices,
        probe=_probe_checkpoint_devices,
    ),
    Patch(
        name="lora_linear",
        package="nemo-toolkit",
        versions=">=2.6,<3",
        upstream="nemo.collections.llm.peft.lora.LoRA.transform",
        reason="compares every layer's class with te.Linear, which raises where Transformer Engine is not installed",
        apply=_patch_lora_linear,
        probe=_probe_lora_linear,
    ),
    Patch(
        name="lora_layers",
        package="nemo-toolkit",
        versions=">=2.6,<3",
        upstream="nemo.collections.llm.peft.utils.HAVE_TE",
        reason="True without Transformer Engine: Megatron's module for it can be imported, its classes are mocks",
        apply=_patch_lora_layers,
        probe=_probe_lora_layers,
    ),
)


def install() -> None:
    """Apply `PATCHES` in order, before anything imports NeMo. Raises ValueError where CUDA is present."""
    cpu.install(PATCHES)
