"""The one reader of records: JSON lines, a JSON list, parquet, a saved data set, a data set of the hub.

Training rows, domain sources and evaluation sets all come from here. Every record carries its place, and what cannot be
read is a ValueError of one line that names the place. Nothing in a data set is executed: no loading scripts, no pickle.
pyarrow and datasets are imported where they are needed, because the evaluation's environment imports this file, too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from nemo_probsft.files import first_line, sha256_of

SAVED = ("state.json", "dataset_dict.json")  # what `datasets.save_to_disk` leaves behind
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # owner/name
COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_RECORD = 1 << 26  # bytes of a line, characters of an object in a list
BLOCK = 1 << 20  # characters of a list that are read at once
SPACE = " \t\r\n"  # what JSON allows between values
FIRST, NEXT = re.compile(r"[ \t\r\n]*"), re.compile(r"[ \t\r\n]*,[ \t\r\n]*")  # what stands before an object of a list


class Record(NamedTuple):
    """What one line, object or row holds; `where` is its place in words, for errors."""

    fields: Any  # a JSON value: whoever uses it checks that it is an object
    where: str
    number: int  # of the line in a .jsonl file, of the object or row elsewhere, from 1


def read_file(path: Path, refused: Callable[[ValueError], None] | None = None) -> Iterator[Record]:
    """The records of a .jsonl, .json (one list) or .parquet file in their order, never all of them in memory.

    refused: is given what a line of a .jsonl file is refused for, and the next line is read.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path}: unknown ending {path.suffix!r}: must be one of {', '.join(READERS)}")
    form, read = READERS[path.suffix]
    try:
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: is empty (0 bytes): must be a {form} file with at least one row")
        yield from _json_lines(path, refused) if path.suffix == ".jsonl" else read(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}): check its permissions and its disk") from None


def count_records(path: Path) -> int:
    """How many records `read_file` gives; a parquet file says so itself."""
    if path.suffix != ".parquet":
        return sum(1 for _ in read_file(path))
    from pyarrow import parquet

    with _readable_parquet(path, lambda: 0):
        return parquet.read_metadata(path).num_rows


def num_lines(path: Path) -> int:
    """Lines of a text file, at the speed of the disk."""
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(BLOCK), b""))


