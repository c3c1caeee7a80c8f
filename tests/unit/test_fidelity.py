"""What a template or a tokenizer leaves out of a row is refused with the row, what it changes is counted."""

import pytest
from tokenizers import normalizers

from nemo_probsft.data import fidelity, tokens
from nemo_probsft.data.rows import parse_row
from nemo_probsft.data.spans import token_ids, tokens_of
from nemo_probsft.data.tokens import Note
from tests.unit.test_spans import ASKED, CALL, CHATML, TALK, TOOL, byte_level, row, turn

PLAIN_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REASONED = "<think>\ntwo and three are five\n</think>\n\n5"


def answers_by(jinja: str) -> str:
    """ChatML whose answers are written so."""
    return PLAIN_CHATML.replace(
        "{{ m.content }}", "{% if m.role == 'assistant' %}" + jinja + "{% else %}{{ m.content }}{% endif %}"
    )


def refusal(template: str, a_row) -> str:
    with pytest.raises(ValueError, match=r"^here: ") as info:
        token_ids(byte_level(template), a_row)
    assert "\n" not in str(info.value)
    return str(info.value)


def notes(template: str, a_row) -> list[str]:
    return tokens_of(byte_level(template), a_row).notes


ONLY_AFTER_THINKING = "{{ m.content.split('</think>')[-1].lstrip('\\n') }}"
LEFT_OUT = [
    (answers_by(ONLY_AFTER_THINKING), row(ASKED, turn("assistant", REASONED)), "messages[1].content, '<think>"),
    (answers_by("{{ m.content[:3] }}"), row(ASKED, turn("assistant", "cut off")), "messages[1].content, 'cut off'"),
    (answers_by("{{ m.content | upper }}"), row(*TALK[:1], turn("assistant", "quiet")), "messages[1].content, 'quiet'"),
    (answers_by("{{ m.content | tojson }}"), row(ASKED, turn("assistant", "a\nb")), "messages[1].content, 'a\\nb'"),
    (PLAIN_CHATML, row(ASKED, turn("assistant", "5", reasoning_content="2+3")), "messages[1].reasoning_content, '2+3'"),
    (PLAIN_CHATML, row(ASKED, turn("assistant", "5", thinking="2+3")), "messages[1].thinking, '2+3'"),
    (PLAIN_CHATML, row(ASKED, turn("assistant", "5", reasoning=[{"text": "2+3"}])), "messages[1].reasoning, 'text'"),
    (
        PLAIN_CHATML,
        row(ASKED, turn("assistant", "5", function_call={"name": "add", "arguments": "{}"})),
        "messages[1].function_call, 'add'",
    ),
    (
        PLAIN_CHATML,
        row(ASKED, turn("assistant", "Let me look.", tool_calls=[CALL])),
        "messages[1].tool_calls, 'get_time'",
    ),
    (
        CHATML.replace("{{ call.function | tojson }}", "{{ call.function.name }}"),
        row(ASKED, turn("assistant", "", tool_calls=[CALL])),
        "messages[1].tool_calls, 'zone'",
    ),
    (
        PLAIN_CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
        row(turn("system", "In French."), *TALK),
        "messages[0].content, 'In French.'",
    ),
    (
        PLAIN_CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'user' else '' }}"),
        row(*TALK),
        "messages[0].content, 'one?'",
    ),
]


@pytest.mark.parametrize(("template", "a_row", "part"), LEFT_OUT, ids=[part for _, _, part in LEFT_OUT])
def test_what_the_template_leaves_out_is_refused_with_the_row(template, a_row, part):
    assert refusal(template, a_row).startswith(f"here: the chat template does not write all of {part}")


def test_tools_that_the_template_does_not_write_are_refused():
    assert refusal(PLAIN_CHATML, row(*TALK, tools=[TOOL])).startswith(
        "here: the chat template does not write the tool 'get_time'"
    )
    assert token_ids(byte_level(CHATML), row(*TALK, tools=[TOOL]))


@pytest.mark.parametrize("tag", ["<think>", "<think>\n"])
def test_a_tag_that_the_generation_prompt_opens_is_no_loss(tag):
    opened = PLAIN_CHATML.replace("assistant\n{% endif %}", f"assistant\n{tag}" + "{% endif %}")
    whole = row(ASKED, turn("assistant", f"{tag}two\n</think>5"))
    found, is_target = token_ids(byte_level(opened), whole)
    assert byte_level().decode(found[is_target.index(1) :]) == "two\n</think>5<|im_end|>"
    assert notes(opened, whole) == []


def test_white_space_may_change_and_is_counted():
    spaced = row(ASKED, turn("assistant", "  def f():\n    return 1\n"))
    assert notes(PLAIN_CHATML, spaced) == []
    for jinja in ("{{ m.content | trim }}", "{{ m.content.split() | join(' ') }}"):
        assert notes(answers_by(jinja), spaced) == [fidelity.WHITE_SPACE], jinja
    asked = row(turn("user", " one? "), TALK[1])
    assert notes(PLAIN_CHATML.replace("{{ m.content }}", "{{ m.content | trim }}"), asked) == []


