"""What was exported answers over the OpenAI API as under transformers, and stops by itself."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import conversion
from tests.support.real import MODEL, ROWS, targets_of_a_row
from tests.support.serving import ask, served

pytestmark = pytest.mark.real

LIMIT = 64  # tokens; no answer below needs them


def test_an_export_answers_as_transformers_does_and_stops_by_itself(tmp_path):
    conversion.import_hf(MODEL, tmp_path / "base")
    conversion.export_hf(tmp_path / "base", tmp_path / "export")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    prompts = [ROWS[0][0], ROWS[3][0]]
    with served(tmp_path / "export") as url:
        for prompt in prompts:
            ids, targets = targets_of_a_row(tokenizer, prompt, "")
            said = model.generate(torch.tensor([ids[: targets[0]]]), max_new_tokens=LIMIT, do_sample=False)
            messages = [{"role": "user", "content": prompt}]
            answer = ask(f"{url}/chat/completions", model="export", messages=messages, max_tokens=LIMIT, temperature=0)
            (choice,) = answer["choices"]
            assert choice["finish_reason"] == "stop"
            assert answer["usage"]["completion_tokens"] == said.shape[1] - targets[0]
            assert choice["message"]["content"] == tokenizer.decode(said[0, targets[0] :], skip_special_tokens=True)
