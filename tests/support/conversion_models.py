"""Tiny random Hugging Face directories of every family, for the conversion tests."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
FAMILIES = {
    "qwen2-untied-384": Qwen2Config(**SHAPE, vocab_size=384, tie_word_embeddings=False, rope_theta=1e6),
    "qwen2-tied-301": Qwen2Config(**SHAPE, vocab_size=301, tie_word_embeddings=True),
    "qwen3-tied-wide-heads": Qwen3Config(**SHAPE, vocab_size=301, head_dim=48, tie_word_embeddings=True),
    "qwen3-untied": Qwen3Config(**SHAPE, vocab_size=384, head_dim=32, tie_word_embeddings=False),
    "llama3-tied-scaled-rope": LlamaConfig(
        **SHAPE, vocab_size=384, tie_word_embeddings=True, rope_theta=500000.0, rope_scaling=LLAMA3_ROPE
    ),
    "deepseekmath": LlamaConfig(**(SHAPE | {"num_key_value_heads": 4}), vocab_size=301, tie_word_embeddings=False),
}

# The values of the released Llama 3.1 and 3.2, which are Megatron-Core's constants.
RELEASED_ROPE = "llama3-untied-released-rope"
FOR_BRIDGE = {
    **{name: config for name, config in FAMILIES.items() if name != "llama3-tied-scaled-rope"},
    RELEASED_ROPE: LlamaConfig(
        **SHAPE,
        vocab_size=384,
        tie_word_embeddings=False,
        rope_theta=500000.0,
        rope_scaling=LLAMA3_ROPE | {"original_max_position_embeddings": 8192},
    ),
}


def make_hf(directory: Path, family: str, dtype: torch.dtype = torch.bfloat16, **save: object) -> Path:
    """Save a random model of the family, biases and norms included, with a tokenizer and a chat template."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config((FAMILIES | FOR_BRIDGE)[family], dtype=dtype)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # transformers starts biases at 0 and norms at 1, which would hide a wrong mapping
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    model.save_pretrained(directory, **save)
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}{{ m.content }} </s> {% endfor %}"
    fast.save_pretrained(directory)
    return directory
