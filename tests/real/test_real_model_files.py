"""A pretrained model through import, verify and export, bit for bit, and its own chat template, token by token."""

from __future__ import annotations

import filecmp
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import conversion
from nemo_probsft.data import tokens
from tests.support.real import MODEL, MODEL_BF16, ROWS, targets_of_a_row, write_rows

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.mark.parametrize("source", [MODEL, MODEL_BF16], ids=["fp32", "bf16"])
def test_import_and_export_change_no_bit(source, tmp_path):
    conversion.import_hf(source, tmp_path / "base")
    report = conversion.verify(source, tmp_path / "base")
    assert report.equal, report.table()
    assert report.num_tensors == 272
    conversion.export_hf(tmp_path / "base", tmp_path / "export")
    assert filecmp.cmp(source / "model.safetensors", tmp_path / "export" / "model.safetensors", shallow=False)

    weights = load_file(tmp_path / "export" / "model.safetensors")
    weights["model.layers.29.mlp.down_proj.weight"][-1, -1] += 1e-3  # verify sees one number of 134 million
    save_file(weights, tmp_path / "export" / "model.safetensors", metadata={"format": "pt"})
    (difference,) = conversion.verify(tmp_path / "base", tmp_path / "export").differences
    assert difference.name == "model.layers.29.mlp.down_proj.weight"


def test_an_export_in_bf16_is_that_of_transformers(tmp_path):
    conversion.import_hf(MODEL, tmp_path / "base")
    conversion.export_hf(tmp_path / "base", tmp_path / "export", dtype=torch.bfloat16)
    assert filecmp.cmp(MODEL_BF16 / "model.safetensors", tmp_path / "export" / "model.safetensors", shallow=False)


def test_the_loss_covers_an_answer_and_its_end_and_nothing_else(tokenizer, tmp_path):
    write_rows(tmp_path / "train.jsonl")
    dataset = tokens.of_source(tmp_path / "train.jsonl", tokenizer, max_length=96)
    for row, example in zip(ROWS, dataset, strict=True):
        ids, targets = targets_of_a_row(tokenizer, *row)
        assert example.input_ids.tolist() == ids
        assert [i + 1 for i, covered in enumerate(example.loss_mask) if covered] == targets
        assert tokenizer.decode(ids[targets[0] :]) == row[1] + "<|im_end|>"


def test_every_turn_of_the_assistant_is_covered(tokenizer, tmp_path):
    said = ["Sure. 5", "10. That's it!"]
    messages = [
        {"role": "user", "content": "Add 2 and 3."},
        {"role": "assistant", "content": said[0]},
        {"role": "user", "content": "Twice that?"},
        {"role": "assistant", "content": said[1]},
    ]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (example,) = tokens.of_source(tmp_path / "train.jsonl", tokenizer, max_length=128)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    whole = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    assert example.input_ids.tolist() == whole["input_ids"][: len(example.input_ids)]
    answers = [(begin := text.index(answer), begin + len(answer) + len("<|im_end|>")) for answer in said]
    wanted = [any(begin <= a and b <= end for begin, end in answers) for a, b in whole["offset_mapping"]]
    covered = [False, *example.loss_mask.astype(bool)[:-1]]
    assert covered == wanted[: len(covered)]
    assert not any(wanted[len(covered) :])


def test_the_tokenizer_is_the_model_s_own(tokenizer):
    """Not transformers' reading of the GGUF file, which says bos for eos and puts one before every text."""
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    ids = tokenizer("12 naïve\n  x")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[:2] == ["1", "2"]  # digits one by one
    assert tokenizer.decode(ids) == "12 naïve\n  x"


def test_it_speaks(tokenizer):
    """Weights in the wrong place would still be 134 million numbers."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    prompt, answer = ROWS[0]
    ids, targets = targets_of_a_row(tokenizer, prompt, answer)
    said = model.generate(torch.tensor([ids[: targets[0]]]), max_new_tokens=16, do_sample=False)
    assert said[0].tolist() == ids
