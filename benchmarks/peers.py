"""Other implementations of the loss of given logits, as (logits [T, V], labels [T]) -> -log p [T].

Each is there where it can be imported. Their outputs are compared like ours: what is fast and wrong shows as wrong.
quack-kernels 0.6.5 gives NaN where the last of the 16 blocks that share a row lies wholly behind the vocabulary, as
with 151936 columns in bf16: its `online_softmax_reduce` takes exp(-inf - -inf) there. Compare at 131072, too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def losses(device: str) -> dict[str, Loss]:
    """What one device is enough for, by name."""
    found: dict[str, Loss] = {
        "torch cross_entropy": _cross_entropy,
        "torch cross_entropy, compiled": torch.compile(_cross_entropy),
        "paper: log_softmax + gather": _paper,
    }
    if device == "cuda":
        for add in (_quack, _transformer_engine, _liger, _flash_attention):
            found |= add()
    return found


def imported(module: str) -> ModuleType | None:
    """None where the package is not installed, or not for this machine."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, reduction="none")


def _paper(logits: Tensor, labels: Tensor) -> Tensor:
    return -F.log_softmax(logits.float(), dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def _quack() -> dict[str, Loss]:
    if (module := imported("quack.cross_entropy")) is None:
        return {}
    loss = module.cross_entropy
    return {
        "quack": lambda x, y: loss(x, y, reduction="none"),
        "quack, in place": lambda x, y: loss(x, y, reduction="none", inplace_backward=True),
    }


def _transformer_engine() -> dict[str, Loss]:
    if (module := imported("transformer_engine.pytorch.cross_entropy")) is None:
        return {}

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        """[T, 1] is what it takes for [s, b]; no smoothing, no reduction, no group."""
        return module.parallel_cross_entropy(logits.unsqueeze(1), labels.unsqueeze(1), 0.0, False, None).squeeze(1)

    return {"transformer engine": loss}


def _liger() -> dict[str, Loss]:
    if (module := imported("liger_kernel.transformers.functional")) is None:
        return {}
    return {"liger": lambda x, y: module.liger_cross_entropy(x, y, reduction="none")}


def _flash_attention() -> dict[str, Loss]:
    if (module := imported("flash_attn.ops.triton.cross_entropy")) is None:
        return {}
    return {"flash-attn, in place": lambda x, y: module.cross_entropy_loss(x, y, inplace_backward=True)[0]}
