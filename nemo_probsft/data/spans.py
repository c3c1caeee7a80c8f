"""A conversation as token ids, answer by answer: which ids the model sees, and which of them the loss covers.

With a chat template the loss covers assistant turns with their end tokens; without one a row is prompt + response + end
token, and no BOS that the tokenizer would not add by itself. Either way the ids are those of the text as one. Where a
token would span the border of prompt and answer, the prompt keeps the ids that it has alone, which are what the model
is given at evaluation (`prompt_ids`), and the answer is tokenized from the border on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nemo_probsft.data import fidelity, templates
from nemo_probsft.data.rows import Row
from nemo_probsft.data.turns import Marks, Turn, conversation, for_template, parse_tools

SUPERVISE = ("answers", "last", "flagged")
# Texts that no tokenizer merges with every other: one of them can stand before an answer while it is tokenized.
ANCHORS = ("\n", ".", "=", "a", "0", "\u00e9")


class Span(NamedTuple):
    """A piece of a conversation; `answer` is the index of its turn, None for what is not supervised."""

    ids: list[int]
    text: str
    answer: int | None


class Tokens(NamedTuple):
    """A row as ids and, aligned with them, 1 for each target; `notes` say what is not as the row has it."""

    ids: list[int]
    is_target: list[int]
    notes: list[str]


def token_ids(tokenizer: Any, row: Row, supervise: str = "answers") -> tuple[list[int], list[int]]:
    """Ids of a row and, aligned with them, 1 for each token of a supervised answer or its end token."""
    found = tokens_of(tokenizer, row, supervise)
    return found.ids, found.is_target


def tokens_of(tokenizer: Any, row: Row, supervise: str = "answers") -> Tokens:
    """Raises ValueError if the template leaves out a part of the row, or if nothing of it is supervised."""
    chosen = _supervised(row, supervise)
    spans = list(_spans(tokenizer, row.messages, row.tools, row.where, chosen))
    ids: list[int] = []
    is_target: list[int] = []
    for span in spans:
        if span.answer is not None and len(span.ids) < 2:
            raise ValueError(f"{row.where}: an answer has no token but its end token: drop the row")
        if not ids and not span.ids:
            raise ValueError(f"{row.where}: its prompt has no tokens: the first answer token needs one before it")
        ids += span.ids
        is_target += [int(span.answer is not None)] * len(span.ids)
    notes = [f"{fidelity.UNUSED} {name!r}" for name in row.unused]
    if supervise == "answers" and row.marks and len(chosen) < len(_answers(row.messages)):
        notes.append(fidelity.MASKED)
    if tokenizer.chat_template is not None:
        notes += fidelity.of_template(tokenizer, row, [(span.text, span.answer) for span in spans])
    for span in spans:
        if span.answer is not None:
            notes += fidelity.of_tokens(tokenizer, span.ids, span.text)
    return Tokens(ids, is_target, notes)


def prompt_ids(tokenizer: Any, row: Row | Mapping[str, Any], supervise: str = "answers") -> list[int]:
    """Ids that come before the last answer, which need not be there: what the model is given at evaluation.

    Equal to the start of the row's ids in training. `row` may be `{"prompt": ...}` or `{"messages": [...]}`, and have
    `tools`.
    """
    if isinstance(row, Row):
        messages, tools, marks, where = row.messages, row.tools, row.marks, row.where
    else:
        turns = row["messages"] if "messages" in row else conversation(row["prompt"], "")
        messages, marks, where = [for_template(turn) for turn in turns], (), "prompt"
        tools = parse_tools(row.get("tools"), where)
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    earlier = set() if supervise == "last" else _chosen(messages, marks, supervise)
    return [token for span in _spans(tokenizer, messages, tools, where, earlier) for token in span.ids]


def _supervised(row: Row, supervise: str) -> set[int]:
    """The turns that the loss covers. Raises ValueError if there is none."""
    if supervise not in SUPERVISE:
        raise ValueError(f"supervise is {supervise!r}: must be one of {', '.join(SUPERVISE)}")
    if chosen := _chosen(row.messages, row.marks, supervise):
        return chosen
    if supervise == "flagged":
        problem = "no turn is marked to be learnt, and data.supervise is flagged"
        raise ValueError(f"{row.where}: {problem}: give one weight: 1, or set data.supervise=answers")
    which = "the last answer" if supervise == "last" else "every answer"
    raise ValueError(f"{row.where}: {which} is marked not to be learnt: drop the row, or change the mark")


def _chosen(messages: Sequence[Turn], marks: Marks, supervise: str) -> set[int]:
    """A mark of the data's own always holds."""
    answers = _answers(messages)
    if supervise == "flagged":
        return {i for i in answers if marks and marks[i]}
    return {i for i in (answers[-1:] if supervise == "last" else answers) if not marks or marks[i] is not False}


def _answers(messages: Sequence[Turn]) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


def _spans(
    tokenizer: Any, messages: Sequence[Turn], tools: Any, where: str, answers: Collection[int]
) -> Iterator[Span]:
    """A conversation, cut before and after each of the turns `answers`; an answer comes with its end token."""
    if tokenizer.chat_template is None:
        yield from _plain_spans(tokenizer, messages, tools, where)
        return
    text, ids = "", list[int]()
    for new_text, turn in _rendered_spans(tokenizer, messages, tools, where, sorted(answers)):
        all_ids = _encode(tokenizer, text + new_text)
        new_ids = _after(tokenizer, ids, all_ids, new_text, where)
        yield Span(new_ids, new_text, turn)
        text, ids = text + new_text, ids + new_ids


