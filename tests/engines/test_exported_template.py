"""`data.chat_template` replaces the tokenizer's; an exported model that lacked it would be asked in another form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

import conversion
from nemo_probsft import config
from nemo_probsft.data import tokens
from nemo_probsft.demo_data import write_random_base, write_tokenizer
from nemo_probsft.run import prepare

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What `train` prepares from the Hugging Face directory `model`, and again from the NeMo checkpoint made of it."""
    root = tmp_path_factory.mktemp("template")
    write_random_base(root / "model", seed=0)
    write_tokenizer(root / "model")
    (root / "train.jsonl").write_text(json.dumps({"prompt": "1+1=", "response": "2"}) + "\n")
    found = []
    for source in ("model", "run-0/base"):
        recipe = {
            "run_dir": str(root / f"run-{len(found)}"),
            "model": {"path": str(root / source)},
            "data": {
                "train": str(root / "train.jsonl"),
                "max_length": 64,
                "global_batch_size": 1,
                "chat_template": TEMPLATE + "\n" * len(found),  # not the one that the checkpoint has already
            },
            "objective": "p",
            "trainer": {"precision": "fp32", "max_steps": 1},
        }
        (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        found.append(prepare.prepare(config.load(root / "recipe.yaml"))[0])
    return found


@pytest.mark.parametrize("source", [0, 1], ids=["from Hugging Face", "from NeMo"])
def test_the_export_asks_with_the_ids_that_were_trained(prepared, source, tmp_path):
    run = prepared[source]
    conversion.export_hf(Path(run.base), tmp_path / "export", base=Path(run.hf))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert tokenizer.chat_template == TEMPLATE + "\n" * source
    trained = tokens.TokenizedDataset.load(Path(run.examples))[0].input_ids
    prompt = tokens.prompt_ids(tokenizer, {"prompt": "1+1="})
    assert tokenizer.decode(prompt) == "user: 1+1=<|endoftext|>assistant: "
    assert trained[: len(prompt)].tolist() == prompt


def test_a_checkpoint_of_the_run_brings_it_too(prepared, tmp_path):
    """Checkpoints of a run copy the files of the imported one, from which `convert export` takes them."""
    conversion.export_hf(Path(prepared[0].base), tmp_path / "export")
    assert AutoTokenizer.from_pretrained(tmp_path / "export").chat_template == TEMPLATE


def test_the_model_itself_stays_as_it_is(prepared):
    model = Path(prepared[0].base).parent.parent / "model"
    assert AutoTokenizer.from_pretrained(model).chat_template is None
    assert AutoTokenizer.from_pretrained(prepared[0].hf).chat_template == TEMPLATE
