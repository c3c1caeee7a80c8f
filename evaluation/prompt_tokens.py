"""From a prompt to the ids that the model sees: those of training (nemo_probsft.data.tokens), with at most one BOS."""

from typing import Any


def prompt_ids(tokenizer: Any, texts: list[str], *, rendered: bool) -> list[list[int]]:
    """rendered: a chat template wrote the text, with all special tokens it wants; else the tokenizer adds its own.

    The harness adds the tokenizer's BOS to a rendered text too, unless the text starts with it.
    """
    return [tokenizer(text, add_special_tokens=not rendered)["input_ids"] for text in texts]
