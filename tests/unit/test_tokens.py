"""Tokens and targets, against ids written out by hand; every tokenizer here is built on the spot."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from nemo_probsft.data.rows import Row, parse_row, read_rows
from nemo_probsft.data.tokens import (
    TOKENS,
    DataSummary,
    TokenizedDataset,
    check_tokenizer,
    padding_id,
    preview,
    prompt_ids,
    token_ids,
    tokenize,
    tokenized,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(*, merges=(), bos=False, template=None) -> PreTrainedTokenizerFast:
    """Byte-level BPE; ids 0..4 are <bos>, <eos>, <|im_start|>, <|im_end|>, <pad>, then 256 bytes, then the merges."""
    special = ["<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<pad>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


PLAIN = build_tokenizer()
CHAT = build_tokenizer(template=CHATML)
EOS = 1


def ids(text: str, tokenizer=PLAIN) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def qa(prompt: str, response: str, where: str = "here") -> Row:
    return parse_row({"prompt": prompt, "response": response}, where)


def chat(*contents: str, system: str | None = None) -> Row:
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return parse_row({"messages": ([{"role": "system", "content": system}] if system else []) + messages}, "here")


def targets(tokenizer, row: Row) -> list[str]:
    """Text of every run of targets."""
    found, is_target = token_ids(tokenizer, row)
    runs = np.split(np.array(found), np.flatnonzero(np.diff(is_target)) + 1)
    assert not is_target[0]
    return [tokenizer.decode(run.tolist()) for run in runs[1::2]]


def test_without_template_a_row_is_prompt_response_end():
    found, is_target = token_ids(PLAIN, qa("2+2=", "4."))
    assert found == [*ids("2+2="), *ids("4."), EOS]
    assert is_target == [0, 0, 0, 0, 1, 1, 1]


def test_bos_only_where_the_tokenizer_adds_it():
    found, is_target = token_ids(build_tokenizer(bos=True), qa("ab", "c"))
    assert found == [0, *ids("ab"), *ids("c"), EOS]
    assert is_target == [0, 0, 0, 1, 1]


def test_prompt_ids_are_those_of_training_where_a_merge_spans_the_border():
    tokenizer = build_tokenizer(merges=[("b", "c")])
    row = qa("ab", "cd")
    assert ids("abcd", tokenizer)[1] == ids("bc", tokenizer)[0] > 260  # the merge is there: joint tokenizing differs
    assert token_ids(tokenizer, row)[0] == [*ids("ab"), *ids("cd"), EOS]
    assert prompt_ids(tokenizer, {"prompt": "ab"}) == prompt_ids(tokenizer, row) == ids("ab")

    tokenizer = build_tokenizer(
        merges=[("Ċ", "c")], template=CHATML
    )  # the template's last character and the answer's first
    found, is_target = token_ids(tokenizer, row)
    prompt = prompt_ids(tokenizer, row)
    assert found[: len(prompt)] == prompt
    assert is_target == [0] * len(prompt) + [1, 1, 1]
    rendered = tokenizer.apply_chat_template(row.messages, tokenize=False).rstrip()
    assert ids(rendered, tokenizer)[: len(prompt)] != prompt


def test_template_supervises_every_answer_with_its_end_token():
    row = chat("2+2=", "4", "3+3=", " 6\n", system="Add.")
    assert targets(CHAT, row) == ["4<|im_end|>", " 6\n<|im_end|>"]
    assert CHAT.decode(token_ids(CHAT, row)[0]) == (
        "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n2+2=<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\n3+3=<|im_end|>\n<|im_start|>assistant\n 6\n<|im_end|>"
    )


@pytest.mark.parametrize(
    ("tokenizer", "row"),
    [
        (PLAIN, qa("2+2=", "4")),
        (build_tokenizer(bos=True), qa("2+2=", "4")),
        (CHAT, qa("2+2=", "4")),
        (CHAT, chat("a", "b", "c", "d", "e", "f", system="s")),
        (build_tokenizer(merges=[("Ċ", "d"), ("c", "d")], template=CHATML), chat("a", "d", "c", "dd")),
    ],
)
def test_prompt_ids_are_the_start_of_the_training_ids(tokenizer, row):
    found, is_target = token_ids(tokenizer, row)
    last_answer = len(found) - is_target[::-1].index(0)
    prompt = found[:last_answer]
    assert prompt_ids(tokenizer, row) == prompt
    assert prompt_ids(tokenizer, {"messages": row.messages}) == prompt
    assert prompt_ids(tokenizer, {"messages": row.messages[:-1]}) == prompt
    if len(row.messages) == 2:
        assert prompt_ids(tokenizer, {"prompt": row.messages[0]["content"], "answer": "4"}) == prompt


def test_template_that_opens_the_answer_itself():
    """Qwen3 writes an empty <think> block into the answer, others write <think> into the generation prompt."""
    think = CHATML.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}")
    assert targets(build_tokenizer(template=think), qa("a", "b")) == ["<think></think>b<|im_end|>"]
    opened = think.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    assert targets(build_tokenizer(template=opened), qa("a", "b")) == ["</think>b<|im_end|>"]


def only_last(template: str) -> str:
    return template.replace("{{ m.content }}", "{{ m.content if loop.last else m.content | upper }}")


def refusal(tokenizer, row: Row) -> str:
    with pytest.raises(ValueError, match=r"^here: ") as info:
        token_ids(tokenizer, row)
    assert "\n" not in str(info.value)
    return str(info.value)


def test_template_that_rewrites_earlier_turns_is_refused():
    tokenizer = build_tokenizer(template=only_last(CHATML))
    assert refusal(tokenizer, chat("a", "b")) == (
        "here: the chat template rewrites earlier text when it adds messages[1]: 'a<|im_end|>\\n<|im_sta' becomes "
        "'A<|im_end|>\\n<|im_sta'; split the row into single turns, set data.supervise=last, or use a "
        "template that only adds text"
    )
    no_prompt = build_tokenizer(template=CHATML.replace("assistant\n{% endif", "model\n{% endif"))
    assert "'model\\n' becomes 'assistant\\nb<|im_end|'" in refusal(no_prompt, chat("a", "b"))


def test_template_without_end_token_is_refused():
    tokenizer = build_tokenizer(template=CHATML.replace("<|im_end|>", "</s>"))
    assert refusal(tokenizer, chat("a", "b")) == (
        "here: the chat template ends an answer with 'b</s>', no special token of the tokenizer: "
        "the model would never learn to stop; use a template that ends answers with one"
    )


def test_template_that_drops_the_answer_is_refused():
    template = CHATML.replace("{{ m.content }}", "{% if m.role == 'user' %}{{ m.content }}{% endif %}")
    assert "has no token but its end token" in refusal(build_tokenizer(template=template), chat("a", "b"))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system turn') }}", "TemplateError (no system turn)"),
        ("{{ messages[9].content }}", "UndefinedError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.clear() }}", "SecurityError"),
    ],
)
def test_template_that_raises_or_leaves_its_sandbox_is_one_line(template, reason):
    message = refusal(build_tokenizer(template=template), chat("a", "b"))
    assert f"the chat template raised {reason}" in message


def test_several_turns_need_a_template():
    assert refusal(PLAIN, chat("a", "b", "c", "d")) == (
        "here: has turns user, assistant, user, assistant, but the tokenizer has no chat template: "
        "give prompt and response, or a tokenizer with one"
    )


def test_prompt_and_answer_need_tokens():
    assert refusal(PLAIN, qa("", "b")) == "here: its prompt has no tokens: the first answer token needs one before it"
    assert token_ids(build_tokenizer(bos=True), qa("", "b")) == ([0, *ids("b"), EOS], [0, 1, 1])
    deaf = build_tokenizer()
    deaf.backend_tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("b")
    assert refusal(deaf, qa("a", "b")) == "here: an answer has no token but its end token: drop the row"


def test_tokenizer_that_ends_prompts_is_refused():
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", EOS)]
    )
    assert (
        refusal(tokenizer, qa("a", "b")) == "here: the tokenizer ends prompts with '<eos>': turn its add_eos_token off"
    )


def test_tokenizer_must_end_and_fit_the_model():
    size = 5 + 256
    check_tokenizer(PLAIN, size)
    with pytest.raises(
        ValueError, match=f"has {size} token ids but the model's vocabulary has {size - 1}: take the model"
    ):
        check_tokenizer(PLAIN, size - 1)
    endless = PreTrainedTokenizerFast(tokenizer_object=PLAIN.backend_tokenizer, bos_token="<bos>")
    with pytest.raises(ValueError, match=r"has no end token \(eos_token\)"):
        check_tokenizer(endless, size)


def test_padding_id():
    assert padding_id(PLAIN) == EOS
    padded = build_tokenizer()
    padded.pad_token = "<pad>"
    assert padding_id(padded) == 4


def test_summary_and_loss_mask_are_shifted_and_cut():
    data = tokenize([qa("ab", "cd"), qa("abc", "d"), qa("ab", "c")], PLAIN, max_length=4)
    assert data.summary == DataSummary(
        num_examples=3, num_tokens=12, num_target_tokens=2 + 1 + 2, num_truncated=2, num_skipped=0, longest=4
    )
    # loss_mask[t] speaks of token t + 1. Unshifted masks would have the same sums.
    assert [example.loss_mask.tolist() for example in data] == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 1, 0]]
    assert [example.input_ids.tolist() for example in data] == [ids("abcd"), ids("abcd"), [*ids("abc"), EOS]]
    assert data.input_ids.dtype == np.int32


def test_second_turn_may_be_cut_off():
    row = chat("a", "b", "c", "d")
    first_turn = len(token_ids(CHAT, chat("a", "b"))[0])
    data = tokenize([row], CHAT, max_length=first_turn)
    assert data.summary.num_target_tokens == 2
    assert data.summary.num_truncated == 1


def test_prompts_that_fill_max_length():
    rows = [qa("abcd", "e", "file line 7"), qa("abc", "e", "file line 8")]
    with pytest.raises(ValueError, match=r"^file line 7: its prompt of 4 tokens fills max_length 4: raise max_length"):
        tokenize(rows, PLAIN, max_length=4)
    data = tokenize(rows, PLAIN, max_length=4, long_prompts="skip")
    assert (data.summary.num_skipped, data.summary.num_examples, data.summary.num_target_tokens) == (1, 1, 1)
    with pytest.raises(ValueError, match=r"^every one of the 2 prompts fills max_length 3: raise max_length"):
        tokenize(rows, PLAIN, max_length=3, long_prompts="skip")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"long_prompts": "cut"}, "long_prompts is 'cut': must be one of error, skip"),
        ({"max_length": 1}, "max_length is 1"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        tokenize([qa("a", "b")], PLAIN, **{"max_length": 8, **setting})


def test_preview_marks_the_targets():
    data = tokenize([qa("a" * 50, "b"), chat("2+2=", "4", "3+3=", "6")], CHAT, max_length=200)
    assert preview(data, CHAT, 1) == (
        "example 1: 51 tokens, 4 targets in [[ ]]\n"
        "<|im_start|>user\n2+2=<|im_end|>\n<|im_start|>assistant\n[[4<|im_end|>]]\n"
        "<|im_start|>user\n3+3=<|im_end|>\n<|im_start|>assistant\n[[6<|im_end|>]]"
    )
    assert "<|im_start ... assistant\n[[b<|im_end|>]]" in preview(data, CHAT, 0, max_chars=20)


def equal(a: TokenizedDataset, b: TokenizedDataset) -> bool:
    arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in (*TOKENS, "rows"))
    return arrays and a.summary == b.summary


def test_saved_data_set_is_mapped_and_equal(tmp_path):
    data = tokenize([qa("ab", "cd"), qa("abc", "d")], PLAIN, max_length=8)
    data.save(tmp_path / "set")
    loaded = TokenizedDataset.load(tmp_path / "set")
    assert equal(loaded, data)
    assert isinstance(loaded.input_ids, np.memmap)
    assert loaded[1].input_ids.tolist() == data[1].input_ids.tolist()
    with pytest.raises(IndexError):
        loaded[2]
    tokenize([qa("x", "y")], PLAIN, max_length=8).save(tmp_path / "set")  # somebody else was faster: theirs stays
    assert equal(TokenizedDataset.load(tmp_path / "set"), data)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_failed_save_leaves_nothing(tmp_path):
    data = tokenize([qa("ab", "cd")], PLAIN, max_length=8)
    broken = dataclasses.replace(data, offsets=np.array([object()]))
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        broken.save(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def write(path: Path, *pairs: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in pairs))
    return path


def test_tokenized_works_once_per_content_tokenizer_and_setting(tmp_path):
    source, cache = write(tmp_path / "a.jsonl", ("ab", "cd")), tmp_path / "cache"
    first = tokenized(source, PLAIN, cache, max_length=8)
    assert equal(TokenizedDataset.load(first), tokenize(read_rows(source), PLAIN, max_length=8))
    written = (first / "input_ids.npy").stat().st_mtime_ns
    copy = write(tmp_path / "b.jsonl", ("ab", "cd"))
    assert tokenized(copy, build_tokenizer(), cache, max_length=8) == first
    assert (first / "input_ids.npy").stat().st_mtime_ns == written
    others = [
        tokenized(write(tmp_path / "c.jsonl", ("ab", "ce")), PLAIN, cache, max_length=8),
        tokenized(source, PLAIN, cache, max_length=7),
        tokenized(source, PLAIN, cache, max_length=8, long_prompts="skip"),
        tokenized(source, CHAT, cache, max_length=80),
        tokenized(source, build_tokenizer(merges=[("a", "b")]), cache, max_length=8),
        tokenized(source, build_tokenizer(template=CHATML.replace("<|im_start|>", "")), cache, max_length=80),
    ]
    assert len({first, *others}) == 7
    assert sorted(path.name for path in cache.iterdir()) == sorted(path.name for path in [first, *others])


def test_row_numbers_are_those_of_the_file_where_lines_are_blank_and_rows_are_skipped(tmp_path):
    source = tmp_path / "a.jsonl"
    rows = [json.dumps({"prompt": prompt, "response": "c"}) for prompt in ("ab", "far too long", "abc")]
    source.write_text("\n".join(["", rows[0], "  ", rows[1], "", rows[2], ""]))
    data = TokenizedDataset.load(tokenized(source, PLAIN, tmp_path / "cache", max_length=6, long_prompts="skip"))
    assert data.summary.num_skipped == 1
    assert data.rows.tolist() == [2, 6]


def test_prepare_of_bad_data_leaves_nothing(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text('{"prompt": "ab", "response": "cd"}\n{"prompt": "ab"}\n')
    with pytest.raises(ValueError, match=f"^{source} line 2: has no field 'response'"):
        tokenized(source, PLAIN, tmp_path / "cache", max_length=8)
    assert not (tmp_path / "cache").exists()
