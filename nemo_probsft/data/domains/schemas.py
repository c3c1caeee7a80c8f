"""Published records to rows, one function per schema; `extra_info` is the schema of the authors' own copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_probsft.data import prompts
from nemo_probsft.data.records import half_surrogate

Fields = Mapping[str, Any]  # of a published record
Item = dict[str, Any]  # what is written: a training row, or an item of a test set


class Dropped(Exception):
    """A record that cannot be a row; the reason is counted in the manifest."""


class MissingField(Exception):
    """A record of another schema than the published one; the message is the field."""


def numina_math(record: Fields) -> Item:
    """AI-MO/NuminaMath-CoT, and gaotang/numina-cot-subset-67k."""
    question, answer = _authors(record) if "extra_info" in record else _texts(record, "problem", "solution")
    return _row(prompts.boxed(question), answer)


def m23k(record: Fields) -> Item:
    """UCSC-VLAA/m23k-tokenized without its `reasoning`; `prompt` has the lettered options."""
    question, answer = _texts(record, "prompt", "distilled_answer_string")
    return _row(prompts.boxed(question), answer)


def figfont(record: Fields) -> Item:
    """`figfont.puzzles`, and gaotang/figlet_font."""
    puzzle = figfont_test(record)
    return _row(prompts.figfont(puzzle["question"]), puzzle["answer"])


def figfont_test(record: Fields) -> Item:
    question, answer = _authors(record) if "extra_info" in record else _texts(record, "question", "answer")
    return {"question": question, "answer": answer}


def magpie(record: Fields) -> Item:
    """Magpie-Align/Magpie-Pro-300K-Filtered: the first two turns."""
    turns = _field(record, "conversations")
    if not isinstance(turns, list) or len(turns) < 2:
        raise Dropped("fewer than two turns")
    if (_field(turns[0], "from"), _field(turns[1], "from")) != ("human", "gpt"):
        raise Dropped("does not start with a user's and an assistant's turn")
    return _row(_text(turns[0], "value"), _text(turns[1], "value"))


def evol_instruct(record: Fields) -> Item:
    """WizardLMTeam/WizardLM_evol_instruct_70k."""
    return _row(*_texts(record, "instruction", "output"))


def magicoder(record: Fields) -> Item:
    """ise-uiuc/Magicoder-OSS-Instruct-75K."""
    return _row(*_texts(record, "problem", "solution"))


def muri_it(record: Fields) -> Item:
    """akoksal/muri-it-language-split."""
    return _row(*_texts(record, "input", "output"))


def openbookqa(record: Fields) -> Item:
    """allenai/openbookqa; the answer is the letter."""
    question, answer = _texts(record, "question_stem", "answerKey")
    labels, options = _field(record, "choices.label"), _field(record, "choices.text")
    if not (isinstance(labels, list) and isinstance(options, list) and len(labels) == len(options)):
        raise Dropped("options without letters")
    if answer not in labels:
        raise Dropped("the answer is none of the options")
    return _row(prompts.openbookqa(question, dict(zip(labels, options, strict=True))), answer)


def unchanged(record: Fields) -> Item:
    """A test item as the hub has it, for the evaluation."""
    openbookqa(record)
    return dict(record)


def _authors(record: Fields) -> tuple[str, str]:
    return _texts(record, "extra_info.question", "extra_info.answer")


def _row(prompt: str, response: str) -> Item:
    return {"prompt": prompt, "response": response}


def _texts(record: Fields, first: str, second: str) -> tuple[str, str]:
    return _text(record, first), _text(record, second)


def _text(record: Fields, path: str) -> str:
    value = _field(record, path)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Dropped(f"empty {path}")
    if not isinstance(value, str):
        raise Dropped(f"{path} is no text")
    if half_surrogate(value) is not None:
        raise Dropped(f"half a surrogate pair in {path}")
    return value


def _field(record: Any, path: str) -> Any:
    value = record
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise MissingField(path)
        value = value[name]
    return value
