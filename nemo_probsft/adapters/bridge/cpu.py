"""The real Megatron-Bridge on a machine without CUDA: Megatron-Core's patches, and those of Bridge itself."""

from __future__ import annotations

import functools
import sys
import warnings
from types import ModuleType

import torch

from nemo_probsft.adapters.megatron import cpu
from nemo_probsft.adapters.megatron.cpu import Patch


class _Nothing(type):
    """A class whose every attribute is such a class: others may inherit from it and annotate with it."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})


def _patch_transformer_engine() -> None:
    import megatron.core.models.gpt  # asks whether there is a Transformer Engine, and must be told the truth

    package, module = (ModuleType(name) for name in ("transformer_engine", "transformer_engine.pytorch"))
    vars(package).update(__version__="0", pytorch=module, __path__=[])
    vars(module)["__getattr__"] = lambda name: getattr(_Nothing("pytorch", (), {}), name)
    stand_ins = {package.__name__: package, module.__name__: module}
    sys.modules.update(stand_ins)
    with warnings.catch_warnings(action="ignore"):  # ModelOpt and Megatron say at length what is not installed
        import megatron.bridge  # noqa: F401

    for name in stand_ins:
        del sys.modules[name]


def _patch_cuda_assertion() -> None:
    from megatron.bridge.training import setup
    from megatron.bridge.training.initialize import initialize_megatron

    setup.initialize_megatron = functools.partial(initialize_megatron, allow_no_cuda=True)


def _patch_compile_helpers() -> None:
    from megatron.bridge.training import initialize

    initialize.compile_helpers = lambda: None


def _patch_lora_layers() -> None:
    from megatron.bridge.peft import utils

    utils.HAVE_TE = False


def _probe_transformer_engine() -> object:
    import megatron.bridge.peft.lora_layers

    return megatron.bridge.peft.lora_layers


def _probe_cuda_assertion() -> None:
    from megatron.bridge.training import setup

    initialize = setup.initialize_megatron
    if not (isinstance(initialize, functools.partial) and initialize.keywords == {"allow_no_cuda": True}):
        initialize(cfg=None)


def _probe_compile_helpers() -> None:
    from megatron.bridge.training import initialize

    initialize.compile_helpers()


def _probe_lora_layers() -> object:
    from megatron.bridge.peft import utils

    return utils.HAVE_TE and isinstance(torch.nn.Module(), utils.TEColumnParallelLinear)


_RANGE = ">=0.5,<0.7"
PATCHES = (
    *cpu.PATCHES,
    Patch(
        name="transformer_engine",
        package="megatron-bridge",
        versions=_RANGE,
        upstream="megatron.bridge.peft.lora_layers",
        reason="`import megatron.bridge` imports Transformer Engine for LoRA's layers, whether it is there or not",
        apply=_patch_transformer_engine,
        probe=_probe_transformer_engine,
    ),
    Patch(
        name="cuda_assertion",
        package="megatron-bridge",
        versions=_RANGE,
        upstream="megatron.bridge.training.initialize.initialize_megatron",
        reason="asserts that there is CUDA; its argument allow_no_cuda is never passed by `setup`",
        apply=_patch_cuda_assertion,
        probe=_probe_cuda_assertion,
    ),
    Patch(
        name="compile_helpers",
        package="megatron-bridge",
        versions=_RANGE,
        upstream="megatron.core.datasets.utils.compile_helpers",
        reason="runs `make` on a Makefile that megatron-core's wheel lacks, and exits; the wheel has the result",
        apply=_patch_compile_helpers,
        probe=_probe_compile_helpers,
    ),
    Patch(
        name="bridge_lora_layers",
        package="megatron-bridge",
        versions=_RANGE,
        upstream="megatron.bridge.peft.utils.HAVE_TE",
        reason="True without Transformer Engine: Megatron's module for it can be imported, its classes are mocks",
        apply=_patch_lora_layers,
        probe=_probe_lora_layers,
    ),
)


def install() -> None:
    """Apply `PATCHES` in order, before anything imports Bridge. Raises ValueError where CUDA is present."""
    cpu.install(PATCHES)


def start_process_group() -> None:
    """gloo, before Bridge starts NCCL: it takes a group that is there. Its barriers would name a CUDA device."""
    torch.distributed.init_process_group("gloo")
