"""What `context/` of a NeMo 2 checkpoint would build, read as data and without NeMo.

NeMo builds a model from context/io.json: a Fiddle tree that may name any importable function, call it with any argument
and unpickle files (nemo/lightning/io/mixin.py, `load`). A checkpoint can come from anywhere, so every name that loading
`<root>.model` would import or call is compared with those that NeMo's own checkpoints have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = "<root>.model"
# What Fiddle's own format is made of (fiddle/_src/experimental/serialization.py). An object of any other type is one of
# NeMo's, which unpickles a file.
STRUCTURE = re.compile(
    r"fiddle\._src\.(config\.(Config|BuildableTraverserMetadata)|partial\.(Partial|ArgFactory))"
    r"|builtins\.(dict|list|tuple|set|frozenset)"
)
MODEL = re.compile(r"nemo\.collections\.llm\.gpt\.model\.(llama\.Llama|qwen2\.Qwen2|qwen3\.Qwen3)Model")
CONFIG = re.compile(
    r"nemo\.collections\.llm\.gpt\.model\.(llama\.(Code)?Llama[23]?[12]?|qwen2\.Qwen25?|qwen3\.Qwen3)Config(\d+P?\d*[BM])?"
)
# Called while the model is built.
CALLED = re.compile(
    rf"{MODEL.pattern}|{CONFIG.pattern}"
    r"|nemo\.collections\.common\.tokenizers\.huggingface\.auto_tokenizer\.AutoTokenizer"
    r"|nemo\.lightning\.pytorch\.optim\.(megatron\.MegatronOptimizerModule|lr_scheduler\.\w+Scheduler)"
    r"|megatron\.core\.optimizer\.optimizer_config\.OptimizerConfig"
    r"|torch\.nn\.init\.\w+"
    r"|transformers\.generation\.configuration_utils\.GenerationConfig(\.\w+)?"
)
# Imported, and kept as a value.
NAMED = re.compile(
    r"torch\.(float32|float16|bfloat16)|torch\.nn\.(functional|init)\.\w+|torch\._C\._nn\.\w+"
    r"|megatron\.core\.(transformer|models|fusions|activations|extensions|utils)\.[\w.]+"
    r"|nemo\.collections\.llm\.(gpt\.model|fn)\.[\w.]+"
    r"|transformers\.generation\.configuration_utils\.GenerationConfig"
)


@dataclass(frozen=True)
class Context:
    """What the model would be built with."""

    settings: dict[str, Any]  # of its configuration: given ones, over those that NeMo wrote down; names as text
    adapters: bool  # the checkpoint holds adapters of another one
    trust_remote_code: bool  # the tokenizer would run code that lies beside it


def read_context(directory: Path) -> Context:
    """Raises ValueError, one line, for a context that is damaged, or that names code which NeMo's own do not."""
    source = directory / "io.json"
    try:
        objects = json.loads(source.read_text(encoding="utf-8"))["objects"]
        root = next(name for name, item in objects.items() if ROOT in item.get("paths", []))
        _check_names(objects, root)
        model = _arguments(objects, root)
        config, tokenizer = _reference(model.get("config")), _reference(model.get("tokenizer"))
        settings = {name: _plain(value) for name, value in _arguments(objects, config).items()}
        if not MODEL.fullmatch(_target(objects, root)) or not CONFIG.fullmatch(_target(objects, config)):
            raise _Foreign(f"a model {_target(objects, root)} of {_target(objects, config)}")
        trusted = tokenizer in objects and _plain(_arguments(objects, tokenizer).get("trust_remote_code"))
    except _Foreign as error:
        raise ValueError(
            f"{source} would build {error}, which is none of NeMo's Llama, Qwen2 and Qwen3 parts; export it with "
            "`nemo-probsft convert export` and train from that directory"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StopIteration, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{source} is not the description of a NeMo model ({reason}); save the model again") from None
    written = _written_settings(directory / "model.yaml")
    return Context(written | settings, _plain(model.get("model_transform")) is not None, bool(trusted))


class _Foreign(Exception):
    """A name that is not on the lists."""


def _check_names(objects: dict[str, Any], root: str) -> None:
    """NeMo imports the type of every object that may belong to the model, and then builds what hangs on the root."""
    for item in objects.values():
        if "paths" not in item or any(ROOT in path for path in item["paths"]):
            _check(_dotted(item["type"]), STRUCTURE)
    for name in _reachable(objects, root):
        item = objects[name]
        _check(_dotted(item["type"]), STRUCTURE)
        for key, value in item["items"]:
            if isinstance(value, dict) and value.get("type") == "pyref":
                _check(_dotted(value), CALLED if key == "Attr(name='fn_or_cls')" else NAMED)


def _check(name: str, allowed: re.Pattern[str]) -> None:
    if not allowed.fullmatch(name):
        raise _Foreign(name)


def _reachable(objects: dict[str, Any], root: str) -> list[str]:
    found, left = [], [root]
    while left:
        name = left.pop()
        if name not in found:
            found.append(name)
            left += _references(objects[name])
    return found


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value.get("type") == "ref":
        yield value["key"]
    elif isinstance(value, (dict, list)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _references(child)


def _arguments(objects: dict[str, Any], name: str) -> dict[str, Any]:
    """Argument -> its node, of a Config."""
    return {key.removeprefix("Attr(name='").removesuffix("')"): value for key, value in objects[name]["items"]}


def _target(objects: dict[str, Any], name: str) -> str:
    metadata = objects[_reference(objects[name]["metadata"])]
    return _dotted(dict(metadata["items"])["Attr(name='fn_or_cls')"])


def _reference(node: Any) -> str:
    return node["key"] if isinstance(node, dict) and node.get("type") == "ref" else ""


def _dotted(pyref: dict[str, Any]) -> str:
    return f"{pyref['module']}.{pyref['name']}"


def _plain(node: Any) -> Any:
    """A leaf's value, the name of a function or class, "an object" for anything built; None where nothing is given."""
    kind = node.get("type") if isinstance(node, dict) else None
    if kind == "leaf":
        return node["value"]
    if kind == "pyref":
        return _dotted(node)
    return None if node is None else "an object"


def _written_settings(source: Path) -> dict[str, Any]:
    """The configuration with the defaults of its class, which NeMo writes beside io.json for people to read."""
    try:
        config = yaml.safe_load(source.read_text(encoding="utf-8"))["config"]
        return {name: _called(value) for name, value in config.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError):
        raise ValueError(f"{source} was not written by NeMo; save the model again") from None


def _called(value: Any) -> Any:
    return value["_target_"] if isinstance(value, dict) and "_target_" in value else value
