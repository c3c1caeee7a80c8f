"""A model stops where its answers were trained to end, whatever eos_token is called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from conversion import export_hf, import_hf, verify
from conversion.generation import add_stop_tokens, stop_tokens
from nemo_probsft.data import tokens
from nemo_probsft.data.ends import oddities, template_ends, trained_ends
from nemo_probsft.data.rows import Row
from tests.support.stopping import TEMPLATE, saved, tokenizer

CALLS = TEMPLATE.replace("<turn>", "{{ '<tool>' if m.content == 'no' else '<turn>' }}")


def generated(directory: Path) -> list[str]:
    tok = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    ids = tok.apply_chat_template([{"role": "user", "content": "no"}], add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, pad_token_id=0)
    return tok.convert_ids_to_tokens(answer[0, ids.shape[1] :])


def test_generate_stops_where_the_record_of_the_run_says(tmp_path):
    source = saved(tmp_path / "model")
    checkpoint = tmp_path / "run" / "checkpoints" / "step=1"
    import_hf(source, checkpoint)
    record = {"objective": "p", "end_tokens": {"<turn>": 1}}
    (tmp_path / "run" / "run.yaml").write_text(yaml.safe_dump(record))
    export_hf(checkpoint, tmp_path / "export")
    assert generated(tmp_path / "export") == ["yes", "<turn>"]
    assert generated(source) == ["yes", "<turn>"] * 4 + ["yes"]  # what the export would do without it
    settings = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    before = json.loads((source / "generation_config.json").read_text())
    assert settings == before | {"eos_token_id": [0, 1]}
    card = (tmp_path / "export" / "README.md").read_text()
    assert "| Answers end with | `<turn>` (1) |" in card
    assert "| Changed files | generation_config.json: eos_token_id 0 became [0, 1] |" in card
    differences = verify(source, tmp_path / "export").differences
    assert [(found.what, found.name) for found in differences] == [("file", "generation_config.json")]


def test_an_export_without_a_run_keeps_every_byte(tmp_path):
    source = saved(tmp_path / "model")
    import_hf(source, tmp_path / "nemo")
    export_hf(tmp_path / "nemo", tmp_path / "back")
    assert verify(source, tmp_path / "back").equal


@pytest.mark.parametrize(
    ("settings", "ids", "after"),
    [
        ({"eos_token_id": 5}, [5], None),
        ({"eos_token_id": [5, 7]}, [7], None),
        ({"eos_token_id": 5, "top_p": 0.8}, [7], {"eos_token_id": [5, 7], "top_p": 0.8}),
        ({"eos_token_id": [7, 5]}, [5, 9], {"eos_token_id": [7, 5, 9]}),
        ({"top_p": 0.8}, [7], {"eos_token_id": 7, "top_p": 0.8}),
        ({"eos_token_id": None}, [], None),
        (None, [3], None),  # config.json says it, and transformers takes it from there
        (None, [3, 7], {"eos_token_id": [3, 7], "bos_token_id": 1}),
    ],
)
def test_what_stands_there_is_kept(tmp_path, settings, ids, after):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3, "bos_token_id": 1, "pad_token_id": None}))
    file = tmp_path / "generation_config.json"
    if settings is not None:
        file.write_text(json.dumps(settings))
    before = file.read_bytes() if settings is not None else None
    change = add_stop_tokens(tmp_path, ids)
    if after is None:
        assert change is None
        assert (file.read_bytes() if file.exists() else None) == before
    else:
        assert json.loads(file.read_text()) == after
        assert change.endswith(f"became {after['eos_token_id']}")
    assert set(ids) <= set(stop_tokens(tmp_path))
    assert add_stop_tokens(tmp_path, ids) is None


def test_settings_that_are_none_are_refused(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(ValueError, match=r"generation_config\.json: holds no settings with an id"):
        stop_tokens(tmp_path)


@pytest.mark.parametrize(
    ("template", "ends"),
    [(TEMPLATE, ["<turn>"]), (None, ["<eos>"]), (TEMPLATE.replace(" <turn>", ""), []), ("{{ raise_exception() }}", [])],
)
def test_the_end_is_the_template_s(template, ends):
    found = tokenizer(template)
    assert found.convert_ids_to_tokens(template_ends(found)) == ends


def dataset(found: PreTrainedTokenizerFast, answers: list[str], max_length: int) -> tokens.TokenizedDataset:
    rows = [Row([{"role": "user", "content": "no"}, {"role": "assistant", "content": text}], text) for text in answers]
    return tokens.tokenize(rows, found, max_length=max_length)


@pytest.mark.parametrize(
    ("template", "answers", "max_length", "ends"),
    [
        (TEMPLATE, ["yes", "yes yes yes"], 16, ["<turn>"]),
        (TEMPLATE, ["yes", "yes yes yes"], 6, ["<turn>"]),  # the second one is cut
        (TEMPLATE, ["yes yes yes"], 6, ["<turn>"]),  # all are: the template's
        (TEMPLATE, ["yes yes <tool> yes"], 7, ["<turn>"]),  # cut behind a token that could end an answer
        (CALLS, ["yes", "no", "yes"], 16, ["<turn>", "<tool>"]),
        (None, ["yes", "no"], 16, ["<eos>"]),
    ],
)
def test_the_ends_that_were_trained(template, answers, max_length, ends):
    found = tokenizer(template)
    data = dataset(found, answers, max_length)
    assert found.convert_ids_to_tokens(trained_ends(data, found, max_length)) == ends
    assert np.isin(trained_ends(data, found, max_length), data.input_ids).all() or len(answers) == 1


def test_an_end_token_that_no_answer_has_is_said():
    assert oddities(tokenizer(), [1]) == ["eos_token of the tokenizer is <eos>, which no answer ends with"]
    assert oddities(tokenizer(eos_token="<turn>"), [1]) == []
    (line,) = oddities(tokenizer(eos_token="<turn>", bos_token="<turn>"), [1])
    assert line == "eos_token is bos_token: a text that begins with <turn> begins with its end"
