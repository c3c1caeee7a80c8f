"""What a field of a test set's row must be. A row that cannot be right is an error, not a score of 0 for every model.

Every function raises ValueError with the field and the value seen; `sets.read_set` puts file and row before it.
"""

import math
from collections.abc import Mapping
from typing import Any

SHOWN = 60  # characters of a value in an error


def text_of(row: Mapping[str, Any], field: str, *, may_be_empty: bool = False) -> str:
    """A text, by default one that says something."""
    value = row[field]
    if not isinstance(value, str):
        raise ValueError(f"{field} is {shown(value)}: must be a text")
    if not may_be_empty and not value.strip():
        raise ValueError(f"{field} is {shown(value)}: must be a text that is not empty")
    return value


def texts_of(row: Mapping[str, Any], field: str) -> list[str]:
    """A list of texts, which may be empty."""
    value = row[field]
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ValueError(f"{field} is {shown(value)}: must be a list of texts")
    return value


def options_of(texts: Mapping[str, Any], field: str) -> dict[str, str]:
    """letter -> text, at least two. Null, as a parquet column of structs has it, is no option; numbers are written."""
    options = {letter: text for letter, text in texts.items() if text is not None}
    for letter, text in options.items():
        if not (isinstance(letter, str) and len(letter) == 1 and "A" <= letter <= "Z"):
            raise ValueError(f"{field} has {shown(letter)} for a letter: must be one capital from A to Z")
        if not (isinstance(text, str) or _is_number(text)):
            raise ValueError(f"option {letter} of {field} is {shown(text)}: must be a text")
    if len(options) < 2:
        raise ValueError(f"{field} has {len(options)} options: must have at least two")
    return {letter: str(text) for letter, text in options.items()}


def letter_of(row: Mapping[str, Any], field: str, options: Mapping[str, str]) -> str:
    """The letter of one of `options` that says something."""
    value = row[field]
    if not isinstance(value, str) or not options.get(value, "").strip():
        raise ValueError(f"{field} is {shown(value)}: must be the letter of an option, one of {', '.join(options)}")
    return value


def answer_of(value: Any, field: str) -> str:
    """A text or a finite number, also as a list of one; a whole float without ".0"."""
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError(f"{field} has {len(value)} answers: must have one")
        (value,) = value
    if _is_number(value):
        return str(int(value) if value == int(value) else value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field} is {shown(value)}: must be a number or a text that is not empty")
    return value


def shown(value: Any) -> str:
    """A value as JSON users know it, cut where it is long."""
    said = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else repr(value)
    assert said is not None
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}..."


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
