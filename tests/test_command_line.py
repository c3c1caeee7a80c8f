"""The command line as a user meets it: errors come back in one line with exit code 2, and nothing stays behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from nemo_probsft.__main__ import main
from nemo_probsft.demo_data import write_random_base, write_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    write_tokenizer(directory)
    write_random_base(directory, seed=0)
    return directory


@pytest.fixture
def good(tmp_path, monkeypatch, model):
    """A recipe that would train, as plain data, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i}+1=", "response": str(i + 1)} for i in range(8)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "run_dir": "run",
        "model": {"path": str(model)},
        "data": {"train": "train.jsonl", "max_length": 32, "global_batch_size": 4, "micro_batch_size": 2},
        "objective": "p",
        "parallel": {"tensor_model_parallel_size": 2},
        "trainer": {"devices": 2, "max_steps": 1, "precision": "fp32"},
    }


def refused(capsys, recipe: dict, *overrides: str) -> str:
    """The one line that `train` answers with; it must exit with 2 and leave the working directory as it was."""
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = sorted(Path().rglob("*"))
    assert main(["train", "recipe.yaml", *overrides]) == 2
    assert sorted(Path().rglob("*")) == before
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nemo-probsft: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("nemo-probsft: ")


BAD_OVERRIDES = {
    "optim.lrr=1e-5": ("optim.lrr", "lr"),
    "objective=focall-2": ("objective", "focall-2", "focal"),
    "objective=OnlyTopP-1.5": ("objective", "1.5", "[0, 1]"),
    "model.path=no/where/to/be/found": ("model.path", "no/where/to/be/found"),
    "data.train=missing.jsonl": ("data.train", "missing.jsonl"),
    "data.micro_batch_size=3": ("micro_batch_size", "3", "4"),
    "parallel.tensor_model_parallel_size=3": ("tensor_model_parallel_size", "3"),
    "optim.lr=fast": ("optim.lr", "fast"),
}


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_a_bad_value_is_refused_by_name(capsys, good, override):
    line = refused(capsys, good, override)
    assert all(part in line for part in BAD_OVERRIDES[override]), line


def test_tensor_parallelism_must_divide_the_heads(capsys, good):
    line = refused(capsys, good, "parallel.tensor_model_parallel_size=4", "trainer.devices=4")
    assert "tensor_model_parallel_size" in line
    assert "2 key-value heads" in line
    assert "config.json" in line


def test_pipeline_parallelism_must_divide_the_layers(capsys, good):
    changes = ("parallel.tensor_model_parallel_size=1", "parallel.pipeline_model_parallel_size=2")
    line = refused(capsys, good, *changes)
    assert "pipeline_model_parallel_size" in line
    assert "3 layers" in line


BAD_DATA = {
    "": ("train.jsonl", "empty"),
    "\n\n": ("train.jsonl", "no rows"),
    '{"prompt": "a", "response": "b"}\n{"prompt": "a", "resp\n': ("train.jsonl line 2", "not JSON"),
    '{"prompt": "a", "answer": "b"}\n': ("train.jsonl line 1", "response"),
    '{"prompt": "a", "response": null}\n': ("train.jsonl line 1", "response", "null"),
    '{"prompt": "' + "a" * 99 + '", "response": "b"}\n': ("train.jsonl line 1", "max_length 32", "long_prompts"),
    '{"prompt": "a", "response": "b"}\n': ("recipe.yaml", "data.global_batch_size: 4", "1 examples of train.jsonl"),
}


@pytest.mark.parametrize("content", BAD_DATA, ids=[" ".join(parts) for parts in BAD_DATA.values()])
def test_bad_data_is_refused_with_its_line(capsys, good, content):
    Path("train.jsonl").write_text(content)
    line = refused(capsys, good)
    assert all(part in line for part in BAD_DATA[content]), line


def test_a_model_without_tokenizer_is_refused(capsys, good, model):
    bare = Path("bare")
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    line = refused(capsys, good | {"model": {"path": "bare"}})
    assert "bare has no tokenizer" in line


def test_several_nodes_need_torchrun(capsys, good):
    line = refused(
        capsys, good, "trainer.num_nodes=2", "parallel.tensor_model_parallel_size=1", "data.micro_batch_size=1"
    )
    assert "torchrun or srun" in line
