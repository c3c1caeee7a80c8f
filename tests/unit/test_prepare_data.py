"""What `train` prepares of its data and says about it: several files, notes on rows, and their digests in run.yaml."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from nemo_probsft import config
from nemo_probsft.data.tokens import TokenizedDataset
from nemo_probsft.files import sha256_of
from nemo_probsft.plan.show import preview
from nemo_probsft.run import preflight, prepare
from tests.unit.test_command_line import CHATML, good, model
from tests.unit.test_prepare_engines import bridge, prepared_with

__all__ = ["bridge", "good", "model"]  # fixtures
MIXED = ["train.jsonl", {"path": "more.jsonl", "weight": 0.5, "max_rows": 4}]


@pytest.fixture
def recipe(good, bridge):
    lines = [{"prompt": f"{i}+2=", "response": str(i + 2), "id": i} for i in range(6)]
    Path("more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    good["engine"] = "bridge"
    good["data"]["train"] = MIXED
    Path("recipe.yaml").write_text(yaml.safe_dump(good))
    return good


def said(found, key) -> list[tuple[str, str]]:
    return [(decision.value, decision.reason) for decision in found if decision.key == key]


def test_a_run_counts_its_files_and_keeps_their_digests(recipe):
    prepared, found = prepared_with()
    assert prepared.num_examples == 10
    assert said(found, "data.train[0]") == [("train.jsonl: 8 examples, 16 targets", "weight 1 x 8 examples")]
    assert said(found, "data.train[1]") == [
        ("more.jsonl: 2 examples, 4 targets", "weight 0.5 x 4 examples of at most 4 rows")
    ]
    assert said(found, "rows") == [("4 (first: more.jsonl line 1)", "have a field that nothing is made of: 'id'")]
    content = yaml.safe_load(Path("run/run.yaml").read_text())
    names = ("train.jsonl", "more.jsonl")
    assert content["data"] == [{"path": name, "sha256": sha256_of(Path(name))} for name in names]
    assert content["recipe"]["data"]["train"] == [
        "train.jsonl",
        {"path": "more.jsonl", "split": None, "weight": 0.5, "max_rows": 4},
    ]


def test_the_same_list_continues_the_run_and_another_does_not(recipe):
    first, _ = prepared_with()
    again, _ = prepared_with()
    assert again == first
    assert preflight.resumable("run", config.load("recipe.yaml"))
    with pytest.raises(ValueError, match=r"run holds another run \(data\.train "):
        prepared_with("data.train=[train.jsonl, more.jsonl]")


def test_an_epoch_sees_all_examples_of_a_mixture(recipe):
    prepared, _ = prepared_with()
    data = TokenizedDataset.load(Path(prepared.examples))
    assert np.array_equal(np.unique(data.rows[:8]), np.arange(1, 9))
    assert {data.place(i) for i in (8, 9)} < {f"more.jsonl {line}" for line in range(1, 5)}


def test_the_plan_counts_the_same(recipe, capsys):
    preview("recipe.yaml")
    assert "2 an epoch of 10 examples" in " ".join(capsys.readouterr().out.split())


def test_a_file_of_the_list_that_is_missing_is_named(recipe):
    Path("more.jsonl").unlink()
    with pytest.raises(ValueError, match=r"data\.train: more\.jsonl does not exist; name a \.jsonl or \.parquet file"):
        prepared_with()
    assert not Path("run").exists()


def test_the_example_shows_what_is_supervised(recipe):
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b")) * 2]
    Path("train.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    Path("template.jinja").write_text(CHATML)
    settings = ["data.train=train.jsonl", "data.chat_template=template.jinja", "data.max_length=200"]
    settings += ["data.global_batch_size=1", "data.micro_batch_size=1"]
    for supervise, reason, times in (("answers", "every answer", 2), ("last", "the last answer", 1)):
        run_dir = f"run-{supervise}"
        _, found = prepared_with(*settings, f"data.supervise={supervise}", f"run_dir={run_dir}")
        ((example, why),) = said(found, "example")
        assert example.count("[[b") == times
        assert why == f"the loss covers what stands in [[ ]]: {reason}"
        assert Path(run_dir, "hf/chat_template.jinja").read_text() == CHATML
    recipe = config.load("recipe.yaml", settings)
    assert prepare.load_tokenizer(recipe, Path(recipe.model.path)).chat_template == CHATML
