"""An exported directory behind `vllm serve` on a CPU: asked over the OpenAI API, it answers as transformers does."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conversion import export_hf, import_hf
from tests.support.conversion_models import make_hf
from tests.support.serving import ask, served

PROMPT = "a b c d e f"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    import_hf(make_hf(folder / "hf", "llama3-tied-scaled-rope", torch.float32), folder / "nemo")
    export_hf(folder / "nemo", folder / "exported", provenance={"objective": {"key": "p", "formula": "1 - p"}})
    return folder / "exported"


@pytest.fixture(scope="module")
def server(exported):
    """The base URL of the real server, which runs until the tests are done."""
    with served(exported) as url:
        yield url


def test_greedy_answers_over_the_openai_api_are_those_of_transformers(server, exported):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    prompt = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False)
    answer = ask(
        f"{server}/completions",
        model="exported",
        prompt=prompt[0].tolist(),
        max_tokens=20,
        temperature=0,
        return_token_ids=True,
    )
    assert answer["choices"][0]["token_ids"] == expected[0, prompt.shape[1] :].tolist()
    messages = [{"role": "user", "content": PROMPT}]
    chat = ask(f"{server}/chat/completions", model="exported", messages=messages, max_tokens=1, temperature=0)
    assert chat["usage"]["prompt_tokens"] == len(tokenizer.apply_chat_template(messages))
