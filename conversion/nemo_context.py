"""NeMo's description of a model, `context/io.json` of a checkpoint: written for NeMo, and read as data without NeMo.

It is a Fiddle tree in JSON (fiddle/_src/experimental/serialization.py): a table of nodes, each with its arguments and
with its target, the class or function that `nemo.lightning.io.load_context` calls with them.
Such a tree may name any importable function, call it with any argument and unpickle files (nemo/lightning/io/mixin.py,
`load`). A checkpoint can come from anywhere, so every name that loading `<root>.model` would import or call is compared
with those that NeMo's own checkpoints have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from conversion.families import VOCAB_MULTIPLE, ModelSpec
from conversion.lora_settings import LoraSettings

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
_ROPE_NAMES = {
    "factor": "scale_factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "old_context_len",
}
_FLAGS = {"bfloat16": {"bf16": True}, "float16": {"fp16": True}, "float32": {}}


@dataclass(frozen=True)
class Context:
    """What the model would be built with."""

    settings: dict[str, Any]  # of its configuration: given ones, over those that NeMo wrote down; names as text
    adapters: bool  # the checkpoint holds adapters of another one
    trust_remote_code: bool  # the tokenizer would run code that lies beside it


def write_context(directory: Path, spec: ModelSpec, dtype: str, tokenizer: str | None) -> None:
    """Make `directory` and write io.json into it, for all NeMo versions that have these classes.

    Only arguments that differ from the defaults of their class are stored. dtype: torch name of the weights.
    tokenizer: its directory relative to `directory`, None if there is none.
    """
    tree = _Tree({})
    values = _values(spec) | _FLAGS[dtype] | {"params_dtype": _symbol("torch", dtype)}
    arguments = {"config": tree.add(spec.nemo_config, "model.config", values)}
    if tokenizer is not None:
        arguments["tokenizer"] = tree.add(
            ("nemo.collections.common.tokenizers.huggingface.auto_tokenizer", "AutoTokenizer"),
            "model.tokenizer",
            {"pretrained_model_name": tokenizer},
        )
    model = tree.add(spec.nemo_model, "model", arguments)
    strategy = tree.add(
        ("nemo.lightning.pytorch.strategies.megatron_strategy", "MegatronStrategy"),
        "trainer.strategy",
        {"ckpt_save_optimizer": False},
    )
    trainer = tree.add(
        ("nemo.lightning.pytorch.trainer", "Trainer"),
        "trainer",
        {"accelerator": "cpu", "devices": 1, "strategy": strategy},
    )
    root = tree.add(("nemo.lightning.io.pl", "TrainerContext"), "", {"model": model, "trainer": trainer})
    directory.mkdir()
    (directory / "io.json").write_text(json.dumps(tree.document(root)), encoding="utf-8")


def _values(spec: ModelSpec) -> dict[str, Any]:
    """Arguments of the class of the configuration, besides the dtype."""
    padded = -(-spec.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    scaling = spec.rope_scaling or {}
    return {
        **spec.values,
        "vocab_size": padded,
        "make_vocab_size_divisible_by": VOCAB_MULTIPLE,
        **{nemo: scaling[hf] for hf, nemo in _ROPE_NAMES.items() if scaling},
    }


def read_context(directory: Path) -> Context:
    """What loading the model would build.

    Raises: ValueError, one line, if the context is damaged or names code that NeMo's own checkpoints do not name.
    """
    source = directory / "io.json"
    try:
        tree = _Tree.read(source)
        root = tree.at(ROOT)
        _check_names(tree, root)
        model = tree.arguments(root)
        config, tokenizer = _reference(model.get("config")), _reference(model.get("tokenizer"))
        settings = {name: _plain(value) for name, value in tree.arguments(config).items()}
        if not MODEL.fullmatch(tree.target(root)) or not CONFIG.fullmatch(tree.target(config)):
            raise _Foreign(f"a model {tree.target(root)} of {tree.target(config)}")
        trusted = tokenizer in tree.objects and _plain(tree.arguments(tokenizer).get("trust_remote_code"))
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


def read_lora_settings(directory: Path) -> LoraSettings:
    """Settings of the LoRA adapters that a training run saved. Raises: ValueError if they are not there."""
    source = directory / "io.json"
    try:
        tree = _Tree.read(source)
        found = [name for name in tree.objects if tree.calls(name) and tree.target(name).endswith(".LoRA")]
        given = tree.arguments(found[0]) if found else {}
        settings = {name: _number(given[name]) for name in ("dim", "alpha", "dropout") if name in given}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{source}: missing or damaged, but it holds dim and alpha of the LoRA adapters; copy the whole checkpoint"
        ) from error
    if not found:
        raise ValueError(f"{source}: no LoRA settings, so their dim and alpha are unknown; copy the whole checkpoint")
    return LoraSettings(**settings)


class _Tree:
    """The table of nodes, by key; a node refers to another one by `{"type": "ref", "key": key}`."""

    def __init__(self, objects: dict[str, Any]) -> None:
        self.objects = objects

    @classmethod
    def read(cls, file: Path) -> _Tree:
        return cls(json.loads(file.read_text(encoding="utf-8"))["objects"])

    def document(self, root: dict[str, Any]) -> dict[str, Any]:
        counts = dict.fromkeys(self.objects, 1)
        return {"root": root, "objects": self.objects, "refcounts": counts, "version": "0.0.1"}

    def add(self, target: tuple[str, str], path: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A `fiddle.Config` of `target` (module, name) at `path` below the root; returns the reference to it."""
        full_path = f"<root>.{path}" if path else "<root>"
        names = [[f"Index(index={i})", name] for i, name in enumerate(arguments)]
        metadata_class = _symbol("fiddle._src.config", "BuildableTraverserMetadata")
        metadata = {
            "type": metadata_class,
            "items": [
                [_TARGET, _symbol(*target)],
                [_attribute("argument_names"), self._add(_builtin("tuple", names))],
                [_attribute("argument_tags"), self._add(_builtin("dict", []))],
                [_attribute("argument_history"), self._add(_builtin("dict", []))],
            ],
            "metadata": metadata_class,
        }
        items = [[_attribute(name), _node(value, f"{full_path}.{name}")] for name, value in arguments.items()]
        return self._add(
            {
                "type": _symbol("fiddle._src.config", "Config"),
                "items": items,
                "metadata": self._add(metadata),
                "paths": [full_path],
            }
        )

    def _add(self, content: dict[str, Any]) -> dict[str, Any]:
        key = f"object_{len(self.objects) + 1}"
        self.objects[key] = content
        return {"type": "ref", "key": key}

    def at(self, path: str) -> str:
        """Key of the node at `path`."""
        return next(key for key, item in self.objects.items() if path in item.get("paths", []))

    def arguments(self, key: str) -> dict[str, Any]:
        return {name.removeprefix("Attr(name='").removesuffix("')"): node for name, node in self.objects[key]["items"]}

    def calls(self, key: str) -> bool:
        """True for a node that has a target."""
        metadata = self.objects.get(_reference(self.objects[key].get("metadata")))
        return metadata is not None and any(name == _TARGET for name, _ in metadata["items"])

    def target(self, key: str) -> str:
        metadata = self.objects[_reference(self.objects[key]["metadata"])]
        return _dotted(dict(metadata["items"])[_TARGET])

    def reachable(self, key: str) -> list[str]:
        found, left = [], [key]
        while left:
            name = left.pop()
            if name not in found:
                found.append(name)
                left += _references(self.objects[name])
        return found


