"""Which attention a run computes with, and what that needs here: told before any rank starts.

Megatron's own names (megatron/core/transformer/enums.py, AttnBackend) and the variables of Transformer Engine that
Megatron sets for each (megatron/core/models/common/language_module/language_module.py), megatron-core 0.15-0.19.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from nemo_probsft.config import Recipe
from nemo_probsft.run.decisions import Decision
from nemo_probsft.run.engines import KINDS, Name

VARIABLES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")
BACKENDS = {  # what Megatron wants these variables to be, and what computes on a GPU
    "auto": ("111", "Transformer Engine chooses"),
    "flash": ("100", "flash-attn's kernels"),
    "fused": ("010", "cuDNN's kernels"),
    "unfused": ("001", "Transformer Engine without special kernels"),
    "local": ("000", "Megatron's own, without special kernels"),
}
FLASH = ("flash-attn", "flash-attn-3", "flash-attn-4")  # the distributions that Transformer Engine looks for


@dataclass(frozen=True)
class Machine:
    """What decides. cuda: there is a GPU."""

    cuda: bool
    transformer_engine: bool
    flash: bool
    environment: Mapping[str, str] = field(default_factory=dict)


def this_machine() -> Machine:
    import torch

    return Machine(
        cuda=torch.cuda.is_available(),
        transformer_engine=importlib.util.find_spec("transformer_engine") is not None,
        flash=any(map(_installed, FLASH)),
        environment=os.environ,
    )


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def decide(recipe: Recipe) -> list[Decision]:
    """For any machine."""
    backend = recipe.trainer.attention_backend
    return [Decision("attention", backend, f"{BACKENDS[backend][1]}; on a CPU, Megatron's own")]


def refuse(recipe: Recipe, engine: Name, machine: Machine) -> None:
    """Raises ValueError where the ranks would die of their attention, or compute another than the recipe says."""
    if machine.cuda and not machine.transformer_engine:
        container = KINDS[engine].install.partition(",")[0]
        problem = f"{engine} on a GPU needs Transformer Engine, which is not installed; {container}, "
        problem += "pip install 'transformer-engine[pytorch]', or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        raise recipe.error("engine", problem)
    backend = recipe.trainer.attention_backend
    if backend in ("flash", "fused") and not machine.cuda:
        problem = f"{backend} needs a GPU, and there is none; use auto, which without CUDA is Megatron-Core's own"
        raise recipe.error("trainer.attention_backend", problem)
    if backend == "flash" and not machine.flash:
        problem = "flash needs the package flash-attn, which is not installed; install it, or use auto or fused"
        raise recipe.error("trainer.attention_backend", problem)
    if machine.cuda and recipe.data.packing and (backend in ("unfused", "local") or recipe.trainer.precision == "fp32"):
        what = f"trainer.attention_backend {backend}" if backend in ("unfused", "local") else "trainer.precision fp32"
        problem = f"true on a GPU needs Transformer Engine's flash or fused attention, which {what} rules out; "
        problem += "use auto and bf16, or set this to false"
        raise recipe.error("data.packing", problem)
    for name, wanted in zip(VARIABLES, BACKENDS[backend][0], strict=True):
        value = machine.environment.get(name, wanted)
        if value != wanted:
            problem = f"{backend} needs {name}={wanted}, and the environment has {name}={value}; unset it, "
            problem += "trainer.attention_backend chooses"
            raise recipe.error("trainer.attention_backend", problem)