def _plain_spans(tokenizer: Any, messages: Sequence[Turn], tools: Any, where: str) -> Iterator[Span]:
    roles = [message["role"] for message in messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise ValueError(
            f"{where}: has turns {', '.join(roles)}, but the tokenizer has no chat template: "
            "give prompt and response, or a tokenizer with one"
        )
    more = [key for message in messages for key in message if key not in ("role", "content")] + ["tools"] * bool(tools)
    if more:
        raise ValueError(f"{where}: has {more[0]}, which the tokenizer has no chat template to write: set one")
    prompt = messages[0]["content"]
    ids = tokenizer(prompt)["input_ids"]
    if ids[-1:] == [tokenizer.eos_token_id] and _encode(tokenizer, prompt) != ids:
        raise ValueError(
            f"{where}: the tokenizer ends prompts with {tokenizer.eos_token!r}: turn its add_eos_token off"
        )
    yield Span(ids, prompt, None)
    if len(messages) == 2:
        answer = messages[1]["content"]
        new_ids = _after(tokenizer, ids, tokenizer(prompt + answer)["input_ids"], answer, where)
        yield Span([*new_ids, tokenizer.eos_token_id], answer + tokenizer.eos_token, 1)


def _after(tokenizer: Any, ids: list[int], all_ids: list[int], text: str, where: str) -> list[int]:
    """Ids of `text`, which follows `ids`; all_ids: of both as one text."""
    if all_ids[: len(ids)] == ids:
        return all_ids[len(ids) :]
    if not _starts_texts_anew(tokenizer):
        return _encode(tokenizer, text)
    for anchor in ANCHORS:
        before = _encode(tokenizer, anchor)
        both = _encode(tokenizer, anchor + text)
        if both[: len(before)] == before:
            return both[len(before) :]
    raise ValueError(
        f"{where}: the tokenizer has no tokens for {text[:20]!r} that begin where an answer does: use another one"
    )


def _starts_texts_anew(tokenizer: Any) -> bool:
    """Whether a text has other ids at its beginning than further on: SentencePiece puts a space before every text."""
    for anchor in ANCHORS:
        before, alone, both = (_encode(tokenizer, text) for text in (anchor, "x", f"{anchor}x"))
        if both[: len(before)] == before:
            return both[len(before) :] != alone
    return False


def _rendered_spans(
    tokenizer: Any, messages: Sequence[Turn], tools: Any, where: str, answers: Sequence[int]
) -> Iterator[tuple[str, int | None]]:
    """What the template writes before each answer, for the answer itself, and after the last.

    Rendering a longer conversation must only add text, or an answer would be trained after another text than it follows
    in use; templates that rewrite earlier answers (Qwen3 drops their reasoning) are refused where more than one answer
    is supervised.
    """
    done = ""
    for i in answers:
        prompt = templates.render(tokenizer, messages[:i], tools, where, add_generation_prompt=True)
        _check_template(tokenizer, tools, where)
        _check_prefix(done, prompt, f"messages[{i - 1}]", where)
        yield prompt[len(done) :], None
        rendered = templates.render(tokenizer, messages[: i + 1], tools, where, add_generation_prompt=False)
        _check_prefix(prompt, rendered, f"messages[{i}]", where)
        answer = _up_to_end_token(tokenizer, rendered[len(prompt) :], where)
        yield answer, i
        done = prompt + answer
    if not answers or answers[-1] < len(messages) - 1:
        asks = messages[-1]["role"] != "assistant"
        rest = templates.render(tokenizer, messages, tools, where, add_generation_prompt=asks)
        _check_template(tokenizer, tools, where)
        _check_prefix(done, rest, f"messages[{len(messages) - 1}]", where)
        yield rest[len(done) :] if asks else rest[len(done) :].rstrip(), None


def _check_template(tokenizer: Any, tools: Any, where: str) -> None:
    template = tokenizer.get_chat_template(tools=tools)
    if found := templates.problem(template):
        shown = f" {template!r}" if templates.is_path(template) else ""
        raise ValueError(f"{where}: the chat template{shown} {found}")


def _check_prefix(shorter: str, longer: str, turn: str, where: str) -> None:
    if longer.startswith(shorter):
        return
    same = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(longer))
    raise ValueError(
        f"{where}: the chat template rewrites earlier text when it adds {turn}: {shorter[same : same + 20]!r} becomes "
        f"{longer[same : same + 20]!r}; split the row into single turns, set "
        "data.supervise=last, or use a template that only adds text"
    )


def _up_to_end_token(tokenizer: Any, answer: str, where: str) -> str:
    """The answer without the white space that templates put after its end token."""
    answer = answer.rstrip()
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if not answer.endswith(tuple(special | {tokenizer.eos_token})):
        raise ValueError(
            f"{where}: the chat template ends an answer with {answer[-20:]!r}, no special token of the tokenizer: "
            "the model would never learn to stop; use a template that ends answers with one"
        )
    return answer


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
