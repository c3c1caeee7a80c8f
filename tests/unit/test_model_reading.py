"""A directory with two descriptions of one model: read as transformers reads it, or refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conversion import export_hf, import_hf
from conversion.families import model_spec
from conversion.hf_files import read_model
from conversion.weights import HFWeights
from tests.support.conversion_models import FAMILIES, LLAMA3_ROPE, make_hf

NAME = "model.embed_tokens.weight"


def save_shards(model: Path, shard: str, factor: float) -> None:
    """An index of one file with the tensors of model.safetensors, each times `factor`."""
    weights = {name: tensor * factor for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(weights, model / shard, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": dict.fromkeys(weights, shard)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def ours(model: Path) -> torch.Tensor:
    _, spec = read_model(model)
    weights = HFWeights(model, spec)
    return weights.read(NAME, 0, weights.tensors[NAME][1][0])


def theirs(model: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(model).state_dict()[NAME]


@pytest.fixture
def model(tmp_path):
    return make_hf(tmp_path / "m", "qwen2-untied-384", torch.float32)


def test_of_two_sets_of_weights_that_of_transformers_is_read_and_it_is_said(model):
    save_shards(model, "model-00001-of-00001.safetensors", 0.5)
    with pytest.warns(UserWarning, match="vLLM reads those"):
        read = ours(model)
    assert torch.equal(read, theirs(model))
    (model / "model.safetensors").unlink()
    assert torch.equal(ours(model), theirs(model))
    assert torch.equal(ours(model), 0.5 * read)  # the shards were not the same


def test_an_index_of_the_single_file_is_no_second_model(model, recwarn):
    weights = load_file(model / "model.safetensors")
    save_shards(model, "model.safetensors", 1.0)
    assert torch.equal(ours(model), weights[NAME])
    assert [str(warning.message) for warning in recwarn if "vLLM" in str(warning.message)] == []


def test_pickled_weights_beside_safetensors_are_not_read(model):
    torch.save({NAME: torch.zeros(384, 128)}, model / "pytorch_model.bin")
    assert torch.equal(ours(model), theirs(model))
    assert ours(model).any()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("adapter_config.json", {"base_model_name_or_path": "another"}, "transformers would load this PEFT adapter"),
        ("config.json", {"transformers_weights": "other.safetensors"}, "transformers_weights is 'other.safetensors'"),
    ],
)
def test_what_makes_transformers_load_other_weights_is_refused(model, tmp_path, file, content, reason):
    path = model / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | content))
    with pytest.raises(ValueError, match=reason):
        import_hf(model, tmp_path / "nemo")
    assert not (tmp_path / "nemo").exists()


LLAMA3 = LLAMA3_ROPE
DEFAULT = {"rope_type": "default"}
# config.json's keys, and what `PretrainedConfig` of transformers 5.19 makes of them: rope_theta, rope_scaling.
READ = [
    ({}, 1e4, None),
    ({"rope_theta": 5e5}, 5e5, None),
    ({"rope_parameters": {"rope_theta": 5e5, **DEFAULT}}, 5e5, None),
    ({"rope_parameters": DEFAULT, "rope_theta": 5e5}, 5e5, None),
    ({"rope_parameters": {"rope_theta": 5e5}}, 5e5, None),
    ({"rope_parameters": {}, "rope_theta": 5e5}, 5e5, None),
    ({"rope_parameters": {"rope_theta": 5e5, **DEFAULT}, "rope_scaling": LLAMA3}, 1e4, LLAMA3),
    ({"rope_parameters": {"rope_theta": 5e5, **LLAMA3}, "rope_scaling": None}, 5e5, LLAMA3),
    ({"rope_parameters": {"rope_theta": 5e5, **LLAMA3}, "rope_scaling": DEFAULT, "rope_theta": 7.0}, 7.0, None),
    ({"rope_scaling": LLAMA3 | {"rope_theta": 5e5}}, 5e5, LLAMA3),
    ({"rope_parameters": {"rope_theta": 500_000, **DEFAULT}, "rope_theta": 5e5}, 5e5, None),
]


@pytest.mark.parametrize(("keys", "theta", "scaling"), READ)
def test_rope_is_that_of_transformers_5(keys, theta, scaling):
    spec = model_spec(llama(keys))
    assert spec.values["rotary_base"] == theta
    assert spec.rope_scaling == scaling


def llama(keys: dict) -> dict:
    config = FAMILIES["deepseekmath"].to_dict()
    return {key: value for key, value in config.items() if not key.startswith("rope_")} | keys


TWO_VALUES = [
    (
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
        r"rope_theta 10000\.0 and rope_parameters\.rope_theta",
    ),
    ({"rope_theta": 1e4, "rope_scaling": LLAMA3 | {"rope_theta": 5e5}}, r"rope_scaling\.rope_theta 500000\.0 disagree"),
    ({"rope_scaling": LLAMA3 | {"type": "yarn"}}, "rope_type 'llama3' and type 'yarn'"),
    ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 32}, "original_max_position_embeddings 32 and"),
    ({"rope_theta": "1e4"}, "rope_theta must be a positive number"),
    (
        {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 1.0}},
        r"partial_rotary_factor is 0\.5",
    ),
]


@pytest.mark.parametrize(("keys", "reason"), TWO_VALUES)
def test_two_values_of_which_each_transformers_takes_another_are_refused(keys, reason):
    with pytest.raises(ValueError, match=reason):
        model_spec(llama(keys))


def test_both_spellings_survive_the_way_there_and_back(model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    config |= {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 7.0}}
    (model / "config.json").write_text(json.dumps(config))
    import_hf(model, tmp_path / "nemo")
    export_hf(tmp_path / "nemo", tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_bytes() == (model / "config.json").read_bytes()
