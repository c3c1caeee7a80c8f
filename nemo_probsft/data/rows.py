"""Records to rows: every record of training data becomes a checked conversation, or an error of one line.

A row is `{"prompt": str, "response": str}` or `{"messages": [{"role": str, "content": str}, ...]}` and may have
`tools`. The names of its other fields are kept for the decisions: nothing is made of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from nemo_probsft.data import records, turns
from nemo_probsft.data.records import Record

FORMATS = (".jsonl", ".parquet")
DEFAULT_KEYS = ("prompt", "response")
# What other data sets call the two fields, the likeliest first: an error suggests what it finds.
PROMPT_NAMES = ("problem", "question", "instruction", "query", "input", "prompt", "text")
RESPONSE_NAMES = ("solution", "response", "output", "completion", "answer", "target", "label")
HUB_NAME = re.compile(rf"{records.HUB_NAME.pattern}(:[\w.-]+)?")  # owner/name, owner/name:config


@dataclass(frozen=True)
class Row:
    """A conversation that ends with an assistant turn; `where` names its file and line for error messages."""

    messages: list[turns.Turn]
    where: str
    number: int = 0  # of its record; 0 of a row that comes from none
    tools: list[dict[str, Any]] | None = None  # JSON schemas
    marks: turns.Marks = ()  # of each turn: whether the data has it learnt; see turns.parse_turns
    unused: tuple[str, ...] = field(default=(), compare=False)  # fields of the record that nothing is made of


def read_rows(
    source: str | Path,
    split: str = "train",
    *,
    prompt_key: str = "prompt",
    response_key: str = "response",
    max_rows: int | None = None,
    refused: Callable[[ValueError], None] | None = None,
) -> Iterator[Row]:
    """Rows of a `.jsonl` or `.parquet` file, of a directory written by `datasets.save_to_disk`, or of a Hub data set
    (`owner/name`, `owner/name:config`), in the order of the source.

    `split` selects the split of a data set and means nothing for a file. `prompt_key` and `response_key` may be dotted
    paths (`extra_info.question`). max_rows: of the source, from its beginning. refused: is given what a bad row is
    refused for, and reading goes on. Raises ValueError: one line with file, line or row (from 1), field and remedy.
    """
    number = 0
    for fields, where, number in islice(_records(source, split, refused), max_rows):
        try:
            row = parse_row(fields, where, prompt_key=prompt_key, response_key=response_key)
        except ValueError as error:
            if refused is None:
                raise
            refused(error)
            continue
        yield dataclasses.replace(row, number=number)
    if not number and refused is None:
        raise ValueError(f"{source}: has no rows: give a source with at least one")


def num_lines(source: str | Path) -> int | None:
    """Lines of a `.jsonl` file, rows of a `.parquet` file: at most so many rows. None for another source."""
    path = Path(source)
    if not path.is_file() or path.suffix not in FORMATS:
        return None
    return records.num_lines(path) if path.suffix == ".jsonl" else records.count_records(path)


def source_digest(source: str | Path, split: str = "train") -> str:
    """sha256 over the bytes of a file, or over the records of a data set."""
    return records.digest(Path(source), lambda: _records(source, split))


def _records(source: str | Path, split: str, refused: Callable[[ValueError], None] | None = None) -> Iterator[Record]:
    path = Path(source)
    if path.is_dir():
        if not records.is_saved(path):
            raise ValueError(
                f"{path}: is a directory: give a .jsonl or .parquet file, or a directory of datasets.save_to_disk"
            )
        return _without_nulls(records.numbered(records.saved_data_set(path, split), str(path)))
    if path.is_file():
        if path.suffix not in FORMATS:
            raise ValueError(f"{path}: unknown ending {path.suffix!r}: must be {' or '.join(FORMATS)}")
        return records.read_file(path, refused) if path.suffix == ".jsonl" else _without_nulls(records.read_file(path))
    if not path.exists() and HUB_NAME.fullmatch(str(source)) and path.suffix not in (*records.READERS, ".csv", ".txt"):
        name, _, config = str(source).partition(":")
        return _without_nulls(records.numbered(records.hub_data_set(name, config or None, split)[0], str(source)))
    raise ValueError(
        f"{path}: no such file, and not the name of a data set: give a .jsonl or .parquet file, or owner/name"
    )


def _without_nulls(found: Iterator[Record]) -> Iterator[Record]:
    """Arrow gives every tool call of a column the arguments of all of them, null where a call has none."""
    for record in found:
        nested = {key: _filled(record.fields[key]) for key in ("messages", "tools") if record.fields.get(key)}
        yield record._replace(fields={**record.fields, **nested}) if nested else record


def _filled(value: Any) -> Any:
    if isinstance(value, list):
        return [_filled(inner) for inner in value]
    if isinstance(value, Mapping):
        return {key: _filled(inner) for key, inner in value.items() if inner is not None or key == "content"}
    return value


def parse_row(record: Any, where: str, *, prompt_key: str = "prompt", response_key: str = "response") -> Row:
    """Check one record; both forms of a row come out as messages."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: is a JSON {turns.json_type(record)}: each row must be an object with its fields")
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
        messages, marks = turns.parse_turns(record["messages"], where)
        used = {"messages", "tools"}
    else:
        prompt = turns.text(_field(record, prompt_key, where), prompt_key, where)
        response = turns.answer(_field(record, response_key, where), response_key, where)
        messages, marks = turns.conversation(prompt, response), ()
        used = {key if key in record else key.split(".")[0] for key in (prompt_key, response_key)} | {"tools"}
    unused = tuple(key for key, value in record.items() if key not in used and value is not None)
    return Row(messages, where, tools=turns.parse_tools(record.get("tools"), where), marks=marks, unused=unused)


def _field(record: Mapping[str, Any], key: str, where: str) -> Any:
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"{where}: has no field {key!r}: its fields are {turns.fields(record)}; {_remedy(record)}")
        value = value[part]
    return value


def _remedy(record: Mapping[str, Any]) -> str:
    if "conversations" in record:  # ShareGPT's form, from and value
        return "write messages with role and content"
    prompt = next((name for name in PROMPT_NAMES if name in record), "...")
    response = next((name for name in RESPONSE_NAMES if name in record), "...")
    keys = {"data.prompt_key": prompt, "data.response_key": response}
    other = [f"{key}={name}" for key, name in keys.items() if name != key.removeprefix("data.").removesuffix("_key")]
    return f"rename one of them, or set {' '.join(other)}"
