"""Megatron-Bridge: its configuration, forward step, data and checkpoints around the shared step.

Import this before `megatron.bridge` on a machine without CUDA: it patches what Bridge needs there.
"""

from typing import Any

__all__ = ["ObjectiveStep"]


def __getattr__(name: str) -> Any:
    """`ObjectiveStep` brings Bridge with it; the list of patches must be readable without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nemo_probsft.adapters.bridge.step import ObjectiveStep

    return ObjectiveStep
