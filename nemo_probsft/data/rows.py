"""Records to rows: every record of training data becomes a checked conversation, or an error of one line.

A row is `{"prompt": str, "response": str}` or `{"messages": [{"role": str, "content": str}, ...]}`, other fields aside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nemo_probsft.data import records
from nemo_probsft.data.records import Record

FORMATS = (".jsonl", ".parquet")
ROLES = ("system", "user", "assistant")
DEFAULT_KEYS = ("prompt", "response")
HUB_NAME = re.compile(rf"{records.HUB_NAME.pattern}(:[\w.-]+)?")  # owner/name, owner/name:config


class Row(NamedTuple):
    """A conversation that ends with an assistant turn; `where` names its file and line for error messages."""

    messages: list[dict[str, str]]
    where: str
    number: int = 0  # of its record; 0 of a row that comes from none


def read_rows(
    source: str | Path, split: str = "train", *, prompt_key: str = "prompt", response_key: str = "response"
) -> Iterator[Row]:
    """Rows of a `.jsonl` or `.parquet` file, of a directory written by `datasets.save_to_disk`, or of a Hub data set
    (`owner/name`, `owner/name:config`), in the order of the source.

    `split` selects the split of a data set and means nothing for a file. `prompt_key` and `response_key` may be dotted
    paths (`extra_info.question`). Raises ValueError: one line with file, line or row (from 1), field and remedy.
    """
    number = 0
    for fields, where, number in _records(source, split):
        row = parse_row(fields, where, prompt_key=prompt_key, response_key=response_key)
        yield row._replace(number=number)
    if not number:
        raise ValueError(f"{source}: has no rows: give a source with at least one")


def source_digest(source: str | Path, split: str = "train") -> str:
    """sha256 over the bytes of a file, or over the records of a data set."""
    return records.digest(Path(source), lambda: _records(source, split))


def _records(source: str | Path, split: str) -> Iterator[Record]:
    path = Path(source)
    if path.is_dir():
        if not records.is_saved(path):
            raise ValueError(
                f"{path}: is a directory: give a .jsonl or .parquet file, or a directory of datasets.save_to_disk"
            )
        return records.numbered(records.saved_data_set(path, split), str(path))
    if path.is_file():
        if path.suffix not in FORMATS:
            raise ValueError(f"{path}: unknown ending {path.suffix!r}: must be {' or '.join(FORMATS)}")
        return records.read_file(path)
    if not path.exists() and HUB_NAME.fullmatch(str(source)) and path.suffix not in (*records.READERS, ".csv", ".txt"):
        name, _, config = str(source).partition(":")
        return records.numbered(records.hub_data_set(name, config or None, split)[0], str(source))
    raise ValueError(
        f"{path}: no such file, and not the name of a data set: give a .jsonl or .parquet file, or owner/name"
    )


def parse_row(record: Any, where: str, *, prompt_key: str = "prompt", response_key: str = "response") -> Row:
    """Check one record; both forms of a row come out as messages."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: is a JSON {_json_type(record)}: each row must be an object with its fields")
    if "messages" in record:
        if response_key in record:
            raise ValueError(
                f"{where}: has both messages and {response_key}: keep one, they are two ways to say the answer"
            )
        if (prompt_key, response_key) != DEFAULT_KEYS:
            raise ValueError(
                f"{where}: has messages, so data.prompt_key {prompt_key!r} and data.response_key {response_key!r} "
                "would mean nothing: remove the keys from the recipe, or messages from the row"
            )
        return Row(_messages(record["messages"], where), where)
    prompt = _text(_field(record, prompt_key, where), prompt_key, where)
    response = _text(_field(record, response_key, where), response_key, where)
    return Row(
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": _answer(response, response_key, where)}],
        where,
    )


def _messages(turns: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: messages is {_describe(turns)}: must be a list of turns with role and content")
    messages = []
    for i, turn in enumerate(turns):
        name = f"messages[{i}]"
        if not isinstance(turn, Mapping):
            raise ValueError(f"{where}: {name} is {_describe(turn)}: must be an object with role and content")
        for key in ("role", "content"):
            if key not in turn:
                raise ValueError(f"{where}: {name} has no {key}: its fields are {_fields(turn)}")
        role, content = turn["role"], _text(turn["content"], f"{name}.content", where)
        if role not in ROLES:
            raise ValueError(f"{where}: {name}.role is {role!r}: must be one of {', '.join(ROLES)}")
        messages.append(
            {"role": role, "content": _answer(content, f"{name}.content", where) if role == "assistant" else content}
        )
    _check_order([message["role"] for message in messages], where)
    return messages


def _check_order(roles: list[str], where: str) -> None:
    start = int(roles[0] == "system")
    expected = ["user", "assistant"] * len(roles)
    for i, role in enumerate(roles[start:]):
        if role != expected[i]:
            raise ValueError(
                f"{where}: messages[{i + start}].role is {role!r} where {expected[i]!r} must come: "
                "roles are an optional system, then user and assistant in turn"
            )
    if roles[-1] != "assistant":
        raise ValueError(f"{where}: the last turn is {roles[-1]!r}: a row must end with the assistant's answer")


def _field(record: Mapping[str, Any], key: str, where: str) -> Any:
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"{where}: has no field {key!r}: its fields are {_fields(record)}; rename one of them")
        value = value[part]
    return value


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} is {_describe(value)}: must be a string")
    half = records.half_surrogate(value)
    if half is not None:
        raise ValueError(f"{where}: {name} holds half a surrogate pair at character {half}: remove it")
    return value


def _answer(text: str, name: str, where: str) -> str:
    if not text.strip():
        raise ValueError(f"{where}: {name} is empty: there is no answer to learn; drop the row")
    return text


def _fields(record: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, record)) or "none"


def _describe(value: Any) -> str:
    if isinstance(value, (list, Mapping, str)) and not value:
        return f"an empty {_json_type(value)}"
    return "null" if value is None else f"a JSON {_json_type(value)}"


def _json_type(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "boolean",
        int: "number",
        float: "number",
        str: "string",
        list: "array",
        dict: "object",
    }
    return names.get(type(value), type(value).__name__)
