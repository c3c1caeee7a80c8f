"""Whether what is trained is what the row says: what a template leaves out is refused, what it changes is counted.

White space may differ: many templates strip their texts. Everything else of a turn has to be in what the template
writes for it, and the tokens of an answer have to give its text back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nemo_probsft.data import templates
from nemo_probsft.data.rows import Row
from nemo_probsft.data.turns import Turn, function_of

REASONING = ("reasoning_content", "reasoning", "thinking")
MAX_OPENED = 64  # characters of an answer that a generation prompt may have written already, such as <think>
EXACTLY, SPACED = "exactly", "spaced"
# Notes follow a number of rows.
UNUSED = "have a field that nothing is made of:"
MASKED = "have answers that their own marks keep from being learnt"
LEFT_OUT = "have a field of a turn that the chat template does not write:"
SHORTENED = "have earlier answers, not supervised, of which the chat template leaves something out"
WHITE_SPACE = "have answers whose white space the chat template changes"
QUOTED = "have tool calls with arguments as text, which the chat template writes in quotes: give an object"
DATE = (
    "hold the date of today, which the chat template writes, and evaluation will see another: give data.chat_template "
    "with a fixed one"
)
SPACED_BY_TOKENIZER = "have answers whose white space the tokenizer changes"
LOST_BY_TOKENIZER = "have answers with text that the tokens do not give back"


def of_template(tokenizer: Any, row: Row, spans: Sequence[tuple[str, int | None]]) -> list[str]:
    """Notes about what the template made of a row. Raises ValueError for what it leaves out.

    spans: texts in order, and of a supervised answer the index of its turn.
    """
    notes: list[str] = []
    before, start = "", 0
    for text, turn in spans:
        if turn is None:
            before += text
            continue
        notes += _of_context(before, range(start, turn), row)
        notes += _of_answer(before, text, turn, row)
        before, start = before + text, turn + 1
    notes += _of_context(before, range(start, len(row.messages)), row)
    for tool in row.tools or ():
        name = function_of(tool)["name"]
        if name not in spans[0][0]:
            raise ValueError(f"{row.where}: the chat template does not write the tool {name!r}: use another template")
    return notes + _of_rendering(tokenizer, row)


def of_tokens(tokenizer: Any, ids: list[int], text: str) -> list[str]:
    """A note if the ids of an answer do not give its text back, but for a space that decoding strips from its start."""
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if decoded in (text, text.removeprefix(" ")):
        return []
    return [SPACED_BY_TOKENIZER if _squeezed(decoded) == _squeezed(text) else LOST_BY_TOKENIZER]


def _of_context(text: str, turns: Iterable[int], row: Row) -> list[str]:
    """Of turns that are not supervised. An answer among them may be shortened, as the template does in use."""
    notes = []
    for i in turns:
        message, name = row.messages[i], f"messages[{i}].content"
        if message["role"] != "assistant":
            _require("", text, message["content"], name, row.where, escaped=True)
            continue
        parts = [message.get("content") or "", *(part for parts in _reasoning(message).values() for part in parts)]
        if not all(_stands_in("", text, part) for part in parts):
            notes.append(SHORTENED)
    return notes


def _of_answer(before: str, text: str, turn: int, row: Row) -> list[str]:
    message, name = row.messages[turn], f"messages[{turn}]"
    for field, parts in _reasoning(message).items():
        for part in parts:
            _require(before, text, part, f"{name}.{field}", row.where)
    notes = []
    if content := message.get("content"):
        _require(before, text, content, f"{name}.content", row.where)
        notes += [] if _stands_in(before, text, content) == EXACTLY else [WHITE_SPACE]
    calls = {"tool_calls": message.get("tool_calls") or [], "function_call": [message.get("function_call") or {}]}
    for field, found in calls.items():
        for part in _texts(found):
            _require(before, text, part, f"{name}.{field}", row.where, escaped=True)
    arguments = [function_of(call).get("arguments") for found in calls.values() for call in found]
    notes += [QUOTED] * any(isinstance(given, str) and json.dumps(given) in text for given in arguments)
    return notes


def _reasoning(message: Turn) -> dict[str, list[str]]:
    return {field: list(_leaves(message[field])) for field in REASONING if field in message}


def _of_rendering(tokenizer: Any, row: Row) -> list[str]:
    """What shows only where the row is rendered in another way, too."""

    def rendered(messages: Sequence[Turn], **names: Any) -> str | None:
        """None for what the template refuses: it looks at what was changed."""
        try:
            return templates.render(tokenizer, messages, row.tools, row.where, add_generation_prompt=False, **names)
        except ValueError:
            return None

    notes = []
    known = {"role", "content", "tool_calls", *REASONING}
    for field in dict.fromkeys(key for message in row.messages for key in message if key not in known):
        without = [{key: value for key, value in message.items() if key != field} for message in row.messages]
        notes += [f"{LEFT_OUT} {field!r}"] * (rendered(without) == rendered(row.messages))
    for i, message in enumerate(row.messages):
        if message.get("content", "") is None:
            empty = [*row.messages[:i], {**message, "content": ""}, *row.messages[i + 1 :]]
            if len(rendered(row.messages) or "") == len(rendered(empty) or "") + len("None"):
                raise ValueError(
                    f"{row.where}: messages[{i}].content is null, which the chat template writes as None: write an "
                    "empty text"
                )
    if templates.uses(tokenizer.get_chat_template(tools=row.tools)).clock:
        other = rendered(row.messages, strftime_now=templates.on_another_day)
        notes += [DATE] * (other != rendered(row.messages))
    return notes


def _require(before: str, text: str, content: str, name: str, where: str, *, escaped: bool = False) -> None:
    """Raise ValueError if `content` does not stand in `text`; escaped: what JSON makes of it will do."""
    if _stands_in(before, text, content):
        return
    if escaped and any(json.dumps(content, ensure_ascii=ascii)[1:-1] in text for ascii in (True, False)):
        return
    raise ValueError(
        f"{where}: the chat template does not write all of {name}, {_shown(content)}: use a template that does, or "
        "take it out of the row"
    )


def _stands_in(before: str, text: str, content: str) -> str | None:
    """EXACTLY, SPACED where white space differs, None where more does. Its beginning may be the end of `before`."""
    if content in text or _goes_on(before, text, content):
        return EXACTLY
    wanted, found = _squeezed(content), _squeezed(text)
    return SPACED if wanted in found or _goes_on(_squeezed(before[-MAX_OPENED:]), found, wanted) else None


def _goes_on(before: str, text: str, content: str) -> bool:
    opened = range(1, min(len(content), MAX_OPENED))
    return any(before.endswith(content[:n]) and text.startswith(content[n:]) for n in opened)


def _texts(calls: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The texts in the names and arguments of tool calls; arguments may be JSON text."""
    for call in calls:
        function = function_of(call)
        yield from _leaves([function.get("name"), _parsed(function.get("arguments"))])


def _parsed(arguments: Any) -> Any:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        yield from _leaves(list(value.values()))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
