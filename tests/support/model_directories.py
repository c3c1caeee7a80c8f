"""Tiny models on disk for tests that read files and nothing else: right names and shapes, all weights zero."""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save

import conversion
from conversion.families import hf_shapes, model_spec

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "vocab_size": 48,
}


@cache
def _weights(config: str) -> bytes:
    spec = model_spec(json.loads(config))
    return save({name: torch.zeros(shape) for name, shape in hf_shapes(spec).items()})


def huggingface(directory="m", tokenizer="tokenizer.json", weights="model.safetensors", **changes) -> Path:
    """`changes` of config.json; the weights are those of the unchanged shape, family for family."""
    path = Path(directory)
    path.mkdir(exist_ok=True)
    settings = {**CONFIG, **changes}
    (path / "config.json").write_text(json.dumps(settings))
    shape = {key: settings[key] for key in ("model_type", "intermediate_size")}
    (path / weights).write_bytes(_weights(json.dumps({**CONFIG, **shape})))
    if tokenizer:
        (path / tokenizer).write_text("{}")
    return path


def nemo(directory="n", **changes) -> Path:
    """A checkpoint of our importer; `changes` of the model's settings in context/io.json."""
    path = Path(directory)
    conversion.import_hf(huggingface(f"{directory}-source"), path)
    source = path / "context" / "io.json"
    tree = json.loads(source.read_text())
    items = next(item["items"] for item in tree["objects"].values() if "<root>.model.config" in item.get("paths", []))
    for name, value in changes.items():
        node = value if isinstance(value, dict) else {"type": "leaf", "value": value, "paths": []}
        items.append([f"Attr(name='{name}')", node])
    source.write_text(json.dumps(tree))
    return path
