"""Which ids a row has: those of its text as one, cut at the answers that are supervised; the same at evaluation."""

import random

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from evaluation.prompt_tokens import prompt_ids as ids_at_evaluation
from nemo_probsft.data.rows import parse_row
from nemo_probsft.data.spans import prompt_ids, token_ids, tokens_of
from nemo_probsft.data.tokens import preview, tokenize

PIECES = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<unk>",
    "\u2581",
    *"0123456789+=abcdefghijklmnopqrstuvwxyz\n<>/",
]
CHATML = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sentencepiece_like(kind: str, merges=(), bos=False, template=None) -> PreTrainedTokenizerFast:
    """Puts a space before every text: as Llama 2 in its first form, or by the pre-tokenizer that replaced it."""
    vocabulary = [*PIECES, *(a + b for a, b in merges)]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(vocabulary)}, list(merges), unk_token="<unk>"))
    if kind == "prepend":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, **special, additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tokenizer.chat_template = template
    return tokenizer


def byte_level(template=CHATML) -> PreTrainedTokenizerFast:
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    letters = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", additional_special_tokens=special[2:])
    tokenizer.chat_template = template
    return tokenizer


CHAT = byte_level()


def turn(role: str, content: str | None, **fields):
    return {"role": role, "content": content, **fields}


def row(*turns, **fields):
    return parse_row({"messages": list(turns), **fields}, "here")


def targets(tokenizer, a_row, supervise="answers") -> str:
    ids, is_target = token_ids(tokenizer, a_row, supervise)
    return tokenizer.decode([token for token, target in zip(ids, is_target, strict=True) if target])


@pytest.mark.parametrize("bos", [False, True], ids=["", "bos"])
@pytest.mark.parametrize("kind", ["prepend", "always", "first"])
@pytest.mark.parametrize(
    ("prompt", "response"), [("2+3=", "5"), ("a word\n", "yo"), ("say it", " please"), ("a ", "b")]
)
def test_an_answer_gets_no_space_that_its_row_does_not_have(kind, bos, prompt, response):
    tokenizer = sentencepiece_like(kind, bos=bos)
    found, is_target = token_ids(tokenizer, parse_row({"prompt": prompt, "response": response}, "here"))
    assert found == [*tokenizer(prompt + response)["input_ids"], tokenizer.eos_token_id]
    start = is_target.index(1)
    assert found[:start] == prompt_ids(tokenizer, {"prompt": prompt})
    assert [found[:start]] == ids_at_evaluation(tokenizer, [prompt], rendered=False)
    assert tokenizer.decode(found[:-1], skip_special_tokens=True) == prompt + response
    # Tokenized as a text of its own, an answer begins with a space.
    apart = tokenizer(response, add_special_tokens=False)["input_ids"]
    assert (found[start:-1] == apart) == response.startswith(" ") * (kind != "prepend")


@pytest.mark.parametrize("kind", ["prepend", "always", "first"])
@pytest.mark.parametrize("template", [None, CHATML])
def test_where_a_token_would_span_the_border_the_prompt_keeps_its_ids_and_the_answer_still_gets_no_space(
    kind, template
):
    tokenizer = sentencepiece_like(kind, merges=[("b", "c"), ("\n", "c")], template=template)
    a_row = parse_row({"prompt": "ab", "response": "cd"}, "here")
    found, is_target = token_ids(tokenizer, a_row)
    start = is_target.index(1)
    assert tokenizer.convert_ids_to_tokens(found[start : start + 2]) == ["c", "d"]
    assert found[:start] == prompt_ids(tokenizer, a_row)
    text = "abcd" if template is None else tokenizer.apply_chat_template(a_row.messages, tokenize=False)
    assert {"bc", "\nc"} & set(tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])), (
        "nothing spans the border"
    )
    assert tokenizer.decode(found[start:-1]) == "cd"


