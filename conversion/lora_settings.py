"""What a checkpoint of LoRA adapters says about them. Light: no torch, so that it can be read before a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LoraSettings:
    """Arguments of LoRA, with the defaults that both engines give their classes and NeMo leaves out of its files."""

    dim: int = 32
    alpha: int = 32
    dropout: float = 0.0
