"""What a Bridge configuration may not say if f(p) is to be trained: the table is in `config.exactness`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemo_probsft.config.exactness import BRIDGE_SETTINGS, bridge_values, refused_setting

if TYPE_CHECKING:
    from megatron.bridge.training.config import ConfigContainer


def check(cfg: ConfigContainer) -> None:
    """Raises ValueError, one line, that names the field, its value, the reason and the table."""
    if reason := refused_setting(bridge_values(cfg), BRIDGE_SETTINGS):
        raise ValueError(f"the Bridge configuration has {reason}; docs/exactness.md lists what is exact")


def vocabulary(cfg: ConfigContainer) -> int:
    """The size of the vocabulary without padding, as the model's configuration has it."""
    if cfg.model.vocab_size is None:
        raise ValueError("cfg.model.vocab_size is not set; set it to the size of the vocabulary without padding")
    return cfg.model.vocab_size
