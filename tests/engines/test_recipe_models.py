"""Every shipped recipe builds the NeMo configuration that `train` would use, on the real shape of its model."""

from __future__ import annotations

import json

import pytest

from nemo_probsft import config
from tests.engines.test_recipes import NAMES, RECIPES, SHAPES
from tests.support.engine import first_error


@pytest.fixture(scope="module")
def built(engine, tmp_path_factory):
    output = tmp_path_factory.mktemp("contexts") / "built"
    job = {"task": "tests.support.build_recipe_models:build_all", "world_size": 1, "output": str(output)}
    engine.run([job | {"recipes": list(map(str, RECIPES))}])
    assert not (error := first_error([job])), error
    return json.loads((output / "models.json").read_text())


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_the_recipe_builds_its_nemo_configuration(path, built):
    recipe, found = config.load(path), built[str(path)]
    tp, pp, _ = recipe.model_parallel_sizes
    layers, heads, kv_heads, _, vocabulary = SHAPES[recipe.model.path]
    assert found["class"] == ("Qwen2Model" if "Qwen" in recipe.model.path else "LlamaModel")
    assert (found["num_layers"], found["num_attention_heads"], found["num_query_groups"]) == (layers, heads, kv_heads)
    assert found["tensor_model_parallel_size"] == tp
    assert found["pipeline_model_parallel_size"] == pp
    assert found["sequence_parallel"] is recipe.parallel.sequence_parallel
    assert found["calculate_per_token_loss"] is True
    assert found["seq_length"] == recipe.data.max_length
    assert found["vocab_size"] >= vocabulary
    assert found["vocab_size"] % tp == 0
