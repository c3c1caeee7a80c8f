"""The questions that the base model knows: `python -m experiments.real.known MODEL_DIR` writes known.jsonl anew.

A question is kept where the model's greedy answer is the right one to the letter, with its end token, and confident:
the geometric mean of its tokens' probabilities is LEAST_P or more. Greedy: after the right tokens before it, every
token of the right answer is the likeliest, so that decoding greedily writes it.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from experiments.real.questions import Question, prompt, questions, response
from nemo_probsft.files import write_atomically

KNOWN = Path(__file__).with_name("known.jsonl")
LEAST_P = 0.7


def read_known() -> list[Question]:
    return [Question(*json.loads(line)) for line in KNOWN.read_text(encoding="utf-8").splitlines()]


def main(model_dir: str) -> None:
    """fp32 on one device of the CPU; some minutes."""
    results = list(answered(model_dir, questions()))
    kept = [question for question, greedy, p in results if greedy and p >= LEAST_P]
    write_atomically(KNOWN, "".join(json.dumps(question) + "\n" for question in kept))
    asked = Counter(question.template for question, _, _ in results)
    right = Counter(question.template for question, greedy, _ in results if greedy)
    confident = Counter(question.template for question in kept)
    for template, count in asked.items():
        print(f"{template}: {count} asked, {right[template]} right, {confident[template]} of these confident")
    print(f"{len(kept)} questions kept")


def answered(model_dir: str, asked: list[Question]) -> Iterator[tuple[Question, bool, float]]:
    """(question, whether the greedy answer is the right one, geometric mean p of the right one's tokens)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    for _, group in groupby(asked, key=lambda question: question.template):
        rows = list(group)
        prompts = [_prompt_ids(tokenizer, question) for question in rows]
        answers = [_answer_ids(tokenizer, question) for question in rows]
        shared = _shared(prompts)
        for start in range(0, len(rows), 32):
            batch = slice(start, start + 32)
            judged = _judged(model, prompts[batch], answers[batch], shared)
            yield from ((question, *result) for question, result in zip(rows[batch], judged, strict=True))


def _judged(model, prompts: list[list[int]], answers: list[list[int]], shared: int) -> list[tuple[bool, float]]:
    """The prompts' first `shared` tokens are the same, so they are computed once."""
    import torch

    rest = [torch.tensor(prompt[shared:] + answer) for prompt, answer in zip(prompts, answers, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rest, batch_first=True)  # causal: what is behind an answer changes nothing
    judged = []
    with torch.no_grad():
        cache = model.model(torch.tensor([prompts[0][:shared]]), use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(rest))
        hidden = model.model(ids, past_key_values=cache).last_hidden_state
        for row, tokens, answer in zip(hidden, rest, answers, strict=True):
            logits = model.lm_head(row[len(tokens) - len(answer) - 1 : len(tokens) - 1]).double()
            target = torch.tensor(answer)
            logp = logits.log_softmax(-1).gather(1, target[:, None]).mean().item()
            judged.append((torch.equal(logits.argmax(-1), target), math.exp(logp)))
    return judged


def _prompt_ids(tokenizer, question: Question) -> list[int]:
    turn = [{"role": "user", "content": prompt(question)}]
    return tokenizer.apply_chat_template(turn, add_generation_prompt=True)


def _answer_ids(tokenizer, question: Question) -> list[int]:
    text = response(question, question.answer)
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def _shared(prompts: list[list[int]]) -> int:
    """How many of the first tokens are those of all prompts; at least one token is left of each."""
    same = 0
    shortest = min(map(len, prompts)) - 1
    while same < shortest and len({prompt[same] for prompt in prompts}) == 1:
        same += 1
    return same


if __name__ == "__main__":
    main(sys.argv[1])
