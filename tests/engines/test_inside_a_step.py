"""A step of each engine, looked at from inside: the attention that the recipe names, and the gradient's norm on a
vocabulary as large as a real one."""

from __future__ import annotations

import json

import pytest
import torch

from nemo_probsft.run.attention import BACKENDS
from nemo_probsft.run.log import read_metrics
from tests.support.engine import first_error
from tests.support.first_step import recipe, write_workspace

EXACT = 1e-6  # the figure and the clipped gradient are fp32, whose rounding is 6e-8
CLIP = 0.25  # below the norm, so that it clips
ATTENTION = {"nemo": "unfused", "bridge": "local"}
ENGINES = ["nemo", pytest.param("bridge", marks=pytest.mark.bridge)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    root = write_workspace(tmp_path_factory.mktemp("inside"))
    shape = {"vocab_size": 400_000, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**shape, **heads, tie_word_embeddings=True)).save_pretrained(root / "model")
    return root


@pytest.fixture(scope="module", params=ENGINES)
def step(request, workspace):
    """(engine, what its first rank found, metrics of the step)."""
    name = request.param
    ranks = request.getfixturevalue({"nemo": "engine", "bridge": "bridge"}[name])
    settings = {"engine": name, "objective": "original", "optim": {"clip_grad": CLIP}}
    path = recipe(workspace, name, **settings, trainer={"attention_backend": ATTENTION[name]})
    output = workspace / f"{name}-ranks"
    job = {"task": "tests.support.step_ranks:around_the_step", "recipe": str(path), "world_size": 2}
    ranks.run([job | {"output": str(output)}])
    assert not (error := first_error([{"output": str(output)}])), error
    (metrics,) = read_metrics(workspace / name)
    return name, json.loads((output / "rank-0.pt").read_text()), metrics


def test_the_model_has_the_attention_that_the_recipe_names(step):
    name, found, _ = step
    assert found["attention"] == ATTENTION[name]
    assert found["variables"] == BACKENDS[ATTENTION[name]][0]  # Megatron's own choice for each


def test_the_norm_that_is_reported_and_that_clips_is_that_of_float64(step):
    _, found, metrics = step
    assert metrics["grad_norm"] == pytest.approx(found["before"], rel=EXACT)
    assert found["before"] > 2 * CLIP
    # What Megatron clips by is the norm + 1e-6.
    assert found["after"] == pytest.approx(CLIP * found["before"] / (found["before"] + 1e-6), rel=EXACT)


def test_the_norm_of_megatron_s_own_is_not(step):
    """When this fails, adapters/megatron/norm.py is no longer needed."""
    _, found, _ = step
    assert abs(found["stock"] / found["before"] - 1) > EXACT
