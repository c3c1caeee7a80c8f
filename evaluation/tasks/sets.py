"""Test sets: a local file of JSON lines or parquet in --data-dir, else the data set of that name on the hub."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nemo_probsft.data import records
from nemo_probsft.data.records import Record

FORMATS = (".jsonl", ".parquet")
Row = dict[str, Any]


def read_set(
    *,
    data_dir: str | None,
    file: str,
    dataset: str,
    fields: list[str],
    document: Callable[[Row], Row],
    hint: str = "",
) -> list[Row]:
    """A document of every row of `data_dir`/`file`.jsonl or .parquet; without a data_dir, of `dataset`.

    dataset: "owner/name@split" or "owner/name:configuration@split". document: from a row with `fields` only; it raises
    ValueError for a row that cannot be right. hint: another way to a missing set, for messages.
    Raises: ValueError of one line that names the file and the line or row, or the path where a missing set belongs.
    """
    if data_dir is None:
        return checked(_hub_records(dataset), fields, dataset, document)
    found = [path for path in (Path(data_dir) / f"{file}{ending}" for ending in FORMATS) if path.is_file()]
    if not found:
        wanted = f"{Path(data_dir) / file}.jsonl (or .parquet): test set not found"
        layout = f"one object a line with the fields {', '.join(fields)}"
        raise ValueError(f"{wanted}; put {dataset} (`datasets`) there, {layout}{hint and ', or '}{hint}")
    return checked(records.read_file(found[0]), fields, str(found[0]), document)


def checked(found: Iterable[Record], fields: list[str], source: str, document: Callable[[Row], Row]) -> list[Row]:
    """A document of every record. Raises: ValueError for the first one that cannot be right, or when there is none."""
    documents = [_document(record, fields, document) for record in found]
    if not documents:
        raise ValueError(f"{source}: the test set has no rows; expected one object with {', '.join(fields)} a line")
    return documents


def _document(record: Record, fields: list[str], document: Callable[[Row], Row]) -> Row:
    content, where, _ = record
    lacking = [field for field in fields if not isinstance(content, Mapping) or field not in content]
    if lacking:
        raise ValueError(f"{where}: no {lacking[0]!r} in the row; every row needs {', '.join(fields)}")
    broken = [field for field in fields if _is_broken(content[field])]
    if broken:
        raise ValueError(f"{where}: {broken[0]} holds half a surrogate pair; remove it")
    try:
        return document({field: content[field] for field in fields})
    except ValueError as error:
        raise ValueError(f"{where}: {error}; correct the row, or take it out") from None


def _is_broken(value: Any) -> bool:
    """Whether a text in `value`, at any depth, cannot be written as UTF-8."""
    if isinstance(value, str):
        return records.half_surrogate(value) is not None
    if isinstance(value, Mapping):
        return any(map(_is_broken, [*value, *value.values()]))
    return isinstance(value, list) and any(map(_is_broken, value))


def _hub_records(dataset: str) -> Iterable[Record]:
    name, _, split = dataset.partition("@")
    path, _, configuration = name.partition(":")
    remedy = "give a local copy with --data-dir"
    data, _commit = records.hub_data_set(path, configuration or None, split, remedy=remedy)
    return records.numbered(data, dataset)
