"""A Bridge user's YAML and command line that name an `objective`, which Bridge by itself drops with a warning.

Source: megatron/bridge/training/utils/omegaconf_utils.py (process_config_with_overrides), megatron-bridge 0.6.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from nemo_probsft.adapters.bridge.step import ObjectiveStep  # isort: skip  makes Bridge importable
from megatron.bridge.training.config import ConfigContainer
from megatron.bridge.training.utils import omegaconf_utils as bridge
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nemo_probsft.files import first_line


def with_objective(
    cfg: ConfigContainer, file: str | Path | None = None, overrides: Sequence[str] = ()
) -> ObjectiveStep:
    """Apply a YAML file and then `section.field=value` to `cfg`: the step of the `objective` that they name.

    Raises ValueError where none is named, and for a key that Bridge does not know: it would be dropped.
    """
    content = {} if file is None else yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    ours = [text for text in overrides if text.startswith("objective=")]
    named = [content.pop("objective", None), *(yaml.safe_load(text.partition("=")[2]) for text in ours)]
    objective = next((value for value in reversed(named) if value is not None), None)
    if objective is None:
        raise ValueError("no objective is named; put `objective: p` into the YAML or objective=p into the overrides")
    known, callables = bridge.create_omegaconf_dict_config(cfg)
    OmegaConf.set_struct(known, True)
    try:
        known = OmegaConf.merge(known, content)
        known = bridge.parse_hydra_overrides(known, [text for text in overrides if text not in ours])
    except (OmegaConfBaseException, bridge.OverridesError) as error:
        raise ValueError(f"{file or 'overrides'}: {first_line(error)}; remove it, Bridge would drop it") from None
    bridge.apply_overrides(cfg, OmegaConf.to_container(known, resolve=True), callables)
    return ObjectiveStep(cfg, objective)