class _Foreign(Exception):
    """A name that is not on the lists."""


def _check_names(tree: _Tree, root: str) -> None:
    """NeMo imports the type of every object that may belong to the model, and then builds what hangs on the root."""
    for item in tree.objects.values():
        if "paths" not in item or any(ROOT in path for path in item["paths"]):
            _check(_dotted(item["type"]), STRUCTURE)
    for key in tree.reachable(root):
        item = tree.objects[key]
        _check(_dotted(item["type"]), STRUCTURE)
        for name, value in item["items"]:
            if isinstance(value, dict) and value.get("type") == "pyref":
                _check(_dotted(value), CALLED if name == _TARGET else NAMED)


def _check(name: str, allowed: re.Pattern[str]) -> None:
    if not allowed.fullmatch(name):
        raise _Foreign(name)


def _attribute(name: str) -> str:
    return f"Attr(name='{name}')"


_TARGET = _attribute("fn_or_cls")


def _symbol(module: str, name: str) -> dict[str, Any]:
    return {"type": "pyref", "module": module, "name": name}


def _dotted(symbol: dict[str, Any]) -> str:
    return f"{symbol['module']}.{symbol['name']}"


def _builtin(name: str, items: list) -> dict[str, Any]:
    empty = {"type": _symbol("builtins", "tuple"), "items": [], "metadata": None}
    return {"type": _symbol("builtins", name), "items": items, "metadata": empty if name == "dict" else None}


def _node(value: Any, path: str) -> dict[str, Any]:
    """An argument's node: a reference or a symbol as it is, anything else as a leaf."""
    if isinstance(value, dict):
        return value | ({"paths": [path]} if value["type"] == "pyref" else {})
    return {"type": "leaf", "value": value, "paths": [path]}


def _plain(node: Any) -> Any:
    """A leaf's value, the name of a function or class, "an object" for anything built; None where nothing is given."""
    kind = node.get("type") if isinstance(node, dict) else None
    if kind == "leaf":
        return node["value"]
    if kind == "pyref":
        return _dotted(node)
    return None if node is None else "an object"


def _number(node: Any) -> Any:
    value = node["value"]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is not a number")
    return value


def _reference(node: Any) -> str:
    return node["key"] if isinstance(node, dict) and node.get("type") == "ref" else ""


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value.get("type") == "ref":
        yield value["key"]
    elif isinstance(value, (dict, list)):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _references(child)


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
