"""Write the `context/` folder that NeMo 2 reads beside the weights, without importing NeMo.

NeMo stores a Fiddle configuration tree as JSON (`io.json`): every node names a class and its arguments, and
`nemo.lightning.io.load_context` builds the objects from it. Only arguments that differ from the class's
defaults are stored, so the file is valid for all NeMo versions that have these classes.
"""

import json
from pathlib import Path
from typing import Any

from conversion.families import ModelSpec

_FLAGS = {"bfloat16": {"bf16": True}, "float16": {"fp16": True}, "float32": {}}


def write_context(directory: Path, spec: ModelSpec, dtype: str, tokenizer: str | None) -> None:
    """`dtype`: torch name of the weights; `tokenizer`: its directory relative to `directory`, None without one."""
    tree = _Tree()
    config = tree.node(
        spec.nemo_config, "model.config", spec.nemo_values | _FLAGS[dtype] | {"params_dtype": _symbol("torch", dtype)}
    )
    arguments = {"config": config}
    if tokenizer is not None:
        arguments["tokenizer"] = tree.node(
            ("nemo.collections.common.tokenizers.huggingface.auto_tokenizer", "AutoTokenizer"),
            "model.tokenizer",
            {"pretrained_model_name": tokenizer},
        )
    model = tree.node(spec.nemo_model, "model", arguments)
    strategy = tree.node(
        ("nemo.lightning.pytorch.strategies.megatron_strategy", "MegatronStrategy"),
        "trainer.strategy",
        {"ckpt_save_optimizer": False},
    )
    trainer = tree.node(
        ("nemo.lightning.pytorch.trainer", "Trainer"),
        "trainer",
        {"accelerator": "cpu", "devices": 1, "strategy": strategy},
    )
    root = tree.node(("nemo.lightning.io.pl", "TrainerContext"), "", {"model": model, "trainer": trainer})
    directory.mkdir()
    (directory / "io.json").write_text(json.dumps(tree.document(root)), encoding="utf-8")


class _Tree:
    """Fiddle's JSON: a table of objects that refer to each other by key (fiddle/_src/experimental/serialization.py)."""

    def __init__(self) -> None:
        self._objects: dict[str, Any] = {}

    def node(self, target: tuple[str, str], path: str, arguments: dict[str, Any]) -> dict:
        """A `fiddle.Config` of the class `target` at `path` below the root; returns the reference to it."""
        full_path = f"<root>.{path}" if path else "<root>"
        names = [[f"Index(index={i})", name] for i, name in enumerate(arguments)]
        metadata_class = _symbol("fiddle._src.config", "BuildableTraverserMetadata")
        metadata = {
            "type": metadata_class,
            "items": [
                ["Attr(name='fn_or_cls')", _symbol(*target)],
                ["Attr(name='argument_names')", self._add(_builtin("tuple", names))],
                ["Attr(name='argument_tags')", self._add(_builtin("dict", []))],
                ["Attr(name='argument_history')", self._add(_builtin("dict", []))],
            ],
            "metadata": metadata_class,
        }
        items = [[f"Attr(name='{name}')", _value(value, f"{full_path}.{name}")] for name, value in arguments.items()]
        return self._add(
            {
                "type": _symbol("fiddle._src.config", "Config"),
                "items": items,
                "metadata": self._add(metadata),
                "paths": [full_path],
            }
        )

    def document(self, root: dict) -> dict:
        counts = dict.fromkeys(self._objects, 1)
        return {"root": root, "objects": self._objects, "refcounts": counts, "version": "0.0.1"}

    def _add(self, content: dict) -> dict:
        key = f"object_{len(self._objects) + 1}"
        self._objects[key] = content
        return {"type": "ref", "key": key}


def _value(value: Any, path: str) -> dict:
    if isinstance(value, dict):
        return value | ({"paths": [path]} if value["type"] == "pyref" else {})
    return {"type": "leaf", "value": value, "paths": [path]}


def _symbol(module: str, name: str) -> dict:
    return {"type": "pyref", "module": module, "name": name}


def _builtin(name: str, items: list) -> dict:
    empty = {"type": _symbol("builtins", "tuple"), "items": [], "metadata": None}
    return {"type": _symbol("builtins", name), "items": items, "metadata": empty if name == "dict" else None}
