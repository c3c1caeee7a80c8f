"""A task for `tests.support.engine`: for each recipe the NeMo configuration that `train` would use."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from conversion.families import model_spec
from conversion.nemo_context import write_context
from nemo_probsft import config
from nemo_probsft.adapters.nemo import trainer as nemo
from tests.engines.test_recipes import SHAPES


def hugging_face_config(name: str) -> dict:
    layers, heads, kv_heads, ffn, vocabulary = SHAPES[name]
    return {
        "model_type": "qwen2" if "Qwen" in name else "llama",
        "num_hidden_layers": layers,
        "hidden_size": 128 * heads,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
    }


def build(path: Path, directory: Path) -> dict:
    recipe = config.load(path)
    context = directory / f"{path.parent.name}-{path.stem}" / "context"
    context.parent.mkdir()
    write_context(context, model_spec(hugging_face_config(recipe.model.path)), "bfloat16", None)
    model = nemo.load_model(recipe, SimpleNamespace(base=str(context.parent), hf=str(context.parent)))
    trainer = nemo.make_trainer(recipe, max_steps=1)
    trainer.strategy.connect(model)  # as when training starts: NeMo copies the layout into the configuration
    names = (
        *(
            "num_layers",
            "num_attention_heads",
            "num_query_groups",
            "vocab_size",
            "seq_length",
            "calculate_per_token_loss",
        ),
        *("tensor_model_parallel_size", "pipeline_model_parallel_size", "sequence_parallel"),
    )
    return {name: getattr(model.config, name) for name in names} | {"class": type(model).__name__}


def build_all(job: dict, output: Path) -> None:
    """Writes models.json beside `output`: recipe -> facts of its model."""
    built = {path: build(Path(path), output.parent) for path in job["recipes"]}
    output.with_name("models.json").write_text(json.dumps(built))