def test_an_answer_is_cut_into_words_as_its_row_is():
    """Qwen's and Llama 3's rule takes the marks before a word together: `}.` and `\\begin` are `}.\\` and `begin`."""
    letters = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "\\b"]
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [("\\", "b")]))
    words = pre_tokenizers.Split(Regex(r"\\?\w+|[^\s\w]+"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    found, is_target = token_ids(tokenizer, parse_row({"prompt": "x}.", "response": "\\begin"}, "here"))
    assert found[:-1] == tokenizer("x}.\\begin")["input_ids"]
    assert tokenizer("\\begin")["input_ids"] != found[is_target.index(1) : -1]


def trained(kind: str) -> PreTrainedTokenizerFast:
    """As SentencePiece trains them, on words that share beginnings and ends."""
    core = Tokenizer(models.Unigram() if kind == "unigram" else models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    trainer = (
        trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False)
        if kind == "unigram"
        else trainers.BpeTrainer(vocab_size=80, special_tokens=special, show_progress=False)
    )
    rng = random.Random(0)
    core.train_from_iterator([random_text(rng, 40) for _ in range(400)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def random_text(rng: random.Random, length: int) -> str:
    return "".join(rng.choices("abcdef \n.=0", k=length))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_any_split_of_a_text_is_that_text_in_tokens(kind):
    tokenizer, rng, num_apart = trained(kind), random.Random(1), 0
    for _ in range(300):
        prompt, response = (random_text(rng, rng.randrange(1, 12)) for _ in range(2))
        if not response.strip():
            continue
        found, is_target = token_ids(tokenizer, parse_row({"prompt": prompt, "response": response}, "here"))
        assert found[: is_target.index(1)] == tokenizer(prompt)["input_ids"]
        pieces = "".join(tokenizer.convert_ids_to_tokens(found[:-1])).replace("\u2581", " ")
        assert pieces.removeprefix(" ") == (prompt + response).removeprefix(" ")
        num_apart += found[:-1] != tokenizer(prompt + response)["input_ids"]
    assert num_apart > 20, "no token ever spans a border"


ASKED = turn("user", "one?")
TALK = [ASKED, turn("assistant", "WRONG"), turn("user", "no"), turn("assistant", "RIGHT")]


@pytest.mark.parametrize("field", ["weight", "train", "training", "loss_mask", "loss", "trainable"])
@pytest.mark.parametrize("value", [0, False, 0.0])
def test_a_turn_that_the_data_masks_is_no_target_and_no_other_text_to_the_template(field, value):
    masked = row(TALK[0], {**TALK[1], field: value}, *TALK[2:])
    assert targets(CHAT, masked) == "RIGHT<|im_end|>"
    assert targets(CHAT, row(*TALK)) == "WRONG<|im_end|>RIGHT<|im_end|>"
    assert token_ids(CHAT, masked)[0] == token_ids(CHAT, row(*TALK))[0]
    (note,) = tokens_of(CHAT, masked).notes
    assert note == "have answers that their own marks keep from being learnt"


def test_what_is_supervised_can_be_all_answers_the_last_or_those_that_are_marked():
    marked = row(TALK[0], turn("assistant", "first", weight=1), TALK[2], turn("assistant", "second"))
    assert targets(CHAT, marked) == "first<|im_end|>second<|im_end|>"
    assert targets(CHAT, marked, "last") == "second<|im_end|>"
    assert targets(CHAT, marked, "flagged") == "first<|im_end|>"
    every = [token_ids(CHAT, marked, supervise)[0] for supervise in ("answers", "last", "flagged")]
    assert every[0] == every[1] == every[2]
    assert "[[first<|im_end|>]]" in preview(tokenize([marked], CHAT, max_length=99, supervise="flagged"), CHAT)


@pytest.mark.parametrize(
    ("turns", "supervise", "message"),
    [
        ([ASKED, turn("assistant", "a", weight=0)], "answers", "every answer is marked not to be learnt: drop the row"),
        ([*TALK[:3], turn("assistant", "a", train=False)], "last", "the last answer is marked not to be learnt: drop"),
        (TALK, "flagged", "no turn is marked to be learnt, and data.supervise is flagged: give one weight: 1, or set"),
        ([ASKED, turn("assistant", "a", weight=0.5)], "answers", "messages[1].weight is 0.5: must be 0 or 1, false or"),
        ([ASKED, turn("assistant", "a", train="no")], "answers", 'messages[1].train is "no": must be 0 or 1, false or'),
        (
            [ASKED, turn("assistant", "a", weight=1, loss_mask=0)],
            "answers",
            "messages[1] has 'weight', 'loss_mask', wh",
        ),
        (
            [turn("user", "x", train=True), TALK[1]],
            "answers",
            "messages[0].train marks a turn of 'user': only the assi",
        ),
        (
            [ASKED, turn("assistant", "a", loss_scale=2)],
            "answers",
            "messages[1].loss_scale would mask parts of what is",
        ),
        (
            [ASKED, turn("assistant", "a", train_detail=[])],
            "answers",
            "messages[1].train_detail would mask parts of wh",
        ),
    ],
)
def test_marks_that_cannot_be_honoured_are_refused_with_the_row(turns, supervise, message):
    with pytest.raises(ValueError, match=r"^here: ") as info:
        token_ids(CHAT, row(*turns), supervise)
    assert str(info.value).startswith(f"here: {message}")


def test_a_template_that_shortens_earlier_answers_trains_the_last_one_after_what_it_follows_in_use():
    """Qwen3's form: the reasoning of an answer is gone when the next question comes."""
    qwen3 = byte_level(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
        "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    talk = row(ASKED, turn("assistant", "<think>x</think>1"), TALK[2], turn("assistant", "<think>y</think>2"))
    with pytest.raises(ValueError, match="rewrites earlier text when it adds messages"):
        token_ids(qwen3, talk)
    found, is_target = token_ids(qwen3, talk, "last")
    asked = qwen3.apply_chat_template(talk.messages[:3], tokenize=False, add_generation_prompt=True)
    assert found[: is_target.index(1)] == ids_at_evaluation(qwen3, [asked], rendered=True)[0]
    assert found[: is_target.index(1)] == prompt_ids(qwen3, talk, "last")
    assert targets(qwen3, talk, "last") == "<think>y</think>2<|im_end|>"
    assert tokens_of(qwen3, talk, "last").notes == [
        "have earlier answers, not supervised, of which the chat template leaves something out"
    ]


TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "1", "type": "function", "function": {"name": "get_time", "arguments": {"zone": "CET"}}}
WITH_TOOLS = [
    ASKED,
    turn("assistant", "", tool_calls=[CALL]),
    turn("tool", "noon", tool_call_id="1"),
    turn("tool", "or later"),
    turn("assistant", "It is noon.", reasoning_content="as the tool says"),
]


def test_tools_calls_and_reasoning_reach_the_template_as_transformers_passes_them():
    whole = row(*WITH_TOOLS, tools=[TOOL])
    expected = CHAT.apply_chat_template(WITH_TOOLS, tools=[TOOL], tokenize=False).rstrip()
    assert CHAT.decode(token_ids(CHAT, whole)[0]) == expected
    assert "get_time" in expected.split("<|im_start|>user")[0]
    assert targets(CHAT, whole) == (
        '<call>{"name": "get_time", "arguments": {"zone": "CET"}}</call><|im_end|>'
        "<think>as the tool says</think>It is noon.<|im_end|>"
    )
    found, is_target = token_ids(CHAT, whole)
    last = len(found) - is_target[::-1].index(0)
    asked = CHAT.apply_chat_template(WITH_TOOLS[:-1], tools=[TOOL], tokenize=False, add_generation_prompt=True)
    for asking in (whole, {"messages": WITH_TOOLS, "tools": [TOOL]}, {"messages": WITH_TOOLS[:-1], "tools": [TOOL]}):
        assert prompt_ids(CHAT, asking) == found[:last] == ids_at_evaluation(CHAT, [asked], rendered=True)[0]
    assert prompt_ids(CHAT, {"messages": WITH_TOOLS}) != found[:last]  # the tools are a part of the prompt


def test_a_prompt_and_a_response_may_have_tools_and_a_list_of_tools_may_be_json_text():
    plain = {"prompt": "one?", "response": "two", "tools": [TOOL]}
    ids = token_ids(CHAT, parse_row(plain, "here"))
    text = {**plain, "tools": '[{"type": "function", "function": {"name": "get_time", "parameters": '}
    text["tools"] += '{"type": "object", "properties": {}}}}]'
    assert token_ids(CHAT, parse_row(text, "here")) == ids
    assert prompt_ids(CHAT, {"prompt": "one?", "tools": [TOOL]}) == ids[0][: ids[1].index(1)]


@pytest.mark.parametrize(
    ("turns", "tools", "message"),
    [
        ([turn("tool", "x"), TALK[1]], None, "messages[0].role is 'tool' where 'user' must come"),
        ([ASKED, turn("tool", "x"), TALK[1]], None, "messages[1].role is 'tool' where 'assistant' must come"),
        ([*WITH_TOOLS[:3], turn("user", "x"), TALK[1]], None, "messages[3].role is 'user' where 'assistant' must come"),
        ([ASKED, turn("assistant", None)], None, "messages[1].content is null: must be a string"),
        (
            [ASKED, turn("assistant", "", tool_calls=[])],
            None,
            "messages[1].content is empty: there is no answer to lea",
        ),
        (
            [ASKED, turn("assistant", "", tool_calls="x")],
            None,
            "messages[1].tool_calls is a JSON string: must be a lis",
        ),
        (
            [turn("user", "x", tool_calls=[CALL]), TALK[1]],
            None,
            "messages[0].tool_calls is of a turn of 'user': only t",
        ),
        (
            [ASKED, turn("assistant", "a", note=["\ud800"])],
            None,
            "messages[1].note holds half a surrogate pair at char",
        ),
        (TALK, "[", "tools is a text that is not JSON: write a list of JSON schemas"),
        (TALK, [{"function": "get_time"}], "tools[0] names no function: its fields are 'function'"),
        (
            [ASKED, turn("assistant", "", tool_calls=[{}])],
            None,
            "messages[1].tool_calls[0] names no function: its fields",
        ),
        (TALK, ["get_time"], "tools is a JSON array: must be a list of JSON schemas"),
    ],
)
def test_turns_and_tools_that_make_no_conversation_are_refused(turns, tools, message):
    with pytest.raises(ValueError, match=r"^here: ") as info:
        row(*turns, **({} if tools is None else {"tools": tools}))
    assert str(info.value).startswith(f"here: {message}")


@pytest.mark.parametrize("fields", [{"tools": [TOOL]}, {"messages": [ASKED, turn("assistant", "a", reasoning="b")]}])
def test_without_a_template_nobody_writes_tools_or_fields_of_a_turn(fields):
    plain = {"messages": [ASKED, turn("assistant", "a")], **fields}
    with pytest.raises(
        ValueError, match=r"^here: has (tools|reasoning), which the tokenizer has no chat template to wr"
    ):
        token_ids(byte_level(None), parse_row(plain, "here"))
