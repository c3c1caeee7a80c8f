"""Megatron-Bridge's description of a run, `run_config.yaml` of a checkpoint, read as data without Bridge.

Bridge dumps its dataclasses with `_target_` entries (megatron/bridge/utils/yaml_utils.py), names that
`AutoBridge.load_megatron_model` imports and calls (utils/instantiate_utils.py, with a list of allowed prefixes). A
checkpoint can come from anywhere, so nothing is instantiated here, and names that Bridge's own checkpoints of the
supported families do not have are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from conversion.checkpoint import RUN_CONFIG
from conversion.lora_settings import LoraSettings
from nemo_probsft.files import first_line

_MODEL = re.compile(r"megatron\.bridge\.models\.(gpt_provider|llama\.\w+|qwen\.\w+)\.\w+Provider\w*")
# Whole names, without a part that could lead into a module that one of these has imported.
_PARTS = re.compile(
    r"torch\.(float32|float16|bfloat16)|torch\.nn\.(functional|init)\.\w+|torch\._C\._nn\.\w+"
    r"|megatron\.core\.(transformer\.enums|activations)\.\w+"
    r"|megatron\.core\.(timers\.Timers|process_groups_config\.ProcessGroupCollection)"
    r"|megatron\.core\.optimizer\.\w+\.\w*Optimizer\.scale_loss"
    r"|megatron\.core\.distributed\.(finalize_model_grads\.finalize_model_grads|\w+\.\w*DataParallel\.\w+)"
    r"|megatron\.bridge\.models\.gpt_provider\.\w+_layer_spec"
    r"|transformers\.generation\.configuration_utils\.GenerationConfig(\.from_dict)?"
)
_LORA = "megatron.bridge.peft.lora.LoRA"


def read_run_config(iteration: Path) -> dict[str, Any]:
    """Settings of the model that the checkpoint `iteration` would be built with; functions and classes by their names.

    Raises: ValueError, one line, if the file is missing or damaged, or names other code than Bridge's own do.
    """
    file = iteration / RUN_CONFIG
    model = _section(file, "model")
    if model is None:
        raise ValueError(f"{file} has no section model; copy the checkpoint again")
    target = model.pop("_target_", None)
    if not isinstance(target, str) or not _MODEL.fullmatch(target):
        raise ValueError(f"{file} would build {target}, which is no model of Bridge's GPT families; {_REMEDY}")
    for name in _targets(model):
        if not isinstance(name, str) or not _PARTS.fullmatch(name):
            raise ValueError(f"{file} would call {name}, which is none of Bridge's own parts; {_REMEDY}")
    return {name: _plain(value) for name, value in model.items()}


def read_lora_settings(iteration: Path) -> tuple[LoraSettings, Path | None]:
    """Settings of the adapters of a run, and the checkpoint or Hugging Face directory that they were trained on.

    Raises: ValueError if they are not there.
    """
    file = iteration / RUN_CONFIG
    peft, checkpoint = _section(file, "peft"), _section(file, "checkpoint") or {}
    if peft is None or peft.get("_target_") != _LORA:
        raise ValueError(f"{file}: the adapters are of {(peft or {}).get('_target_')}; only {_LORA} is supported")
    given = {name: peft[name] for name in ("dim", "alpha", "dropout") if name in peft}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{file}: peft.{name} is {value!r}, not a number; copy the checkpoint again")
    base = checkpoint.get("pretrained_checkpoint")
    return LoraSettings(**given), Path(base) if isinstance(base, str) else None


_REMEDY = "export it with `nemo-probsft convert export` and train from that directory"


def _section(file: Path, name: str) -> dict[str, Any] | None:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)[name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        problem = f"not the description of a run of Bridge ({type(error).__name__}: {first_line(error)})"
        raise ValueError(f"{file}: {problem}; copy the checkpoint again") from None
    if content is not None and not isinstance(content, dict):
        raise ValueError(f"{file}: {name} is not a mapping but {content!r}; copy the checkpoint again")
    return content


# A file of 700 lines takes 0.01 s with libyaml, 0.2 s without.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _targets(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield value["_target_"]
        for child in value.values():
            yield from _targets(child)
    elif isinstance(value, list):
        for child in value:
            yield from _targets(child)


def _plain(value: Any) -> Any:
    """An enumeration's name, the dotted name of a function or class, or the value itself."""
    if isinstance(value, dict) and "_target_" in value:
        return value.get("_name_", value["_target_"])
    return value
