"""Prompts at evaluation have the ids of training, with one BOS at most."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from evaluation.jobs import chat_template
from evaluation.prompt_tokens import prompt_ids
from nemo_probsft.data.tokens import prompt_ids as ids_in_training

WITH_BOS = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
WITHOUT = WITH_BOS.replace("{{ bos_token }}", "")
ANSWER = "{% if add_generation_prompt %}[assistant]{% endif %}"


def llama_like(chat_template: str | None) -> PreTrainedTokenizerFast:
    """Bytes, and a BOS that the tokenizer puts before every text by itself."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.mark.parametrize("template", [None, WITH_BOS + ANSWER, WITHOUT + ANSWER], ids=["plain", "with BOS", "without"])
def test_ids_are_those_of_training(template):
    tokenizer = llama_like(template)
    prompt = "What is 1+1?"
    messages = [{"role": "user", "content": prompt}]
    text = (
        prompt
        if template is None
        else tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    )
    (ids,) = prompt_ids(tokenizer, [text], rendered=template is not None)
    assert ids == ids_in_training(tokenizer, {"prompt": prompt})
    assert ids.count(tokenizer.bos_token_id) == (template != WITHOUT + ANSWER)
    # The harness's rule, special tokens unless the text starts with the BOS, adds one that training never had.
    if template == WITHOUT + ANSWER:
        assert tokenizer(text)["input_ids"] != ids


def test_the_template_is_found_in_every_form_of_a_tokenizer(tmp_path):
    assert chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "own"}))
    assert chat_template(tmp_path) == "own"
    named = [{"name": "tool_use", "template": "other"}, {"name": "default", "template": "named"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert chat_template(tmp_path) == "named"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert chat_template(tmp_path) == "file"


def test_a_tokenizer_saved_by_transformers_keeps_its_template(tmp_path):
    llama_like(WITH_BOS + ANSWER).save_pretrained(tmp_path)
    assert chat_template(tmp_path) == WITH_BOS + ANSWER