def is_saved(directory: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote the directory."""
    return any((directory / name).is_file() for name in SAVED)


def saved_data_set(directory: Path, split: str) -> Any:
    """The `datasets.Dataset` that `save_to_disk` wrote; of several splits, `split`."""
    import datasets

    data = _as_saved(directory, lambda: datasets.load_from_disk(str(directory)))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise ValueError(f"{directory}: has no split {split!r}: its splits are {', '.join(data)}")
        data = data[split]
    _as_saved(directory, lambda: data.data.table.validate(full=True))  # a damaged offset would end the process
    return data


def hub_data_set(
    name: str,
    config: str | None,
    split: str,
    revision: str | None = None,
    *,
    remedy: str = "check the name, or give a local copy",
) -> tuple[Any, str]:
    """A `datasets.Dataset` of the hub, and its commit.

    Without a revision it is the newest commit or, when the hub is out of reach, the one in the cache.
    """
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        commit = None if revision is None else _commit(name, revision)
        builder = datasets.load_dataset_builder(name, config, revision=commit)
        if commit is not None and builder.hash != commit:  # datasets takes what the cache has where it finds no other
            raise ValueError(f"only commit {builder.hash} could be had, and revision {revision} is {commit}")
        return datasets.load_dataset(name, config, split=split, revision=builder.hash), builder.hash
    except (OSError, ValueError, datasets.exceptions.DatasetsError, HfHubHTTPError) as error:
        raise ValueError(f"{name}: split {split!r} could not be loaded ({first_line(error)}): {remedy}") from None


def numbered(data: Any, name: str) -> Iterator[Record]:
    """The rows of a `datasets.Dataset` as records."""
    return (Record(fields, f"{name} row {number}", number) for number, fields in enumerate(data, 1))


def digest(path: Path, records: Callable[[], Iterator[Record]]) -> str:
    """sha256 over the bytes of a file, or over the records of what is no file."""
    if path.is_file():
        return sha256_of(path)
    sha = hashlib.sha256()
    for record in records():
        sha.update(json.dumps(record.fields, sort_keys=True, default=str).encode())
    return sha.hexdigest()


def parse_json(text: bytes, where: str, *, first: bool = True, remedy: str = "write one object a line") -> Any:
    """The one JSON value of `text`. first: it begins a file, where a byte order mark may stand."""
    try:
        return json.loads(text.decode("utf-8-sig" if first else "utf-8"), object_pairs_hook=_fields_once)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start + 1} is not UTF-8: save the file as UTF-8") from None
    except RecursionError:
        raise ValueError(f"{where}: is nested too deeply: a row is a flat object") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: is not JSON ({error.msg} at character {error.pos + 1}): {remedy}") from None
    except ValueError as error:  # a number of thousands of digits, a field given twice
        raise ValueError(f"{where}: is not JSON ({first_line(error)}): {remedy}") from None


def half_surrogate(text: str) -> int | None:
    """Where `text` holds half a surrogate pair, which JSON can spell and UTF-8 cannot; None where it does not."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _json_lines(path: Path, refused: Callable[[ValueError], None] | None = None) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_RECORD + 1), b""), 1):
            where = f"{path} line {number}"
            if len(line) > MAX_RECORD:
                raise ValueError(f"{where}: is longer than {MAX_RECORD} bytes: write one object a line")
            if not line.strip():
                continue
            try:
                fields = parse_json(line, where, first=number == 1)
            except ValueError as error:
                if refused is None:
                    raise
                refused(error)
                continue
            yield Record(fields, where, number)


def _json_list(path: Path) -> Iterator[Record]:
    number = 0
    remedy = "write one list of objects, or one object a line and name the file .jsonl"
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for number, fields in enumerate(_objects(stream), 1):
                yield Record(fields, f"{path} object {number}", number)
    except UnicodeDecodeError:
        raise ValueError(f"{path} after object {number}: is not UTF-8: save the file as UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path} object {number + 1}: is nested too deeply: a row is a flat object") from None
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
        raise ValueError(f"{path} object {number + 1}: is not readable as a JSON list ({reason}): {remedy}") from None


def _objects(stream: TextIO) -> Iterator[Any]:
    """The objects of one JSON list, with one block and one object in memory."""
    decoder = json.JSONDecoder(object_pairs_hook=_fields_once)
    if stream.read(1) != "[":
        raise ValueError("no [ at its beginning")
    text, before = "", FIRST
    while block := stream.read(BLOCK):
        text, at = text + block, 0
        while (start := before.match(text, at)) and text.startswith("{", start.end()):
            try:
                fields, at = decoder.raw_decode(text, start.end())
            except json.JSONDecodeError:  # it may end in the next block
                break
            yield fields
            before = NEXT
        text = text[at:]
        if len(text) > MAX_RECORD:
            raise ValueError(f"it is broken, or longer than {MAX_RECORD} characters")
    if text.strip(SPACE) != "]":
        _explain(decoder, text, before)


def _explain(decoder: json.JSONDecoder, rest: str, before: re.Pattern[str]) -> None:
    """Raise ValueError for what stands where the next object or the end of a list must come."""
    start = before.match(rest)
    if start and rest.startswith("{", start.end()):
        decoder.raw_decode(rest, start.end())
    if not rest.strip(SPACE + ","):
        raise ValueError("no ] at its end")
    raise ValueError(f"an object or the final ] must come, not {rest.strip(SPACE)[:20]!r}")


def _parquet(path: Path) -> Iterator[Record]:
    from pyarrow import parquet

    number = 0
    with _readable_parquet(path, lambda: number), parquet.ParquetFile(path) as file:
        if len(set(file.schema_arrow.names)) < len(file.schema_arrow.names):
            raise ValueError("two columns have one name")
        for batch in file.iter_batches(batch_size=1024):
            batch.validate(full=True)  # a damaged offset would end the process
            for fields in batch.to_pylist():
                number += 1
                yield Record(fields, f"{path} row {number}", number)


@contextmanager
def _readable_parquet(path: Path, row: Callable[[], int]) -> Iterator[None]:
    """One line for whatever pyarrow raises after so many rows."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        reason = first_line(error)
        raise ValueError(f"{path}: is not readable as parquet after row {row()} ({reason}): write it again") from None


READERS: dict[str, tuple[str, Callable[[Path], Iterator[Record]]]] = {
    ".parquet": ("parquet", _parquet),
    ".jsonl": ("JSON lines", _json_lines),
    ".json": ("JSON list", _json_list),
}


def _fields_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} is given twice")
    return fields


def _as_saved(directory: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # datasets believes what stands in the directory, and trips over it anywhere
        raise ValueError(
            f"{directory}: is not readable as a saved data set ({first_line(error)}): save it again"
        ) from None


def _commit(name: str, revision: str) -> str | None:
    """Of a branch or tag, which `datasets` would otherwise replace by the cached commit when it does not exist."""
    if COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    return HfApi().dataset_info(name, revision=revision).sha
