"""A model that was not trained: it answers "yes <turn>", the end of its chat template, and has another eos_token."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<eos>", "<turn>", "<tool>", "user", "assistant", "yes", "no"]
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} <turn> {% endfor %}" + (
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def tokenizer(template: str | None = TEMPLATE, **special: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="no"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "<eos>", "additional_special_tokens": ["<turn>", "<tool>"]} | special
    fast = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="no", **special)
    fast.chat_template = template
    return fast


def saved(directory: Path) -> Path:
    """A model that answers "yes <turn>" to a prompt of the template, and goes on so for ever."""
    size = 64
    config = LlamaConfig(
        hidden_size=size,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=len(WORDS),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(float(name.endswith("norm.weight")))
        model.model.embed_tokens.weight.copy_(torch.eye(len(WORDS), size))
        for token, following in (("assistant", "yes"), ("yes", "<turn>"), ("<turn>", "yes")):
            model.lm_head.weight[WORDS.index(following), WORDS.index(token)] = 1.0
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory
