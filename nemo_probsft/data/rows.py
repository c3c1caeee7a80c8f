"""Files to rows: every row of training data becomes a checked conversation, or one line that says where and why not.

A row is `{"prompt": str, "response": str}` or `{"messages": [{"role": str, "content": str}, ...]}`, other fields aside.
Rows are data only: nothing in them, or in the data set they come from, is executed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

FORMATS = {".jsonl": "JSON lines", ".parquet": "parquet"}
ROLES = ("system", "user", "assistant")
MAX_LINE_BYTES = 1 << 26
DEFAULT_KEYS = ("prompt", "response")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


class Row(NamedTuple):
    """A conversation that ends with an assistant turn; `where` names its file and line for error messages."""

    messages: list[dict[str, str]]
    where: str
    number: int = 0  # the line of a .jsonl file, the row of another source, from 1; 0 of a row that is in none


def read_rows(
    source: str | Path, split: str = "train", *, prompt_key: str = "prompt", response_key: str = "response"
) -> Iterator[Row]:
    """Rows of a `.jsonl` or `.parquet` file, of a directory written by `datasets.save_to_disk`, or of a Hub data set
    (`owner/name`, `owner/name:config`), in the order of the source.

    `split` selects the split of a data set and means nothing for a file. `prompt_key` and `response_key` may be dotted
    paths (`extra_info.question`). Raises ValueError: one line with file, line or row (from 1), field and remedy.
    """
    number = 0
    for record, where, number in _records(source, split):
        row = parse_row(record, where, prompt_key=prompt_key, response_key=response_key)
        yield row._replace(number=number)
    if not number:
        raise ValueError(f"{source}: has no rows: give a source with at least one")


def source_digest(source: str | Path, split: str = "train") -> str:
    """sha256 over the bytes of a file, or over the records of a data set."""
    sha = hashlib.sha256()
    path = Path(source)
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    else:
        for record, _, _ in _records(source, split):
            sha.update(json.dumps(record, sort_keys=True, default=str).encode())
    return sha.hexdigest()


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
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {name} holds half a surrogate pair at character {error.start}: remove it") from None
    return value


def _answer(text: str, name: str, where: str) -> str:
    if not text.strip():
        raise ValueError(f"{where}: {name} is empty: there is no answer to learn; drop the row")
    return text


def _records(source: str | Path, split: str) -> Iterator[tuple[Any, str, int]]:
    """Records with their place in words and as a number, from 1."""
    path = Path(source)
    if path.is_dir():
        return _saved_records(path, split)
    if path.suffix not in FORMATS:
        if path.exists():
            raise ValueError(f"{path}: unknown ending {path.suffix!r}: must be {' or '.join(FORMATS)}")
        if HUB_NAME.fullmatch(str(source)) and path.suffix not in (".json", ".csv", ".txt"):
            return _hub_records(str(source), split)
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file, and not the name of a data set: give a .jsonl or .parquet file, or owner/name"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: is empty (0 bytes): must be a {FORMATS[path.suffix]} file with at least one row")
    return _json_records(path) if path.suffix == ".jsonl" else _parquet_records(path)


def _json_records(path: Path) -> Iterator[tuple[Any, str, int]]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            where = f"{path} line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"{where}: is longer than {MAX_LINE_BYTES} bytes: write one object a line")
            if line.strip():
                yield _json_record(line, where, first=number == 1), where, number


def _json_record(line: bytes, where: str, *, first: bool) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig" if first else "utf-8"), object_pairs_hook=_fields_once)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start + 1} is not UTF-8: save the file as UTF-8") from None
    except RecursionError:
        raise ValueError(f"{where}: is nested too deeply: a row is a flat object") from None
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos + 1}"
        raise ValueError(f"{where}: is not JSON ({reason}): write one object a line") from None
    except ValueError as error:  # a number of thousands of digits, a field given twice
        raise ValueError(f"{where}: is not JSON ({error}): write one object a line") from None


def _fields_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} is given twice")
    return fields


def _parquet_records(path: Path) -> Iterator[tuple[Any, str, int]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            if len(set(file.schema_arrow.names)) < len(file.schema_arrow.names):
                raise pyarrow.ArrowInvalid("two columns have one name")
            for batch in file.iter_batches(batch_size=1024):
                batch.validate(full=True)  # a damaged offset would end the process
                for record in batch.to_pylist():
                    number += 1
                    yield record, f"{path} row {number}", number
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, MemoryError, OverflowError) as error:
        raise ValueError(
            f"{path}: is not readable as parquet after row {number} ({_first_line(error)}): write it again"
        ) from None


def _saved_records(directory: Path, split: str) -> Iterator[tuple[Any, str, int]]:
    if not any((directory / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise ValueError(
            f"{directory}: is a directory: give a .jsonl or .parquet file, or a directory of datasets.save_to_disk"
        )
    import datasets

    data = _readable(directory, lambda: datasets.load_from_disk(str(directory)))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise ValueError(f"{directory}: has no split {split!r}: its splits are {', '.join(data)}")
        data = data[split]
    _readable(directory, lambda: data.data.table.validate(full=True))  # a damaged offset would end the process
    return _numbered(data, str(directory))


def _readable(directory: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # datasets believes what stands in the directory, and trips over it anywhere
        raise ValueError(
            f"{directory}: is not readable as a saved data set ({_first_line(error)}): save it again"
        ) from None


def _hub_records(source: str, split: str) -> Iterator[tuple[Any, str, int]]:
    import datasets

    name, _, config = source.partition(":")
    try:
        data = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{source}: neither a file nor a data set with split {split!r} ({_first_line(error)}): check the name"
        ) from None
    return _numbered(data, source)


def _numbered(data: Any, source: str) -> Iterator[tuple[Any, str, int]]:
    return ((record, f"{source} row {number}", number) for number, record in enumerate(data, 1))


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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
