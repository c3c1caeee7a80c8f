"""An exported model has the recipe's chat template, and stops at the token that its answers were trained to end with.

Trained on one rank from a Hugging Face directory, and from a NeMo checkpoint, which has files of its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

import conversion
from conversion.generation import stop_tokens
from nemo_probsft.data import tokens
from nemo_probsft.demo_data import write_random_base, write_tokenizer

END = "<reserved_0>"  # in the vocabulary, and not eos_token
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SOURCES = {"Hugging Face": "model", "NeMo": "imported"}


@pytest.fixture(scope="module")
def root(tmp_path_factory, engine):
    """A run of one step from each source, exported at its end."""
    root = tmp_path_factory.mktemp("template")
    write_random_base(root / "model", seed=0)
    write_tokenizer(root / "model")
    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    tokenizer.add_special_tokens({"additional_special_tokens": [END]})
    tokenizer.save_pretrained(root / "model")
    conversion.import_hf(root / "model", root / "imported")
    (root / "train.jsonl").write_text(json.dumps({"prompt": "1+1=", "response": "2"}) + "\n")
    for source in SOURCES.values():
        recipe = {
            "run_dir": str(root / f"run-{source}"),
            "model": {"path": str(root / source)},
            "data": {
                "train": str(root / "train.jsonl"),
                "max_length": 64,
                "global_batch_size": 1,
                "chat_template": TEMPLATE,
            },
            "objective": "p",
            "trainer": {"precision": "fp32", "max_steps": 1},
            "export": {"at_end": True},
        }
        path = root / f"{source}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        engine.command("train", path, world_size=1, output=root / f"ranks-{source}")
    return root


def check(exported: Path, end: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.eos_token != END
    assert stop_tokens(exported) == [tokenizer.eos_token_id, end]


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_export_of_a_run_asks_and_stops_as_it_was_trained(root, source, tmp_path):
    run = root / f"run-{source}"
    end = AutoTokenizer.from_pretrained(root / "model").convert_tokens_to_ids(END)
    check(run / "export", end)
    conversion.export_hf(run / "checkpoints" / "step=1", tmp_path / "export")
    check(tmp_path / "export", end)
    shutil.copytree(run / "checkpoints" / "step=1", tmp_path / "bare")
    conversion.export_hf(tmp_path / "bare", tmp_path / "bare-export")
    check(tmp_path / "bare-export", end)
    conversion.export_hf(run / "checkpoints" / "step=1", tmp_path / "of-base", base=root / "model")
    assert end in stop_tokens(tmp_path / "of-base")
    record = yaml.safe_load((run / "run.yaml").read_text())
    assert record["end_tokens"] == {END: end}
    assert len(record["changed_model_files"]) == 2


def test_the_prompt_has_the_ids_that_were_trained(root):
    run = root / "run-model"
    prepared = json.loads((run / "prepared.json").read_text())
    trained = tokens.TokenizedDataset.load(Path(prepared["examples"]))[0].input_ids
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    prompt = tokens.prompt_ids(tokenizer, {"prompt": "1+1="})
    assert tokenizer.decode(prompt) == f"user: 1+1={END}assistant: "
    assert trained[: len(prompt)].tolist() == prompt


def test_the_model_itself_stays_as_it_is(root):
    assert AutoTokenizer.from_pretrained(root / "model").chat_template is None
    for source in ("imported", "run-model/base"):
        assert AutoTokenizer.from_pretrained(root / source / "hf").chat_template is None
        assert stop_tokens(root / source / "hf") == stop_tokens(root / "model")
