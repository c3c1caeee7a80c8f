"""Megatron-Bridge: its configuration, forward step, data and checkpoints around the shared step.

Import this before `megatron.bridge` on a machine without CUDA: it patches what Bridge needs there.
"""

from importlib import import_module
from typing import Any

_HOMES = {"ObjectiveStep": "step", "with_objective": "overrides"}
__all__ = ["ObjectiveStep", "with_objective"]


def __getattr__(name: str) -> Any:
    """These bring Bridge with them; the list of patches must be readable without."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