def test_fields_that_nobody_writes_are_counted_by_name():
    named = parse_row({"messages": [{**ASKED, "name": "Ann"}, TALK[1]], "id": 7, "source": None}, "here")
    assert notes(PLAIN_CHATML, named) == [f"{fidelity.UNUSED} 'id'", f"{fidelity.LEFT_OUT} 'name'"]
    written = PLAIN_CHATML.replace("{{ m.role }}", "{{ m.role }}{{ m.name or '' }}")
    assert notes(written, named) == [f"{fidelity.UNUSED} 'id'"]
    needed = "{% for m in messages if m.role == 'user' and not m.name %}{{ raise_exception('who?') }}{% endfor %}"
    assert notes(needed + PLAIN_CHATML, named) == [f"{fidelity.UNUSED} 'id'"]


def test_fields_without_a_value_are_no_fields():
    """Arrow gives each turn of a column the fields of all of them."""
    filled = row({**ASKED, "tool_calls": None, "weight": None}, {**TALK[1], "reasoning_content": None})
    assert filled == row(ASKED, TALK[1])


def test_arguments_as_text_are_counted_where_the_template_quotes_them_again():
    text = {**CALL, "function": {"name": "get_time", "arguments": '{"zone": "CET"}'}}
    called = row(ASKED, turn("assistant", "", tool_calls=[text]))
    assert notes(CHATML, called) == [fidelity.QUOTED]
    assert (
        notes(
            CHATML.replace("{{ call.function | tojson }}", "{{ call.function.name }}({{ call.function.arguments }})"),
            called,
        )
        == []
    )


def test_a_content_of_null_that_the_template_spells_out_is_refused():
    called = row(ASKED, turn("assistant", None, tool_calls=[CALL]))
    assert refusal(CHATML, called) == (
        "here: messages[1].content is null, which the chat template writes as None: write an empty text"
    )
    assert notes(CHATML.replace("{{ m.content }}", "{{ m.content or '' }}"), called) == []


@pytest.mark.parametrize("form", ["%d %b %Y", "%H", "%A"])
def test_a_date_that_the_template_writes_is_said(form):
    dated = "{{ '<|im_start|>system\nToday: ' + strftime_now('" + form + "') + '<|im_end|>\n' }}" + PLAIN_CHATML
    assert notes(dated, row(*TALK)) == [fidelity.DATE]
    guarded = "{% if tools and strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}" + PLAIN_CHATML
    assert notes(guarded, row(*TALK)) == []


@pytest.mark.parametrize("draw", ["{{ ['a', 'b'] | random }}", "{{ lipsum(n=1) }}"])
def test_a_template_that_draws_at_random_is_refused(draw):
    problem = (
        "the chat template draws at random, so training and evaluation would see other prompts: use one that does not"
    )
    assert refusal(PLAIN_CHATML + draw, row(*TALK)) == f"here: {problem}"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "templates/chatml.jinja",
            "template 'templates/chatml.jinja' does not depend on the messages, it is a path: give",
        ),
        ("<|im_start|>{{ bos_token }}", "template does not depend on the messages, it is the same text for every row"),
    ],
)
def test_a_template_that_writes_no_messages_is_refused_for_what_it_is(template, problem):
    assert refusal(template, row(*TALK)).startswith(f"here: the chat {problem}")


def test_markers_of_transformers_are_jinja_here_too():
    marked = answers_by("{% generation %}{{ m.content }}{% endgeneration %}")
    assert token_ids(byte_level(marked), row(*TALK)) == token_ids(byte_level(PLAIN_CHATML), row(*TALK))


def test_tokens_that_do_not_give_an_answer_back_are_counted():
    lower = byte_level(PLAIN_CHATML)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert tokens_of(lower, row(ASKED, turn("assistant", "ok"))).notes == []
    assert tokens_of(lower, row(ASKED, turn("assistant", "Ok"))).notes == [fidelity.LOST_BY_TOKENIZER]
    lower.backend_tokenizer.normalizer = normalizers.Replace("  ", " ")
    assert tokens_of(lower, row(ASKED, turn("assistant", "a  b"))).notes == [fidelity.SPACED_BY_TOKENIZER]


def test_notes_are_counted_over_rows_and_fields_share_a_line():
    rows = [parse_row({"prompt": "a", "response": "b", "id": i, "src": "x"}, f"line {i}") for i in (1, 2)]
    rows.append(parse_row({"prompt": "a", "response": " b", "id": 3}, "line 3"))
    summary = tokens.tokenize(rows, byte_level(answers_by("{{ m.content | trim }}")), max_length=99).summary
    assert summary.notes == (
        Note(f"{fidelity.UNUSED} 'id'", 3, "line 1"),
        Note(f"{fidelity.UNUSED} 'src'", 2, "line 1"),
        Note(fidelity.WHITE_SPACE, 1, "line 3"),
    )
    assert tokens.said(summary.notes) == [
        ("up to 3 (first: line 1)", f"{fidelity.UNUSED} 'id' (3), 'src' (2)"),
        ("1 (first: line 3)", fidelity.WHITE_SPACE),
    ]
